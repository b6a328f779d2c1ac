"""Tests of decoding and resizing."""

from concurrent import futures
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tf_dpdiff.data import decoding
from tf_dpdiff.data import images
from tf_dpdiff.data import problems

PIXELS = np.random.default_rng(0).integers(0, 256, [9, 12, 3]).astype(np.uint8)
GREY = PIXELS[..., 0]


def encode(picture, form='PNG', **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_of_16_bits():
    """Returns a 16-bit RGB file, which Pillow reads as 8 bits and cannot write."""

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', 2, 2, 16, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(26))) + chunk(b'IEND', b'')
    )


COLOUR = Image.fromarray(PIXELS)
TRANSPARENT = Image.fromarray(np.concatenate([PIXELS, np.full([9, 12, 1], 254, np.uint8)], -1))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # A quarter turn.


@pytest.mark.parametrize(
    'encoded, expected',
    [
        (encode(COLOUR), PIXELS),
        (encode(COLOUR, 'BMP'), PIXELS),
        (encode(COLOUR, 'WEBP', lossless=True), PIXELS),
        (encode(Image.fromarray(GREY)), GREY[..., None]),
        (encode(COLOUR.convert('RGBA')), PIXELS),
        (encode(Image.fromarray(GREY).convert('LA')), GREY[..., None]),
        (encode(COLOUR.quantize(256)), np.asarray(COLOUR.quantize(256).convert('RGB'))),
        (encode(Image.fromarray(GREY > 99)), (GREY > 99)[..., None] * 255),
        (encode(COLOUR, exif=TURNED), np.rot90(PIXELS, -1)),
    ],
    ids=['png', 'bmp', 'webp', 'grey', 'opaque', 'opaque grey', 'palette', 'black and white', 'turned'],
)
def test_decoded_pixels_are_those_that_were_stored(encoded, expected):
    decoded = decoding.decode(encoded, 'a file')
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    'encoded, message',
    [
        (b'', 'a file is an empty file'),
        (b'GIF89a', 'a file is no PNG, JPEG, TIFF, BMP or WebP image'),
        (encode(COLOUR, 'GIF'), 'a file is no PNG, JPEG, TIFF, BMP or WebP image'),
        (encode(COLOUR)[:-80], 'a file is a damaged image: '),
        (encode(COLOUR, 'JPEG')[:-80], 'a file is a damaged image: .*truncated'),
        (encode(COLOUR)[:60] + bytes(20) + encode(COLOUR)[80:], 'a file is a damaged image: '),
        (png_of_16_bits(), 'a file has 16 bits a channel'),
        (encode(Image.fromarray(GREY.astype(np.uint16))), 'a file has 16 bits a channel'),
        (encode(TRANSPARENT), 'a file has transparent pixels'),
        (encode(COLOUR, transparency=tuple(map(int, PIXELS[0, 0]))), 'a file has transparent pixels'),
        (encode(COLOUR.convert('CMYK'), 'JPEG'), 'a file is of mode CMYK'),
    ],
)
def test_what_would_lose_information_is_refused_in_one_line(encoded, message):
    with pytest.raises(ValueError, match=message) as error:
        decoding.decode(encoded, 'a file')
    assert '\n' not in str(error.value)


def test_alpha_is_dropped_where_asked():
    np.testing.assert_array_equal(decoding.decode(encode(TRANSPARENT), 'a file', drop_alpha=True), PIXELS)


def test_luma_is_that_of_pillow():
    every = np.random.default_rng(1).integers(0, 256, [64, 64, 3]).astype(np.uint8)
    np.testing.assert_array_equal(images.to_channels(every, 1)[..., 0], np.asarray(Image.fromarray(every).convert('L')))


def test_grey_becomes_colour_and_comes_back():
    colour = images.to_channels(GREY[..., None], 3)
    np.testing.assert_array_equal(colour, np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(images.to_channels(colour, 1), GREY[..., None])
    with pytest.raises(ValueError, match='images of 3 channels cannot become images of 2'):
        images.to_channels(PIXELS, 2)


def test_shrinking_by_a_whole_factor_is_the_rounded_mean_of_blocks():
    pixels = np.random.default_rng(2).integers(0, 256, [4, 96, 96, 3]).astype(np.uint8)
    means = pixels.reshape([4, 32, 3, 32, 3, 3]).mean((2, 4))
    np.testing.assert_array_equal(images.resize(pixels, 32, 32), np.round(means))
    assert (
        np.abs(
            images.resize(pixels[..., :1], 32, 32)[0, ..., 0].astype(int)
            - Image.fromarray(pixels[0, ..., 0]).resize((32, 32), Image.BOX)
        ).max()
        <= 1
    )


@pytest.mark.parametrize(
    'size, method',
    [((5, 7), 'area'), ((8, 12), 'area'), ((9, 12), 'area'), ((20, 13), 'bilinear'), ((9, 30), 'bilinear')],
)
def test_resizing_agrees_with_tensorflow(size, method):
    pixels = np.stack([PIXELS, PIXELS[::-1]])
    expected = tf.image.resize(pixels, size, method).numpy()
    # Half a level for the rounding.
    assert np.abs(images.resize(pixels, *size) - expected).max() <= 0.5 + 1e-3
    control = tf.image.resize(pixels[:, ::-1], size, method).numpy()
    assert np.abs(images.resize(pixels, *size) - control).max() > 2


@pytest.mark.parametrize('size', [(4, 3), (30, 7), (9, 31)])
def test_resizing_keeps_a_flat_image_and_the_order_of_grey_levels(size):
    flat = np.full([9, 12, 1], 201, np.uint8)
    assert (images.resize(flat, *size) == 201).all()
    assert (images.resize(np.minimum(GREY, 254)[..., None] + 1, *size) >= images.resize(GREY[..., None], *size)).all()


def test_centred_square_is_cut_out():
    np.testing.assert_array_equal(images.Fit(9).apply(PIXELS), PIXELS[:, 1:10])
    np.testing.assert_array_equal(
        images.Fit(3, 1).apply(PIXELS), images.resize(images.to_channels(PIXELS[:, 1:10], 1), 3, 3)
    )


@pytest.mark.parametrize('size', [1, 3, 9, 20])
@pytest.mark.parametrize('shape', [(9, 12, 3), (12, 9, 1), (13, 7, 3), (1, 8, 1)])
def test_square_size_is_the_largest_centred_square_resized(size, shape):
    pixels = np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)
    side = min(shape[:2])
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    expected = images.resize(pixels[top : top + side, left : left + side], size, size)
    for image_size in (size, (size, size)):
        np.testing.assert_array_equal(images.Fit(image_size).apply(pixels), expected)


@pytest.mark.parametrize(
    'size, cut',
    [
        ((3, 4), np.s_[:, :]),
        ((9, 6), np.s_[:, 3:9]),
        ((9, 3), np.s_[:, 4:7]),
        ((2, 8), np.s_[3:6, :]),
        ((1, 12), np.s_[4:5, :]),
    ],
)
def test_oblong_size_is_the_largest_centred_part_of_its_proportions(size, cut):
    np.testing.assert_array_equal(images.Fit(size).apply(PIXELS), images.resize(PIXELS[cut], *size))


@pytest.mark.parametrize('size', [(48, 40), (40, 48), (7, 31), (1, 1), (33, 2)])
@pytest.mark.parametrize('shape', [(9, 12, 3), (50, 3, 1), (3, 50, 3), (100, 99, 1)])
def test_part_that_is_cut_out_has_the_proportions_asked_for_and_could_not_be_larger(size, shape):
    found = images._largest_within(shape[:2], size)
    assert found[0] <= shape[0] and found[1] <= shape[1] and (found[0] == shape[0] or found[1] == shape[1])
    # Within half a pixel, or a pixel where less is no picture.
    assert abs(found[0] * size[1] - found[1] * size[0]) <= max(size)


@pytest.mark.parametrize('background, border', [(0, (0, 0, 0)), (255, (255, 255, 255)), ((9, 8, 7), (9, 8, 7))])
def test_padded_image_is_whole_on_a_border(background, border):
    padded = images.Fit((9, 20), resize='pad', background=background).apply(PIXELS)
    np.testing.assert_array_equal(padded[:, 4:16], PIXELS)
    assert (padded[:, :4] == border).all() and (padded[:, 16:] == border).all()
    small = images.Fit((6, 4), resize='pad', background=background).apply(PIXELS)
    np.testing.assert_array_equal(small[1:4], images.resize(PIXELS, 3, 4))
    assert (small[[0, 4, 5]] == border).all()


def test_border_of_a_grey_image_is_the_luma_of_its_colour():
    grey = images.Fit((9, 20), 1, resize='pad', background=(200, 10, 10)).apply(PIXELS)
    np.testing.assert_array_equal(grey[:, :4], np.full([9, 4, 1], Image.new('RGB', (1, 1), (200, 10, 10)).convert('L')))


@pytest.mark.parametrize('size', [(3, 3), (20, 5), (9, 12)])
def test_stretched_image_is_resized_freely(size):
    np.testing.assert_array_equal(images.Fit(size, resize='stretch').apply(PIXELS), images.resize(PIXELS, *size))


@pytest.mark.parametrize('fit', [images.Fit((4, 7)), images.Fit((4, 7), 1, resize='pad', background=3)])
def test_stack_of_images_is_fitted_as_each_is(fit):
    stack = np.random.default_rng(3).integers(0, 256, [2, 5, 9, 12, 3]).astype(np.uint8)
    each = [[fit.apply(image) for image in row] for row in stack]
    np.testing.assert_array_equal(fit.apply(stack), each)
    assert fit.shape_of(stack.shape[2:]) == fit.apply(stack).shape[2:]


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'image_size': 0}, 'image_size must be at least 1, got 0'),
        ({'image_size': (4, 0)}, r'image_size must be at least 1, got \(4, 0\)'),
        ({'image_size': (4, 5, 3)}, r'image_size must be a number of pixels or \(height, width\), got \(4, 5, 3\)'),
        ({'channels': 2}, r'channels must be 1 \(grey\) or 3 \(colour\), got 2'),
        ({'resize': 'squash', 'image_size': 4}, "resize must be 'crop', 'pad' or 'stretch', got 'squash'"),
        ({'resize': 'stretch'}, "resize='stretch' needs image_size"),
        ({'resize': 'pad', 'image_size': 4}, "resize='pad' needs background: a grey level"),
        ({'background': 256}, 'background must be a grey level from 0 to 255, .* got 256'),
        ({'background': 0.5}, 'background must be .* got 0.5'),
        ({'background': (1, 2)}, r'background must be .* got \(1, 2\)'),
        ({'window': (5, 5)}, r'window must be \(low, high\) with low below high, got \(5, 5\)'),
        ({'window': (float('nan'), 5)}, 'window must be .* got .nan, 5.'),
    ],
)
def test_arguments_that_mean_nothing_are_named(arguments, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        images.Fit(**arguments)


def test_background_that_nothing_would_read_is_named():
    images.Fit(4, resize='pad', background=0).check_border()
    images.Fit(4).check_border()
    with pytest.raises(ValueError, match="^background=0 is for padded images here: resize = 'pad'"):
        images.Fit(4, background=0).check_border()


@pytest.mark.parametrize(
    'fit, said',
    [
        (images.Fit(), ''),
        (images.Fit(32), 'resized to 32x32 (cropped)'),
        (images.Fit((48, 40), resize='stretch'), 'resized to 48x40 (stretched)'),
        (
            images.Fit(8, 1, resize='pad', background=0, window=(0, 4095)),
            'resized to 8x8 (padded), turned to grey, put on a background of 0, mapped from grey levels of 0 to 4095',
        ),
    ],
)
def test_what_is_done_to_images_is_said(fit, said):
    assert fit.describe() == said


def test_images_keep_their_places_and_all_errors_are_told_at_once():
    pixels = np.random.default_rng(0).integers(0, 256, [3000, 1, 1, 1]).astype(np.uint8)
    out = images.read_all('many', list(range(3000)), lambda i: pixels[i], np.zeros_like(pixels))
    np.testing.assert_array_equal(out, pixels)

    def read(i):
        if i >= 1500:
            raise ValueError(f'file {i}')
        return pixels[i]

    told = [f'file {i}' for i in range(1500, 1510)]
    with pytest.raises(problems.ProblemsError) as error:
        images.read_all('many', list(range(3000)), read, np.zeros_like(pixels))
    assert str(error.value).split('\n  ') == ["1,500 problems with the images of 'many':", *told, '... and 1,490 more.']


def test_one_error_is_raised_as_it_is_and_what_is_no_fault_of_a_file_at_once():
    seen = []

    def read(i):
        seen.append(i)
        if i == 5:
            raise FileNotFoundError('file 5')
        if i == 9 and len(sources) > 20:
            raise PermissionError('file 9')
        return np.zeros([1, 1, 1], np.uint8)

    for count, error in ((20, FileNotFoundError), (5000, PermissionError)):
        sources = list(range(count))
        seen.clear()
        with pytest.raises(error):
            images.read_all('many', sources, read, np.zeros([count, 1, 1, 1], np.uint8))
        assert (len(seen) == count) == (count == 20)


def exif(*entries, cut=None):
    """Returns EXIF data of (tag, type, count, four bytes of value or offset)."""
    body = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHI4s', *entry) for entry in entries) + bytes(4)
    return (b'Exif\0\0II*\0\x08\0\0\0' + body)[:cut]


UP = (0x0112, 3, 1, struct.pack('<HH', 6, 0))  # Turned by a quarter.
LOST = (0x010E, 2, 1000, struct.pack('<I', 5000))  # A text that is not there.


def with_chunk(encoded, kind, content):
    """Returns a PNG file with a chunk more behind its header."""
    chunk = struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    return encoded[:33] + chunk + encoded[33:]


def malformed_mpo():
    """Returns a JPEG file which says that other pictures follow, and not where."""
    encoded = encode(COLOUR, 'JPEG')
    return encoded[:2] + b'\xff\xe2' + struct.pack('>H', 30) + b'MPF\0II*\0' + b'\xff' * 20 + encoded[2:]


@pytest.mark.parametrize(
    'encoded, message',
    [
        (
            encode(Image.new('1', (60, 40))),
            r'^a file is too large \(Image size \(2400 pixels\) exceeds .*\); shrink it',
        ),
        (encode(Image.new('1', (200, 100))), r'^a file is too large \(Image size \(20000 pixels\) exceeds'),
        (
            encode(COLOUR, 'JPEG', exif=exif(LOST, UP, cut=20)),
            r'^a file has damaged metadata \(Corrupt EXIF .* got 4\)',
        ),
        (encode(COLOUR, 'JPEG', exif=exif(LOST, UP, cut=30)), '^a file has damaged metadata .* which way is up'),
        (encode(COLOUR, exif=exif(LOST, UP, cut=30)[6:]), '^a file has damaged metadata .* which way is up'),
        (encode(COLOUR, 'JPEG', exif=exif((0x0112, 3, 9, struct.pack('<I', 5000)))), '^a file has damaged metadata'),
    ],
    ids=['large', 'twice as large', 'cut', 'cut behind an entry', 'cut in a PNG', 'lost orientation'],
)
def test_what_pillow_warns_of_is_refused_in_our_words(monkeypatch, encoded, message):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        with pytest.raises(ValueError, match=message) as error:
            decoding.decode(encoded, 'a file')
    assert not warned and '\n' not in str(error.value) and 'site-packages' not in str(error.value)


@pytest.mark.parametrize(
    'encoded, expected',
    [
        (encode(COLOUR, exif=exif(LOST, UP)[6:]), np.rot90(PIXELS, -1)),
        (encode(COLOUR, exif=exif((0x010F, 3, 2, bytes(4)), UP)[6:]), np.rot90(PIXELS, -1)),
        (with_chunk(encode(COLOUR), b'acTL', bytes(8)), PIXELS),
        (malformed_mpo(), np.asarray(Image.open(io.BytesIO(encode(COLOUR, 'JPEG'))))),
        (
            encode(COLOUR.quantize(256), transparency=bytes([255] * 256)),
            np.asarray(COLOUR.quantize(256).convert('RGB')),
        ),
    ],
    ids=['lost text', 'too many entries', 'no animation', 'no second picture', 'opaque palette'],
)
def test_what_changes_no_pixel_is_silent(encoded, expected):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        np.testing.assert_array_equal(decoding.decode(encoded, 'a file'), expected)
    assert not warned


def test_warnings_are_errors_in_every_thread_and_what_they_were_before_afterwards(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    good, large = encode(COLOUR), encode(Image.new('1', (60, 40)))

    def refused(encoded):
        try:
            decoding.decode(encoded, 'a file')
        except ValueError:
            return True
        return False

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        before = list(warnings.filters)
        with futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(refused, [good, large] * 400)) == [False, True] * 400
        assert not warned and warnings.filters == before
        Image.open(io.BytesIO(large))
    assert len(warned) == 1, 'the control must fail'


@pytest.mark.parametrize('shape', [(8, 8, 1), (8, 6, 3), (1, 8, 1), (3, 8, 3), (1, 1, 1), (3, 3, 1)])
def test_shapes_of_grey_and_colour_images_are_taken(shape):
    images.check_image_shape('toy', shape)


@pytest.mark.parametrize(
    'shape, message',
    [
        ((8, 8), r'image_shape must be \(height, width, channels\), got \(8, 8\)'),
        ((8, 0, 1), r'image_shape must be .* got \(8, 0, 1\)'),
        ((1, 8, 8), r'1x8x8 .* have 8 channels .* first, put them last: images.transpose\(0, 2, 3, 1\)'),
        ((3, 32, 32), r'3x32x32 .* have 32 channels .* images.transpose'),
        ((4, 32, 32), 'images.transpose'),
        ((1, 8, 2), 'images.transpose'),
        ((32, 32, 4), r'have 4 channels .* transparency, put them on a background or drop it: images\[..., :3\]'),
        ((32, 32, 2), r'have 2 channels .* drop it: images\[..., :1\]'),
        ((32, 32, 5), 'keep or compute one or three'),
    ],
)
def test_other_shapes_are_refused_with_the_cure(shape, message):
    with pytest.raises(ValueError, match=f'^toy: .*{message}'):
        images.check_image_shape('toy', shape)
