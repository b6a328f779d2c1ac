"""Tests of loading one's own images."""

import numpy as np
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.data import npz


def write(path, **changes):
    images = np.random.default_rng(0).integers(0, 256, [40, 6, 5, 3]).astype(np.uint8)
    arrays = {'images': images, 'labels': np.arange(40) % 4, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_parts_are_disjoint_stratified_and_the_same_each_time(tmp_path):
    path = write(tmp_path / 'own.npz')
    data, again = datasets.npz_images(path, unit='one patient'), datasets.npz_images(path)
    assert len(data.train) == 32 and len(data.held_out) == 8 and data.train.image_shape == (6, 5, 3)
    np.testing.assert_array_equal(np.bincount(data.held_out.labels), [2, 2, 2, 2])
    assert data.train.fingerprint() == again.train.fingerprint()
    keys = {image.tobytes() for image in data.train.images_uint8
           } | {image.tobytes() for image in data.held_out.images_uint8}
    assert len(keys) == 40
    assert data.train.unit == 'one patient' and data.train.name == 'own' and data.train.class_names == ('0', '1', '2',
                                                                                                        '3')


def test_grey_images_and_names_of_classes(tmp_path):
    path = write(tmp_path / 'own.npz',
                 images=np.zeros([40, 6, 5], np.uint8),
                 class_names=np.array(['a', 'b', 'c', 'd']))
    data = datasets.npz_images(path)
    assert data.train.image_shape == (6, 5, 1) and data.train.class_names == ('a', 'b', 'c', 'd')


@pytest.mark.parametrize('changes, message', [
    ({'images': None}, 'not an .npz file with the arrays'),
    ({'images': np.zeros([40, 6, 5, 3])}, 'images must be uint8'),
    ({'labels': np.zeros([39], int)}, '40 images but labels of shape'),
    ({'labels': np.linspace(0, 1, 40)}, 'labels must be whole numbers'),
    ({'labels': np.arange(40) - 1}, 'labels must be whole numbers'),
    ({'labels': np.arange(40)}, "class '0' has 1 images"),
])  # yapf: disable
def test_unfit_file_is_named_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        datasets.npz_images(write(tmp_path / 'own.npz', **changes))
    assert 'own' in str(error.value)


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file: .*own.npz'):
        datasets.npz_images(str(tmp_path / 'own.npz'))
    (tmp_path / 'own.npz').write_bytes(b'no zip')
    with pytest.raises(ValueError, match='own.npz is not an .npz file'):
        datasets.npz_images(str(tmp_path / 'own.npz'))


@pytest.mark.parametrize('owners', [np.arange(40) // 4 * 7, np.array([f'patient {i // 4}' for i in range(40)])])
def test_nobody_owns_images_on_both_sides(tmp_path, owners):
    images = np.random.default_rng(0).integers(0, 256, [40, 6, 5, 3]).astype(np.uint8)
    data = datasets.npz_images(write(tmp_path / 'own.npz', images=images, owners=owners))
    assert data.train.unit == data.held_out.unit == 'one owner'
    assert data.train.num_units == 8 and data.held_out.num_units == 2
    whose = {image.tobytes(): owner for image, owner in zip(images, owners)}
    sides = [{whose[image.tobytes()] for image in part.images_uint8} for part in (data.train, data.held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 10
    for index, owner in enumerate(data.train.owners):
        same = [whose[image.tobytes()] for image in data.train.images_uint8[data.train.owners == owner]]
        assert set(same) == {whose[data.train.images_uint8[index].tobytes()]}


@pytest.mark.parametrize('changes, message', [
    ({'owners': np.zeros([39], int)}, 'owners must be one whole number or name an image'),
    ({'owners': np.zeros([40])}, 'owners must be one whole number or name an image'),
    ({'owners': np.zeros([40], int)}, 'all images have one owner'),
    ({'owners': np.arange(40) % 4}, 'no image of class .* belongs to the owners that would be'),
])  # yapf: disable
def test_unfit_owners_are_named_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.npz_images(write(tmp_path / 'own.npz', **changes))


def test_spec_is_known_before_the_pixels_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / 'own.npz', owners=np.arange(40) // 4)
    expected = datasets.npz_images(path).train.spec
    monkeypatch.setattr(npz, 'read_images', lambda *arguments: pytest.fail('pixels are read'))
    assert datasets.npz_images(path).spec == expected and expected.num_units == 8 and expected.has_owners


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_pixels_are_named_when_they_are_read(tmp_path, save):
    path = tmp_path / 'own.npz'
    images = np.random.default_rng(0).integers(0, 256, [400, 6, 5, 3]).astype(np.uint8)
    save(path, labels=np.arange(400) % 4, images=images)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(ValueError, match='own.npz is not an .npz file') as error:
        datasets.npz_images(str(path)).train  # pylint: disable=expression-not-assigned
    assert '\n' not in str(error.value)


def test_label_without_a_name_is_refused(tmp_path):
    path = write(tmp_path / 'own.npz', class_names=np.array(['a', 'b', 'c']))
    with pytest.raises(ValueError, match=r'own.npz: labels must be in \[0, 3\), .* got up to 3'):
        datasets.npz_images(path)
