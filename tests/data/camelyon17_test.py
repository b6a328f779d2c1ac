"""Tests of WILDS Camelyon17, on a small folder of its layout."""

import numpy as np
from PIL import Image
import pytest

from tests.data import camelyon17_layout as layout
from tf_dpdiff.data import camelyon17
from tf_dpdiff.data import images

SPLIT_OF = {'1': 'val', '2': 'test'}


@pytest.fixture(name='hospitals', scope='module')
def fixture_hospitals(tmp_path_factory):
    root = tmp_path_factory.mktemp('wilds')
    return root, layout.write(root, centers=(0, 1, 2, 3), slides=2)


def of_split(rows, split):
    return [row for row in rows if SPLIT_OF.get(row['center'], ('train', 'id_val')[int(row['split'])]) == split]


def means(root, row, factor=3):
    """Returns a patch, each factor x factor pixels averaged."""
    pixels = np.asarray(Image.open(layout.patch_file(root, row)).convert('RGB'))
    size = 96 // factor
    # Half a level is rounded up.
    return np.floor(pixels.reshape(size, factor, size, factor, 3).mean((1, 3)) + 0.5)


@pytest.mark.parametrize('held_out', ['test', 'val', 'id_val'])
def test_hospitals_are_parted_as_wilds_parts_them(hospitals, held_out):
    root, rows = hospitals
    data = camelyon17.wilds_camelyon17(root, held_out_split=held_out)
    assert data.spec == data.train.spec and data.spec.unit == 'one image' and data.spec.image_shape == (32, 32, 3)
    for part, split in ((data.train, 'train'), (data.held_out, held_out)):
        expected = of_split(rows, split)
        assert len(part) == len(expected) > 0
        np.testing.assert_array_equal(part.labels, [int(row['tumor']) for row in expected])
        for i in (0, len(expected) // 2, len(expected) - 1):
            np.testing.assert_array_equal(part.images_uint8[i], means(root, expected[i]))
    assert not {row['center'] for row in of_split(rows, 'train')} & set('12')


@pytest.mark.parametrize('unit, columns', [('patient', ['patient']), ('slide', ['slide'])])
def test_unit_may_be_a_patient_or_a_slide(hospitals, unit, columns):
    root, rows = hospitals
    data = camelyon17.wilds_camelyon17(root, unit=unit)
    assert data.spec == data.train.spec and data.spec.has_owners and data.spec.unit == f'one {unit}'
    names = [tuple(row[column] for column in columns) for row in of_split(rows, 'train')]
    assert data.spec.num_units == len(set(names)) == {'patient': 4, 'slide': 8}[unit]
    pairs = set(zip(names, data.train.owners.tolist()))
    assert len(pairs) == len(set(names)) and data.train.owners.max() == len(set(names)) - 1


@pytest.mark.parametrize('unit, num_owners', [('patient', 4), ('slide', 8)])
def test_owner_with_images_in_both_parts_is_refused_at_once(hospitals, unit, num_owners):
    with pytest.raises(
        ValueError,
        match=f'metadata.csv: with {unit}s as owners and held_out_split=.id_val.: '
        f'{num_owners} owner.s. have both training and held-out images, such as ',
    ) as error:
        camelyon17.wilds_camelyon17(hospitals[0], unit=unit, held_out_split='id_val')
    assert '\n' not in str(error.value)


def test_numbers_too_large_for_32_bits_are_other_slides(tmp_path):
    rows = layout.write(tmp_path, centers=(0, 2), slides=2)
    numbers = {'0': '0', '1': str(2**32), '2': str(2**31), '3': str(2**31 - 2**32 + 2**33)}
    layout.write_metadata(tmp_path, [{**row, 'slide': numbers.get(row['slide'], row['slide'])} for row in rows])
    data = camelyon17.wilds_camelyon17(tmp_path, unit='slide')
    assert data.spec.num_units == data.train.num_units == 4


def test_folder_itself_and_other_sizes_do_too(hospitals):
    root, rows = hospitals
    data = camelyon17.wilds_camelyon17(root / 'camelyon17_v1.0', image_size=24)
    np.testing.assert_array_equal(data.train.images_uint8[0], means(root, rows[0], factor=4))


def test_cache_is_written_where_asked_for_its_owner_alone_and_read_the_second_time(tmp_path):
    root, cache = tmp_path / 'wilds', tmp_path / 'cache'
    rows = layout.write(root, patients=1)
    plain = camelyon17.wilds_camelyon17(root)
    fingerprint = plain.train.fingerprint()
    assert not cache.exists()
    cached = camelyon17.wilds_camelyon17(root, cache_dir=cache)
    assert cached.train.fingerprint() == fingerprint and isinstance(cached.train.images_uint8, np.memmap)
    files = list(cache.iterdir())
    assert len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o600  # Nothing of the held-out part.
    layout.patch_file(root, rows[0]).unlink()
    assert camelyon17.wilds_camelyon17(root, cache_dir=cache).train.fingerprint() == fingerprint
    # Other metadata, another size: another cache.
    for options in ({'image_size': 16}, {}):
        if not options:
            layout.write_metadata(root, [*rows, {**rows[-1], 'x_coord': '3328'}])
        changed = camelyon17.wilds_camelyon17(root, cache_dir=cache, **options)
        with pytest.raises(FileNotFoundError, match='line 2: no such patch'):
            changed.train
    assert list(cache.iterdir()) == files  # A failed attempt leaves nothing.


@pytest.mark.parametrize('content', [b'', b'no array', 'truncated', 'other'])
def test_damaged_cache_is_named(tmp_path, content):
    root, cache = tmp_path / 'wilds', tmp_path / 'cache'
    layout.write(root, patients=1)
    camelyon17.wilds_camelyon17(root, cache_dir=cache).train
    file = next(cache.iterdir())
    if content == 'other':
        np.save(file, np.zeros([3, 32, 32, 3], np.uint8))
    else:
        file.write_bytes(file.read_bytes()[:-100] if content == 'truncated' else content)
    with pytest.raises(ValueError, match=f'the cache {file} is damaged, delete it') as error:
        camelyon17.wilds_camelyon17(root, cache_dir=cache).train
    assert '\n' not in str(error.value)


def test_run_can_be_planned_before_the_data_are_there(tmp_path):
    data = camelyon17.wilds_camelyon17(tmp_path)
    assert data.spec.num_units == 302436 and data.spec.image_shape == (32, 32, 3) and data.spec.num_classes == 2
    assert data.spec.note == f'not found in {tmp_path}; published sizes'
    for part in ('train', 'held_out'):
        with pytest.raises(FileNotFoundError, match=f'no metadata.csv of Camelyon17 in {tmp_path}.*download it'):
            getattr(data, part)
    with pytest.raises(FileNotFoundError, match="needed to count the units where unit='patient'"):
        camelyon17.wilds_camelyon17(tmp_path, unit='patient')


def rewrite(change, columns=layout.COLUMNS):
    """Returns a function that writes metadata.csv anew with changed rows."""
    return lambda root, rows: layout.write_metadata(root, change(rows), columns)


def without(column):
    return rewrite(lambda rows: rows, [name for name in layout.COLUMNS if name != column])


def fourth(**changes):
    return rewrite(lambda rows: [*rows[:3], {**rows[3], **changes}, *rows[4:]])


def content(text):
    return lambda root, rows: (root / 'camelyon17_v1.0' / 'metadata.csv').write_bytes(text)


def patch(change):
    """Returns a function that changes the file of the second patch."""
    return lambda root, rows: change(layout.patch_file(root, rows[1]))


@pytest.mark.parametrize(
    'change, message',
    [
        *((without(column), f"line 1: no column '{column}' among") for column in layout.COLUMNS[1:]),
        (content(b''), "line 1: no column 'patient' among none"),
        (content(b'\xff\xfe'), 'metadata.csv, line 1'),
        (rewrite(lambda rows: []), 'the training split holds no images'),
        (rewrite(lambda rows: [r for r in rows if r['tumor'] == '0']), "class 'tumor' has no training image"),
        (rewrite(lambda rows: [r for r in rows if r['center'] != '2']), "no images of the split 'test'"),
        (fourth(tumor='2'), 'line 5: tumor must be 0 or 1, got 2'),
        (fourth(tumor='x'), "line 5: tumor must be a whole number, got 'x'"),
        (fourth(patient=''), "line 5: patient must be a whole number, got ''"),
        (fourth(node='../1'), "line 5: node must be a whole number, got '../1'"),
        (fourth(slide='1' * 19), 'line 5: slide must have at most 18 digits'),
        (fourth(split='2'), r'line 5: split must be 0 \(train\) or 1 \(id_val\), got 2'),
        (lambda root, rows: layout.patch_file(root, rows[-1]).unlink(), 'line 19: no such patch: .*x_3808_y_21792.png'),
        (patch(lambda file: file.write_bytes(b'')), 'x_3424_y_21792.png is an empty file'),
        (patch(lambda file: file.write_bytes(file.read_bytes()[:999])), 'x_3424_y_21792.png is a damaged image'),
        (patch(lambda file: Image.new('RGB', (32, 96)).save(file)), 'x_3424_y_21792.png is 96x32, a patch is 96x96'),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, change, message):
    rows = layout.write(tmp_path, patients=1)
    change(tmp_path, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data = camelyon17.wilds_camelyon17(tmp_path)
        len(data.train), len(data.held_out)
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize('resize, background', [('crop', None), ('pad', 7), ('stretch', None)])
def test_patches_come_to_any_proportions_and_each_has_a_cache_of_its_own(hospitals, tmp_path, resize, background):
    root, _ = hospitals
    options = {'resize': resize, 'background': background, 'cache_dir': str(tmp_path)}
    whole = camelyon17.wilds_camelyon17(root, image_size=96, cache_dir=str(tmp_path)).train.images_uint8
    for image_size in ((24, 16), (16, 24)):
        data = camelyon17.wilds_camelyon17(root, image_size=image_size, **options)
        expected = images.Fit(image_size, resize=resize, background=background).apply(whole)
        np.testing.assert_array_equal(data.train.images_uint8, expected)
        assert data.spec == data.train.spec and f'({images.RESIZES[resize]})' in data.spec.preparation
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    'options, message',
    [
        ({'unit': 'node'}, "unit of Camelyon17 must be one of image, patient, slide, got 'node'"),
        ({'held_out_split': 'train'}, "held_out_split of Camelyon17 must be one of test, val, id_val, got 'train'"),
        ({'image_size': 0}, 'image_size must be at least 1, got 0'),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        camelyon17.wilds_camelyon17(tmp_path, **options)
