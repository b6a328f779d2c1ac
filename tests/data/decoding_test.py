"""Tests of decoding, and that the header of a picture tells what it will give."""

import io

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import decoding
from tf_dpdiff.data import images

KINDS = [(mode, kind) for mode in ('1', 'L', 'P', 'RGB') for kind in ('PNG', 'BMP')]
KINDS += [('L', 'JPEG'), ('RGB', 'JPEG'), ('LA', 'PNG'), ('RGBA', 'PNG')]


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


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_photograph_has_the_shape_that_it_has_upright(kind, orientation):
    encoded = encode(kind=kind, orientation=orientation)
    assert shape_of(encoded) == decoding.decode(encoded, 'a').shape == ((4, 7, 3) if orientation < 5 else (7, 4, 3))


@pytest.mark.parametrize('transparency', [0, 200])
def test_transparent_colour_of_a_palette_changes_no_shape(transparency):
    encoded = encode('P', transparency=transparency)
    assert shape_of(encoded) == decoding.decode(encoded, 'a', drop_alpha=True).shape == (4, 7, 3)


def png_of_16_bits():
    stream = io.BytesIO()
    Image.fromarray(np.zeros([4, 7], np.uint16)).save(stream, format='PNG')
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
