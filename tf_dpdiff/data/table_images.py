"""Images that a table lists: flat folders with a CSV or JSON lines beside them, and what else tables say of files."""

from collections.abc import Sequence
import pathlib

import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import listed
from tf_dpdiff.data import owner_names
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting
from tf_dpdiff.data import table as table_lib

METADATA = ('metadata.csv', 'metadata.jsonl')
PARTS = ('train', 'test')

_BITS = {'0': 0, '0.0': 0, '1': 1, '1.0': 1}  # As spreadsheets and pandas write them.
_NO_LABEL = ('', 'nan', '<na>', '#n/a', 'null')  # In lower case; 'none' and 'NA' may well be classes.


def csv_images(
    path: str,
    *,
    file_column: str = 'file_name',
    label_column: str = 'label',
    label_columns: Sequence[str] | None = None,
    owner_column: str | None = None,
    root: str | None = None,
    suffix: str | None = None,
    delimiter: str | None = None,
    unlisted: str = 'refuse',
    held_out_fraction: float = 0.2,
    unit: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    window: tuple[float, float] | None = None,
) -> datasets.PrivateData:
    """Loads one's own images from a folder and a table that says of which class, and perhaps whose, each one is.

    The layout `imagefolder` of Hugging Face is read as it is: give the folder that holds metadata.csv or
    metadata.jsonl, or the folders train and test with one each. Where all files of one table lie in folders train and
    test beside it, these are the parts too. Images are in the order of their paths, classes in the order of their
    names, or as numbers where all are. White space around a label does not count.

    Args:
      path: The table, see `table.read`, or a folder as above.
      file_column: Names the file: its path below `root` or, where only one file has it, its name alone; with or
        without suffix.
      label_column: The class, in any words or numbers.
      label_columns: In place of it, a column for each class, called as the class is: 1 in the rows of the class, 0 in
        all others. None: `label_column` says it.
      owner_column: Whose image it is, in any words or numbers. Nobody may be in both train and test. None: each image
        is a unit of its own.
      root: The folder of the images, and of folders of them; None: that of the table.
      suffix: Such as '.jpg', if the names in the table lack it; without it a name may be that of one file alone.
      delimiter: Between the values of a row; None: a comma, semicolon or tab, whichever makes a table of the file.
      unlisted: 'refuse' or 'pass_over' images in `root` that the table does not list.
      held_out_fraction: As `image_folder` has it, where there is no test.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.
      image_size: As `image_folder` has it.
      channels: As `image_folder` has it.
      resize: As `image_folder` has it.
      background: As `image_folder` has it.
      window: As `image_folder` has it.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such table or folder.
      ValueError: names the lines of the table and the files, and what is wrong with them.
    """
    fit = images_lib.Fit(image_size, channels, resize=resize, background=background, window=window)
    splitting.check_fraction(held_out_fraction)
    if unlisted not in ('refuse', 'pass_over'):
        raise ValueError(f"unlisted must be 'refuse' or 'pass_over', got {unlisted!r}.")
    place = pathlib.Path(path).expanduser()
    files = find_tables(place)
    if root is not None and len(files) > 1:
        raise ValueError(f'root={root!r} is for one table, and {place} holds one for each of train and test.')
    parts, names, problems = [], [], problems_lib.Problems(f'the table{"s" * (len(files) > 1)} of {place}')
    for file in files:
        table = table_lib.read(file, delimiter)
        folder = pathlib.Path(root).expanduser() if root is not None else file.parent
        if not folder.is_dir():
            raise FileNotFoundError(f'no such folder: {folder}.')
        index, pictures = index_pictures(folder)
        rows = match(table, index, file_column, suffix, problems)
        if unlisted == 'refuse':
            for picture in sorted(set(pictures) - set(rows)):
                problems.add(f"{picture} is not listed in {file}; unlisted = 'pass_over' leaves such images out.")
        if label_columns is None:
            names.append(labels_of(table, label_column, problems))
        else:
            names.append(labels_of_columns(table, label_columns, problems))
        owners = owners_of(table, owner_column, problems) if owner_column else None
        if owner_column is None and unit is None:
            arrays_lib.note_unread_owners(
                str(file), set(table.values) - {file_column, label_column, *(label_columns or ())}, 'owner_column'
            )
        parts.append((folder, rows, names[-1], owners))
    class_names = order_classes(names[0], str(files[0]), problems)
    for file, others in zip(files[1:], names[1:]):
        for name in sorted(set(others) - set(class_names) - {''}):
            problems.add(f'{file}: the label {name!r} is that of no training image.')
    problems.check()
    listings = [make_listing(*part, class_names) for part in parts]
    train, test = split_by_folders(listings[0]) if len(listings) == 1 else listings
    if test is not None and train.owners is not None and test.owners is not None:
        splitting.check_owners_apart(str(place), train.owners, test.owners)
    folder = place if place.is_dir() else place.parent
    name = listed.name_of(folder) if place.is_dir() or place.name in METADATA else place.stem
    return listed.open_files(
        name,
        listed.pictures(fit),
        train,
        test,
        class_names=class_names,
        unit=datasets.choose_unit(name, unit, owner_column),
        held_out_fraction=held_out_fraction,
        source=str(files[0]),
    )


def find_tables(place: pathlib.Path) -> list[pathlib.Path]:
    """Returns the table at a path, or those of a folder: its own, or that of train and, where there is one, of test.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if a folder has two.
    """
    if not place.is_dir():
        return [place]
    for folders in ((place,), [place / part for part in PARTS]):
        found = []
        for folder in folders:
            there = [folder / name for name in METADATA if (folder / name).is_file()]
            if len(there) > 1:
                raise ValueError(f'{there[0]} and {there[1]} are both there: give the one that is meant.')
            found += there
        if found and found[0].parent == folders[0]:
            return found
    raise FileNotFoundError(f'{place} holds no {" or ".join(METADATA)}, and its folder train has none; give the table.')


def index_pictures(folder: pathlib.Path) -> tuple[listed.FileIndex, list[pathlib.Path]]:
    """Returns the pictures below a folder, to be found by their names."""
    pictures = [file for file in listed.walk(folder) if file.suffix.lower() in decoding.SUFFIXES]
    return listed.FileIndex(folder, pictures), pictures


def match(
    table: table_lib.Table,
    index: listed.FileIndex,
    column: str,
    suffix: str | None,
    problems: problems_lib.Problems,
    *,
    passes_over_missing: bool = False,
) -> dict[pathlib.Path, int]:
    """Returns the row of each file that a table lists; takes down rows without a file, and files of two rows."""
    rows: dict[pathlib.Path, int] = {}
    for row, name in enumerate(table.column(column)):
        try:
            file = index.find(name, suffix)
        except ValueError as error:
            if not passes_over_missing:
                problems.add(f'{table.line(row)}: {error}.')
            continue
        if file in rows:
            problems.add(f'{table.line(row)} lists {file}, as line {table.lines[rows[file]]} does.')
        else:
            rows[file] = row
    return rows


def labels_of(table: table_lib.Table, column: str, problems: problems_lib.Problems) -> list[str]:
    """Returns the label of each row, '' where there is none, which is taken down."""
    labels = [label.strip() for label in table.column(column)]
    for row, label in enumerate(labels):
        if label.lower() in _NO_LABEL:
            problems.add(f'{table.line(row)}: the label is missing, got {label!r}.')
            labels[row] = ''
    return labels


def labels_of_columns(table: table_lib.Table, columns: Sequence[str], problems: problems_lib.Problems) -> list[str]:
    """Returns the label of each row from a column for each class; takes down rows that are not of one class."""
    if isinstance(columns, str) or len(columns) < 2:
        raise ValueError(f'label_columns must be the columns of two classes or more, got {columns!r}.')
    of_rows = zip(*(table.column(name) for name in columns))
    labels = [one_hot_label(columns, values) for values in of_rows]
    for row, label in enumerate(labels):
        if not label:
            problems.add(f'{table.line(row)}: one of {", ".join(columns)} must be 1 and all others 0.')
    for name in sorted(set(columns) - set(labels)):
        problems.add(f'{table.file} has no row in which {name!r} is 1: no image is of this class.')
    return labels


def one_hot_label(columns: Sequence[str], values: Sequence[str]) -> str:
    """Returns the column that holds 1 where all others hold 0, or ''."""
    bits = [_BITS.get(value.strip()) for value in values]
    return columns[bits.index(1)] if None not in bits and sum(filter(None, bits)) == 1 else ''


def owners_of(table: table_lib.Table, column: str, problems: problems_lib.Problems) -> np.ndarray:
    """Returns the owner of each row; takes down those that name nobody, or one person in two spellings."""
    owners = np.array(table.column(column), str)
    for problem in splitting.owner_problems(owners, table.line):
        problems.add(problem)
    return owners


def order_classes(labels: Sequence[str], source: str, problems: problems_lib.Problems | None = None) -> tuple[str, ...]:
    """Returns the different labels, by their names or, where all are, as numbers; takes down one in two spellings."""
    names = sorted(set(labels) - {''})
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    spelt: dict[str, str] = {}
    for name in names:
        other = spelt.setdefault(owner_names.key(name), name)
        if problems is not None and other != name:
            problems.add(f'{source}: the labels {other!r} and {name!r} differ in spelling alone; write one of them.')
    return tuple(names)


def make_listing(
    folder: pathlib.Path, rows: dict[pathlib.Path, int], labels: Sequence[str], owners, class_names: Sequence[str]
) -> listed.Listing:
    """Returns the files that have a row, in the order of their paths."""
    paths = sorted(rows)
    numbers = {name: number for number, name in enumerate(class_names)}
    return listed.Listing(
        tuple(paths),
        np.array([numbers[labels[rows[path]]] for path in paths], np.int32),
        None if owners is None else owners[[rows[path] for path in paths]],
        tuple(path.relative_to(folder).as_posix() for path in paths),
    )


def split_by_folders(listing: listed.Listing) -> tuple[listed.Listing, listed.Listing | None]:
    """Returns the files of the folders train and test where all are in one of them, or all files."""
    tops = np.array([unit_id.split('/')[0] if '/' in unit_id else '' for unit_id in listing.ids])
    if set(tops) != set(PARTS):
        return listing, None
    train, test = (listing.take(np.flatnonzero(tops == part)) for part in PARTS)
    return train, test
