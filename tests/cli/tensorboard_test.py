"""Tests of bin/tensorboard, and of what bin/train shows by it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import tensorboard
from tf_dpdiff.runs import tensorboard_server
from tf_dpdiff.training import summaries as summaries_lib

pytestmark = pytest.mark.usefixtures('small_network')
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = ROOT / 'tests' / 'cli' / 'tiny_digits.gin'


def make_run(folder, value=1.0, private=False):
    """A folder that looks like a run's."""
    summaries = summaries_lib.Summaries(folder)
    summaries.text('configuration', 'a = 1')
    summaries.scalars('finetuning', {'epsilon_spent': value}, 1)
    if private:
        summaries.non_private_scalars({'loss': value}, 1)
    summaries.flush()
    return folder


@pytest.fixture(name='run', scope='module')
def fixture_run(tiny_run):
    """A finished tiny run."""
    return tiny_run[0]


class _Board:
    """TensorBoard, as a browser asks it."""

    def __init__(self, url):
        self.url = url

    def get(self, path, **arguments):
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f'{self.url}data/{path}?{query}', timeout=30) as answer:
            return answer.read()

    def wait_for(self, run, tag):
        """Waits until a scalar is loaded."""
        deadline = time.monotonic() + 30.0
        while tag not in self.ask('plugin/scalars/tags').get(run, ()):
            assert time.monotonic() < deadline, f'{tag} of {run} is not shown'
            time.sleep(0.1)

    def ask(self, path, **arguments):
        return json.loads(self.get(path, **arguments))


@pytest.fixture(name='board', scope='module')
def fixture_board(run, tmp_path_factory):
    """TensorBoard of the tiny run, started as the command starts it, with what is private."""
    logdir = tmp_path_factory.mktemp('logdir')
    tensorboard_server.link(tensorboard_server.find_events([run], private=True), logdir)
    tensorboard_server.write_layout(logdir, private=True)
    board = _Board(tensorboard_server.serve(logdir, host='127.0.0.1', port=0))
    board.wait_for('digits_non_private', 'non_private/loss')
    return board


def test_epsilon_over_steps_ends_with_the_claim_of_the_statement(run, board):
    statement = json.loads((run / 'privacy_statement.json').read_text())
    points = board.ask('plugin/scalars/scalars', run='digits', tag='privacy/epsilon')
    assert [step for _, step, _ in points] == [0, 1, 2, 3]
    epsilons = [value for _, _, value in points]
    assert epsilons[-1] == pytest.approx(statement['epsilon'], rel=1e-6)
    assert epsilons == sorted(epsilons) and epsilons[0] > 0.0  # The warm start comes before the first step.
    by_step = board.ask('plugin/scalars/scalars', run='digits/finetuning', tag='finetuning/epsilon_spent')
    assert [step for _, step, _ in by_step] == [1, 2, 3]
    assert by_step[-1][2] == pytest.approx(statement['epsilon'], rel=1e-2)


@pytest.mark.parametrize(
    'shown_run, tag, picture',
    [
        ('digits', 'samples', 'samples.png'),
        ('digits', 'denoising', 'denoising.png'),
        ('digits/warm_start', 'warm_start/samples', None),
        ('digits/finetuning', 'finetuning/samples', None),
    ],
)
def test_pictures_are_shown(run, board, shown_run, tag, picture):
    images = board.ask('plugin/images/images', run=shown_run, tag=tag, sample=0)
    assert [image['step'] for image in images] == ([0] if picture else [1, 2, 3])
    pixels = [tf.io.decode_png(_png(board, image)).numpy() for image in images]
    if picture:
        np.testing.assert_array_equal(pixels[0].squeeze(), np.asarray(Image.open(run / picture)))
    else:
        # One row per class: ten of four images of 8x8, each with a line beside it and below it.
        assert len({image.shape for image in pixels}) == 1
        assert pixels[0].shape[0] / pixels[0].shape[1] == 10 / 4
        assert not np.array_equal(pixels[0], pixels[-1])


def _png(board, image):
    return board.get('plugin/images/individualImage', **dict(urllib.parse.parse_qsl(image['query'])))


def test_timesteps_are_drawn_as_configured(board):
    ((_, _, buckets),) = board.ask('plugin/histograms/histograms', run='digits', tag='timesteps/finetuning')
    counts = {(low + high) / 2.0: count for low, high, count in buckets}
    assert sum(counts.values()) == 10_000
    # 90% lie in [100, 900): gin/digits.gin; uniform ones would be 80%.
    assert sum(count for middle, count in counts.items() if 100 <= middle < 900) == pytest.approx(9000, abs=250)


def test_configuration_is_shown_as_it_is_released(run, board):
    text = board.ask('plugin/text/text', run='digits', tag='configuration')[0]['text']
    assert 'DpSgdConfig.target_delta' in text and 'private_seed' not in text
    assert str(ROOT) not in text and str(run) not in text


def test_sweeps_have_epsilon_beside_their_settings(board):
    experiment = board.ask('plugin/hparams/experiment', request=json.dumps({'experimentName': ''}))
    names = {info['name'] for info in experiment['hparamInfos']}
    assert {
        'noise_multiplier',
        'learning_rate',
        'expected_batch_size',
        'num_steps',
        'augmentation_multiplicity',
    } <= names
    assert {info['name']['tag'] for info in experiment['metricInfos']} == {
        'privacy/epsilon',
        'finetuning/epsilon_spent',
    }


def test_layout_finds_what_it_is_to_show(board):
    layout = board.ask('plugin/custom_scalars/layout')
    assert [category['title'] for category in layout['category']] == [
        'Privacy',
        'Private training',
        'Public stages',
        'PRIVATE, not to be released',
    ]
    runs = board.ask('runs')
    for category in layout['category']:
        for chart in category['chart']:
            for tag in chart['multiline']['tag']:
                found = [board.ask('plugin/custom_scalars/scalars', run=run, tag=tag) for run in runs]
                assert all(answer['regex_valid'] for answer in found)
                lines = [line for answer in found for line in answer['tag_to_events']]
                assert lines, tag
                assert all(line.startswith('non_private/') for line in lines) == category['title'].startswith('PRIVATE')


def test_names_tell_runs_apart_and_what_is_private_is_shown_when_asked_for(tmp_path):
    first, second = make_run(tmp_path / 'a' / 'run', private=True), make_run(tmp_path / 'b' / 'run')
    assert tensorboard_server.find_events([first, second]) == {
        'run': first / 'tensorboard',
        'run_2': second / 'tensorboard',
    }
    assert tensorboard_server.find_events([tmp_path / 'a'], private=True) == {
        'run': first / 'tensorboard',
        'run_non_private': first / 'non_private' / 'tensorboard',
    }
    logdir = tmp_path / 'logdir'
    logdir.mkdir()
    tensorboard_server.link(tensorboard_server.find_events([tmp_path / 'a']), logdir)
    assert [path.name for path in logdir.iterdir()] == ['run']
    assert not any('non_private' in str(path.resolve()) for path in logdir.rglob('*'))
    tensorboard_server.link(tensorboard_server.find_events([tmp_path / 'a', tmp_path / 'b']), logdir)  # One came later.
    assert {path.name for path in logdir.iterdir()} == {'run', 'run_2'}


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--workdir={tmp}/none'], 'none holds no run with TensorBoard events'),
        (['--workdir={tmp}/run', '--workdir={tmp}/empty'], 'empty holds no run with TensorBoard events'),
        (['--workdir={tmp}/run/non_private'], 'non_private holds no run with TensorBoard events'),
        (['--workdir={tmp}/run', '--port=70000'], '--port must be from 0 to 65535, got 70000'),
        (['--workdir={tmp}/run', '--port={busy}'], 'cannot listen at 127.0.0.1:{busy}'),
        (['--workdir={tmp}/run', '--private', '--host=0.0.0.0'], 'not for --host=0.0.0.0'),
        (['--workdir={tmp}/run', '--host=203.0.113.7'], 'cannot listen at 203.0.113.7'),
        (['--workdir={tmp}/run', '--host=nowhere.invalid'], 'cannot listen at nowhere.invalid'),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(tmp_path, capfd, flags, message):
    make_run(tmp_path / 'run', private=True)
    (tmp_path / 'empty').mkdir()
    with socket.create_server(('127.0.0.1', 0)) as taken:
        places = {'tmp': tmp_path, 'busy': taken.getsockname()[1]}
        assert verbs.call(tensorboard, *(flag.format(**places) for flag in flags)) == command.WRONG_USE
    out, error = capfd.readouterr()
    assert message.format(**places) in error and error.startswith('tensorboard: error: ') and not out
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_command_says_where_it_listens_and_ends_cleanly(tmp_path, number):
    run, temporary = make_run(tmp_path / 'run', value=2.5, private=True), tmp_path / 'temporary'
    temporary.mkdir()
    command_line = [sys.executable, '-m', 'tf_dpdiff.cli', 'tensorboard', f'--workdir={run}', '--port=0']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(temporary)}
    with subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith('http://127.0.0.1:')
            board = _Board(url.split('?')[0])
            board.wait_for('run/finetuning', 'finetuning/epsilon_spent')
            points = board.ask('plugin/scalars/scalars', run='run/finetuning', tag='finetuning/epsilon_spent')
            assert [value for _, _, value in points] == [2.5]
            assert not any('non_private' in name for name in board.ask('runs'))
            process.send_signal(number)
            out, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == command.DONE
    assert (out, error, list(temporary.iterdir())) == ('', '', [])
