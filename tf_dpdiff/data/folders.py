"""Images in folders, one a class."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import re

import numpy as np

from tf_dpdiff.data import classes as classes_lib
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import listed
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting
from tf_dpdiff.data import table as table_lib
from tf_dpdiff.data import table_images

_PREFIX = re.compile('([^_]*)_')


def image_folder(
    path: str,
    *,
    held_out_fraction: float = 0.2,
    unit: str | None = None,
    owner_from: str | None = None,
    owner_pattern: str | None = None,
    owners: str | None = None,
    file_column: str | None = None,
    owner_column: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    window: tuple[float, float] | None = None,
) -> datasets.PrivateData:
    r"""Loads one's own images from folders, one a class: PATH/CLASS/*.png.

    Where there is a folder PATH/train, it holds the class folders of the training images, and PATH/test, if there is
    one, those of the held-out images. Classes are in the order of their names, images of a class in the order of
    theirs. Hidden files, what operating systems leave behind (Thumbs.db, desktop.ini, __MACOSX) and files beside the
    class folders are passed over; anything but an image inside a class folder is an error, and so is a link to nothing.

    Args:
      path: The folder. Images are PNG, JPEG, TIFF, BMP or WebP; `decoding.decode` says what is refused.
      held_out_fraction: About the share of the images or, where owners are named, of the owners that is held out for
        evaluation where there is no PATH/test, in (0, 1). Each decides for itself by a hash of the owner's name, or
        else of CLASS/NAME of the file: the split is fixed, others do not change it, and nobody is on both sides.
      unit: What the guarantee protects, in words, where owners are named: 'one owner' if nothing is said. Without
        owners it is 'one image'.
      owner_from: 'prefix': the name of a file up to its first underscore says whose image it is, in whatever class
        folder it lies: patient012_3.png belongs to patient012. Nobody may be in both PATH/train and PATH/test.
        None: nothing of the kind.
      owner_pattern: A regular expression with one group that is found in the name of every file: the group says whose
        image it is, such as r'^(P\d+)_'. None: nothing of the kind.
      owners: A table that says whose each image is, see `table.read`; it may list other files as well. Where neither
        this nor owner_from nor owner_pattern is given, each image is a unit of its own.
      file_column: Of the table: names the file, by its path CLASS/NAME (or train/CLASS/NAME) or, where only one
        file has it, by its name alone; with or without suffix.
      owner_column: Of the table: whose image it is, in any words or numbers.
      image_size: Height and width to which each image is resized, or one number for both. None: all images must have
        one size.
      channels: 1 or 3: images are made grey or colour. None: all images must be of one kind.
      resize: How an image of other proportions is resized: 'crop' (its largest centred part of the right proportions),
        'pad' (all of it, on a border of `background`) or 'stretch'.
      background: A grey level or (red, green, blue) behind transparent pixels and around padded images. None: images
        with transparent pixels are refused.
      window: (low, high): the grey levels of 16-bit images that become 0 and 255. None: such images are refused.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: names the file or folder, and what is wrong with it.
    """
    fit = images_lib.Fit(image_size, channels, resize=resize, background=background, window=window)
    splitting.check_fraction(held_out_fraction)
    if owner_from not in (None, 'prefix'):
        raise ValueError(f"owner_from must be None or 'prefix', got {owner_from!r}.")
    given = {'owner_from': owner_from, 'owner_pattern': owner_pattern, 'owners': owners}
    said = [f'{name}={value!r}' for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise ValueError(f'{said[0]} and {said[1]} both say whose an image is: leave one of them out.')
    for name, column in (('file_column', file_column), ('owner_column', owner_column)):
        if (column is None) != (owners is None):
            raise ValueError(
                f'owners={owners!r} and {name}={column!r}: a table of owners needs both, or neither is given.'
            )
    root = pathlib.Path(path).expanduser()
    train, test, class_names, folder = list_parts(root, _list_images)
    if said:
        if owners is None:
            found = _owners_by_name(train, test, _PREFIX if owner_from else _compile(str(owner_pattern)))
        else:
            assert file_column is not None and owner_column is not None  # Checked above.
            found = _owners_by_table(train, test, root, owners, file_column, owner_column)
        train, test = _with_owners(train, found), test and _with_owners(test, found)
        if test:
            assert train.owners is not None and test.owners is not None
            splitting.check_owners_apart(str(root), train.owners, test.owners)
    return listed.open_files(
        listed.name_of(root),
        listed.pictures(fit),
        train,
        test,
        class_names=class_names,
        unit=datasets.choose_unit(listed.name_of(root), unit, said or None),
        held_out_fraction=held_out_fraction,
        source=str(folder),
    )


def list_parts(
    root: pathlib.Path, list_files: Callable[[pathlib.Path, problems_lib.Problems], list[pathlib.Path]]
) -> tuple[listed.Listing, listed.Listing | None, tuple[str, ...], pathlib.Path]:
    """Lists class folders, those of PATH/train and PATH/test where there is a PATH/train.

    Args:
      root: The folder.
      list_files: Lists the files of a class folder, and takes down what should not be in it.

    Returns:
      The training files (all files, where there is no PATH/test), the held-out ones or None, the names of the classes,
      and the folder of the first.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: names the file or folder, and what is wrong with it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f'no such folder: {root}.')
    listed.visible(root)  # Or a link to no PATH/test would be none.
    folder = root / 'train' if (root / 'train').is_dir() else root
    problems = problems_lib.Problems(f'the class folders of {root}')
    train, class_names = _list(folder, list_files, problems)
    test = None
    if folder != root and (root / 'test').is_dir():
        test, test_names = _list(root / 'test', list_files, problems)
        if test_names != class_names:
            odd = sorted(set(test_names) ^ set(class_names))
            problems.add(f'{root}: train and test must have the same class folders; {odd[0]!r} is in one of them only.')
    problems.check()
    return train, test, class_names, folder


def _list(folder: pathlib.Path, list_files, problems: problems_lib.Problems) -> tuple[listed.Listing, tuple[str, ...]]:
    """Lists the files of class folders."""
    children = [child for child in listed.visible(folder) if child.is_dir()]
    if not children:
        raise ValueError(f'{folder} holds no class folders.')
    classes_lib.check_names(str(folder), [child.name for child in children])
    paths, labels = [], []
    for label, class_folder in enumerate(children):
        before = len(problems)
        files = list_files(class_folder, problems)
        if not files and len(problems) == before:
            problems.add(f'the class folder {class_folder} holds no images.')
        paths += files
        labels += [label] * len(files)
    ids = tuple(path.relative_to(folder).as_posix() for path in paths)
    names = tuple(child.name for child in children)
    return listed.Listing(tuple(paths), np.array(labels, np.int32), None, ids), names


def _list_images(class_folder: pathlib.Path, problems: problems_lib.Problems) -> list[pathlib.Path]:
    files = []
    for file in listed.visible(class_folder):
        listed.check_name(file)
        if file.suffix.lower() in decoding.SUFFIXES and file.is_file():
            files.append(file)
        else:
            problems.add(f'{file} is no image file ({", ".join(decoding.SUFFIXES)}); move it out of the class folder.')
    return files


def _compile(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f'owner_pattern={pattern!r} is no regular expression: {error}.') from error
    if compiled.groups != 1:
        raise ValueError(f'owner_pattern={pattern!r} must have one group, which is the owner, got {compiled.groups}.')
    return compiled


def _owners_by_name(train: listed.Listing, test: listed.Listing | None, pattern: re.Pattern) -> dict[pathlib.Path, str]:
    """Returns the owner of each file by its name."""
    problems, found = problems_lib.Problems('the names of files'), {}
    for file in (*train.paths, *(test.paths if test else ())):
        match = pattern.search(file.name)
        if match and match.group(1):
            found[file] = match.group(1)
        elif pattern is _PREFIX:
            problems.add(f"{file} names no owner: with owner_from='prefix' a file is called OWNER_ANYTHING.")
        else:
            problems.add(f'{file} names no owner: its name has nothing like owner_pattern={pattern.pattern!r}.')
    problems.check()
    return found


def _owners_by_table(
    train: listed.Listing,
    test: listed.Listing | None,
    root: pathlib.Path,
    owners: str,
    file_column: str,
    owner_column: str,
) -> dict[pathlib.Path, str]:
    """Returns the owner of each file by a table."""
    table, files = table_lib.read(owners), (*train.paths, *(test.paths if test else ()))
    problems = problems_lib.Problems(f'the table {table.file}')
    rows = table_images.match(
        table, listed.FileIndex(root, files), file_column, None, problems, passes_over_missing=True
    )
    for file in files:
        if file not in rows:
            problems.add(f'{file} has no owner in {table.file}.')
    names = table.column(owner_column)
    problems.check()
    return {file: names[row] for file, row in rows.items()}


def _with_owners(listing: listed.Listing, found: Mapping[pathlib.Path, str]) -> listed.Listing:
    owners, problems = np.array([found[file] for file in listing.paths]), problems_lib.Problems('the owners of images')
    for problem in splitting.owner_problems(owners, lambda row: str(listing.paths[row])):
        problems.add(problem)
    problems.check()
    return dataclasses.replace(listing, owners=owners)
