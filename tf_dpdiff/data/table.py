"""Tables that say what files are: CSV with commas, semicolons or tabs, or a JSON object a line."""

import contextlib
import csv
import dataclasses
import difflib
import io
import json
import pathlib
from typing import Any

from tf_dpdiff.data import problems as problems_lib

SUFFIXES = ('.csv', '.tsv', '.jsonl', '.ndjson')

_JSON_SUFFIXES = ('.jsonl', '.ndjson')
_DELIMITERS = (',', ';', '\t')


@dataclasses.dataclass(frozen=True)
class Table:
    """What a table says, a row an entry.

    Attributes:
      file: The file.
      values: Columns by their names, each with one value a row: texts, or what JSON has.
      lines: The line of the file at which each row begins, from 1.
    """

    file: pathlib.Path
    values: dict[str, list[Any]]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def line(self, row: int) -> str:
        """Returns what a row is called in an error."""
        return f'{self.file}, line {self.lines[row]}'

    def column(self, name: str) -> list[str]:
        """Returns the values of a column as texts; a missing one is ''.

        Raises:
          ValueError: if there is no such column, or it holds lists or objects.
        """
        if name not in self.values:
            near = difflib.get_close_matches(name.lower(), self.values, 1, 0.6)
            raise ValueError(
                f'{self.file} has no column {name!r}{f": is it {near[0]!r}?" if near else ";"} It has '
                f'{", ".join(map(repr, self.values)) or "none"}.'
            )
        problems = problems_lib.Problems(str(self.file))
        for row, value in enumerate(self.values[name]):
            if isinstance(value, (list, dict)):
                problems.add(f'{self.line(row)}: {name!r} must be a text or a number.')
        problems.check()
        return ['' if value is None else str(value) for value in self.values[name]]


def read(path: str | pathlib.Path, delimiter: str | None = None) -> Table:
    """Reads a table.

    Args:
      path: A file of UTF-8, with or without a byte order mark: .jsonl or .ndjson with a JSON object a line, any other
        with the names of its columns in the first line. White space around these names does not count.
      delimiter: ',', ';' or a tab between values; None: the one that makes a table of it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: names the file or its lines, and what is wrong.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f'no such file: {file}.')
    try:
        text = file.read_bytes().decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b'\n')
        raise ValueError(f'{file}, line {line} is not in UTF-8; save the table anew as CSV in UTF-8.') from error
    if file.suffix.lower() == '.json':
        raise ValueError(f'{file} holds one JSON document; write one object a line, into a file .jsonl.')
    if file.suffix.lower() in _JSON_SUFFIXES:
        if delimiter is not None:
            raise ValueError(f'delimiter={delimiter!r} is for CSV, and {file} holds JSON.')
        return _read_json(file, text)
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f'delimiter must be one character, got {delimiter!r}.')
    delimiter = delimiter or _detect(file, text)
    rows, problems = _rows(file, text, delimiter), problems_lib.Problems(str(file))
    if not rows:
        raise ValueError(f'{file} is empty.')
    columns = [name.strip() for name in rows[0][1]]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'{file} has two columns {twice!r}; rename one of them.')
    for line, values in rows[1:]:
        if len(values) != len(columns):
            problems.add(f'{file}, line {line} has {len(values)} values for {len(columns)} columns.')
    problems.check()
    by_name = {name: [row[i] for _, row in rows[1:]] for i, name in enumerate(columns)}
    return Table(file, by_name, tuple(line for line, _ in rows[1:]))


def _rows(file: pathlib.Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Returns where each row begins and its values, but for rows without any, as spreadsheets leave them."""
    rows, line = [], 1
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            if any(value.strip() for value in values):
                rows.append((line, values))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f'{file}, line {line}: {error}.') from error
    return rows


def _detect(file: pathlib.Path, text: str) -> str:
    """Returns what separates the values: of what parts the names of the columns, what parts all rows alike."""
    found = []
    for delimiter in _DELIMITERS:
        with contextlib.suppress(csv.Error):  # Which is said where the table is read.
            if len(next(csv.reader(io.StringIO(text, newline=''), delimiter=delimiter), [])) > 1:
                found.append(delimiter)
    if len(found) > 1:
        alike = [each for each in found if len({len(values) for _, values in _rows(file, text, each)}) == 1]
        if len(alike) != 1:
            raise ValueError(f'{file} may be separated by {" or ".join(map(repr, found))}; say by which: delimiter.')
        found = alike
    return found[0] if found else _DELIMITERS[0]


def _read_json(file: pathlib.Path, text: str) -> Table:
    rows, lines, problems = [], [], problems_lib.Problems(str(file))
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            problems.add(f'{file}, line {number} is no JSON object.')
    problems.check()
    columns = dict.fromkeys(name for row in rows for name in row)
    return Table(file, {name: [row.get(name) for row in rows] for name in columns}, tuple(lines))
