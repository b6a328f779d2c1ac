"""Tests of images that stay in files."""

import numpy as np
import pytest

from tf_dpdiff.data import npy
from tf_dpdiff.data import pipelines


def write(folder, **changes):
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, [20, 4, 3, 1]).astype(np.uint8)
    arrays = {
        'train_images': images[:14],
        'train_labels': np.arange(14) % 2,
        'held_out_images': images[14:],
        'held_out_labels': np.arange(6) % 2,
        **changes,
    }
    for name, values in arrays.items():
        if values is not None:
            np.save(folder / f'{name}.npy', values)
    return arrays


def test_images_stay_in_their_files(tmp_path):
    arrays = write(tmp_path / 'scans')
    data = npy.npy_images(str(tmp_path / 'scans'))
    assert data.spec == data.train.spec and data.spec.unit == 'one image' and data.train.class_names == ('0', '1')
    for name, part in (('train', data.train), ('held_out', data.held_out)):
        assert isinstance(part.images_uint8, np.memmap) and not part.images_uint8.flags.writeable
        np.testing.assert_array_equal(part.images_uint8, arrays[f'{name}_images'])
        np.testing.assert_array_equal(part.labels, arrays[f'{name}_labels'])
    # A batch with padding is written to.
    images, labels = pipelines.gather(data.train, np.array([[3, -1], [0, 2]]))
    np.testing.assert_array_equal(images[1, 1], arrays['train_images'][2])
    assert not images[0, 1].any() and labels.tolist() == [[1, 0], [0, 0]]


def test_unit_may_be_an_owner(tmp_path):
    write(tmp_path / 'scans', train_owners=np.array([f'patient {i // 2}' for i in range(14)]))
    data = npy.npy_images(str(tmp_path / 'scans'), class_names=('no', 'yes'), unit='one patient')
    assert data.spec == data.train.spec and data.spec.num_units == 7 and data.spec.unit == 'one patient'
    assert npy.npy_images(str(tmp_path / 'scans')).spec.unit == 'one owner'
    np.testing.assert_array_equal(data.train.owners, np.arange(14) // 2)
    assert data.held_out.class_names == ('no', 'yes')


def test_held_out_images_stay_unread(tmp_path):
    write(tmp_path / 'scans')
    (tmp_path / 'scans' / 'held_out_images.npy').write_bytes(b'damaged')
    data = npy.npy_images(str(tmp_path / 'scans'))
    assert len(data.train) == 14
    with pytest.raises(ValueError, match='held_out_images.npy is no readable .npy file'):
        data.held_out


def test_unit_in_words_needs_owners(tmp_path):
    write(tmp_path / 'scans')
    with pytest.raises(ValueError, match="^data set 'scans': unit='one patient' needs owners"):
        npy.npy_images(str(tmp_path / 'scans'), unit='one patient')


@pytest.mark.parametrize(
    'file, near',
    [
        ('owners.npy', 'train_owners'),
        ('train_owner.npy', 'train_owners'),
        ('Train_Owners.npy', 'train_owners'),
        ('train_owners.NPY', 'train_owners'),
        ('train_patients.npz', 'train_owners'),
        ('train_patient_ids.csv', 'train_owners'),
        ('held_out_owner.npy', 'held_out_owners'),
        ('train_image.npy', 'train_images'),
        ('labels.npy', 'train_labels'),
        ('class_names.npy', None),
        ('weights.npy', None),
    ],
)
def test_file_that_nothing_reads_is_refused_and_the_nearest_known_one_is_named(tmp_path, file, near):
    write(tmp_path / 'scans')
    for passed_over in ('README.txt', '._train_owners.npy'):
        (tmp_path / 'scans' / passed_over).touch()
    npy.npy_images(tmp_path / 'scans')
    np.save(tmp_path / 'scans' / 'other', np.arange(14) // 2)
    (tmp_path / 'scans' / 'other.npy').rename(tmp_path / 'scans' / file)
    with pytest.raises(ValueError, match=rf'^nothing reads {tmp_path / "scans" / file}: ') as error:
        npy.npy_images(tmp_path / 'scans')
    assert (f'is it {near}.npy? Rename it' if near else ': rename it') in str(error.value)


@pytest.mark.parametrize('name', ['train_owners.npy', 'held_out_owners.npy', 'train_labels.npy'])
def test_link_to_nothing_is_not_the_same_as_no_file(tmp_path, name):
    write(tmp_path / 'scans', train_owners=np.arange(14) // 2)
    (tmp_path / 'scans' / name).unlink(missing_ok=True)
    (tmp_path / 'scans' / name).symlink_to('/nowhere')
    with pytest.raises(FileNotFoundError, match=f'no such file: .*{name}'):
        npy.npy_images(tmp_path / 'scans')


def test_nobody_owns_images_on_both_sides(tmp_path):
    owners = {'train_owners': np.arange(14) // 2, 'held_out_owners': np.array(['7', '7', '8', '9', '9', '9'])}
    write(tmp_path / 'apart', **owners)
    data = npy.npy_images(tmp_path / 'apart', unit='one patient')
    assert data.spec.num_units == 7 and data.held_out.num_units == 3 and data.held_out.unit == 'one patient'
    write(tmp_path / 'mixed', **{**owners, 'held_out_owners': np.array(['7', '7', '8', '9', '9', '06'])})
    data = npy.npy_images(tmp_path / 'mixed')
    with pytest.raises(
        ValueError, match="1 owner.s. have both training and held-out images, such as '6', written '06'"
    ):
        data.held_out
    write(tmp_path / 'lone', **{**owners, 'train_owners': None})
    with pytest.raises(ValueError, match='held_out_owners.npy names owners, and no train_owners.npy does'):
        npy.npy_images(tmp_path / 'lone')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'train_images': None}, 'no such file: .*train_images.npy'),
        ({'held_out_labels': None}, 'no such file: .*held_out_labels.npy'),
        ({'train_images': np.zeros([14, 4, 3, 1])}, r'train_images.npy must be uint8 .* got float64 \[14, 4, 3, 1\]'),
        ({'train_images': np.zeros([14, 4, 3], np.uint8)}, r'train_images.npy must be uint8 .* got uint8 \[14, 4, 3\]'),
        (
            {'train_images': np.zeros([0, 4, 3, 1], np.uint8)},
            r'train_images.npy must be uint8 .* got uint8 \[0, 4, 3, 1\]',
        ),
        ({'train_labels': np.arange(13) % 2}, r'train_labels.npy must hold one value .* the 14 images, got \[13\]'),
        ({'train_labels': np.zeros(14)}, 'train_labels.npy must hold whole numbers, got float64'),
        ({'train_labels': np.arange(14) - 1}, 'train_labels.npy: image 0 has label -1, which is no class'),
        (
            {'train_labels': np.arange(14) // 7 * 2},
            'train_labels.npy: the labels have gaps: .* no image has the label 1',
        ),
        ({'train_owners': np.zeros(14)}, 'train_owners.npy: image 0: owners must be one whole number .*, got float64'),
        ({'train_owners': np.zeros(13, int)}, r'train_owners.npy must hold one value .* the 14 images, got \[13\]'),
        ({'train_owners': np.arange(14) - 1}, 'train_owners.npy: image 0 names no owner: -1'),
        ({'train_owners': np.array([b'a', b''] * 7)}, "train_owners.npy: image 1 names no owner: b''"),
        ({'held_out_labels': np.arange(6) + 2**32}, r'image 0 has label 4294967296, which is not in \[0, 2\)'),
        ({'held_out_labels': np.zeros(5, int)}, 'held_out_labels.npy must hold one value for each of the 6 images'),
        ({'held_out_labels': np.full(6, 2)}, r'held_out_labels.npy: image 0 has label 2, which is not in \[0, 2\)'),
        ({'held_out_images': np.zeros([6, 3, 3, 1], np.uint8)}, "'scans' and 'scans held out' differ in image size"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, changes, message):
    write(tmp_path / 'scans', **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data = npy.npy_images(str(tmp_path / 'scans'))
        len(data.train), len(data.held_out)
    assert '\n' not in str(error.value)
