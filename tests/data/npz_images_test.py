"""Tests of loading one's own images."""

import zipfile

import numpy as np
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.data import npz


def write(path, **changes):
    images = np.random.default_rng(0).integers(0, 256, [40, 6, 5, 3]).astype(np.uint8)
    arrays = {'images': images, 'labels': np.arange(40) % 4, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_parts_are_disjoint_and_the_same_each_time(tmp_path):
    path = write(tmp_path / 'own.npz')
    data, again = datasets.npz_images(path), datasets.npz_images(path)
    assert len(data.train) + len(data.held_out) == 40 and data.train.image_shape == (6, 5, 3)
    assert set(data.train.labels) == set(data.held_out.labels) == set(range(4))
    assert data.train.fingerprint() == again.train.fingerprint()
    keys = {image.tobytes() for image in data.train.images_uint8} | {
        image.tobytes() for image in data.held_out.images_uint8
    }
    assert len(keys) == 40
    assert (
        data.train.unit == 'one image' and data.train.name == 'own' and data.train.class_names == ('0', '1', '2', '3')
    )


def sides(path, **options):
    """Returns the images and labels that are trained on and those that are held out."""
    data = datasets.npz_images(path, **options)
    return [
        {(image.tobytes(), label) for image, label in zip(part.images_uint8, part.labels)}
        for part in (data.train, data.held_out)
    ]


def test_no_image_moves_when_another_one_is_removed_or_comes_before_it(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, [41, 6, 5, 3]).astype(np.uint8), np.arange(41) % 4
    before = sides(write(tmp_path / 'own.npz', images=images[:40], labels=labels[:40]), held_out_fraction=0.5)
    for rows in (*(np.delete(np.arange(40), i) for i in range(40)), np.r_[40, :40], np.arange(40)[::-1]):
        after = sides(write(tmp_path / 'own.npz', images=images[rows], labels=labels[rows]), held_out_fraction=0.5)
        assert not before[0] & after[1] and not before[1] & after[0]


def test_identical_images_are_on_one_side(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [40, 6, 5, 3]).astype(np.uint8)
    one, other = sides(write(tmp_path / 'own.npz', images=np.repeat(images, 3, axis=0), labels=np.arange(120) // 3 % 4))
    assert not one & other and len(one | other) == 40


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('shape', [(40, 6, 5, 3), (40, 6, 5)])
@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('read_bytes', [1, 200, 2**24])  # An image a time, a few, all.
def test_pixels_that_are_hashed_are_those_of_each_image(tmp_path, monkeypatch, save, shape, order, read_bytes):
    monkeypatch.setattr(npz, '_READ_BYTES', read_bytes)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    save(tmp_path / 'own.npz', images=np.asarray(images, order=order))
    assert list(npz.pixels(tmp_path / 'own.npz')) == [image.tobytes() for image in images]


def test_grey_images_and_names_of_classes(tmp_path):
    path = write(
        tmp_path / 'own.npz',
        images=np.random.default_rng(0).integers(0, 256, [40, 6, 5]).astype(np.uint8),
        class_names=np.array(['a', 'b', 'c', 'd']),
    )
    data = datasets.npz_images(path)
    assert data.train.image_shape == (6, 5, 1) and data.train.class_names == ('a', 'b', 'c', 'd')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'images': None}, 'not an .npz file with the arrays'),
        ({'images': np.zeros([40, 6, 5, 3])}, 'images must be uint8'),
        ({'labels': np.zeros([39], int)}, '40 images but labels of shape'),
        ({'labels': np.linspace(0, 1, 40)}, 'labels must be whole numbers'),
        ({'labels': np.arange(40) - 1}, 'labels must be whole numbers'),
        ({'labels': np.arange(40)}, "class '0' has too few images"),
    ],
)
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
    assert data.train.num_units + data.held_out.num_units == 10
    whose = {image.tobytes(): owner for image, owner in zip(images, owners)}
    train, held_out = ({whose[image.tobytes()] for image in part.images_uint8} for part in (data.train, data.held_out))
    assert not train & held_out and len(train | held_out) == 10
    for index, owner in enumerate(data.train.owners):
        same = [whose[image.tobytes()] for image in data.train.images_uint8[data.train.owners == owner]]
        assert set(same) == {whose[data.train.images_uint8[index].tobytes()]}


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'owners': np.zeros([39], int)}, 'owners must be one whole number or name an image'),
        ({'owners': np.zeros([40])}, 'owners must be one whole number or name an image'),
        ({'owners': np.zeros([40], int)}, "class '0' has too few images to hold one out: images of one owner"),
        ({'owners': np.arange(40) % 4}, "class '.' has too few images to hold one out: images of one owner"),
        ({'owners': np.array(['a', 'b', '', ''] * 10)}, "own.npz: image 2 names no owner: ''"),
        ({'owners': np.array([b'a', b''] * 20)}, "own.npz: image 1 names no owner: b''"),
        ({'owners': np.arange(40) % 4 - 1}, 'own.npz: image 0 names no owner: -1'),
    ],
)
def test_unfit_owners_are_named_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.npz_images(write(tmp_path / 'own.npz', **changes))


def test_unit_in_words_needs_owners(tmp_path):
    path = write(tmp_path / 'own.npz')
    with pytest.raises(ValueError, match="^data set 'own': unit='one patient' needs owners"):
        datasets.npz_images(path, unit='one patient')
    assert datasets.npz_images(path, unit='one image').spec.unit == 'one image'
    path = write(tmp_path / 'own.npz', owners=np.arange(40) // 4)
    assert datasets.npz_images(path, unit='one patient').train.unit == 'one patient'
    with pytest.raises(ValueError, match="^data set 'own': unit='one image', but owners are named"):
        datasets.npz_images(path, unit='one image')


@pytest.mark.parametrize('owners', [None, np.arange(40) // 4])
def test_spec_is_known_before_the_pixels_are_kept(tmp_path, monkeypatch, owners):
    path = write(tmp_path / 'own.npz', owners=owners)
    expected = datasets.npz_images(path).train.spec
    monkeypatch.setattr(npz, 'read_images', lambda *arguments: pytest.fail('pixels are kept'))
    if owners is not None:
        monkeypatch.setattr(npz, 'pixels', lambda *arguments: pytest.fail('pixels are read'))
    spec = datasets.npz_images(path).spec
    assert spec == expected and spec.has_owners == (owners is not None)


@pytest.mark.parametrize('owners', [{}, {'owners': np.arange(400) // 4}])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_pixels_are_named_when_they_are_read(tmp_path, save, owners):
    path = tmp_path / 'own.npz'
    images = np.random.default_rng(0).integers(0, 256, [400, 6, 5, 3]).astype(np.uint8)
    save(path, labels=np.arange(400) % 4, images=images, **owners)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(ValueError, match='own.npz is not an .npz file') as error:
        datasets.npz_images(str(path)).train
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name, near',
    [
        ('owner', 'owners'),
        ('Owners', 'owners'),
        ('OWNERS', 'owners'),
        ('patient_id', 'owners'),
        ('patient_ids', 'owners'),
        ('PatientID', 'owners'),
        ('subject', 'owners'),
        ('person', 'owners'),
        ('pid', 'owners'),
        ('ids', 'owners'),
        ('user_id', 'owners'),
        ('onwers', 'owners'),
        ('label', 'labels'),
        ('Labels', 'labels'),
        ('targets', 'labels'),
        ('y', 'labels'),
        ('y_train', 'labels'),
        ('classes', 'labels'),
        ('image', 'images'),
        ('Images', 'images'),
        ('x', 'images'),
        ('X_train', 'images'),
        ('class_name', 'class_names'),
        ('names', 'class_names'),
        ('categories', 'class_names'),
        ('weights', None),
        ('arr_0', None),
    ],
)
@pytest.mark.parametrize('replaced', [False, True])
def test_array_that_nothing_reads_is_refused_and_the_nearest_known_one_is_named(tmp_path, name, near, replaced):
    path = write(tmp_path / 'own.npz', **{name: np.arange(40) // 4, **({near: None} if near and replaced else {})})
    with pytest.raises(ValueError, match=rf'own.npz holds `{name}`, which nothing reads: ') as error:
        datasets.npz_images(path)
    said = str(error.value)
    assert '\n' not in said and (f'is it `{near}`? Rename it, or leave it out' if near else ': rename it') in said


@pytest.mark.parametrize('member', ['owners', 'owners.txt', 'more/owners.npy', '__MACOSX/._images.npy', 'Owners.NPY'])
def test_nothing_else_may_lie_in_the_file(tmp_path, member):
    path = write(tmp_path / 'own.npz')
    datasets.npz_images(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(member, b'0')
    with pytest.raises(ValueError, match='own.npz holds `.*`, which nothing reads'):
        datasets.npz_images(path)


def test_array_that_is_there_twice_is_refused(tmp_path):
    path, other = (
        write(tmp_path / 'own.npz', owners=np.arange(40) // 4),
        write(tmp_path / 'other.npz', owners=np.arange(40)),
    )
    with zipfile.ZipFile(other) as archive:
        content = archive.read('owners.npy')
    with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate name'):
        archive.writestr('owners.npy', content)
    with pytest.raises(ValueError, match='own.npz holds owners.npy twice'):
        datasets.npz_images(path)


def test_samples_of_ours_may_be_public_images(tmp_path):
    path = write(tmp_path / 'more.npz', seeds=np.arange(40), class_names=np.array(['a', 'b', 'c', 'd']))
    assert datasets.npz_images(path).spec.class_names == ('a', 'b', 'c', 'd')


@pytest.mark.parametrize(
    'name, values, cure',
    [
        ('images', [np.zeros([6, 5, 3], np.uint8), np.zeros([7, 5, 3], np.uint8)] * 20, r'store numpy.stack\(images\)'),
        ('labels', np.arange(40) % 4, r'store labels.astype\(numpy.int64\)'),
        ('owners', np.arange(40) // 4, r'store owners.astype\(str\), or numbers'),
        ('class_names', ['a', 'b', 'c', 'd'], r'store class_names.astype\(str\)'),
    ],
)
def test_array_of_objects_is_named_with_the_cure_and_never_read(tmp_path, name, values, cure):
    objects = np.empty([len(values)], object)
    objects[:] = [values[i] for i in range(len(values))]
    path = write(tmp_path / 'own.npz', **{name: objects})
    with pytest.raises(ValueError, match=f'own.npz: the array `{name}` holds Python objects .*{cure}'):
        datasets.npz_images(path)


@pytest.mark.parametrize(
    'names, message',
    [
        (np.array([b'cat', b'dog', b'eel', b'fox']), None),
        (np.array(['cat', 'dog', 'eel']), r'image 3 has label 3, which is not in \[0, 3\)'),
        (np.array(['cat', 'dog', 'eel', 'fox', 'gnu']), "class 'gnu' has no training image"),
        (np.array(['cat', 'dog', 'eel', 'eel']), "two classes are called 'eel'"),
        (np.array([['cat', 'dog', 'eel', 'fox']]), 'class_names must be one text a class'),
        (np.array([b'cat', b'dog', b'eel', b'caf\xe9']), 'the name of a class must be Unicode'),
    ],
)
def test_names_of_classes_are_one_text_each(tmp_path, names, message):
    path = write(tmp_path / 'own.npz', class_names=names)
    if message is None:
        assert datasets.npz_images(path).spec.class_names == ('cat', 'dog', 'eel', 'fox')
        return
    with pytest.raises(ValueError, match=message):
        datasets.npz_images(path)


def test_label_without_a_name_is_refused(tmp_path):
    path = write(tmp_path / 'own.npz', class_names=np.array(['a', 'b', 'c']))
    with pytest.raises(ValueError, match=r'own.npz: image 3 has label 3, which is not in \[0, 3\)'):
        datasets.npz_images(path)
