"""What a folder of one's own images holds, and which source reads it: from names and headers alone."""

import collections
from collections.abc import Callable, Mapping, Sequence, Set
import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from tf_dpdiff.data import arrays as arrays_lib
from tf_dpdiff.data import decoding
from tf_dpdiff.data import dicom
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import listed
from tf_dpdiff.data import npz
from tf_dpdiff.data import table as table_lib
from tf_dpdiff.data import table_images

# What reads each kind of folder or file: the names of the functions.
SOURCES = {
    'class_folders': 'image_folder',
    'train_test_class_folders': 'image_folder',
    'table': 'csv_images',
    'dicom': 'dicom_folder',
    'npz': 'npz_images',
    'npy': 'npy_images',
}

_LABEL = re.compile(r'label|class|target|diagnos|categor|finding|^dx$|^y$', re.IGNORECASE)
_FOUND_SHARE = 0.5  # Of its values that are files: a column of file names.
_DIFFERENT_SHARE = 0.9
_MOST_CLASSES = 1000
_NAMED = 3  # Kinds of files that an error names.


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a folder or file holds. It never tells how many images a class or an owner has.

    Attributes:
      path: What the source is to be given.
      source: A key of SOURCES; '' where no source reads it.
      refusal: Why no source reads it, and what to do, in one line; '' where one does.
      num_images: How many images.
      class_names: The classes: of the class folders, of the file or, of a table, of its first label column; () of DICOM
        files without either, of which a table must say the labels.
      sizes: How many images are of each (height, width).
      has_grey: Whether any image is grey.
      has_colour: Whether any image is in colour.
      needs_window: Whether any image has grey levels of 16 bits (DICOM: and no window of its own): a source needs one.
      takes_window: Whether a source takes a window: of grey levels of 16 bits, and of grey DICOM files.
      has_alpha: Whether any image may be transparent, for which a source needs a background.
      has_palette: Whether any image has a palette.
      num_prefix_owners: How many owners there are if the name of each file is OWNER_ANYTHING (owner_from='prefix'); 0
        where names do not look so.
      unprefixed: Of files of which most are called OWNER_ANYTHING: the first that is not, or None.
      has_owners: Whether the file or the DICOM headers name owners.
      table: The table beside the images, or None.
      columns: Of the table.
      file_columns: Those that may name the files, the likeliest first.
      label_columns: Those that may be the label, the likeliest first.
      one_hot_columns: Those of which just one holds 1 in each row, and the others 0, where no column is called as a
        label is: a column for each class; or ().
      owner_columns: Those that may name owners (of DICOM files: patients), and how many each names.
      has_unlisted: Whether there are images that the table does not list: a source is to be told to pass them over.
      passed_over: The folders and files beside train and test, or beside the class folders, in which images lie that
        no source reads.
      problems: What is wrong with single files, a line each: a source refuses them.
    """

    path: pathlib.Path
    source: str = ''
    refusal: str = ''
    num_images: int = 0
    class_names: tuple[str, ...] = ()
    sizes: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    has_grey: bool = False
    has_colour: bool = False
    needs_window: bool = False
    takes_window: bool = False
    has_alpha: bool = False
    has_palette: bool = False
    num_prefix_owners: int = 0
    unprefixed: pathlib.Path | None = None
    has_owners: bool = False
    table: pathlib.Path | None = None
    columns: tuple[str, ...] = ()
    file_columns: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    one_hot_columns: tuple[str, ...] = ()
    owner_columns: Mapping[str, int] = dataclasses.field(default_factory=dict)
    has_unlisted: bool = False
    passed_over: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def check(self) -> None:
        """Checks that a source reads it.

        Raises:
          ValueError: why none does, and what to do.
        """
        if self.refusal:
            raise ValueError(self.refusal)


def survey(path: str | pathlib.Path) -> Survey:
    """Looks at a folder of one's own images, or at a file of arrays or a table, without reading a pixel.

    Args:
      path: The folder or file.

    Returns:
      What it holds; where no source reads it, `check` of that raises why.

    Raises:
      FileNotFoundError: if nothing is there.
      ValueError: if what is there is damaged, or a link to nothing; names it.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f'no such file or folder: {path}.')
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if suffix == '.npz':
        return _of_npz(path)
    if suffix == '.npy':
        return survey(path.parent)
    if suffix in table_lib.SUFFIXES:
        pictures = [file for file in listed.walk(path.parent) if file.suffix.lower() in decoding.SUFFIXES]
        return _of_pictures(path.parent, pictures, path) if pictures else _of_folder(path.parent)
    if suffix in decoding.SUFFIXES:
        return Survey(path, refusal=f'{path} is one picture; give the folder that it is in.')
    return Survey(
        path, refusal=f'{path} is neither a folder nor an .npz file or a table ({", ".join(table_lib.SUFFIXES)}).'
    )


def _of_folder(folder: pathlib.Path) -> Survey:
    files = list(listed.walk(folder))
    if not files:
        return Survey(folder, refusal=f'{folder} holds no files.')
    if (folder / 'train_images.npy').is_file():
        return _of_npy(folder)
    pictures = [file for file in files if file.suffix.lower() in decoding.SUFFIXES]
    # Beside DICOM files pictures may be previews of them.
    if pictures and len(pictures) >= sum(file.suffix.lower() in dicom.SUFFIXES for file in files):
        found = _of_pictures(folder, pictures, None)
        return found if SOURCES.get(found.source) != 'image_folder' else _with_odd_files(found, files)
    scans = dicom.list_files(folder)
    if scans:
        return _of_dicom(folder, scans)
    archives = [file for file in files if file.suffix.lower() == '.npz']
    if len(archives) == 1:
        return _of_npz(archives[0])
    if archives:
        return Survey(folder, refusal=f'{folder} holds {len(archives)} .npz files; give the one that is meant.')
    kinds = collections.Counter(file.suffix.lower() or 'files without a suffix' for file in files)
    named = ', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common(_NAMED))
    if '.npy' in kinds:
        return Survey(
            folder,
            refusal=f'{folder} holds .npy files; call them train_images.npy and train_labels.npy, with '
            'held_out_images.npy and held_out_labels.npy of images that are not trained on.',
        )
    if any('tfrecord' in file.name for file in files):
        return Survey(folder, refusal=f'{folder} holds TFRecord files; see tfrecord_images, or tfds_images.')
    return Survey(
        folder,
        refusal=f'{folder} holds no images of a kind that is read ({", ".join(decoding.SUFFIXES)}, .dcm, .npz); '
        f'it holds {named}.',
    )


def _with_odd_files(found: Survey, files: Sequence[pathlib.Path]) -> Survey:
    """Returns what class folders hold, with the files in them that are no images: the source refuses these."""
    tops = [found.path / part for part in table_images.PARTS] if found.source.startswith('train') else [found.path]
    odd = [
        f'{file} is no image file.'
        for file in files
        if file.suffix.lower() not in decoding.SUFFIXES and any(file.parent.parent == top for top in tops)
    ]
    return dataclasses.replace(found, problems=(*odd, *found.problems))


def _of_dicom(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> Survey:
    dicom.check_installed()
    headers, problems = _read_headers(files, dicom.read_header)
    patients = {file: header.patient for file, header in headers.items()}
    names = _dicom_classes(folder, files, patients)
    found, _ = _look_for_table(folder, files, patients=set(patients.values()) - {''})
    refusal = '' if headers else f'none of the {len(files):,} DICOM files in {folder} can be read: {problems[0]}'
    return Survey(
        folder,
        '' if refusal else 'dicom',
        refusal,
        num_images=len(files),
        class_names=names or (found.class_names if found else ()),
        sizes=collections.Counter((header.height, header.width) for header in headers.values()),
        has_grey=any(header.channels == 1 for header in headers.values()),
        has_colour=any(header.channels == 3 for header in headers.values()),
        needs_window=any(header.channels == 1 and header.window is None for header in headers.values()),
        takes_window=any(header.channels == 1 for header in headers.values()),
        has_owners=bool(headers) and all(patients.values()),
        problems=tuple(problems),
        **_facts(found),
    )


def _dicom_classes(
    folder: pathlib.Path, files: Sequence[pathlib.Path], patients: Mapping[pathlib.Path, str]
) -> tuple[str, ...]:
    """Returns the class folders of DICOM files; () where there are none, or where they are rather those of patients."""
    parts = {file: file.relative_to(folder).parts for file in files}
    if all(len(each) > 2 and each[0] in table_images.PARTS for each in parts.values()):
        parts = {file: each[1:] for file, each in parts.items()}
    tops = {each[0] for each in parts.values()}
    if any(len(each) < 2 for each in parts.values()) or len(tops) < 2:
        return ()
    patients_of = collections.defaultdict(set)
    for file, patient in patients.items():
        patients_of[parts[file][0]].add(patient)
    are_patients = all(len(each) <= 1 for each in patients_of.values())
    return () if are_patients else tuple(sorted(tops))


def _of_npz(file: pathlib.Path) -> Survey:
    arrays = npz.read_arrays(file)
    height, width, channels = arrays.image_shape
    return Survey(
        file,
        'npz',
        num_images=len(arrays.labels),
        class_names=arrays.class_names,
        sizes={(height, width): len(arrays.labels)},
        has_grey=channels == 1,
        has_colour=channels == 3,
        has_owners=arrays.owners is not None,
    )


def _of_npy(folder: pathlib.Path) -> Survey:
    with (folder / 'train_images.npy').open('rb') as file:
        shape = arrays_lib.read_header(file).shape
    if len(shape) != 4:
        return Survey(
            folder,
            refusal=f'{folder / "train_images.npy"} is of shape {list(shape)}: [images, height, width, channels].',
        )
    labels = folder / 'train_labels.npy'
    names = tuple(map(str, np.unique(np.load(labels, allow_pickle=False)).tolist())) if labels.is_file() else ()
    return Survey(
        folder,
        'npy',
        num_images=shape[0],
        class_names=names,
        sizes={shape[1:3]: shape[0]},
        has_grey=shape[3] == 1,
        has_colour=shape[3] == 3,
        has_owners=(folder / 'train_owners.npy').is_file(),
    )


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What a table says of pictures; fields as those of Survey."""

    path: pathlib.Path
    table: pathlib.Path
    columns: tuple[str, ...]
    file_columns: tuple[str, ...]
    label_columns: tuple[str, ...]
    one_hot_columns: tuple[str, ...]
    owner_columns: Mapping[str, int]
    has_unlisted: bool
    class_names: tuple[str, ...]


def _of_pictures(folder: pathlib.Path, pictures: Sequence[pathlib.Path], chosen: pathlib.Path | None) -> Survey:
    """Returns what pictures are; chosen: the table that says so, or None: one is looked for."""
    found, unused = _look_for_table(folder, pictures, chosen)
    path, source, refusal, names, read = folder, *_class_folders(folder, pictures)
    # A table beside class folders may tell the owners alone; one folder is rather that of all images than a class.
    tells_classes = found is not None and (
        found.table.name in table_images.METADATA
        or any(map(is_label, found.label_columns))
        or (len(names) < 2 and bool(found.label_columns or found.one_hot_columns))
    )
    if found and (chosen or refusal or tells_classes):
        path, source, refusal, names, read = found.path, 'table', '', found.class_names, pictures
        if not found.file_columns:
            refusal = f'no column of {found.table} names the images in {folder}; it has {", ".join(found.columns)}.'
        elif not found.label_columns and not found.one_hot_columns:
            refusal = f'no column of {found.table} looks like the label; it has {", ".join(found.columns)}.'
    if refusal and unused:
        refusal = f'{refusal.rstrip(".")}. {unused}'
    by_file, problems = _read_headers(read, _read_picture)
    headers = list(by_file.values())
    if not refusal and not headers:
        refusal = f'none of the {len(read):,} images in {folder} can be read: {problems[0]}'
    refusal = refusal or _refuse_mixed_depth(by_file)
    return Survey(
        path,
        '' if refusal else source,
        refusal,
        num_images=len(read),
        class_names=names,
        sizes=collections.Counter((header.height, header.width) for header in headers),
        has_grey=any(header.channels == 1 for header in headers),
        has_colour=any(header.channels == 3 for header in headers),
        needs_window=any(header.bits > 8 for header in headers),
        takes_window=any(header.bits > 8 for header in headers),
        has_alpha=any(header.has_alpha for header in headers),
        has_palette=any(header.has_palette for header in headers),
        num_prefix_owners=_count_prefixes(read),
        unprefixed=_find_unprefixed(read),
        passed_over=_passed_over(folder, pictures, read),
        problems=tuple(problems),
        **_facts(found),
    )


def _refuse_mixed_depth(headers: Mapping[pathlib.Path, decoding.ImageHeader]) -> str:
    """Returns why images of both depths can't be read together, or ''."""
    first = {header.bits > 8: file for file, header in reversed(list(headers.items()))}
    if len(first) < 2:
        return ''
    return (
        f'{first[True]} has 16 bits a channel, and {first[False]} has 8: no window is for both. Convert all of one '
        'kind to the other.'
    )


def _passed_over(
    folder: pathlib.Path, pictures: Sequence[pathlib.Path], read: Sequence[pathlib.Path]
) -> tuple[str, ...]:
    others = set(pictures) - set(read)
    return tuple(sorted({file.relative_to(folder).parts[0] for file in others}))


def _facts(found: _Columns | None) -> dict[str, Any]:
    """Returns the fields of Survey that a table fills."""
    names = ('table', 'columns', 'file_columns', 'label_columns', 'one_hot_columns', 'owner_columns', 'has_unlisted')
    return {} if found is None else {name: getattr(found, name) for name in names}


def _class_folders(
    folder: pathlib.Path, files: Sequence[pathlib.Path]
) -> tuple[str, str, tuple[str, ...], Sequence[pathlib.Path]]:
    """Returns the source that reads class folders, why none does, the classes, and the files in them."""
    has_train = any(file.relative_to(folder).parts[0] == 'train' for file in files if file.parent != folder)
    tops = [folder / part for part in table_images.PARTS] if has_train else [folder]
    parts = {file: file.relative_to(top).parts for top in tops for file in files if file.is_relative_to(top)}
    deep = next((file for file in parts if len(parts[file]) > 2), None)
    in_classes = [file for file in parts if len(parts[file]) == 2]
    if deep:
        top = tops[0]
        common = pathlib.Path(os.path.commonpath([file.parent.parent for file in parts]))
        cure = 'move them up, or list them in a table'
        if common != top and not in_classes and common in deep.parents:
            cure = f'give {common}'
        elif not has_train:
            cure = _spell_parts({file.relative_to(folder).parts[0] for file in files}) or cure
        return '', f'{deep} lies too deep: images lie in {top}/CLASS; {cure}.', (), files
    if not in_classes:
        return (
            '',
            f'{folder} holds images, and neither class folders nor a table that says of which class they are: put '
            'those of each class (or all, if there is only one) into a folder in it, or a table with a column of their '
            'names beside them.',
            (),
            files,
        )
    names = tuple(sorted({parts[file][0] for file in in_classes}))
    return 'train_test_class_folders' if has_train else 'class_folders', '', names, in_classes


def _spell_parts(names: Set[str]) -> str:
    """Returns how to call folders that seem to be parts, or ''."""
    train = next((name for name in sorted(names) if name.lower().startswith('train')), None)
    test = next((name for name in sorted(names) if name.lower().startswith('test')), None)
    renamed = [f'{name} to {part}' for name, part in ((train, 'train'), (test, 'test')) if name and name != part]
    return f'if these are the parts, rename {" and ".join(renamed)}' if train and renamed else ''


def _look_for_table(
    folder: pathlib.Path,
    pictures: Sequence[pathlib.Path],
    chosen: pathlib.Path | None = None,
    patients: Set[str] = frozenset(),
) -> tuple[_Columns | None, str]:
    """Returns what the first table says that names the pictures, or the patients, or None and why a table does not."""
    if chosen:
        return _read_columns(folder, pictures, chosen, chosen), ''
    try:
        metadata = table_images.find_tables(folder)[0]
        inside = [file for file in pictures if file.is_relative_to(metadata.parent)]
        return _read_columns(metadata.parent, inside, metadata, folder), ''
    except FileNotFoundError:
        pass
    unused = ''
    for file in listed.visible(folder):
        if file.suffix.lower() in table_lib.SUFFIXES:
            try:
                found = _read_columns(folder, pictures, file, file, patients)
            except ValueError as error:  # What is not asked for need not be a table.
                unused = unused or str(error)
                continue
            if found.file_columns or (patients and found.owner_columns):
                return found, ''
            unused = unused or f'No column of {file} names most of the images, each once.'
    return None, unused


def _read_columns(
    root: pathlib.Path,
    pictures: Sequence[pathlib.Path],
    file: pathlib.Path,
    path: pathlib.Path,
    patients: Set[str] = frozenset(),
) -> _Columns:
    """Returns what a table says of the pictures below its folder, and of patients.

    Args:
      root: The folder.
      pictures: In it, or DICOM files.
      file: The table.
      path: What the source is to be given.
      patients: By which a column of owners may be known.
    """
    table = table_lib.read(file)
    index = listed.FileIndex(root, pictures)
    texts = {
        name: table.column(name)
        for name, values in table.values.items()
        if not any(isinstance(value, (list, dict)) for value in values)
    }
    shares = {}
    for name, values in texts.items():
        # A file is listed once, or by mistake twice.
        is_different = len(set(values)) >= _DIFFERENT_SHARE * len(values)
        shares[name] = sum(map(index.holds, values)) / max(1, len(values)) if is_different else 0.0
    files = sorted((name for name in shares if shares[name] >= _FOUND_SHARE), key=lambda name: -shares[name])
    rest = {name: set(values) - {''} for name, values in texts.items() if name not in files}
    owners = {
        name: len(values)
        for name, values in rest.items()
        if arrays_lib.nearest(name, ('owners',)) or len(values & patients) > _FOUND_SHARE * len(values)
    }
    labels = [
        name
        for name, values in rest.items()
        if name not in owners and 1 <= len(values) <= min(_MOST_CLASSES, max(2, len(table) // 2))
    ]
    labels.sort(key=lambda name: (not is_label(name), len(rest[name]) < 2))
    one_hot = _find_one_hot({name: texts[name] for name in rest if name not in owners})
    if one_hot and not any(is_label(name) for name in labels if name not in one_hot):
        labels = []
    else:
        one_hot = ()
    found_names = one_hot or tuple({name.strip() for name in rest[labels[0]]} if labels else ())
    names = table_images.order_classes(found_names, str(file))
    listed_files = {index.find(value) for value in texts[files[0]] if index.holds(value)} if files else set()
    has_unlisted = bool(files) and len(listed_files) < len(pictures)
    return _Columns(path, file, tuple(table.values), tuple(files), tuple(labels), one_hot, owners, has_unlisted, names)


def _find_one_hot(texts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Returns the columns of zeros and ones if in each row just one of them holds 1, or ()."""
    columns = tuple(name for name, values in texts.items() if set(map(str.strip, values)) == {'0', '1'})
    columns = columns or tuple(name for name, values in texts.items() if set(map(str.strip, values)) == {'0.0', '1.0'})
    rows = zip(*(texts[name] for name in columns))
    return columns if len(columns) > 1 and all(table_images.one_hot_label(columns, row) for row in rows) else ()


def is_label(column: str) -> bool:
    """Returns whether the name of a column is that of a label."""
    return bool(_LABEL.search(column))


def _read_headers(
    files: Sequence[pathlib.Path], read_header: Callable[[pathlib.Path], Any]
) -> tuple[dict[pathlib.Path, Any], list[str]]:
    """Returns the headers that can be read, and what is wrong with the others."""
    headers: dict[pathlib.Path, Any] = {}
    faults: dict[pathlib.Path, str] = {}

    def read(file):
        try:
            headers[file] = read_header(file)
        except (ValueError, OSError) as error:
            faults[file] = f'{images_lib.one_line(error)}.'
        return True

    images_lib.read_all('headers', files, read, np.empty([len(files)], bool))
    return {file: headers[file] for file in files if file in headers}, [
        faults[file] for file in files if file in faults
    ]


def _read_picture(file: pathlib.Path) -> decoding.ImageHeader:
    if not file.is_file():  # A pipe would be waited for.
        raise ValueError(f'{file} is no file.')
    with file.open('rb') as opened:
        return decoding.read_header(opened, str(file))


def _find_unprefixed(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
    """Returns the first file that is not called OWNER_ANYTHING, where most are."""
    odd = [file for file in files if not re.match('[^_]+_', file.name)]
    return odd[0] if odd and len(odd) < _FOUND_SHARE * len(files) else None


def _count_prefixes(files: Sequence[pathlib.Path]) -> int:
    """Returns how many different owners files name if they are called OWNER_ANYTHING, or 0."""
    owners = [file.name.partition('_') for file in files]
    different = {owner for owner, _, _ in owners}
    looks_so = all(owner and underscore for owner, underscore, _ in owners) and 1 < len(different) < len(files)
    return len(different) if looks_so else 0
