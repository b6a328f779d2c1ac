"""Tests of DICOM files: what becomes of grey levels, whose images they are, and that nothing of a patient is told."""

import csv
import fractions
import math
import pathlib
import re
import sys

import numpy as np
import pydicom
from pydicom import data as pydicom_data
import pytest

from tests.data import dicom_files
from tf_dpdiff.data import dicom
from tf_dpdiff.data import images

HALF = fractions.Fraction(1, 2)
NO_NUMBER = f'{dicom_files.SECRET} {dicom_files.SECRET[:2]}'.encode()


def write_classes(root, num_patients=10, suffix='.dcm', num_images=2):
    """Writes images of patients, half of them in each class."""
    for patient in range(num_patients):
        for i in range(num_images):
            pixels = np.full([4, 5], 10 * patient + i, np.uint16)
            dicom_files.write(
                root / 'ab'[patient % 2] / f'p{patient}' / f'{i}{suffix}', pixels, f'{dicom_files.SECRET}{patient}'
            )


def write_table(file, rows):
    with open(file, 'w', encoding='utf-8', newline='') as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def decode(file, window=None):
    return dicom.decode(file, images.Fit(window=window))


def error_of(call, *arguments, **options):
    with pytest.raises(ValueError) as raised:
        call(*arguments, **options)
    said = str(raised.value)
    assert dicom_files.SECRET not in said and '\n' not in said
    return said


def by_the_standard(values, center, width):
    """Returns PS3.3 C.11.2.1.2.1 as it is written, for a value at a time."""
    out = []
    center, width = (fractions.Fraction(value) for value in (center, width))
    for x in (fractions.Fraction(float(value)) for value in values.ravel()):
        if x <= center - HALF - (width - 1) / 2:
            out.append(0)
        elif x > center - HALF + (width - 1) / 2:
            out.append(255)
        else:
            out.append(math.floor(((x - (center - HALF)) / (width - 1) + HALF) * 255 + HALF))
    return np.array(out, np.uint8).reshape(values.shape)


@pytest.mark.parametrize('center, width', [(128, 256), (10, 4), (40, 400), (7.5, 1), (0, 2.5)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16])
def test_grey_levels_are_mapped_by_the_linear_function_of_the_standard(tmp_path, center, width, dtype):
    pixels = np.random.default_rng(0).integers(0, 60, [6, 5]).astype(dtype)
    file = dicom_files.write(tmp_path / 'a.dcm', pixels, WindowCenter=center, WindowWidth=width)
    np.testing.assert_array_equal(decode(file)[..., 0], by_the_standard(pixels, center, width))


def test_slope_and_intercept_come_before_the_window_and_inversion_after_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 400, [6, 5]).astype(np.uint16)
    tags = {'RescaleSlope': 2.5, 'RescaleIntercept': -300, 'WindowCenter': [40, 1], 'WindowWidth': [400, 1]}
    expected = by_the_standard(pixels * 2.5 - 300, 40, 400)
    np.testing.assert_array_equal(decode(dicom_files.write(tmp_path / 'a', pixels, **tags))[..., 0], expected)
    inverted = dicom_files.write(tmp_path / 'b', pixels, PhotometricInterpretation='MONOCHROME1', **tags)
    np.testing.assert_array_equal(decode(inverted)[..., 0], 255 - expected)


def test_stated_window_is_taken_in_place_of_that_of_the_header(tmp_path):
    pixels = np.array([[0, 100, 150, 200, 300]], np.uint16)
    for tags in ({}, {'WindowCenter': None}, {'VOILUTFunction': 'SIGMOID'}):
        file = dicom_files.write(tmp_path / 'a.dcm', pixels, **tags)
        np.testing.assert_array_equal(decode(file, (100, 200))[..., 0], [[0, 0, 128, 255, 255]])
    exact = dicom_files.write(
        tmp_path / 'b.dcm', pixels, WindowCenter=150, WindowWidth=100, VOILUTFunction='LINEAR_EXACT'
    )
    np.testing.assert_array_equal(decode(exact)[..., 0], [[0, 0, 128, 255, 255]])


def test_colour_is_as_stored(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [4, 5, 3]).astype(np.uint8)
    np.testing.assert_array_equal(decode(dicom_files.write(tmp_path / 'a.dcm', pixels)), pixels)


# Of pydicom's own files: window and what it shows are checked by the standard, colour against its RGB original.
@pytest.mark.parametrize(
    'name', ['MR_small.dcm', 'MR_small_RLE.dcm', 'MR_small_bigendian.dcm', 'MR_small_implicit.dcm']
)
def test_sample_of_grey_levels_is_read_in_any_transfer_syntax(name):
    file = pydicom_data.get_testdata_file(name, download=False)
    pixels = pydicom.dcmread(pydicom_data.get_testdata_file('MR_small.dcm', download=False)).pixel_array
    np.testing.assert_array_equal(decode(pathlib.Path(file))[..., 0], by_the_standard(pixels, 600, 1600))


@pytest.mark.parametrize(
    'name, tolerance',
    [
        ('SC_rgb_rle.dcm', 0),
        ('SC_rgb_gdcm_KY.dcm', 12),
        ('SC_rgb_dcmtk_+eb+cy+np.dcm', 12),
        ('SC_ybr_full_422_uncompressed.dcm', 80),
    ],
)
def test_sample_in_colour_is_rgb(name, tolerance):
    found, original = (
        decode(pathlib.Path(pydicom_data.get_testdata_file(each, download=False))).astype(int)
        for each in (name, 'SC_rgb_rle.dcm')
    )
    assert found.shape == original.shape == (100, 100, 3) and np.abs(found - original).mean() <= tolerance / 4


@pytest.mark.parametrize(
    'tags, message',
    [
        ({'WindowCenter': None}, 'has no window .* window = '),
        ({'WindowWidth': None}, 'has no window'),
        ({'VOILUTFunction': 'SIGMOID'}, 'has no window'),
        ({'WindowWidth': 0}, 'has a window of no width'),
        ({'NumberOfFrames': 3}, 'has 3 frames'),
        ({'PhotometricInterpretation': 'PALETTE COLOR'}, 'is neither grey nor RGB or YBR'),
        ({'Rows': None}, 'holds no image'),
        ({'Rows': 400}, r'is a damaged DICOM file \(\w+\)'),
        ({'NumberOfFrames': 987654}, r'is a damaged DICOM file \(\w+\)'),
    ],
)
def test_what_is_not_read_is_named_by_its_file_alone(tmp_path, tags, message):
    file = dicom_files.write(tmp_path / 'a.dcm', **tags)
    file.write_bytes(file.read_bytes().replace(b'987654', NO_NUMBER))
    said = error_of(decode, file)
    assert said.startswith(str(tmp_path / 'a.dcm'))
    assert re.search(message, said)


def test_no_warning_or_log_of_pydicom_is_let_through(tmp_path, recwarn, caplog, capfd):
    file = dicom_files.write(tmp_path / 'a.dcm', NumberOfFrames=987654)
    file.write_bytes(file.read_bytes().replace(b'987654', NO_NUMBER))
    error_of(decode, file)
    assert (
        not [each for each in recwarn.list if dicom_files.SECRET in str(each.message)]
        and dicom_files.SECRET not in caplog.text
    )
    assert dicom_files.SECRET not in ''.join(capfd.readouterr())
    with pytest.warns(UserWarning, match=dicom_files.SECRET):  # Control: pydicom alone quotes it.
        str(pydicom.dcmread(file).NumberOfFrames)


@pytest.mark.parametrize('suffix', ['.dcm', '', '.IMA'])
def test_class_folders_are_read_patients_apart(tmp_path, suffix):
    write_classes(tmp_path / 'scans', suffix=suffix)
    (tmp_path / 'scans' / 'a' / 'DICOMDIR').write_bytes(b'index')
    (tmp_path / 'scans' / 'a' / 'Thumbs.db').write_bytes(b'junk')
    data = dicom.dicom_folder(tmp_path / 'scans', held_out_fraction=0.4)
    for part in ('train', 'held_out'):
        data.look_at(part)
    assert data.spec == data.train.spec and data.spec.class_names == ('a', 'b') and data.spec.unit == 'one patient'
    assert data.spec.preparation == 'mapped from grey levels by the windows of their headers'
    assert data.train.num_units + data.held_out.num_units == 10 and len(data.train) + len(data.held_out) == 20
    patients = [{int(image[0, 0, 0]) // 10 for image in part.images_uint8} for part in (data.train, data.held_out)]
    assert not patients[0] & patients[1]
    assert [int(image[0, 0, 0]) // 10 % 2 for image in data.train.images_uint8] == data.train.labels.tolist()
    assert dicom_files.SECRET not in repr(data.spec) + repr(data.train)


def test_size_and_channels_are_brought_about(tmp_path):
    write_classes(tmp_path / 'scans')
    dicom_files.write(tmp_path / 'scans' / 'a' / 'wide.dcm', np.zeros([9, 30], np.uint16), f'{dicom_files.SECRET}0')
    data = dicom.dicom_folder(
        tmp_path / 'scans', image_size=(4, 6), channels=3, resize='stretch', window=(0, 100), held_out_fraction=0.4
    )
    assert data.train.image_shape == (4, 6, 3)
    assert data.spec.preparation == 'resized to 4x6 (stretched), turned to colour, mapped from grey levels of 0 to 100'
    data = dicom.dicom_folder(tmp_path / 'scans', held_out_fraction=0.4)
    said = error_of(lambda: (data.held_out, data.train))
    assert 'wide.dcm is 9x30x1' in said and 'give image_size' in said


@pytest.mark.parametrize('by', ['file', 'patient'])
def test_table_gives_the_labels(tmp_path, by):
    for patient in range(10):
        for i in range(2):
            pixels = np.full([4, 5], 10 * patient + i, np.uint16)
            dicom_files.write(tmp_path / 'scans' / f'{patient}_{i}.dcm', pixels, f'{dicom_files.SECRET}{patient}')
    if by == 'file':
        rows = [{'name': f'{p}_{i}', 'dx': 'xy'[p % 2]} for p in range(10) for i in range(2)]
    else:
        rows = [{'name': f'{dicom_files.SECRET}{p}', 'dx': 'xy'[p % 2]} for p in range(10)]
        rows.append({'name': f'{dicom_files.SECRET}77', 'dx': 'z'})  # Of whom there is no image.
    write_table(tmp_path / 'labels.csv', rows)
    options = {
        f'{by}_column': 'name',
        'label_column': 'dx',
        'labels': tmp_path / 'labels.csv',
        'held_out_fraction': 0.4,
    }
    data = dicom.dicom_folder(tmp_path / 'scans', **options)
    assert data.spec.class_names == ('x', 'y') and len(data.train) + len(data.held_out) == 20
    assert [int(image[0, 0, 0]) // 10 % 2 for image in data.train.images_uint8] == data.train.labels.tolist()
    dicom_files.write(tmp_path / 'scans' / 'more.dcm', patient=f'{dicom_files.SECRET}99')
    said = error_of(dicom.dicom_folder, tmp_path / 'scans', **options)
    assert 'more.dcm is not listed in' in said
    passed = dicom.dicom_folder(tmp_path / 'scans', unlisted='pass_over', **options)
    assert passed.train.fingerprint() == data.train.fingerprint()
    if by == 'patient':
        write_table(tmp_path / 'labels.csv', [*rows, {'name': f'{dicom_files.SECRET}3', 'dx': 'x'}])
        said = error_of(dicom.dicom_folder, tmp_path / 'scans', unlisted='pass_over', **options)
        assert 'line 13 gives a patient another label than line 5 does' in said


def test_parts_are_the_folders_train_and_test_and_no_patient_is_in_both(tmp_path):
    write_classes(tmp_path / 'train', 6)
    for patient, label in ((6, 'a'), (7, 'b')):
        dicom_files.write(tmp_path / 'test' / label / f'{patient}.dcm', patient=f'{dicom_files.SECRET}{patient}')
    data = dicom.dicom_folder(tmp_path)
    assert len(data.train) == 12 and len(data.held_out) == 2
    file = dicom_files.write(tmp_path / 'test' / 'a' / 'x.dcm', patient=f'{dicom_files.SECRET.lower()}0')
    said = error_of(dicom.dicom_folder, tmp_path)
    assert f'{file}' in said and 'differ in white space, case or spelling' in said
    dicom_files.write(file, patient=f'{dicom_files.SECRET}0')
    said = error_of(dicom.dicom_folder, tmp_path)
    assert '1 owner(s) have both training and held-out images' in said and 'x.dcm' in said


@pytest.mark.parametrize(
    'patient, tags, message',
    [
        (None, {}, 'odd.dcm names no owner;'),
        ('', {}, 'odd.dcm names no owner;'),
        ('ANONYMOUS', {}, 'odd.dcm names no owner;'),
        ('1.23E+17', {}, 'names its owner, which is a rounded number'),
        (f'{dicom_files.SECRET}0', {'IssuerOfPatientID': 'other'}, 'have one PatientID of two issuers'),
    ],
)
def test_file_of_nobody_or_of_several_people_is_refused_without_their_names(tmp_path, patient, tags, message):
    write_classes(tmp_path / 'scans')
    dicom_files.write(tmp_path / 'scans' / 'a' / 'odd.dcm', patient=patient, **tags)
    said = error_of(dicom.dicom_folder, tmp_path / 'scans', held_out_fraction=0.4)
    assert message in said and (not patient or patient not in said)


@pytest.mark.parametrize('patient', [f'{dicom_files.SECRET}0 ', f' {dicom_files.SECRET}0'])
def test_spaces_around_a_patient_id_do_not_count_as_the_standard_says(tmp_path, patient):
    write_classes(tmp_path / 'scans')
    dicom_files.write(tmp_path / 'scans' / 'a' / 'more.dcm', patient=patient)
    data = dicom.dicom_folder(tmp_path / 'scans', held_out_fraction=0.4)
    assert data.train.num_units + data.held_out.num_units == 10


def test_all_bad_files_are_told_at_once(tmp_path):
    write_classes(tmp_path / 'scans')
    (tmp_path / 'scans' / 'a' / 'notes.txt').write_text('x')
    (tmp_path / 'scans' / 'b' / 'cut.dcm').write_bytes(b'DICM')
    with pytest.raises(ValueError) as raised:
        dicom.dicom_folder(tmp_path / 'scans')
    assert 'notes.txt is no DICOM file' in str(raised.value) and 'cut.dcm is no DICOM file' in str(raised.value)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'file_column': 'a'}, "file_column='a' is of a table, and no table is given"),
        ({'unlisted': 'pass_over'}, "unlisted='pass_over' is of a table, and no table is given"),
        ({'background': 0}, 'background=0 is for padded images here'),
        ({'unit': 'one image'}, "unit='one image', but owners are named"),
    ],
)
def test_options_that_mean_nothing_are_named(tmp_path, options, message):
    write_classes(tmp_path / 'scans')
    assert message in error_of(dicom.dicom_folder, tmp_path / 'scans', **options)


def test_missing_pydicom_is_one_line_that_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydicom', None)
    assert "pip install 'pydicom>=3,<4'" in error_of(dicom.dicom_folder, tmp_path)
