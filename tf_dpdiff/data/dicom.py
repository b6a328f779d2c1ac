"""DICOM files: one image each, whose patient is the owner.

Of a header nothing is read but _TAGS, and of the patient nothing is told: no name, error, fingerprint or statement has
what a header says of one. pydicom, which quotes values in its errors and warnings, is not quoted.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import logging
import pathlib
from typing import Any
import warnings

import numpy as np

from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import folders
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.data import listed
from tf_dpdiff.data import owner_names
from tf_dpdiff.data import problems as problems_lib
from tf_dpdiff.data import splitting
from tf_dpdiff.data import table as table_lib
from tf_dpdiff.data import table_images

SUFFIXES = ('.dcm', '.dicom', '.ima')

_TEXTS = ('PatientID', 'IssuerOfPatientID', 'PhotometricInterpretation', 'VOILUTFunction')
_NUMBERS = (
    'Rows',
    'Columns',
    'SamplesPerPixel',
    'BitsAllocated',
    'NumberOfFrames',
    'RescaleSlope',
    'RescaleIntercept',
    'WindowCenter',
    'WindowWidth',
)
_TABLE = 'ModalityLUTSequence'
_TAGS = [*_TEXTS, *_NUMBERS, _TABLE, 'SpecificCharacterSet']  # The last one is of the texts.
_GREY = ('MONOCHROME1', 'MONOCHROME2')
_COLOUR = ('RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
_WINDOW_FUNCTIONS = ('LINEAR', 'LINEAR_EXACT')
_INDEX = 'DICOMDIR'  # Lists the files beside it.
_PREAMBLE = 128
_COLOUR_BITS = 8


@dataclasses.dataclass(frozen=True)
class DicomHeader:
    """What is read of a header.

    Attributes:
      height: In pixels.
      width: In pixels.
      channels: 1 or 3.
      patient: PRIVATE: the PatientID, '' where there is none.
      issuer: PRIVATE: who gave out the PatientID, '' where nobody is named.
      slope: From stored values to those that a window is about.
      intercept: The same.
      window: (low, high) that become 0 and 255, or None.
      is_inverted: Whether the lowest value is white.
    """

    height: int
    width: int
    channels: int
    patient: str = dataclasses.field(repr=False)
    issuer: str = dataclasses.field(repr=False)
    slope: float
    intercept: float
    window: tuple[float, float] | None
    is_inverted: bool


def dicom_folder(
    path: str,
    *,
    labels: str | None = None,
    label_column: str = 'label',
    file_column: str | None = None,
    patient_column: str | None = None,
    suffix: str | None = None,
    delimiter: str | None = None,
    unlisted: str = 'refuse',
    held_out_fraction: float = 0.2,
    unit: str = 'one patient',
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    resize: str = 'crop',
    background: int | tuple[int, int, int] | None = None,
    window: tuple[float, float] | None = None,
) -> datasets.PrivateData:
    """Loads one's own images from DICOM files, of whatever depth in folders; needs pydicom.

    The class of an image is that of its class folder (PATH/CLASS, or PATH/train/CLASS and PATH/test/CLASS), or what a
    table says of the file or of the patient. Files of PATH/train and PATH/test are the parts where all are in one of
    them. The owner of an image is the patient: each file needs a PatientID.

    Grey levels are rescaled by slope and intercept, and mapped by DICOM's linear function and the first window of the
    header, or by `window`; MONOCHROME1 is inverted. Files of several frames, palettes, colour of more than 8 bits, and
    whatever pydicom cannot decompress with what is installed are refused. Writing in the pixels themselves stays there:
    the guarantee covers it as it covers the rest of an image, but public images must not have any.

    Args:
      path: The folder. DICOMDIR and hidden files are passed over.
      labels: A table of labels, see `table.read`; None: the class folders say them.
      label_column: Of the table.
      file_column: Of the table: names the file, as `csv_images` has it. Either this or patient_column.
      patient_column: Of the table: the PatientID, whose images all are of one class.
      suffix: Such as '.dcm', if the names in file_column lack it.
      delimiter: As `csv_images` has it.
      unlisted: 'refuse' or 'pass_over' DICOM files that the table does not list.
      held_out_fraction: As `image_folder` has it: about this share of the patients, where there is no test part.
      unit: What the guarantee protects, in words: a patient with all of their images.
      image_size: As `image_folder` has it.
      channels: As `image_folder` has it.
      resize: As `image_folder` has it.
      background: Around images that are padded.
      window: (low, high): the grey levels, after slope and intercept, that become 0 and 255, in place of the headers'
        windows.

    Returns:
      The two parts.

    Raises:
      FileNotFoundError: if there is no such folder or table.
      ValueError: names the files and lines, and what is wrong with them; or that pydicom is missing.

    References: DICOM PS3.3, C.7.6.3.1 (pixels) and C.11.2.1.2 (windows).
    """
    check_installed()
    fit = images_lib.Fit(image_size, channels, resize=resize, background=background, window=window)
    fit.check_border()
    splitting.check_fraction(held_out_fraction)
    root = pathlib.Path(path).expanduser()
    if labels is None:
        given = {
            'label_column': (label_column, 'label'),
            'file_column': (file_column, None),
            'patient_column': (patient_column, None),
            'suffix': (suffix, None),
            'delimiter': (delimiter, None),
            'unlisted': (unlisted, 'refuse'),
        }
        for name, (value, default) in given.items():
            if value != default:
                raise ValueError(f'{name}={value!r} is of a table, and no table is given: labels.')
        train, test, class_names, folder = folders.list_parts(root, list_class)
        headers = _read_headers(root.name, (*train.paths, *(test.paths if test else ())))
        source = str(folder)
    else:
        table = _Labels(table_lib.read(labels, delimiter), label_column, file_column, patient_column, suffix, unlisted)
        headers, listing, class_names = table.label(root)
        train, test = table_images.split_by_folders(listing)
        source = str(table.table.file)
    _check_patients(headers)
    train, test = _with_owners(train, headers), test and _with_owners(test, headers)
    if test:
        assert train.owners is not None and test.owners is not None
        splitting.check_owners_apart(str(root), train.owners, test.owners, (train.paths, test.paths))
    words = 'mapped from grey levels by the windows of their headers' if window is None else ''
    kind = listed.Kind(
        read=lambda file: fit.apply(decode(file, fit)),
        read_shape=lambda file: fit.shape_of(_check(headers[file], file, fit)),
        preparation=', '.join(filter(None, (fit.describe(), words))),
    )
    return listed.open_files(
        listed.name_of(root),
        kind,
        train,
        test,
        class_names=class_names,
        unit=datasets.choose_unit(listed.name_of(root), unit, headers),
        held_out_fraction=held_out_fraction,
        source=source,
    )


def check_installed() -> None:
    """Checks that pydicom is there.

    Raises:
      ValueError: says how to install it.
    """
    _pydicom()


def is_dicom(file: pathlib.Path) -> bool:
    """Returns whether a file begins as DICOM files do."""
    with file.open('rb') as opened:
        return opened.read(_PREAMBLE + 4)[_PREAMBLE:] == b'DICM'


def read_header(file: pathlib.Path) -> DicomHeader:
    """Reads what is needed of a header.

    Raises:
      ValueError: names the file and why it is not read: it is damaged, or no image of one frame, grey or in colour of 8
        bits.
    """
    if not is_dicom(file):
        raise ValueError(f'{file} is no DICOM file.')
    with _quoting_nothing(file):
        dataset = _pydicom().dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        fields: dict[str, Any] = {name: _text(dataset.get(name)) for name in _TEXTS}
        fields |= {name: _number(dataset.get(name)) for name in _NUMBERS}
        has_table = bool(dataset.get(_TABLE))
        transfer_syntax = dataset.file_meta.TransferSyntaxUID
    if not (fields['Rows'] and fields['Columns']):
        raise ValueError(f'{file} holds no image.')
    if (fields['NumberOfFrames'] or 1) != 1:
        raise ValueError(
            f'{file} has {fields["NumberOfFrames"]} frames; save those that are meant as files of their own.'
        )
    photometric, samples = fields['PhotometricInterpretation'], fields['SamplesPerPixel']
    if (photometric, samples) not in [(name, 1) for name in _GREY] + [(name, 3) for name in _COLOUR]:
        raise ValueError(f'{file} is neither grey nor RGB or YBR (a palette, for instance); convert it.')
    if samples == 3 and fields['BitsAllocated'] != _COLOUR_BITS:
        raise ValueError(f'{file} is in colour of more than 8 bits a channel; convert it to 8.')
    if has_table:
        raise ValueError(f'{file} has a table in place of a rescale slope; convert it.')
    _check_compression(file, transfer_syntax)
    slope, intercept = fields['RescaleSlope'], fields['RescaleIntercept']
    return DicomHeader(
        height=fields['Rows'],
        width=fields['Columns'],
        channels=samples,
        patient=fields['PatientID'],
        issuer=fields['IssuerOfPatientID'],
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        window=_window(file, fields['WindowCenter'], fields['WindowWidth'], fields['VOILUTFunction'] or 'LINEAR'),
        is_inverted=photometric == 'MONOCHROME1',
    )


def _text(value) -> str:
    """Returns a text without the spaces around it, which do not count; of several, which a backslash parts, all."""
    return '' if value is None else (value if isinstance(value, str) else '\\'.join(map(str, value))).strip()


def _number(value) -> Any:
    """Returns a number, the first of several, or None."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if len(value) else None
    if value is None or value == '':
        return None
    return int(value) if isinstance(value, int) else float(value)  # pydicom leaves what is no number a text.


def _window(file: pathlib.Path, center, width, function: str) -> tuple[float, float] | None:
    """Returns the values that become 0 and 255 by the window of a header, or None where it says none."""
    if center is None or width is None or function not in _WINDOW_FUNCTIONS:
        return None
    if not (width >= 1 if function == 'LINEAR' else width > 0):
        raise ValueError(f'{file} has a window of no width; say another: window = (low, high).')
    if function == 'LINEAR':
        center, width = center - 0.5, width - 1
    return center - width / 2, center + width / 2


def decode(file: pathlib.Path, fit: images_lib.Fit) -> np.ndarray:
    """Decodes a file; see `dicom_folder`.

    Args:
      file: The file.
      fit: Its window; the size stays as it is.

    Returns:
      uint8 [height, width, channels] with 1 or 3 channels.

    Raises:
      ValueError: names the file and what is wrong.
    """
    header = read_header(file)
    shape = _check(header, file, fit)
    with _quoting_nothing(file):
        from pydicom import pixels as pixels_lib

        pixels = np.asarray(pixels_lib.pixel_array(file)).reshape(shape)
    if header.channels == 3:
        return pixels.astype(np.uint8)
    window = fit.window or header.window
    assert window is not None  # Checked above.
    grey = decoding.to_window(pixels * header.slope + header.intercept, *window)
    return 255 - grey if header.is_inverted else grey


def _check(header: DicomHeader, file: pathlib.Path, fit: images_lib.Fit) -> tuple[int, int, int]:
    """Returns the shape of an image if its header and `fit` say how to decode it."""
    if header.channels == 1 and fit.window is None and header.window is None:
        raise ValueError(
            f'{file} has no window (WindowCenter, WindowWidth, a linear function); say which grey levels become 0 and '
            '255: window = (-160, 240), for instance.'
        )
    if header.channels == 3 and fit.window is not None:
        raise ValueError(f'{file} is in colour, and window={fit.window} is for grey images.')
    return header.height, header.width, header.channels


def list_class(class_folder: pathlib.Path, problems: problems_lib.Problems) -> list[pathlib.Path]:
    """Lists the DICOM files of a class folder, and takes down what else is in it."""
    files = []
    for file in listed.walk(class_folder):
        listed.check_name(file)
        if is_dicom(file) and file.name != _INDEX:
            files.append(file)
        elif file.name != _INDEX:
            problems.add(f'{file} is no DICOM file; move it out of the class folder.')
    return files


def list_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Lists the DICOM files below a folder: those that begin so, and those whose name says so."""
    if not root.is_dir():
        raise FileNotFoundError(f'no such folder: {root}.')
    files = [file for file in listed.walk(root) if file.name != _INDEX]
    return [file for file in files if file.suffix.lower() in SUFFIXES or is_dicom(file)]


@dataclasses.dataclass(frozen=True)
class _Labels:
    """A table of labels, by file or by patient; the fields are those of `dicom_folder`."""

    table: table_lib.Table
    label_column: str
    file_column: str | None
    patient_column: str | None
    suffix: str | None
    unlisted: str

    def __post_init__(self):
        if (self.file_column is None) == (self.patient_column is None):
            raise ValueError('a table of labels needs file_column or patient_column, one of the two.')
        if self.unlisted not in ('refuse', 'pass_over'):
            raise ValueError(f"unlisted must be 'refuse' or 'pass_over', got {self.unlisted!r}.")

    def label(self, root: pathlib.Path) -> tuple[dict[pathlib.Path, DicomHeader], listed.Listing, tuple[str, ...]]:
        """Returns the headers and the files that have a label, and the names of the classes."""
        problems = problems_lib.Problems(f'the table {self.table.file}')
        labels = table_images.labels_of(self.table, self.label_column, problems)
        files = list_files(root)
        if self.file_column is not None:
            index = listed.FileIndex(root, files)
            rows = table_images.match(self.table, index, self.file_column, self.suffix, problems)
            headers = _read_headers(root.name, sorted(rows) if self.unlisted == 'pass_over' else files)
        else:
            headers = _read_headers(root.name, files)
            rows = self._match_patients(headers, labels, problems)
        if self.unlisted == 'refuse':
            for file in sorted(set(headers) - set(rows)):
                problems.add(
                    f"{file} is not listed in {self.table.file}; unlisted = 'pass_over' leaves such files out."
                )
        # A table may list more patients than there are here.
        class_names = table_images.order_classes([labels[row] for row in rows.values()], str(self.table.file), problems)
        problems.check()
        headers = {file: headers[file] for file in rows}
        if not rows:
            raise ValueError(f'{self.table.file} lists none of the DICOM files in {root}.')
        return headers, table_images.make_listing(root, rows, labels, None, class_names), class_names

    def _match_patients(
        self, headers: dict[pathlib.Path, DicomHeader], labels: Sequence[str], problems: problems_lib.Problems
    ) -> dict[pathlib.Path, int]:
        """Returns the row of each file by its patient; takes down patients of two labels."""
        assert self.patient_column is not None
        row_of: dict[str, int] = {}
        for row, patient in enumerate(self.table.column(self.patient_column)):
            first = row_of.setdefault(patient.strip(), row)
            if labels[first] != labels[row]:
                problems.add(
                    f'{self.table.line(row)} gives a patient another label than line {self.table.lines[first]} does.'
                )
        return {file: row_of[header.patient] for file, header in headers.items() if header.patient in row_of}


def _read_headers(name: str, files: Sequence[pathlib.Path]) -> dict[pathlib.Path, DicomHeader]:
    """Returns the headers of files; those that cannot be read are told of at once."""
    headers: dict[pathlib.Path, DicomHeader] = {}

    def read(file):
        headers[file] = read_header(file)
        return True

    images_lib.read_all(name, files, read, np.empty([len(files)], bool))
    return {file: headers[file] for file in files}


def _check_patients(headers: dict[pathlib.Path, DicomHeader]) -> None:
    """Refuses files without a patient, and those whose patient may be several people, or one of two names."""
    files = list(headers)
    problems = problems_lib.Problems('the PatientIDs of DICOM files')
    owners = np.array([header.patient for header in headers.values()], str)
    for problem in splitting.owner_problems(owners, lambda row: f'PatientID of {files[row]}', shows_names=False):
        problems.add(problem)
    first_of: dict[str, pathlib.Path] = {}
    told = set()
    for file, header in headers.items():
        first = first_of.setdefault(header.patient, file)
        is_same = owner_names.key(header.issuer) == owner_names.key(headers[first].issuer)
        if not is_same and first not in told:
            told.add(first)
            problems.add(
                f'{file} and {first} have one PatientID of two issuers, who may mean two people: give each a PatientID '
                'of their own.'
            )
    problems.check()


def _with_owners(listing: listed.Listing, headers: dict[pathlib.Path, DicomHeader]) -> listed.Listing:
    return dataclasses.replace(listing, owners=np.array([headers[file].patient for file in listing.paths], str))


def _check_compression(file: pathlib.Path, transfer_syntax) -> None:
    """Refuses a file whose pixels nothing that is installed can decompress."""
    from pydicom import pixels as pixels_lib

    try:
        is_available = pixels_lib.get_decoder(transfer_syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise ValueError(
            f'{file} is compressed in a way that cannot be read here; decompress it, or install a decoder of pydicom.'
        )


def _pydicom() -> Any:
    """Returns the library, which logs nothing: its messages quote headers."""
    try:
        import pydicom
    except ImportError:
        raise ValueError(
            "DICOM files need pydicom: pip install 'pydicom>=3,<4', or the extra 'medical' of tf_dpdiff."
        ) from None
    logging.getLogger('pydicom').setLevel(logging.CRITICAL)
    return pydicom


_no_warnings = decoding.WarningFilters(lambda: warnings.simplefilter('ignore'))


@contextlib.contextmanager
def _quoting_nothing(file: pathlib.Path) -> Iterator[None]:
    """Turns whatever pydicom raises into one line that names the file and nothing of the header."""
    try:
        with _no_warnings:
            yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'{file} is a damaged DICOM file ({type(error).__name__}).') from None
