"""Tests of decoding, and that the header of a picture tells what it will give."""

import fractions
import io
import math
import struct

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import decoding
from tf_dpdiff.data import images

KINDS = [(mode, kind) for mode in ('1', 'L', 'P', 'RGB') for kind in ('PNG', 'BMP', 'TIFF')]
KINDS += [('L', 'WEBP'), ('RGB', 'WEBP'), ('RGBA', 'WEBP')]
KINDS += [('L', 'JPEG'), ('RGB', 'JPEG'), ('LA', 'PNG'), ('RGBA', 'PNG'), ('LA', 'TIFF'), ('RGBA', 'TIFF')]


def encode(mode='RGB', kind='PNG', size=(7, 4), orientation=None, **options):
    """Returns a picture with opaque alpha, encoded."""
    pixels = np.random.default_rng(0).integers(0, 256, [size[1], size[0], 3]).astype(np.uint8)
    picture = Image.fromarray(pixels).convert('RGB')
    if mode in ('LA', 'RGBA'):
        picture = picture.convert(mode.replace('A', ''))
        picture.putalpha(255)
    picture = picture.convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options['exif'] = exif
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def shape_of(encoded, source='a.png'):
    return decoding.read_shape(io.BytesIO(encoded), source)


@pytest.mark.parametrize('mode, kind', KINDS)
@pytest.mark.parametrize('size', [(7, 4), (4, 7), (1, 1)])
def test_shape_is_that_of_the_decoded_image(mode, kind, size):
    encoded = encode(mode, kind, size)
    assert shape_of(encoded) == decoding.decode(encoded, 'a.png').shape


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_photograph_has_the_shape_that_it_has_upright(kind, orientation):
    encoded = encode(kind=kind, orientation=orientation)
    assert shape_of(encoded) == decoding.decode(encoded, 'a').shape == ((4, 7, 3) if orientation < 5 else (7, 4, 3))


@pytest.mark.parametrize('transparency', [0, 200])
def test_transparent_colour_of_a_palette_changes_no_shape(transparency):
    encoded = encode('P', transparency=transparency)
    assert shape_of(encoded) == decoding.decode(encoded, 'a', drop_alpha=True).shape == (4, 7, 3)


def png_of_16_bits(pixels=np.zeros([4, 7], np.uint16)):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format='PNG')
    return stream.getvalue()


@pytest.mark.parametrize(
    'encoded',
    [
        b'',
        b'no picture',
        encode()[:20],
        encode()[:8] + b'\xff' * 30,
        encode('CMYK', 'JPEG'),
        encode(kind='GIF'),
        png_of_16_bits(),
        encode(kind='JPEG')[:10],
    ],
)
def test_what_decoding_refuses_for_its_header_is_refused_in_the_same_words(encoded):
    with pytest.raises(ValueError) as of_pixels:
        decoding.decode(encoded, 'a.png')
    with pytest.raises(ValueError) as of_header:
        shape_of(encoded)
    assert str(of_header.value) == str(of_pixels.value)


def test_pixels_are_not_decoded(monkeypatch):
    encoded, damaged = encode(size=(70, 40)), encode(size=(70, 40), kind='JPEG')[:-500]
    monkeypatch.setattr(Image.Image, 'load', None)
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', None)
    assert shape_of(encoded) == shape_of(damaged) == (40, 70, 3)


@pytest.mark.parametrize(
    'fit, mode, size, message',
    [
        ({}, 'RGB', (7, 5), 'b.png is 5x7x3 .*, a.png is 4x7x3; give image_size'),
        ({}, 'L', (7, 4), 'b.png is 4x7x1 .*, a.png is 4x7x3; give channels'),
        ({'image_size': 6}, 'L', (9, 9), 'b.png is 6x6x1 .*, a.png is 6x6x3; give channels'),
        ({'image_size': 6}, 'RGB', (9, 2), None),
        ({'channels': 1}, 'L', (7, 4), None),
        ({'image_size': 6, 'channels': 3}, 'L', (20, 3), None),
    ],
)
def test_shape_is_compared_as_it_will_be_brought_to_size_and_channels(fit, mode, size, message):
    first, other = encode(), encode(mode, size=size)
    fit = images.Fit(**fit)
    shape = fit.apply(decoding.decode(first, 'a.png')).shape

    def check():
        decoding.check_shape(io.BytesIO(other), 'b.png', shape, 'a.png', fit)

    if message:
        with pytest.raises(ValueError, match=message):
            check()
    else:
        check()
        assert fit.apply(decoding.decode(other, 'b.png')).shape == shape


DEEP = np.random.default_rng(1).integers(0, 65536, [4, 7]).astype(np.uint16)
WINDOW = images.Fit(window=(1000, 40000))


def encode_tiff(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format='TIFF', **options)
    return stream.getvalue()


def big_endian_tiff(pixels, photometric=1):
    """Returns an uncompressed grey TIFF of 16 bits, the high byte first, written by hand."""
    height, width = pixels.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, 2 * height * width)]
    entries = [
        struct.pack('>HHI', tag, kind, 1) + struct.pack('>HH' if kind == 3 else '>I', *((value, 0)[: 5 - kind]))
        for tag, kind, value in tags
    ]
    data = pixels.astype('>u2').tobytes()
    directory = struct.pack('>H', len(tags)) + b''.join(entries) + bytes(4)
    return b'MM\0*' + struct.pack('>I', 8 + len(data)) + data + directory


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'LZW', 'high byte first'])
@pytest.mark.parametrize('low, high', [(0, 65535), (1000, 40000), (-5.5, 100.25)])
def test_grey_levels_of_16_bits_are_mapped_linearly_and_clipped(kind, low, high):
    encoded = {
        'PNG': png_of_16_bits(DEEP),
        'TIFF': encode_tiff(DEEP),
        'LZW': encode_tiff(DEEP, compression='tiff_lzw'),
        'high byte first': big_endian_tiff(DEEP),
    }[kind]
    low, high = fractions.Fraction(low), fractions.Fraction(high)
    shares = [min(max((int(level) - low) / (high - low), 0), 1) for level in DEEP.ravel()]
    expected = np.array([math.floor(255 * share + fractions.Fraction(1, 2)) for share in shares]).reshape(4, 7)
    fit = images.Fit(window=(float(low), float(high)))
    np.testing.assert_array_equal(decoding.decode(encoded, 'a', fit)[..., 0], expected)
    assert decoding.read_shape(io.BytesIO(encoded), 'a', fit) == (4, 7, 1)
    colour = decoding.decode(encoded, 'a', images.Fit(channels=3, window=(float(low), float(high))))
    np.testing.assert_array_equal(colour, np.repeat(expected[..., None], 3, -1))


def two_pages(kind):
    stream = io.BytesIO()
    pages = [Image.new('L', (7, 4), level) for level in (0, 255)]
    pages[0].save(stream, kind, save_all=True, append_images=pages[1:])
    return stream.getvalue()


def deep_colour_tiff():
    """Returns a TIFF of 3 x 16 bits, which Pillow would read without the low bytes: the tags of a grey one, changed."""
    encoded = bytearray(encode('RGB', 'TIFF', size=(2, 2)))
    where = bytes(encoded).index(struct.pack('<HHH', 8, 8, 8))
    encoded[where : where + 6] = struct.pack('<HHH', 16, 16, 16)
    return bytes(encoded)


@pytest.mark.parametrize(
    'encoded, fit, message',
    [
        (two_pages('TIFF'), images.Fit(), 'a has 2 pages; save the one that is meant'),
        (two_pages('WEBP'), images.Fit(), 'a has 2 pages; save the one that is meant'),
        (encode_tiff(DEEP), images.Fit(), r'a has 16 bits a channel; .* window = \(0, 4095\), for instance'),
        (encode(), WINDOW, r'a has 8 bits a channel, and window=\(1000, 40000\) is for 16-bit grey images'),
        (deep_colour_tiff(), WINDOW, 'a has 16 bits a channel and is not plain grey; convert it to 8'),
        (big_endian_tiff(DEEP).replace(b'MM\0*', b'XX\0*'), WINDOW, 'a is no PNG, JPEG, TIFF, BMP or WebP image'),
        (encode_tiff(DEEP, tiffinfo={262: 0}), WINDOW, 'a has 16 bits a channel and white stored as 0'),
        (encode_tiff(DEEP.astype(np.float32)), WINDOW, 'a is of mode F'),
        (encode_tiff(DEEP.astype(np.int32)), WINDOW, 'a is of mode I;'),
        (encode_tiff(DEEP)[:60], WINDOW, 'a is a damaged image'),
        (encode('CMYK', 'TIFF'), images.Fit(), 'a is of mode CMYK'),
    ],
)
def test_what_is_refused_is_refused_by_its_header_in_the_same_words(encoded, fit, message):
    with pytest.raises(ValueError, match=message) as of_pixels:
        decoding.decode(encoded, 'a', fit)
    with pytest.raises(ValueError) as of_header:
        decoding.read_shape(io.BytesIO(encoded), 'a', fit)
    assert str(of_header.value) == str(of_pixels.value) and '\n' not in str(of_pixels.value)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA'])
@pytest.mark.parametrize('background', [0, 255, 77, (200, 10, 90)])
@pytest.mark.parametrize('channels', [None, 1, 3])
def test_transparent_pixels_stand_on_the_background_that_is_stated(mode, background, channels):
    generator = np.random.default_rng(2)
    alpha = generator.integers(0, 256, [4, 7, 1])
    alpha[0, :2, 0] = 0, 255
    if mode == 'PA':  # A palette of which a colour is transparent.
        picture = Image.fromarray(generator.integers(0, 256, [4, 7, 3]).astype(np.uint8)).quantize(8)
        stream = io.BytesIO()
        picture.save(stream, 'PNG', transparency=3)
        alpha = np.where(np.asarray(picture)[..., None] == 3, 0, 255)
        pixels = np.asarray(picture.convert('RGB')).astype(int)
    else:
        pixels = generator.integers(0, 256, [4, 7, len(mode) - 1])
        stream = io.BytesIO()
        Image.fromarray(np.concatenate([pixels, alpha], -1).astype(np.uint8), mode).save(stream, 'PNG')
    fit = images.Fit(channels=channels, background=background)
    in_front = images.to_channels(pixels.astype(np.uint8), channels or pixels.shape[-1]).astype(float)
    behind = images.to_channels(np.atleast_1d(np.uint8(background)), in_front.shape[-1])
    expected = np.floor((in_front * alpha + behind * (255.0 - alpha)) / 255 + 0.5)
    found = decoding.decode(stream.getvalue(), 'a', fit)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == decoding.read_shape(io.BytesIO(stream.getvalue()), 'a', fit)
    with pytest.raises(ValueError, match='a has transparent pixels; .* say which: background = 255'):
        decoding.decode(stream.getvalue(), 'a')


def test_opaque_pixels_need_no_background_and_are_not_changed_by_one():
    encoded = encode('RGBA')
    np.testing.assert_array_equal(
        decoding.decode(encoded, 'a', images.Fit(background=9)), decoding.decode(encoded, 'a')
    )


def test_too_many_pixels_are_refused_by_the_header_too(monkeypatch):
    encoded = encode('1', size=(60, 40))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    with pytest.raises(ValueError, match=r'a is too large \(Image size \(2400 pixels\)'):
        decoding.read_header(io.BytesIO(encoded), 'a')


def test_header_tells_what_needs_an_argument():
    told = [
        decoding.read_header(io.BytesIO(encoded), 'a')
        for encoded in (encode('RGBA'), encode('P'), png_of_16_bits(DEEP), encode('P', transparency=3), encode('L'))
    ]
    assert [header.has_alpha for header in told] == [True, False, False, True, False]
    assert [header.has_palette for header in told] == [False, True, False, True, False]
    assert [header.bits for header in told] == [8, 8, 16, 8, 8]
    assert [header.shape for header in told] == [(4, 7, 3), (4, 7, 3), (4, 7, 1), (4, 7, 3), (4, 7, 1)]
