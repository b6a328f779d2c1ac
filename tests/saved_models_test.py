"""Tests of the public checkpoints that come with the project: whole, described, small, and started from."""

import json
import pathlib
import re

import gin
import pytest

from tf_dpdiff.cli import gin_config
from tf_dpdiff.training import public_checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = sorted(path.parent for path in (ROOT / 'saved_models').glob('*/README.md'))


@pytest.fixture(name='folder', params=SHIPPED, ids=[path.name for path in SHIPPED])
def fixture_folder(request):
    return request.param


def test_there_is_one_for_each_run_that_starts_from_one():
    found = set()
    for path in (ROOT / 'gin').glob('*.gin'):
        found.update(re.findall(r"init_from = 'saved_models/(\w+)'", path.read_text()))
    assert found == {path.name for path in SHIPPED}


def test_it_is_whole_and_small(folder):
    model = public_checkpoint.read(folder)  # Checks the SHA-256.
    assert 0.9 * model.num_images < len(model.image_digests) <= model.num_images  # Some images are there twice.
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20 * 2**20


def test_its_card_says_what_it_is(folder):
    model, card = public_checkpoint.read(folder), (folder / 'README.md').read_text()
    described = json.loads((folder / 'pretrained.json').read_text())
    assert model.sha256 in card
    for fact in (
        f'{described["num_parameters"]:,} parameters',
        f'{model.num_images:,} images',
        f'{model.num_steps:,} steps',
        f'{model.batch_size} images per step',
        f'loss {model.loss:.4f}',
    ):
        assert fact in card, fact


def test_its_card_names_the_command_that_makes_it(folder):
    card = (folder / 'README.md').read_text()
    name = re.search(r'bin/train --gin_file=(gin/\w+.gin)', card).group(1)
    gin.clear_config()
    gin_config.parse([name], [])
    model = public_checkpoint.read(folder)
    for macro, value in (('PRETRAINING_STEPS', model.num_steps), ('PRETRAINING_BATCH_SIZE', model.batch_size)):
        assert gin.query_parameter(f'{macro}/gin.macro.value') == value
    assert gin.query_parameter('UNetConfig.base_channels') == model.network.base_channels
