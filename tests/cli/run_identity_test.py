"""Tests that no model goes out under another run's statement, and that reports hold no paths."""

import json
import pathlib
import shutil

import pytest

from tests.cli import sampling
from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import seeds
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import outcome
from tf_dpdiff.training import checkpoints

TINY = 'tests/cli/tiny_digits.gin'


@pytest.fixture(name='run')
def fixture_run(toy_run, tmp_path):
    """A copy of a finished run, with the lock that bin/train leaves."""
    run = pathlib.Path(shutil.copytree(toy_run, tmp_path / 'run'))
    (run / '.lock').touch()
    return run


def change_statement(run, **fields):
    path = run / 'privacy_statement.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize('change', ['another run', 'fewer steps', 'no checkpoints'])
def test_checkpoint_is_not_sampled_or_exported_under_a_statement_that_is_not_its_own(run, tmp_path, change, capsys):
    if change == 'another run':
        change_statement(run, run_id='another')
    elif change == 'fewer steps':
        releases = json.loads((run / 'privacy_statement.json').read_text())['releases']
        change_statement(run, releases=[{**release, 'count': 1} for release in releases])
    else:
        shutil.rmtree(run / 'checkpoints')
    words = 'is missing' if change == 'no checkpoints' else 'are not of the same run, or the run goes on'
    assert sampling.call(run, tmp_path / 'set', num_steps=1) == command.WRONG_USE
    assert words in sampling.error_of(capsys)
    assert verbs.call(export, f'--workdir={run}', f'--output={tmp_path / "model"}') == command.WRONG_USE
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'set').exists() and not (tmp_path / 'model').exists()


def test_control_checkpoint_is_sampled_under_its_own_statement(run, tmp_path):
    assert sampling.call(run, tmp_path / 'set', num_steps=1) == command.DONE


@pytest.mark.parametrize('change', ['no checkpoints', 'checkpoints of another run'])
def test_run_does_not_begin_beside_the_results_of_another(run, capsys, change):
    shutil.rmtree(run / 'checkpoints')
    if change == 'checkpoints of another run':
        state = checkpoints.RunState(seeds.PrivateSeed.from_os_entropy())
        checkpoints.RunCheckpoint(run / 'checkpoints', {'data_fingerprint': 'digits'}).save(state)
    before = sampling.contents(run)
    assert verbs.call(train, f'--gin_file={TINY}', f'--workdir={run}') == command.WRONG_USE
    assert f'{run} holds the results of another run than its checkpoints' in capsys.readouterr().err
    assert sampling.contents(run) == before


@pytest.mark.parametrize('left', ['samples.npz', 'matched_images.npz', 'report.json'])
def test_run_does_not_begin_where_samples_of_another_would_get_its_statement(tmp_path, capsys, left):
    path = tmp_path / 'run' / left
    path.parent.mkdir()
    path.write_bytes(b'of another run')
    assert verbs.call(train, f'--gin_file={TINY}', f'--workdir={path.parent}') == command.WRONG_USE
    assert f'another run than its checkpoints ({left} is not theirs)' in capsys.readouterr().err
    assert [found.name for found in path.parent.iterdir() if found.name != '.lock'] == [left]


def test_what_bin_sample_wrote_is_not_of_a_run(tmp_path):
    (tmp_path / 'samples.npz').touch()
    (tmp_path / 'samples.samples.json').touch()
    folder.check_free(tmp_path)


def test_released_run_whose_checkpoints_fell_back_is_not_trained_and_released_anew(run, capsys):
    releases = json.loads((run / 'privacy_statement.json').read_text())['releases']
    change_statement(run, releases=[{**release, 'count': release['count'] + 1} for release in releases])
    before = sampling.contents(run)
    assert verbs.call(train, f'--gin_file={TINY}', f'--workdir={run}') == command.WRONG_USE
    assert 'tells of more steps than its newest whole checkpoint' in capsys.readouterr().err
    assert sampling.contents(run) == before


@pytest.mark.parametrize(
    'written, shown',
    [
        ("image_folder.path = '/data/hospital/john_doe/'", "image_folder.path = '.../john_doe'"),
        ('a.path = "/home/o\'brien/ward3/x.npz"', "a.path = '.../x.npz'"),
        ("a.path = \\\n    '/data/x.npz'\nb.c = 1\n", "a.path = \\\n    '.../x.npz'\nb.c = 1\n"),
        ("a.paths = ('/data/john doe '\n           'ward/x',\n 'y/z')\n", "a.paths = ('.../x',\n '.../z')\n"),
        ("a.path = 'C:\\\\data\\\\x'", "a.path = '.../x'"),
        ("a.path = '/'", "a.path = '.../'"),
        ("# A comment / with a slash\nscope/A.b = @f()\nA.c = %M\nA.d = 'name'\n",) * 2,
    ],
)
def test_configuration_that_is_sent_on_holds_no_paths(written, shown):
    assert outcome.cut_paths(written) == shown
