"""What benchmarks have in common: cases that start together, the flags that present results, and tables."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import json
import pathlib
import sys

from benchmarks import measuring


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: Above it in the terminal.
      columns: Their heads.
      rows: The cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self):
        """Prints it for the terminal."""
        from rich import console
        from rich import table as table_lib

        table = table_lib.Table()
        for index, column in enumerate(self.columns):
            table.add_column(column, justify='right' if index else 'left')
        for row in self.rows:
            table.add_row(*row)
        out = console.Console(width=None if sys.stdout.isatty() else 120)
        out.print(f'\n{self.title}', highlight=False)
        out.print(table)

    def markdown(self):
        """Returns it as Markdown."""
        lines = [self.columns, ['---', *['--:'] * (len(self.columns) - 1)], *self.rows]
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def start_all(stack, starts):
    """Starts cases at the same time, which takes the time of the slowest, and returns them.

    Args:
      stack: contextlib.ExitStack that ends them.
      starts: Functions that return a measuring.Case.

    Raises:
      measuring.CaseError: if one of them does not start.
    """
    with futures.ThreadPoolExecutor(len(starts)) as pool:
        starting = [pool.submit(start) for start in starts]
    failed = [future.exception() for future in starting if future.exception()]
    cases = [stack.enter_context(future.result()) for future in starting if not future.exception()]
    if failed:
        raise failed[0]
    return cases


def run(parser, *, measure, tables, draw):
    """Measures and writes, or presents what was measured before, as the flags say.

    Args:
      parser: Of the benchmark's own flags; those of presenting are added.
      measure: From the flags to the results, JSON-able values by name.
      tables: From what is in the file to tables.
      draw: Draws what is in the file; takes the results and a path.
    """
    parser.add_argument('--output', type=pathlib.Path, help='JSON file of the results (default: print only)')
    parser.add_argument(
        '--markdown', action='store_true', help='print the tables of --output as Markdown, measure nothing'
    )
    parser.add_argument('--picture', type=pathlib.Path, help='draw --output to this PNG file, measure nothing')
    flags = parser.parse_args()
    if flags.markdown or flags.picture:
        path = flags.output or measuring.ROOT / 'benchmarks' / f'{pathlib.Path(sys.argv[0]).stem}.json'
        try:
            results = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            parser.error(f'no results in {path}: {error}; measure first, with --output={path}.')
        if flags.markdown:
            print('\n\n'.join(table.markdown() for table in tables(results)))
        if flags.picture:
            draw(results, flags.picture)
        return
    if flags.output and not flags.output.parent.is_dir():
        parser.error(f'no such folder: {flags.output.parent}.')
    try:
        results = measure(flags)
    except measuring.CaseError as error:
        sys.exit(f'{parser.prog}: error: {error}')
    for table in tables(results):
        table.print()
    if flags.output:
        measuring.write_results(flags.output, **results)


def check(parser_error, *conditions):
    """Ends with the message of the first (condition, message) whose condition does not hold."""
    for holds, message in conditions:
        if not holds:
            parser_error(message)
