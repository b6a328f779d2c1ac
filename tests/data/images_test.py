"""Tests of decoding and resizing."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tf_dpdiff.data import images

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
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(26))) + chunk(
        b'IEND', b'')


COLOUR = Image.fromarray(PIXELS)
TRANSPARENT = Image.fromarray(np.concatenate([PIXELS, np.full([9, 12, 1], 254, np.uint8)], -1))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # A quarter turn.


@pytest.mark.parametrize('encoded, expected', [
    (encode(COLOUR), PIXELS),
    (encode(COLOUR, 'BMP'), PIXELS),
    (encode(Image.fromarray(GREY)), GREY[..., None]),
    (encode(COLOUR.convert('RGBA')), PIXELS),
    (encode(Image.fromarray(GREY).convert('LA')), GREY[..., None]),
    (encode(COLOUR.quantize(256)), np.asarray(COLOUR.quantize(256).convert('RGB'))),
    (encode(Image.fromarray(GREY > 99)), (GREY > 99)[..., None] * 255),
    (encode(COLOUR, exif=TURNED), np.rot90(PIXELS, -1)),
], ids=['png', 'bmp', 'grey', 'opaque', 'opaque grey', 'palette', 'black and white', 'turned'])  # yapf: disable
def test_decoded_pixels_are_those_that_were_stored(encoded, expected):
    decoded = images.decode(encoded, 'a file')
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize('encoded, message', [
    (b'', 'a file is no PNG, JPEG or BMP image'),
    (b'GIF89a', 'a file is no PNG, JPEG or BMP image'),
    (encode(COLOUR, 'GIF'), 'a file is no PNG, JPEG or BMP image'),
    (encode(COLOUR)[:-80], 'a file is a damaged image: '),
    (encode(COLOUR, 'JPEG')[:-80], 'a file is a damaged image: .*truncated'),
    (encode(COLOUR)[:60] + bytes(20) + encode(COLOUR)[80:], 'a file is a damaged image: '),
    (png_of_16_bits(), 'a file has 16 bits a channel'),
    (encode(Image.fromarray(GREY.astype(np.uint16))), 'a file has 16 bits a channel'),
    (encode(TRANSPARENT), 'a file has transparent pixels'),
    (encode(COLOUR, transparency=tuple(map(int, PIXELS[0, 0]))), 'a file has transparent pixels'),
    (encode(COLOUR.convert('CMYK'), 'JPEG'), 'a file is of mode CMYK'),
])
def test_what_would_lose_information_is_refused_in_one_line(encoded, message):
    with pytest.raises(ValueError, match=message) as error:
        images.decode(encoded, 'a file')
    assert '\n' not in str(error.value)


def test_alpha_is_dropped_where_asked():
    np.testing.assert_array_equal(images.decode(encode(TRANSPARENT), 'a file', drop_alpha=True), PIXELS)


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
    assert np.abs(images.resize(pixels[..., :1], 32, 32)[0, ..., 0].astype(int) -
                  Image.fromarray(pixels[0, ..., 0]).resize((32, 32), Image.BOX)).max() <= 1  # yapf: disable


@pytest.mark.parametrize('size, method', [((5, 7), 'area'), ((8, 12), 'area'), ((9, 12), 'area'),
                                          ((20, 13), 'bilinear'), ((9, 30), 'bilinear')])
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
    np.testing.assert_array_equal(images.fit(PIXELS, 9), PIXELS[:, 1:10])
    np.testing.assert_array_equal(images.fit(PIXELS, 3, 1), images.resize(images.to_channels(PIXELS[:, 1:10], 1), 3, 3))


def test_images_keep_their_places_and_the_first_error_wins():
    pixels = np.random.default_rng(0).integers(0, 256, [3000, 1, 1, 1]).astype(np.uint8)
    out = images.read_all('many', list(range(3000)), lambda i: pixels[i], np.zeros_like(pixels))
    np.testing.assert_array_equal(out, pixels)

    def read(i):
        if i >= 1500:
            raise ValueError(f'file {i}')
        return pixels[i]

    with pytest.raises(ValueError, match='file 1500'):
        images.read_all('many', list(range(3000)), read, np.zeros_like(pixels))
