"""Tests that the README tells the truth about commands and files."""

import pathlib
import re
import shlex

import gin
import numpy as np
import pytest

from tf_dpdiff import keras
from tf_dpdiff.cli import account
from tf_dpdiff.cli import audit
from tf_dpdiff.cli import command
from tf_dpdiff.cli import evaluate
from tf_dpdiff.cli import export
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import init
from tf_dpdiff.cli import release
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import select
from tf_dpdiff.cli import serve
from tf_dpdiff.cli import tensorboard
from tf_dpdiff.cli import train
from tf_dpdiff.cli import tune
from tf_dpdiff.data import datasets
from tf_dpdiff.runs import forecast

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / 'README.md').read_text()
VERBS = {
    'init': init,
    'train': train,
    'sample': sample,
    'evaluate': evaluate,
    'select': select,
    'tune': tune,
    'export': export,
    'release': release,
    'account': account,
    'audit': audit,
    'serve': serve,
    'tensorboard': tensorboard,
}
COMMANDS = sorted(set(re.findall(rf'^(bin/(?:{"|".join(VERBS)}) .*)$', README, re.M)))


@pytest.mark.parametrize('line', COMMANDS)
def test_commands_use_flags_that_exist(line, monkeypatch):
    seen = {}

    def parse_only(parser, unused_main, argv):
        seen['flags'] = parser.parse_args(argv)
        return command.DONE

    monkeypatch.setattr(command, 'run', parse_only)
    _, verb = shlex.split(line)[0].split('/')
    with pytest.raises(SystemExit) as ended:
        VERBS[verb].run(shlex.split(line, comments=True)[1:])
    assert ended.value.code == command.DONE
    workdir = getattr(seen['flags'], 'workdir', None)  # bin/serve has none.
    # bin/tensorboard takes several.
    assert workdir is None if '--workdir' not in line else np.atleast_1d(workdir)[0].startswith('runs')


def test_commands_were_found():
    assert len(COMMANDS) >= 8


def test_pictures_and_files_that_it_names_exist():
    named = re.findall(r'\]\((?!http)([\w./]+)\)', README) + re.findall(
        r'`(gin/[\w/]+\.gin|requirements\.lock)`', README
    )
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_own_images_work_as_written(tmp_path, monkeypatch, capsys):
    block = re.search(r"```\n(include 'own_images.gin'.*?)```", README, re.S).group(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecast, 'measure_speed', lambda model, trainable: forecast.Speed(300.0, 500.0))
    (tmp_path / 'my.gin').write_text(block)
    images = np.random.default_rng(0).integers(0, 256, [1600, 28, 28, 1]).astype(np.uint8)
    np.savez(tmp_path / 'my_images.npz', images=images, labels=np.arange(1600) % 4)
    gin.clear_config()
    with pytest.raises(SystemExit) as ended:
        train.run(
            [
                '--gin_file=my.gin',
                '--workdir=runs/mine',
                '--dry_run',
                '--gin_param=train.utility = None',
                '--gin_param=DpSgdConfig.noise_multiplier = 20.0',
            ]
        )
    assert ended.value.code == command.DONE
    num_images = datasets.npz_images(str(tmp_path / 'my_images.npz')).spec.num_images
    assert abs(num_images - 1280) < 5.0 * np.sqrt(1600 * 0.2 * 0.8)  # One in five is held out, more or less.
    assert f'{num_images:,} of 28x28x1, 4 classes' in capsys.readouterr().out


def test_sources_of_ones_own_images_are_named_as_they_are():
    table = README.split('| images are in |')[1].split('\n\n')[0]
    rows = table.strip().splitlines()[2:]
    assert len(rows) == 8
    for row in rows:
        bindings = re.findall(r'`([\w.]+ = [^`]+)`', row)
        assert bindings[0].startswith('DATA = @') and len(bindings) >= 2, row
        gin_config.parse(['gin/digits.gin'], bindings)  # Strict: an unknown name is an error.


def test_bindings_of_public_images_are_named_as_they_are():
    block = re.search(r'```\n(PretrainingConfig.dataset = .*?)```', README, re.S).group(1)
    gin_config.parse(['gin/colour32.gin'], [line.split('#')[0] for line in block.strip().splitlines()])
    assert gin.query_parameter('public/tfds_images.name') == 'cifar10'
    assert gin.query_parameter('public_images.image_shape') == (28, 28, 1)


def test_optimizer_snippet_trains_on_any_number_of_images():
    snippet = re.search(r'```python\n(from tf_dpdiff import keras\n.*?)```', README, re.S).group(1)
    inputs = keras.Input([8, 8, 1])
    names = {'inputs': inputs, 'outputs': keras.layers.Dense(10)(keras.layers.Flatten()(inputs))}
    exec(snippet, names)
    before = names['model'].get_weights()
    history = names['model'].fit(np.zeros([1797, 8, 8, 1]), np.zeros([1797]), batch_size=256, verbose=0)
    assert np.isfinite(history.history['loss']).all() and not np.array_equal(names['model'].get_weights()[0], before[0])
