"""Tests of images in TFRecord files."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tf_dpdiff.data import tfrecords


def picture(seed, shape=(6, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def feature(value):
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    values = value if isinstance(value, list) else [value]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write(path, rows, compression=''):
    """Writes rows, each a dictionary of values, or bytes."""
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for row in rows:
            if isinstance(row, dict):
                features = {key: feature(value) for key, value in row.items()}
                row = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            writer.write(row)
    return path


def rows_of(num_images=20, first=0, encode=png, shape=(6, 5, 3)):
    return [
        {'image/encoded': encode(picture(first + i, shape)), 'image/class/label': i % 2, 'owner': i % 5}
        for i in range(num_images)
    ]


def sides(data, num_images=20):
    """Returns the numbers of the records of each part."""
    numbers = {picture(i).tobytes(): i for i in range(num_images)}
    return [[numbers[image.tobytes()] for image in part.images_uint8] for part in (data.train, data.held_out)]


def test_records_of_all_files_are_split_without_loss(tmp_path):
    rows = rows_of()
    for number, part in ((1, rows[12:]), (0, rows[:12])):  # Written last to first.
        write(tmp_path / f'scans-{number}.tfrecord', part)
    data = tfrecords.tfrecord_images(str(tmp_path / 'scans-*.tfrecord'), class_names=('no', 'yes'))
    assert data.spec == data.train.spec and data.spec.class_names == ('no', 'yes') and data.spec.unit == 'one image'
    train, held_out = sides(data)
    assert train and held_out and sorted(train + held_out) == list(range(20))
    np.testing.assert_array_equal(data.train.labels, np.array(train) % 2)
    np.testing.assert_array_equal(data.held_out.labels, np.array(held_out) % 2)
    again = tfrecords.tfrecord_images(str(tmp_path / '*'))
    assert again.train.fingerprint() == data.train.fingerprint() and again.train.class_names == ('0', '1')


def test_no_record_moves_when_another_one_is_removed_or_comes_before_it(tmp_path):
    rows, path = rows_of(), tmp_path / 'a'

    def split(some):
        return sides(tfrecords.tfrecord_images(str(write(path, some)), held_out_fraction=0.5))

    train, held_out = split(rows)
    for i in range(20):
        assert split(rows[:i] + rows[i + 1 :]) == [[j for j in part if j != i] for part in (train, held_out)]
    assert split(rows[::-1]) == [train[::-1], held_out[::-1]]


def test_held_out_files_are_the_held_out_part(tmp_path):
    train, test = write(tmp_path / 'train', rows_of(4)), write(tmp_path / 'test', rows_of(3, first=4))
    data = tfrecords.tfrecord_images(str(train), held_out_pattern=str(test))
    assert sides(data) == [[0, 1, 2, 3], [4, 5, 6]] and data.spec.num_images == 4


@pytest.mark.parametrize('compression', ['GZIP', 'ZLIB'])
def test_raw_pixels_other_keys_and_compression(tmp_path, compression):
    rows = [
        {'pixels': row['image/encoded'], 'y': row['image/class/label']} for row in rows_of(encode=np.ndarray.tobytes)
    ]
    path = write(tmp_path / 'a', rows, compression)
    data = tfrecords.tfrecord_images(
        str(path),
        image_key='pixels',
        label_key='y',
        raw_shape=[6, 5, 3],
        compression=compression,
        held_out_fraction=0.5,
    )
    assert sorted(sum(sides(data), [])) == list(range(20))


@pytest.mark.parametrize('owner_of', [lambda i: i % 5, lambda i: f'patient {i % 5}'.encode()])
def test_nobody_owns_images_on_both_sides(tmp_path, owner_of):
    rows = [{**row, 'owner': owner_of(i)} for i, row in enumerate(rows_of())]
    data = tfrecords.tfrecord_images(str(write(tmp_path / 'a', rows)), owner_key='owner', held_out_fraction=0.5)
    assert data.spec == data.train.spec and data.spec.num_units + data.held_out.num_units == 5
    assert data.spec.unit == data.held_out.unit == 'one owner'
    train, held_out = sides(data)
    assert not {i % 5 for i in train} & {i % 5 for i in held_out} and len(train + held_out) == 20
    names = sorted({i % 5 for i in train})
    assert [names[owner] for owner in data.train.owners] == [i % 5 for i in train]


def test_owner_in_both_files_is_refused_when_the_held_out_part_is_read(tmp_path):
    train = write(tmp_path / 'train', rows_of(8))  # Owners 0 to 4.
    mixed = write(tmp_path / 'mixed', [{**row, 'owner': 3 + i} for i, row in enumerate(rows_of(4, first=8))])
    apart = write(tmp_path / 'apart', [{**row, 'owner': 7 + i} for i, row in enumerate(rows_of(4, first=8))])
    options = {'owner_key': 'owner', 'unit': 'one patient'}
    assert tfrecords.tfrecord_images(str(train), held_out_pattern=str(apart), **options).held_out.num_units == 4
    data = tfrecords.tfrecord_images(str(train), held_out_pattern=str(mixed), **options)
    assert data.train.unit == 'one patient' and data.train.num_units == 5
    with pytest.raises(ValueError, match=f"^{train} and {mixed}: 2 owner.s. have both .* held-out images, such as '3'"):
        data.held_out


@pytest.mark.parametrize(
    'options, noted', [({}, True), ({'unit': 'one image'}, False), ({'owner_key': 'owner'}, False)]
)
def test_owners_that_nobody_asks_for_are_not_passed_over_in_silence(tmp_path, capsys, options, noted):
    tfrecords.tfrecord_images(str(write(tmp_path / 'a', rows_of())), held_out_fraction=0.5, **options)
    said = capsys.readouterr().err
    assert ("'owner' seems to say whose image each is, and is not read" in said) == noted and said.count('\n') == noted
    rows = [{key: value for key, value in row.items() if key != 'owner'} for row in rows_of()]
    tfrecords.tfrecord_images(str(write(tmp_path / 'b', rows)))
    assert not capsys.readouterr().err


def test_record_of_nobody_is_named_in_its_file(tmp_path):
    write(tmp_path / 'a', rows_of(5))
    write(tmp_path / 'b', [{**row, 'owner': -1 if i in (2, 3) else i} for i, row in enumerate(rows_of(5))])
    with pytest.raises(ValueError, match=f'^{tmp_path / "b"}, record 2 names no owner: -1'):
        tfrecords.tfrecord_images(str(tmp_path / '*'), owner_key='owner')


def test_images_are_made_alike_where_asked(tmp_path):
    rows = [*rows_of(), {'image/encoded': png(picture(0, (4, 12, 1))), 'image/class/label': 0}]
    data = tfrecords.tfrecord_images(str(write(tmp_path / 'a', rows)), image_size=2, channels=3)
    assert data.train.image_shape == data.held_out.image_shape == data.spec.image_shape == (2, 2, 3)


def changed(**changes):
    """Returns rows of which the fourth has other values, None for none."""
    rows = rows_of()
    rows[3] = {key: value for key, value in {**rows[3], **changes}.items() if value is not None}
    return rows


@pytest.mark.parametrize(
    'rows, options, message',
    [
        (changed(**{'image/encoded': None}), {}, "record 3 has no 'image/encoded'; it has image/class/label, owner"),
        (changed(**{'image/class/label': None}), {}, "record 3 has no 'image/class/label'"),
        (changed(owner=None), {'owner_key': 'owner'}, "record 3 has no 'owner'"),
        (
            changed(owner=b'a'),
            {'owner_key': 'owner'},
            "record 3: 'owner' is a number in some records and a text in others",
        ),
        (
            [{**row, 'owner': b'' if i == 3 else b'a'} for i, row in enumerate(rows_of())],
            {'owner_key': 'owner'},
            "record 3 names no owner: ''",
        ),
        (
            [{**row, 'owner': 1} for row in rows_of()],
            {'owner_key': 'owner'},
            "class '0' has too few images to hold one out: images of one owner",
        ),
        (rows_of(), {'held_out_fraction': 1e-9}, "no image of class '0' would be held out with .*; choose another"),
        (rows_of(), {'unit': 'one patient'}, "^data set 'scans': unit='one patient' needs owners"),
        (
            changed(**{'image/class/label': 0.5}),
            {},
            "record 3: 'image/class/label' must hold one .*, got 0 of float_list",
        ),
        (
            changed(**{'image/encoded': [b'a', b'b']}),
            {},
            "record 3: 'image/encoded' must hold one .* got 2 of bytes_list",
        ),
        (changed(**{'image/class/label': -1}), {}, 'record 3: the label -1 is no class'),
        (changed(**{'image/class/label': 3}), {}, 'the labels have gaps: .* no image has the label 2'),
        (changed(**{'image/class/label': 3}), {'class_names': ('a', 'b')}, r'image 3 has label 3, .* not in \[0, 2\)'),
        (rows_of(), {'class_names': ('a', 'b', 'c')}, "class 'c' has no training image"),
        (changed(**{'image/encoded': b'no image'}), {}, 'record 3 is no PNG, JPEG, TIFF, BMP or WebP image'),
        (changed(**{'image/encoded': png(picture(3))[:-40]}), {}, 'record 3 is a damaged image'),
        (
            changed(**{'image/encoded': png(picture(3, (5, 6, 3)))}),
            {},
            'record 3 is 5x6x3 .*0 is 6x5x3; give image_size',
        ),
        (changed(**{'image/encoded': png(picture(3, (6, 5, 1)))}), {}, 'record 3 is 6x5x1 .*0 is 6x5x3; give channels'),
        (rows_of(encode=np.ndarray.tobytes), {'raw_shape': (6, 6, 3)}, 'record 0: 90 bytes of pixels, 6x6x3 need 108'),
        ([*rows_of(), b'\xff\xff'], {}, 'record 20 is no tf.train.Example'),
        (rows_of(), {'compression': 'GZIP'}, 'record 0 cannot be read'),
        ([], {}, 'holds no images'),
        (
            [{**row, 'image/class/label': row['image/class/label'] + 1} for row in rows_of()],
            {'class_names': ('a', 'b')},
            'image 1 has label 2, .* the labels count from 1: subtract 1',
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, rows, options, message):
    path = write(tmp_path / 'scans', rows)
    with pytest.raises(ValueError, match=message) as error:
        data = tfrecords.tfrecord_images(str(path), **options)
        len(data.train), len(data.held_out)
    assert '\n' not in str(error.value) and 'scans' in str(error.value)


def test_truncated_and_missing_files_are_named(tmp_path):
    path = write(tmp_path / 'scans', rows_of())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f'^{path}, record 19 cannot be read: truncated record'):
        tfrecords.tfrecord_images(str(path))
    with pytest.raises(FileNotFoundError, match='no such file: .*other-'):
        tfrecords.tfrecord_images(str(tmp_path / 'other-*'))


@pytest.mark.parametrize(
    'count, message',
    [
        (15, '5 of the records that were counted are gone'),
        (25, 'record 20 was not there when the records were counted'),
    ],
)
def test_files_that_change_after_they_were_counted_are_named(tmp_path, count, message):
    path = write(tmp_path / 'scans', rows_of())
    data = tfrecords.tfrecord_images(str(path))
    write(path, rows_of(count))
    with pytest.raises(ValueError, match=message):
        data.train


@pytest.mark.parametrize(
    'options, message',
    [
        ({'compression': 'zip'}, "compression must be '', 'GZIP' or 'ZLIB', got 'zip'"),
        ({'raw_shape': (6, 5)}, r'raw_shape must be \(height, width, channels\).*got \(6, 5\)'),
        ({'raw_shape': (6, 5, 4)}, r'raw_shape must be .*got \(6, 5, 4\)'),
        ({'held_out_fraction': 0.0}, r'held_out_fraction must be in \(0, 1\), got 0.0'),
    ],
)
def test_unfit_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tfrecords.tfrecord_images(str(write(tmp_path / 'a', rows_of())), **options)
