"""A model's folder and a server of it, one of each for a file of tests."""

import pytest

from tests.serving import toy_models


@pytest.fixture(name='folder', scope='module')
def fixture_folder(request, tmp_path_factory):
    """The folder of a model with one version: VERSION of the test's file, or 1."""
    folder = tmp_path_factory.mktemp('models') / toy_models.NAME
    toy_models.export(folder, getattr(request.module, 'VERSION', 1))
    return folder


@pytest.fixture(name='server', scope='module')
def fixture_server(folder):
    """A server of that folder."""
    with toy_models.serving(folder) as server:
        yield server
