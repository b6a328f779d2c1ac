"""Tests of sets of bin/sample that are broken off: by a kill, by Ctrl-C, by a full disk, by damage."""

import collections
import errno
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.cli import sampling
from tf_dpdiff.cli import command
from tf_dpdiff.data import tfds_writer
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.usefixtures('loaded_once')

# bin/sample in a process of its own. KILL_AFTER shards are in place when it kills itself; it draws on DEVICES.
_PROCESS = """
import os
import signal
import sys
from tf_dpdiff.cli import sample
from tf_dpdiff.sampling import shared_work
import tensorflow as tf

kill_after, devices = int(sys.argv[1]), int(sys.argv[2])
cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
replace, load_on, moved = os.replace, shared_work._load_on, []

def move(source, target):
    replace(source, target)
    if 'tfrecord' in os.path.basename(target):
        moved.append(target)
        if len(moved) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

def load(device, load_fn):
    sample_fn = load_on(device, load_fn)
    def sample_and_say(labels, seeds):
        images = sample_fn(labels, seeds)
        sys.stdout.write(f'drawn on {images.device}\\n')  # At once, for there are several threads.
        return images
    return sample_and_say

os.replace, shared_work._load_on = move, load
try:
    sample.run(sys.argv[3:])
finally:
    if os.path.exists('/proc/self/status'):
        with open('/proc/self/status') as status:
            print('peak', status.read().split('VmHWM:')[1].split()[0])
"""


def start(flags, *, kill_after=-1, devices=1):
    return subprocess.Popen(
        [sys.executable, '-c', _PROCESS, str(kill_after), str(devices), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )


def test_two_devices_make_the_same_files_as_one(toy_run, tmp_path):
    arguments = {'kind': 'tfds', 'num_images': 2000, 'shard_size': 300}
    process = start(sampling.flags_of(toy_run, tmp_path / 'two', **arguments), devices=2)
    out, error = process.communicate()
    assert process.returncode == command.DONE, error
    drawn_on = collections.Counter(line.split()[-1] for line in out.splitlines() if line.startswith('drawn on'))
    assert len(drawn_on) == 2 and sum(drawn_on.values()) == 8  # Both devices had a part in it, and no chunk twice.
    assert sampling.call(toy_run, tmp_path / 'one', **arguments) == command.DONE
    assert sampling.contents(tmp_path / 'two') == sampling.contents(tmp_path / 'one')


def test_set_killed_and_completed_is_byte_for_byte_that_of_one_call(toy_run, tmp_path, capsys):
    arguments = {'kind': 'tfds', 'num_images': 2000, 'shard_size': 130}
    process = start(sampling.flags_of(toy_run, tmp_path / 'broken', **arguments), kill_after=5)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = sampling.contents(tmp_path / 'broken')
    # The fifth shard is in place and not recorded yet.
    assert len(json.loads((tmp_path / 'broken' / 'samples.json').read_text())['shards']) == 4
    assert sampling.call(toy_run, tmp_path / 'broken', **arguments) == command.DONE
    assert '4 of 16 shards are complete; going on with the others' in capsys.readouterr().err
    assert sampling.call(toy_run, tmp_path / 'whole', **arguments) == command.DONE
    whole = sampling.contents(tmp_path / 'whole')
    assert sampling.contents(tmp_path / 'broken') == whole
    shards = sorted((tmp_path / 'broken' / 'toy_set' / tfds_writer.VERSION).glob('*tfrecord*'))
    seeds = np.concatenate([tfds_writer.read_records(path, (4, 4, 1))[2] for path in shards])
    np.testing.assert_array_equal(seeds, np.arange(2000))
    assert sum(left[name] == whole.get(name) for name in left if 'tfrecord' in name) == 5


@pytest.fixture(name='begun', scope='module')
def fixture_begun(toy_run, tmp_path_factory):
    """A set of which three of six shards are there."""
    output = tmp_path_factory.mktemp('begun') / 'set'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, 'in_pieces', stopping_after(3, draw.in_pieces))
        assert sampling.call(toy_run, output, shard_size=10) == command.FAILED
    return output


def stopping_after(pieces, draw_pieces):
    """Returns a draw.in_pieces that asks the process to stop, as Ctrl-C does, after some pieces."""

    def draw_and_stop(*arguments, **options):
        for number, piece in enumerate(draw_pieces(*arguments, **options)):
            if number == pieces:
                signal.raise_signal(signal.SIGINT)
            yield piece

    return draw_and_stop


@pytest.mark.parametrize('kind', ['png', 'npz file'])
def test_ctrl_c_keeps_finished_shards_and_the_same_command_goes_on(toy_run, tmp_path, kind, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(draw, 'in_pieces', stopping_after(3, draw.in_pieces))
        assert sampling.call(toy_run, tmp_path / 'broken' / 'set', kind, shard_size=10) == command.FAILED
    error = capsys.readouterr().err
    assert 'sample: stopped; 4 of 6 shards are complete and kept. The same command goes on.' in error
    assert sampling.call(toy_run, tmp_path / 'broken' / 'set', kind, shard_size=10) == command.DONE
    assert sampling.call(toy_run, tmp_path / 'whole' / 'set', kind, shard_size=10) == command.DONE
    assert sampling.contents(tmp_path / 'broken') == sampling.contents(tmp_path / 'whole')


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'seed': 1}, 'seed: 0 then, 1 now'),
        ({'num_images': 61}, 'num_images: 60 then, 61 now'),
        ({'shard_size': 20}, 'shard_size: 10 then, 20 now'),
        ({'classes': 'dog'}, 'classes: cat, öwl, dog then, dog now'),
        ({'class_weights': 'dog=1,cat=2'}, 'class_weights: None then'),
        ({'kind': 'png'}, 'format: npz then, png now'),
        ({'num_steps': 1}, 'drawn_by: an exported model then, a checkpoint now'),
        ({'workdir': 'other'}, 'model_sha256: '),
    ],
)
def test_going_on_with_other_settings_is_refused(toy_run, other_toy_run, begun, capsys, changes, words):
    if 'workdir' in changes:
        changes = {'workdir': other_toy_run}
    before = sampling.contents(begun)
    assert sampling.call(toy_run, begun, **{'shard_size': 10, **changes}) == command.WRONG_USE
    error = sampling.error_of(capsys)
    assert f'{begun} was begun with other settings (' in error and words in error and 'name another --output' in error
    assert sampling.contents(begun) == before


def test_truncated_shard_is_named_and_drawn_again_and_the_rest_kept(toy_run, tmp_path, capsys):
    output, arguments = tmp_path / 'set', {'kind': 'png', 'shard_size': 10}
    sampling.draw(toy_run, output, **arguments)
    before, path = sampling.contents(tmp_path), output / 'öwl' / '0000022.png'
    path.write_bytes(path.read_bytes()[:-9])
    assert sampling.call(toy_run, output, **arguments) == command.DONE
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('sample: ')]
    assert said[0].startswith(f'sample: {output}/0000020.png to 0000029.png is damaged: ') and ' bytes' in said[0]
    assert said[1] == 'sample: 5 of 6 shards are complete; going on with the others.'
    assert sampling.contents(tmp_path) == before


class FullDisk:
    """A function that finds the disk full from its n-th call on."""

    def __init__(self, function, calls):
        self._function, self._left = function, calls

    def __call__(self, *arguments, **keywords):
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._function(*arguments, **keywords)


def test_full_disk_is_one_line_and_finished_shards_are_kept(toy_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(formats, 'write_arrays', FullDisk(formats.write_arrays, 2))
        assert sampling.call(toy_run, tmp_path / 'set', shard_size=10) == command.FAILED
    assert sampling.error_of(capsys) == (
        f'sample: error: No space left on device: {tmp_path / "set"}; 2 of 6 shards are complete and '
        'kept; make room and call it again.'
    )
    assert sampling.call(toy_run, tmp_path / 'set', shard_size=10) == command.DONE
    assert '2 of 6 shards are complete; going on' in capsys.readouterr().err


def test_full_disk_while_shards_are_joined_keeps_all_of_them(toy_run, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(formats.FORMATS['npz'], 'join', FullDisk(None, 0))
        assert sampling.call(toy_run, tmp_path / 'set', 'npz file', shard_size=10) == command.FAILED
    assert '6 of 6 shards are complete and kept; make room' in sampling.error_of(capsys)
    monkeypatch.setattr(draw, 'in_pieces', stopping_after(0, draw.in_pieces))  # Nothing is drawn again.
    assert sampling.call(toy_run, tmp_path / 'set', 'npz file', shard_size=10) == command.DONE
    assert '6 of 6 shards are complete; putting them together' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'set.npz',
        'set.privacy_statement.json',
        'set.privacy_statement.txt',
        'set.samples.json',
    ]


class Stripes(tf.Module):
    """Stands in for a network: images of which 100,000 take much memory, but are drawn and packed in no time."""

    def __init__(self):
        super().__init__()
        self.labels, self.step_counts = range(4), ()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)])
        def sample_stripes(labels, seeds):
            rows = seeds[:, None] * 37 + tf.cast(labels, tf.int64)[:, None] * 11 + tf.range(32, dtype=tf.int64)
            images = tf.broadcast_to(rows[:, :, None, None], [tf.size(seeds), 32, 32, 3])
            return {'images': tf.cast(images % 256, tf.uint8)}

        self.sample = sample_stripes


def export_stripes(toy_run, folder):
    """Exports stripes under the statement of a run."""
    folder.mkdir()
    folder_lib.read_model(toy_run)._replace(image_shape=(32, 32, 3)).write(folder)
    beside = folder_lib.statement_paths(toy_run) + [folder / folder_lib.MODEL]
    return export.export_saved_model(Stripes(), folder / 'servable', beside)


def finish(process):
    """Returns the peak memory in KiB."""
    out, error = process.communicate()
    assert process.returncode == command.DONE, error
    return int(out.splitlines()[-1].split()[1])


def wait_until_it_writes(process, folder):
    while not (folder / '.unfinished').exists():
        time.sleep(0.01)
        assert process.poll() is None


def kill_at_a_random_moment(process, folder, generator, longest_secs):
    """Kills a process some time after it began to write; returns how many shards are recorded."""
    wait_until_it_writes(process, folder)
    time.sleep(generator.uniform(0.0, longest_secs))
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(folder / '.unfinished')  # So that the next one is seen to begin.
    return len(json.loads((folder / store.RECORD).read_text())['shards'])


def read_columns(output, kind):
    """Returns seeds, labels and images in the order of the files."""
    if kind == 'tfds':
        shards = sorted((output / 'toy_set' / tfds_writer.VERSION).glob('*tfrecord*'))
        pieces = [tfds_writer.read_records(path, (32, 32, 3)) for path in shards]
        images, labels, seeds = map(np.concatenate, zip(*pieces))
        return seeds, labels, images
    with np.load(output) as arrays:
        return arrays['seeds'], arrays['labels'], arrays['images']


@pytest.mark.long(in_share=False)
@pytest.mark.parametrize('kind', ['tfds', 'npz file'])
def test_large_set_killed_at_random_moments_is_whole_and_memory_does_not_grow(toy_run, tmp_path, kind):
    arguments = {'kind': kind, 'shard_size': 4000, 'seed': 17, 'saved_model': export_stripes(toy_run, tmp_path / 'x')}
    few = finish(start(sampling.flags_of(None, tmp_path / 'few', num_images=20000, **arguments)))
    arguments['num_images'] = 100000
    whole, broken = (tmp_path / name / ('set' if kind == 'tfds' else 'set.npz') for name in ('whole', 'broken'))
    process = start(sampling.flags_of(None, whole.with_suffix(''), **arguments))
    wait_until_it_writes(process, store.work_folder(whole))
    began = time.monotonic()
    many = finish(process)
    longest_secs = (time.monotonic() - began) / 5
    held = 80000 * 32 * 32 * 3 / 1024  # What the other images would take, were they all held.
    assert 0 < many < 1.15 * few < few + held / 2
    flags, generator = sampling.flags_of(None, broken.with_suffix(''), **arguments), random.Random(0)
    kept = [kill_at_a_random_moment(start(flags), store.work_folder(broken), generator, longest_secs) for _ in range(3)]
    assert kept == sorted(kept) and 0 < kept[-1] < 25
    finish(start(flags))
    assert sampling.contents(broken.parent) == sampling.contents(whole.parent)
    seeds, labels, images = read_columns(broken, kind)
    np.testing.assert_array_equal(seeds, np.arange(17, 100017))
    np.testing.assert_array_equal(labels, seeds % 3)
    rows = seeds[:, None] * 37 + labels[:, None] * 11 + np.arange(32)
    np.testing.assert_array_equal(images, np.broadcast_to(rows[..., None, None] % 256, images.shape))
