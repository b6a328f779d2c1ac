"""Tests of any source as public images."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.data import images
from tf_dpdiff.data import public


def unread():
    raise AssertionError('the held-out images are read')


def source(num_images=9, image_shape=(6, 8, 3), owners=None):
    images = np.random.default_rng(0).integers(0, 256, [num_images, *image_shape]).astype(np.uint8)
    labels = np.arange(num_images, dtype=np.int32) % 3
    train = datasets.ImageDataset('photos', images, labels, ('a', 'b', 'c'), owners=owners)
    return datasets.PrivateData(train=train, held_out=unread)


def test_images_that_fit_are_taken_as_they_are_and_nothing_else_is_read():
    data = source(owners=np.arange(9) // 3)
    images = public.public_images(data).images
    assert images.images_uint8 is data.train.images_uint8 and images.owners is None
    np.testing.assert_array_equal(images.labels, data.train.labels)
    assert images.class_names == ('a', 'b', 'c') and images.name == 'photos (public)'


@pytest.mark.parametrize('resize, background', [('crop', None), ('pad', 7), ('stretch', None)])
def test_images_of_other_proportions_are_cropped_padded_or_stretched(resize, background):
    data = source()
    found = public.public_images(data, image_shape=(5, 5, 3), resize=resize, background=background).images.images_uint8
    fit = images.Fit(5, resize=resize, background=background)
    np.testing.assert_array_equal(found, fit.apply(data.train.images_uint8))


@pytest.mark.parametrize(
    'shape, expected',
    [
        ((6, 8, 1), lambda image: np.asarray(Image.fromarray(image).convert('L'))[..., None]),
        ((3, 4, 3), lambda image: np.floor(image.reshape(3, 2, 4, 2, 3).mean((1, 3)) + 0.5)),
        (
            (2, 2, 1),
            lambda image: np.floor(
                np.asarray(Image.fromarray(image).convert('L')).reshape(2, 3, 2, 4).mean((1, 3)) + 0.5
            )[..., None],
        ),
    ],
)
def test_images_are_brought_to_the_shape_of_the_task(shape, expected, monkeypatch):
    monkeypatch.setattr(public, '_BATCH', 4)
    data = source()
    images = public.public_images(data, image_shape=list(shape)).images
    assert images.image_shape == shape
    np.testing.assert_array_equal(images.images_uint8, [expected(image) for image in data.train.images_uint8])


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'image_shape': (4, 4, 1), 'labels': 'drop', 'num_classes': 7},
        {'max_images': 4, 'num_classes': 5},
        {'max_images': 100},
    ],
)
def test_spec_is_known_before_the_images_are_read_once(options):
    reads = []

    def read():
        reads.append('train')
        return source().train

    images = public.public_images(datasets.PrivateData(train=read, held_out=unread, spec=source().spec), **options)
    spec = images.spec
    assert not reads
    assert images.images.spec == spec and images.images is images.images and reads == ['train']


def test_where_sizes_come_from_is_passed_on():
    spec = dataclasses.replace(source().spec, note='published sizes')
    data = datasets.PrivateData(train=unread, held_out=unread, spec=spec)
    assert public.public_images(data).spec.note == 'published sizes'


def test_grey_becomes_colour():
    data = source(image_shape=(4, 4, 1))
    images = public.public_images(data, image_shape=(4, 4, 3)).images
    np.testing.assert_array_equal(images.images_uint8, np.repeat(data.train.images_uint8, 3, -1))


@pytest.mark.parametrize(
    'options, labels, num_classes',
    [
        ({}, np.arange(9) % 3, 3),
        ({'num_classes': 5}, np.arange(9) % 3, 5),
        ({'labels': 'drop'}, np.full(9, 3), 3),
        ({'labels': 'drop', 'num_classes': 2}, np.full(9, 2), 2),
    ],
)
def test_labels_are_kept_or_dropped(options, labels, num_classes):
    images = public.public_images(source(), **options).images
    np.testing.assert_array_equal(images.labels, labels)
    assert images.num_classes == len(set(images.class_names)) == num_classes


def test_fewer_images_are_spread_over_the_source():
    data = source()
    images = public.public_images(data, max_images=4).images
    np.testing.assert_array_equal(images.images_uint8, data.train.images_uint8[[0, 2, 4, 6]])
    np.testing.assert_array_equal(images.labels, data.train.labels[[0, 2, 4, 6]])
    assert len(public.public_images(data, max_images=100).images) == 9


@pytest.mark.parametrize(
    'options, message',
    [
        ({'image_shape': (4, 4)}, r'image_shape must be \(height, width, channels\), got \(4, 4\)'),
        ({'image_shape': (4, 4, 2)}, r'channels must be 1 \(grey\) or 3 \(colour\), got 2'),
        ({'labels': 'lose'}, "labels must be 'keep' or 'drop', got 'lose'"),
        ({'num_classes': 2}, "num_classes=2, but 'photos' has 3 classes"),
        ({'num_classes': 0, 'labels': 'drop'}, 'num_classes must be at least 1, got 0'),
        ({'max_images': 0}, 'max_images must be at least 1, got 0'),
    ],
)
def test_unfit_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        public.public_images(source(), **options).images
