"""What tests of several verbs share."""

import functools

import pytest

from tests.cli import sampling
from tf_dpdiff.serving import export


@pytest.fixture(name='loaded_once', scope='module')
def fixture_loaded_once():
    """Loads an exported model once for all tests: it is a function without state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'load_sample_fn', functools.lru_cache(maxsize=None)(export.load_sample_fn))
        yield


@pytest.fixture(name='toy_run', scope='session')
def fixture_toy_run(tmp_path_factory):
    """A finished run."""
    return sampling.make_run(tmp_path_factory.mktemp('runs') / 'Toys 1')


@pytest.fixture(name='other_toy_run', scope='session')
def fixture_other_run(tmp_path_factory):
    """A run of other weights and another statement, which always saw labels."""
    return sampling.make_run(tmp_path_factory.mktemp('runs') / 'other', seed=1, label_drop_probability=0.0)
