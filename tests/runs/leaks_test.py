"""Tests of the search for what must stay: each kind is found wherever it may lie, and what is no leak passes."""

import base64
import gzip
import io
import re

import numpy as np
from PIL import Image
import pytest

from tf_dpdiff.runs import leaks

IMAGES = np.random.default_rng(0).integers(0, 256, [5, 6, 6, 1]).astype(np.uint8)


@pytest.fixture(name='workdir')
def fixture_workdir(tmp_path):
    """The folder of a run whose configuration names two places; its checkpoints are elsewhere."""
    workdir = tmp_path / 'ward 3'
    (workdir / 'non_private').mkdir(parents=True)
    (workdir / 'non_private' / 'utility.json').write_text('{"accuracy": 0.9}')
    (workdir / 'non_private' / 'empty').touch()
    (workdir / 'operative_config.gin').write_text(
        "a.path = '/scans'\nb.path = '/srv/images/2024/'\nc.name = 'digits'\n"
    )
    return workdir


def found_in(workdir, tmp_path, content, *, images=(IMAGES,)):
    """Returns what is found in a release of one file."""
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'file').write_bytes(content)
    return leaks.find(out, leaks.collect(workdir, images))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, 'PNG')
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


PRIVATE = {
    'a picture': png(IMAGES[2]),
    'a picture in a page': b'<img src="data:image/png;base64,' + base64.b64encode(png(IMAGES[2])) + b'">',
    'an array': npy(np.stack([IMAGES[0] // 2, IMAGES[4]])),
    'an array in an archive': npz(images=np.stack([IMAGES[0] // 2, IMAGES[4]])),
    'flat pixels': npy(IMAGES[1].ravel()),
}


@pytest.mark.parametrize('name', PRIVATE)
def test_private_image_is_found(workdir, tmp_path, name):
    assert found_in(workdir, tmp_path, PRIVATE[name]) == ['file holds a private image, pixel by pixel']


@pytest.mark.parametrize('name', PRIVATE)
def test_without_the_private_images_none_is_found(workdir, tmp_path, name):
    assert found_in(workdir, tmp_path, PRIVATE[name], images=None) == []


def test_images_of_one_colour_and_others_are_let_through(workdir, tmp_path):
    black = np.concatenate([IMAGES, np.zeros_like(IMAGES[:1])])
    others = np.concatenate([IMAGES // 2, np.zeros_like(IMAGES[:1])])
    assert found_in(workdir, tmp_path, npy(others), images=(black,)) == []


@pytest.mark.parametrize(
    'text, is_leak',
    [
        ('read from /scans/a.png', True),
        ('"/scans"', True),
        ('the network/scans of a graph', False),
        ('/scansion', False),
        ('x/srv/images/2024/a.png', True),
        ('/srv/images', False),
        ('images of digits', False),
    ],
)
def test_places_of_this_machine_are_found(workdir, tmp_path, text, is_leak):
    assert found_in(workdir, tmp_path, text.encode()) == ['file holds a path of this machine'] * is_leak


def test_folder_of_the_run_is_found_in_what_is_packed(workdir, tmp_path):
    found = found_in(workdir, tmp_path, gzip.compress(f'from {workdir}'.encode()))
    assert found == ['file holds a path of this machine']


def test_private_file_is_found_under_another_name_and_an_empty_one_is_no_secret(workdir, tmp_path):
    found = found_in(workdir, tmp_path, b'{"accuracy": 0.9}')
    assert found == ['file holds the private file non_private/utility.json']
    (tmp_path / 'out' / 'file').write_bytes(b'')
    assert leaks.find(tmp_path / 'out', leaks.collect(workdir, None)) == []


def test_link_is_found(workdir, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'file').symlink_to(workdir / 'operative_config.gin')
    assert leaks.find(tmp_path / 'out', leaks.collect(workdir, None)) == ['file is a link']


@pytest.mark.parametrize('content', [b'\x1f\x8bno gzip', b'PK\x05\x06' + bytes(18), b'\x93NUMPYx', b'', bytes(100)])
def test_what_only_begins_like_something_is_no_error(workdir, tmp_path, content):
    assert found_in(workdir, tmp_path, content) == []


def test_findings_tell_nothing_of_what_is_secret(workdir, tmp_path):
    for phrase in found_in(workdir, tmp_path, f'{workdir} /srv/images/2024'.encode() + png(IMAGES[0])):
        assert not re.search(r'ward 3|srv|[0-9a-f]{16}', phrase)
