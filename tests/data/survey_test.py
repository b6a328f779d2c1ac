"""Tests of what a folder is seen to hold, and that the source which it names reads it."""

import csv
import dataclasses
import json
import os

import numpy as np
from PIL import Image
import pytest

from tests.data import dicom_files
from tf_dpdiff.data import datasets
from tf_dpdiff.data import decoding
from tf_dpdiff.data import folders
from tf_dpdiff.data import survey as survey_lib
from tf_dpdiff.data import table_images


def save(file, shape=(6, 5, 3), dtype=np.uint8):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(hash(file.name) % 1000).integers(0, 256, shape).astype(dtype)
    Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels).save(file)


def write_table(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w', encoding='utf-8', newline='') as opened:
        if file.suffix == '.jsonl':
            opened.writelines(json.dumps(row) + '\n' for row in rows)
        else:
            writer = csv.DictWriter(opened, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def write_class_folders(root, names=('cat', 'dog'), count=12):
    for name in names:
        for i in range(count):
            save(root / name / f'{name[0]}{i % 4}_{i}.png')


def write_flat(root, table='metadata.csv', column='file_name', suffix='.png', folder='', count=24):
    for i in range(count):
        save(root / folder / f'scan{i:02d}.png')
    rows = [
        {column: f'scan{i:02d}{suffix}', 'age': 30 + i, 'diagnosis': 'ab'[i % 2], 'patient_id': f'P{i // 3}'}
        for i in range(count)
    ]
    write_table(root / table, rows)


def test_class_folders_are_seen_and_read(tmp_path):
    write_class_folders(tmp_path)
    save(tmp_path / 'cat' / 'c0_wide.png', (4, 9, 1))
    for junk in ('cat/Thumbs.db', 'desktop.ini', '__MACOSX/cat/._a.png', '.DS_Store'):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_bytes(b'junk')
    found = survey_lib.survey(tmp_path)
    found.check()
    assert (found.source, found.path, found.num_images) == ('class_folders', tmp_path, 25)
    assert found.class_names == ('cat', 'dog') and dict(found.sizes) == {(6, 5): 24, (4, 9): 1}
    assert found.has_colour and found.has_grey and not (found.has_alpha or found.has_palette or found.needs_window)
    assert found.num_prefix_owners == 8 and found.table is None and not found.problems
    data = folders.image_folder(found.path, owner_from='prefix', image_size=4, channels=1, held_out_fraction=0.5)
    assert data.spec.class_names == found.class_names


@pytest.mark.parametrize('with_test', [True, False])
def test_folders_train_and_test_are_seen(tmp_path, with_test):
    write_class_folders(tmp_path / 'train')
    if with_test:
        write_class_folders(tmp_path / 'test', count=3)
    save(tmp_path / 'overview.png')  # Passed over by the source too.
    found = survey_lib.survey(tmp_path)
    assert found.source == 'train_test_class_folders' and found.num_images == 24 + 6 * with_test
    assert found.class_names == folders.image_folder(tmp_path).spec.class_names


@pytest.mark.parametrize('kind', ['RGBA', 'P', 'I;16'])
def test_what_a_source_needs_an_argument_for_is_seen(tmp_path, kind):
    write_class_folders(tmp_path)
    file = tmp_path / 'cat' / 'odd.png'
    if kind == 'I;16':
        Image.fromarray(np.zeros([6, 5], np.uint16)).save(file)
    else:
        Image.new('RGB', (5, 6)).convert(kind).save(file)
    found = survey_lib.survey(tmp_path)
    assert (found.has_alpha, found.has_palette, found.needs_window) == tuple(kind == k for k in ('RGBA', 'P', 'I;16'))


@pytest.mark.parametrize(
    'table, column, suffix, folder',
    [
        ('metadata.csv', 'file_name', '.png', ''),
        ('metadata.jsonl', 'file_name', '.png', ''),
        ('HAM.csv', 'isic_id', '', ''),
        ('train.csv', 'image', '.png', 'images'),
    ],
)
def test_flat_folder_with_a_table_is_seen_and_read(tmp_path, table, column, suffix, folder):
    write_flat(tmp_path, table, column, suffix, folder)
    found = survey_lib.survey(tmp_path)
    found.check()
    assert found.source == 'table' and found.table == tmp_path / table and found.num_images == 24
    assert found.file_columns == (column,) and found.label_columns[0] == 'diagnosis'
    assert found.owner_columns == {'patient_id': 8} and found.class_names == ('a', 'b')
    assert set(found.columns) == {column, 'age', 'diagnosis', 'patient_id'}
    assert survey_lib.survey(tmp_path / table).source == 'table'
    data = table_images.csv_images(
        found.path,
        file_column=found.file_columns[0],
        label_column=found.label_columns[0],
        owner_column=next(iter(found.owner_columns)),
    )
    assert data.spec.num_units + data.held_out.num_units == 8 and data.spec.class_names == found.class_names


def test_layout_of_hugging_face_is_seen_and_read(tmp_path):
    for part, count in (('train', 24), ('test', 6)):
        write_flat(tmp_path / part, count=count)
    found = survey_lib.survey(tmp_path)
    assert (found.source, found.path, found.num_images) == ('table', tmp_path, 30)
    data = table_images.csv_images(found.path, label_column='diagnosis')
    assert len(data.train) == 24 and len(data.held_out) == 6


def test_table_of_owners_beside_class_folders_leaves_them_class_folders(tmp_path):
    write_class_folders(tmp_path)
    files = sorted(tmp_path.rglob('*.png'))
    write_table(tmp_path / 'owners.csv', [{'file': file.name, 'patient': i // 3} for i, file in enumerate(files)])
    found = survey_lib.survey(tmp_path)
    assert found.source == 'class_folders' and found.table == tmp_path / 'owners.csv'
    assert found.file_columns == ('file',) and found.owner_columns == {'patient': 8}


def test_no_number_of_images_of_a_class_is_told(tmp_path):
    write_class_folders(tmp_path, ('cat',), 30)
    write_class_folders(tmp_path, ('dog',), 12)
    told = str([value for value in dataclasses.asdict(survey_lib.survey(tmp_path)).values()])
    assert '42' in told and '30' not in told and '12' not in told


def test_arrays_are_seen(tmp_path):
    images = np.zeros([20, 4, 3, 3], np.uint8)
    np.savez(tmp_path / 'own.npz', images=images, labels=np.arange(20) % 2, owners=np.arange(20) // 2)
    for path in (tmp_path, tmp_path / 'own.npz'):
        found = survey_lib.survey(path)
        assert (found.source, found.path, found.num_images) == ('npz', tmp_path / 'own.npz', 20)
        assert dict(found.sizes) == {(4, 3): 20} and found.has_owners and found.has_colour and not found.has_grey
    assert datasets.npz_images(found.path).spec.class_names == found.class_names
    folder = tmp_path / 'npy'
    folder.mkdir()
    np.save(folder / 'train_images.npy', images[..., :1])
    np.save(folder / 'train_labels.npy', np.arange(20) % 2)
    found = survey_lib.survey(folder)
    assert (found.source, found.num_images, found.class_names, found.has_owners) == ('npy', 20, ('0', '1'), False)


@pytest.mark.parametrize('folders_are', ['classes', 'patients'])
def test_dicom_files_are_seen_and_nothing_of_a_patient_is_told(tmp_path, folders_are):
    for i in range(12):
        folder = f'class{i % 2}' if folders_are == 'classes' else f'scan{i // 3}'
        more = {} if i else {'WindowCenter': None}
        dicom_files.write(tmp_path / folder / 'study' / f'{i}.dcm', patient=f'{dicom_files.SECRET}{i // 3}', **more)
    found = survey_lib.survey(tmp_path)
    found.check()
    assert (found.source, found.num_images, dict(found.sizes)) == ('dicom', 12, {(4, 5): 12})
    assert found.class_names == (('class0', 'class1') if folders_are == 'classes' else ())
    assert found.has_owners and found.has_grey and not found.has_colour and found.needs_window
    assert dicom_files.SECRET not in repr(found)


def test_table_of_labels_of_patients_beside_dicom_files_is_seen(tmp_path):
    for i in range(12):
        dicom_files.write(tmp_path / f'scan{i // 3}' / f'{i}.dcm', patient=f'{dicom_files.SECRET}{i // 3}')
    rows = [{'who': f'{dicom_files.SECRET}{i}', 'site': 'x', 'diagnosis': 'ab'[i % 2]} for i in range(4)]
    write_table(tmp_path / 'labels.csv', rows)
    found = survey_lib.survey(tmp_path)
    assert found.source == 'dicom' and found.table == tmp_path / 'labels.csv' and found.class_names == ('a', 'b')
    assert found.owner_columns == {'who': 4} and found.label_columns[0] == 'diagnosis' and not found.file_columns
    assert dicom_files.SECRET not in repr(found)


def test_images_that_a_table_does_not_list_are_seen(tmp_path):
    write_flat(tmp_path, 't.csv', folder='train')
    assert not survey_lib.survey(tmp_path).has_unlisted
    save(tmp_path / 'test' / 'x.png')
    found = survey_lib.survey(tmp_path)
    assert found.source == 'table' and found.has_unlisted
    options = {'label_column': 'diagnosis', 'unit': 'one image'}
    with pytest.raises(ValueError, match="x.png is not listed in .*t.csv; unlisted = 'pass_over'"):
        table_images.csv_images(found.path, **options)
    data = table_images.csv_images(found.path, unlisted='pass_over', **options)
    assert len(data.train) + len(data.held_out) == 24


def test_previews_beside_dicom_files_are_no_images_of_their_own(tmp_path):
    for i in range(4):
        dicom_files.write(tmp_path / f'{i}.dcm')
    save(tmp_path / 'preview.png')
    assert survey_lib.survey(tmp_path).source == 'dicom'


def test_file_that_a_table_lists_twice_hides_no_table(tmp_path):
    write_flat(tmp_path, 't.csv', folder='images')
    with open(tmp_path / 't.csv', 'a', encoding='utf-8') as file:
        file.write('scan00.png,3,a,P0\r\n')
    assert survey_lib.survey(tmp_path).source == 'table'


def test_pixels_are_not_decoded(tmp_path, monkeypatch):
    write_class_folders(tmp_path)
    monkeypatch.setattr(Image.Image, 'load', None)
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', None)
    monkeypatch.setattr(decoding, 'decode', None)
    assert survey_lib.survey(tmp_path).num_images == 24


def test_bad_files_are_named_and_the_others_described(tmp_path):
    write_class_folders(tmp_path)
    (tmp_path / 'cat' / 'c0_empty.png').touch()
    (tmp_path / 'dog' / 'notes.txt').touch()
    found = survey_lib.survey(tmp_path)
    assert found.source == 'class_folders' and sum(found.sizes.values()) == 24 and len(found.problems) == 2
    assert 'notes.txt is no image file' in found.problems[0] and 'c0_empty.png is an empty file' in found.problems[1]


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda root: root.mkdir(), 'scans holds no files'),
        (lambda root: save(root / 'x' / 'a' / '1.png'), 'x/a/1.png lies too deep: .*; give .*scans/x.$'),
        (lambda root: (save(root / 'x' / 'a' / '1.png'), save(root / 'b' / '2.png')), 'lies too deep: .*move them up'),
        (lambda root: root.mkdir() or (root / 'a.tfrecord-00000').touch(), 'holds TFRecord files; see tfrecord_images'),
        (lambda root: save(root / '1.png'), 'neither class folders nor a table'),
        (lambda root: (root / 'a').mkdir(parents=True) or (root / 'a' / '1.gif').touch(), 'it holds 1 .gif'),
        (lambda root: (root / 'a').mkdir(parents=True) or (root / 'a' / '1.png').touch(), 'none of the 1 images'),
        (
            lambda root: (save(root / '1.png'), write_table(root / 'metadata.csv', [{'x': 'a', 'y': 'b'}])),
            'no column of .*metadata.csv names the images in .*; it has x, y',
        ),
        (
            lambda root: (root.mkdir(), np.savez(root / 'a.npz'), np.savez(root / 'b.npz')),
            'holds 2 .npz files; give the one that is meant',
        ),
    ],
)
def test_why_no_source_reads_a_folder_is_said_in_one_line(tmp_path, make, message):
    make(tmp_path / 'scans')
    found = survey_lib.survey(tmp_path / 'scans')
    assert not found.source
    with pytest.raises(ValueError, match=message) as error:
        found.check()
    assert '\n' not in str(error.value)


def test_what_is_not_there_or_no_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file or folder: .*scans'):
        survey_lib.survey(tmp_path / 'scans')
    save(tmp_path / '1.png')
    assert 'is one picture; give the folder' in survey_lib.survey(tmp_path / '1.png').refusal
    (tmp_path / 'loop').symlink_to(tmp_path)
    with pytest.raises(ValueError, match='loop is a link to a folder that holds it'):
        survey_lib.survey(tmp_path)


def test_images_of_two_depths_are_refused(tmp_path):
    write_class_folders(tmp_path)
    Image.fromarray(np.zeros([6, 5], np.uint16)).save(tmp_path / 'cat' / 'deep.png')
    Image.fromarray(np.zeros([6, 5], np.uint16)).save(tmp_path / 'cat' / 'other.png')
    with pytest.raises(ValueError, match='deep.png has 16 bits a channel, and .*png has 8'):
        survey_lib.survey(tmp_path).check()


@pytest.mark.parametrize(
    'rows, message',
    [
        (b'file,label\nscan00.png,b\xf6se\n', 't.csv, line 2 is not in UTF-8'),
        (b'file,label\nscan00.png,a\nscan00.png,b\n', 'No column of .*t.csv names most of the images'),
        (None, 'a column of their names'),
    ],
)
def test_why_a_table_is_not_taken_is_told(tmp_path, rows, message):
    for i in range(6):
        save(tmp_path / f'scan{i:02d}.png')
    if rows:
        (tmp_path / 't.csv').write_bytes(rows)
    with pytest.raises(ValueError, match=f'neither class folders nor a table.*{message}'):
        survey_lib.survey(tmp_path).check()


@pytest.mark.parametrize('parts', [('Train', 'Test'), ('training', 'testing')])
def test_parts_of_other_names_are_to_be_renamed(tmp_path, parts):
    for part in parts:
        write_class_folders(tmp_path / part)
    with pytest.raises(ValueError, match=f'rename {parts[0]} to train and {parts[1]} to test'):
        survey_lib.survey(tmp_path).check()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_pipe_is_not_waited_for(tmp_path):
    write_class_folders(tmp_path)
    os.mkfifo(tmp_path / 'cat' / 'pipe.png')
    assert any('pipe.png is no file' in problem for problem in survey_lib.survey(tmp_path).problems)
