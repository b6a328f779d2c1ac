"""What all verbs share: flags, quiet libraries, errors that take one line, exit codes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import pathlib
import sys
import traceback

from absl.flags import argparse_flags

from tf_dpdiff.data import problems

DONE, FAILED, WRONG_USE = 0, 1, 2
NOT_TO_BE_RELEASED = 'not to be released'  # Stands beside whatever is computed from private images without noise.


class UsageError(ValueError):
    """The command was called in a way that cannot work."""


class Parser(argparse_flags.ArgumentParser):
    """Parses flags; says what is wrong in one line."""

    def __init__(self, verb: str, description: str):
        super().__init__(prog=verb, description=description, allow_abbrev=False)
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def add_gin_flags(self, *, is_one_process: bool = False) -> None:
        """Adds --gin_file, --gin_param and --strategy; of a verb that is for one process, without those of several."""
        self.add_argument(
            '--gin_file',
            action='append',
            default=[],
            metavar='FILE',
            help='configuration; may be given several times, later ones win',
        )
        self.add_argument(
            '--gin_param',
            action='append',
            default=[],
            metavar="'A.B=VALUE'",
            help='a binding that wins over the files; may be given several times, later ones win',
        )
        several = '' if is_one_process else ', multi_worker_mirrored (several machines)'
        self.add_argument(
            '--strategy',
            metavar='NAME',
            help=f'on what to compute: default (one device), mirrored (all GPUs here){several} or tpu; more by '
            'StrategyConfig in the configuration',
        )

    def error(self, message: str):
        """Ends the process with exit code 2."""
        print(f'{self.prog}: error: {message} (--help lists the flags)', file=sys.stderr)
        sys.exit(WRONG_USE)


def run(parser: Parser, main: Callable[..., int], argv: list[str] | None) -> int:
    """Runs a verb and returns its exit code: 0 done, 1 failed, 2 wrong use.

    An error is shown as one line; with --debug its traceback goes before it.

    Args:
      parser: Of its flags.
      main: The verb, by its flags.
      argv: The flags; None: those of this process.
    """
    flags = parser.parse_args(argv)
    try:
        return main(flags)
    except KeyboardInterrupt:
        return _fail(parser, flags, 'interrupted; what was saved stands', FAILED)
    except problems.ProblemsError as error:  # A line each; gin adds one of its own to its words.
        return _fail(parser, flags, error.text, WRONG_USE)
    except (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        return _fail(parser, flags, _one_line(error), WRONG_USE)
    except FloatingPointError as error:  # Training or sampling has left the finite numbers.
        return _fail(parser, flags, _one_line(error), FAILED)
    except MemoryError:
        return _fail(
            parser, flags, 'out of memory; lower FinetuningConfig.units_per_chunk or GenerateConfig.chunk_size', FAILED
        )
    except OSError as error:
        where = f': {error.filename}' if error.filename else ''
        return _fail(parser, flags, f'{error.strerror or _one_line(error)}{where}', FAILED)
    except Exception as error:
        return _fail(parser, flags, f'{type(error).__name__}: {_one_line(error)} (--debug shows where)', FAILED)


@contextlib.contextmanager
def stopping(verb: str) -> Iterator[list[str]]:
    """A context in which training may be asked to stop, which is then said in one line.

    Yields:
      An empty list; after the block it holds what was said, if there was a stop.
    """
    from tf_dpdiff.training import interruption  # TensorFlow takes seconds that --help need not wait for.

    said: list[str] = []
    try:
        yield said
    except interruption.Interrupted as stopped:
        said.append(str(stopped))
        print(f'{verb}: {stopped}. The same command goes on from there.', file=sys.stderr)


def say(verb: str, sentences: Iterable[str]) -> None:
    """Prints a line a sentence, on standard error."""
    for sentence in sentences:
        print(f'{verb}: {sentence}.', file=sys.stderr)


def facts_table(title: str, rows: Iterable[tuple[str, str]] = ()):
    """Returns a rich table of a name and a fact a row, to which `add_row` adds."""
    from rich import table as rich_table

    table = rich_table.Table(title=title, show_header=False, title_justify='left')
    table.add_column(no_wrap=True)
    table.add_column(overflow='fold')
    for row in rows:
        table.add_row(*row)
    return table


def numbers_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1):
    """Returns a rich table of names and then numbers a row, below a header."""
    from rich import table as rich_table

    table = rich_table.Table(title=title, title_justify='left')
    for column, name in enumerate(header):
        table.add_column(name, justify='left' if column < num_names else 'right', no_wrap=column >= num_names)
    for row in rows:
        table.add_row(*row)
    return table


def quieten_libraries() -> None:
    """Keeps TensorFlow's advice to its own developers off the terminal."""
    import tensorflow as tf

    tf.get_logger().setLevel('ERROR')


def add_samples_flags(parser: Parser) -> None:
    """Adds the flags that `find_samples` reads."""
    parser.add_argument('--workdir', default='runs/latest', help='folder of the run (default: %(default)s)')
    parser.add_argument(
        '--samples',
        nargs='+',
        action='extend',
        metavar='PATH',
        help="what bin/sample wrote, a file or folder; several are joined (default: the run's samples, and its matched "
        'images where it has any)',
    )


def find_samples(flags) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """Returns the folder of a run, which need not be there, and where the named samples are; none: those of the run."""
    return pathlib.Path(flags.workdir).expanduser(), [pathlib.Path(path).expanduser() for path in flags.samples or ()]


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _fail(parser: Parser, flags, message: str, code: int) -> int:
    if flags.debug:
        traceback.print_exc()
    print(f'{parser.prog}: error: {message}', file=sys.stderr)
    return code
