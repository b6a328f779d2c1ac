"""Tests of sets of samples on disk: what a kill, damage, a full disk or another process do to them."""

import errno
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tf_dpdiff.data import tfds_writer
from tf_dpdiff.sampling import draw
from tf_dpdiff.sampling import formats
from tf_dpdiff.sampling import store
from tf_dpdiff.sampling import writer

_NAMES = ('cat', 'öwl', 'dog')
# Each way in which a set can be written: the format, and what it is called.
LAYOUTS = [('tfds', 'set'), ('png', 'set'), ('npz', 'set'), ('npz', 'set.npz')]
layouts = pytest.mark.parametrize('layout', LAYOUTS, ids=['tfds', 'png', 'npz folder', 'npz file'])


def images_of(labels, seeds):
    """What stands in for samples: each has pixels that depend on its label and its seed alone."""
    pixels = np.arange(6)[None, :] * (seeds[:, None] % 41 + 1) + 7 * labels[:, None]
    return (pixels % 256).astype(np.uint8).reshape(-1, 2, 3, 1)


def make_spec(layout=('npz', 'set'), **changes):
    arguments = {
        'num_images': 11,
        'seed': 3,
        'choice': draw.ClassChoice((0, 1, 2)),
        'image_shape': (2, 3, 1),
        'class_names': _NAMES,
        'format': layout[0],
        'name': 'toy_set' if layout[0] == 'tfds' else None,
        'origin': {'model': 'abc'},
        'shard_size': 4,
        'chunk_size': 3,
        **changes,
    }
    return formats.Spec(**arguments)


@pytest.fixture(name='statements', scope='module')
def fixture_statements(tmp_path_factory):
    folder = tmp_path_factory.mktemp('statement')
    paths = [folder / 'privacy_statement.txt', folder / 'privacy_statement.json']
    paths[0].write_text('epsilon = 9.5000\n')
    fields = {'guarantee_claimed': True, 'epsilon': 9.49999, 'delta': 1e-5, 'unit': 'one image', 'dataset': 'toys'}
    paths[1].write_text(json.dumps(fields))
    return paths


def pieces_of(spec, ranges, drawn=None):
    """Yields the images of ranges in pieces, as draw.in_pieces does, without TensorFlow and threads."""
    for first, end in ranges:
        while first < end:
            size = min(spec.chunk_size - first % spec.chunk_size, end - first)
            seeds = np.arange(first, first + size)
            if drawn is not None:
                drawn.extend(seeds.tolist())
            labels = spec.choice.labels(seeds)
            yield draw.Piece(seeds, labels, images_of(labels, seeds))
            first += size


def make(output, spec, statements, **arguments):
    """Writes or completes a set; returns it and the seeds that were drawn."""
    drawn = []
    with writer.open_for_writing(output, spec, statements) as files:
        if not files.complete:
            files.write(pieces_of(spec, files.ranges, drawn), **arguments)
    return files, drawn


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(folder).rglob('*')
        if path.is_file()
    }


def expected_set(spec):
    seeds = np.arange(spec.seed, spec.seed + spec.num_images)
    labels = spec.choice.labels(seeds)
    return images_of(labels, seeds), labels


@layouts
@pytest.mark.parametrize('classes', [(0, 1, 2), (2,), (3,)])
def test_set_comes_back_in_the_order_of_its_seeds(tmp_path, statements, layout, classes):
    spec = make_spec(layout, choice=draw.ClassChoice(classes))
    files, drawn = make(tmp_path / layout[1], spec, statements)
    assert files.complete and drawn == list(range(3, 14)) and not files.problems
    images, labels = expected_set(spec)
    for limit in (None, 1, 4, 5, 11, 100):
        found = store.read(tmp_path / layout[1], limit)
        assert found.images.dtype == np.uint8 and found.labels.dtype == np.int32
        np.testing.assert_array_equal(found.images, images[:limit])
        np.testing.assert_array_equal(found.labels, labels[:limit])
        assert found.class_names == _NAMES and found.statement_text == 'epsilon = 9.5000\n'
    # Nothing but the set and what is said of it.
    assert not [path for path in tmp_path.rglob('*') if path.name.startswith('.') or 'partial' in path.name]


def test_data_set_of_tfds_says_what_is_promised_and_is_read_by_all_its_names(tmp_path, statements):
    make(tmp_path / 'set', make_spec(LAYOUTS[0]), statements)
    version = tmp_path / 'set' / 'toy_set' / tfds_writer.VERSION
    description = json.loads((version / 'dataset_info.json').read_text())['description']
    assert 'epsilon = 9.5000 at delta = 1e-05 towards one image' in description
    for folder in (tmp_path / 'set', version):
        assert (folder / 'privacy_statement.txt').read_text() == 'epsilon = 9.5000\n'
    whole = store.read(tmp_path / 'set')
    for path in (version, version.parent):
        np.testing.assert_array_equal(store.read(path).images, whole.images)


@pytest.mark.parametrize(
    'fields, words',
    [
        (
            {'guarantee_claimed': False, 'epsilon': None, 'private_data': None, 'public_data': ['x']},
            'public images alone',
        ),
        ({'guarantee_claimed': False, 'epsilon': None, 'dataset': 'toys'}, 'NO PRIVACY GUARANTEE IS CLAIMED'),
    ],
)
def test_no_more_is_said_than_the_statement_claims(tmp_path, fields, words):
    (tmp_path / 'statement.json').write_text(json.dumps(fields))
    said = store.describe(tmp_path / 'statement.json')
    assert words in said and 'differentially private' not in said


class Killed(BaseException):
    """Stands for the end of a process."""


def make_and_kill(output, spec, statements, moves, after):
    """Writes a set until before or after the n-th file is moved into place; from then on nothing is cleared away."""
    left = moves

    def move(source, target, replace=os.replace):
        nonlocal left
        left -= 1
        if not left and not after:
            raise Killed
        replace(source, target)
        if not left:
            raise Killed

    def unless_dead(function):
        return lambda *arguments, **keywords: function(*arguments, **keywords) if left > 0 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'replace', move)
        for owner, name in ((shutil, 'rmtree'), (pathlib.Path, 'unlink'), (pathlib.Path, 'rmdir')):
            patch.setattr(owner, name, unless_dead(getattr(owner, name)))
        try:
            make(output, spec, statements)
        except Killed:
            return True
    return False


@layouts
def test_set_killed_at_any_move_of_a_file_and_completed_is_byte_for_byte_the_same(tmp_path, statements, layout):
    spec = make_spec(layout)
    whole = tmp_path / 'whole'
    make(whole / layout[1], spec, statements)
    moves = 0
    for moves, after in ((moves, after) for moves in itertools.count(1) for after in (False, True)):
        folder = tmp_path / f'{moves} {after}'
        if not make_and_kill(folder / layout[1], spec, statements, moves, after):
            break
        make(folder / layout[1], spec, statements)
        assert contents(folder) == contents(whole), f'killed {"after" if after else "before"} move {moves}'
        shutil.rmtree(folder)
    assert moves > 8


def test_kill_loses_no_more_than_the_shard_in_work(tmp_path, statements):
    spec = make_spec()
    # The record, two files of the statement; then the arrays of a shard and the record.
    assert make_and_kill(tmp_path / 'set', spec, statements, 6, after=True)
    assert (tmp_path / 'set' / spec.layout.paths(1)[0]).exists()  # There, but not known to be whole.
    with pytest.raises(ValueError, match='set is not complete: 1 of 3 shards are there. Call bin/sample again'):
        store.read(tmp_path / 'set')
    files, drawn = make(tmp_path / 'set', spec, statements)
    assert drawn == list(range(7, 14)) and not files.problems


@layouts
def test_request_to_stop_keeps_finished_shards(tmp_path, statements, layout):
    spec, answers = make_spec(layout), iter([False] * 4 + [True] * 9)
    files, drawn = make(tmp_path / layout[1], spec, statements, should_stop=lambda: next(answers))
    assert not files.complete and len(drawn) < 11
    with pytest.raises(ValueError, match='is not complete'):
        store.read(tmp_path / layout[1])
    kept = spec.num_shards - len(files.pending)
    assert kept >= 1
    files, drawn = make(tmp_path / layout[1], spec, statements)
    assert files.complete and drawn == list(range(3 + 4 * kept, 14))
    np.testing.assert_array_equal(store.read(tmp_path / layout[1]).images, expected_set(spec)[0])


@layouts
def test_complete_set_is_left_alone(tmp_path, statements, layout):
    spec = make_spec(layout)
    make(tmp_path / layout[1], spec, statements)
    before = contents(tmp_path)
    files, drawn = make(tmp_path / layout[1], spec, statements)
    assert files.complete and not drawn and not files.problems and contents(tmp_path) == before


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def _change(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@layouts
@pytest.mark.parametrize(
    'damage, words', [(_truncate, 'bytes'), (_change, 'its contents have changed'), (pathlib.Path.unlink, 'is missing')]
)
def test_damaged_shard_is_named_and_drawn_again_and_the_rest_kept(tmp_path, statements, layout, damage, words):
    spec = make_spec(layout)
    output = tmp_path / layout[1]
    make(output, spec, statements)
    before = contents(tmp_path)
    single = store.is_single_file(output)
    path = output if single else output / spec.layout.paths(1)[2 if layout[0] == 'png' else 0]
    kept = [output / spec.layout.paths(shard)[0] for shard in (0, 2)] if not single else []
    times = [os.stat(other).st_mtime_ns for other in kept]
    damage(path)
    if not (single and damage is pathlib.Path.unlink):
        with pytest.raises(ValueError, match=f'(?s){words}.*Call bin/sample again') as error:
            store.read(output)
        assert '\n' not in str(error.value) and str(output) in str(error.value)
    files, drawn = make(output, spec, statements)
    assert len(files.problems) == 1 and words in files.problems[0] and '\n' not in files.problems[0]
    assert drawn == list(range(3, 14) if single else range(7, 11))
    assert contents(tmp_path) == before
    assert [os.stat(other).st_mtime_ns for other in kept] == times


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'privacy_statement.json'])
def test_damaged_description_of_a_data_set_is_written_again(tmp_path, statements, name):
    spec = make_spec(LAYOUTS[0])
    make(tmp_path / 'set', spec, statements)
    before = contents(tmp_path)
    (tmp_path / 'set' / 'toy_set' / tfds_writer.VERSION / name).write_text('{')
    files, drawn = make(tmp_path / 'set', spec, statements)
    assert files.complete and not drawn and contents(tmp_path) == before
    (problem,) = files.problems
    assert 'what goes with the shards in' in problem and 'is damaged' in problem


@layouts
def test_other_spec_is_refused_and_changes_nothing(tmp_path, statements, layout):
    output = tmp_path / layout[1]
    for should_stop in (lambda: True, lambda: False):  # A set that is begun, and one that is complete.
        make(output, make_spec(layout), statements, should_stop=should_stop)
        before = contents(tmp_path)
        for changes, words in (
            ({'seed': 4}, 'seed: 3 then, 4 now'),
            ({'origin': {'model': 'x' * 100}}, f'model: abc then, {"x" * 57}... now'),
            ({'origin': {}}, 'model: abc then, None now'),
            ({'num_images': 12}, 'num_images: 11 then, 12 now'),
            ({'choice': draw.ClassChoice((1,))}, 'classes: cat, öwl, dog then, öwl now'),
        ):
            with pytest.raises(ValueError, match=re.escape(words)) as error:
                make(output, make_spec(layout, **changes), statements)
            assert str(output) in str(error.value)
            assert contents(tmp_path) == before


@pytest.mark.parametrize('foreign', ['set/notes.txt', 'set/0/1.png', 'set', 'set.npz'])
def test_what_was_not_made_here_is_not_touched(tmp_path, statements, foreign):
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).write_text('mine')
    output = tmp_path / pathlib.Path(foreign).parts[0]
    with pytest.raises(ValueError, match=f'{re.escape(str(output))} (exists and is no set|is a file)'):
        make(output, make_spec(), statements)
    assert list(contents(tmp_path)) == [foreign]


def test_empty_folder_is_taken(tmp_path, statements):
    (tmp_path / 'set').mkdir()
    assert make(tmp_path / 'set', make_spec(), statements)[0].complete


@layouts
def test_second_process_is_refused(tmp_path, statements, layout):
    spec = make_spec(layout)
    with writer.open_for_writing(tmp_path / layout[1], spec, statements) as files:
        with pytest.raises(ValueError, match='another process is writing to '):
            make(tmp_path / layout[1], spec, statements)
        files.write(pieces_of(spec, files.ranges))
    assert make(tmp_path / layout[1], spec, statements)[0].complete


class Full:
    """A function that finds the disk full from its n-th call on."""

    def __init__(self, function, calls, error):
        self._function, self._left, self._error = function, calls, error

    def __call__(self, *arguments, **keywords):
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._function(*arguments, **keywords)


@layouts
def test_full_disk_is_one_line_and_keeps_what_is_there(tmp_path, statements, layout, monkeypatch):
    spec, python_error = make_spec(layout), OSError(errno.ENOSPC, 'No space left on device')
    owner, name, calls, error = {
        'tfds': (
            tf.io.TFRecordWriter,
            'write',
            6,
            tf.errors.ResourceExhaustedError(None, None, '/a/b; No space left on device'),
        ),
        'png': (pathlib.Path, 'write_bytes', 6, python_error),
        'npz': (formats, 'write_arrays', 1, python_error),
    }[layout[0]]
    full = Full(getattr(owner, name), calls, error)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *arguments, **keywords: full(*arguments, **keywords))
        with pytest.raises(OSError) as raised:
            make(tmp_path / layout[1], spec, statements)
    message = str(raised.value)
    assert message == (
        f'No space left on device: {tmp_path / layout[1]}; 1 of 3 shards are complete and kept; make '
        'room and call it again.'
    )
    assert not list(tmp_path.rglob(writer._TEMPORARY))  # What was begun takes no room.
    files, drawn = make(tmp_path / layout[1], spec, statements)
    assert files.complete and drawn == list(range(7, 14))


def test_failed_drawing_is_no_fault_of_the_disk(tmp_path, statements):

    def pieces():
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
        yield

    with writer.open_for_writing(tmp_path / 'set', make_spec(), statements) as files:
        with pytest.raises(tf.errors.ResourceExhaustedError, match='OOM'):
            files.write(pieces())


@pytest.mark.parametrize('content', ['', '{', '[]', '{"plan": {}}', '{"plan": 3, "shards": {}}'])
def test_damaged_record_is_refused_by_name(tmp_path, statements, content):
    make(tmp_path / 'set', make_spec(), statements)
    (tmp_path / 'set' / 'samples.json').write_text(content)
    for use in (store.read, lambda output: make(output, make_spec(), statements)):
        with pytest.raises(ValueError, match='set/samples.json is damaged'):
            use(tmp_path / 'set')


def test_what_holds_no_samples_is_refused_by_name(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='empty holds no samples of bin/sample: samples.json is missing'):
        store.read(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match=r'no samples at .*none\.npz; make some with bin/sample'):
        store.read(tmp_path / 'none.npz')
    with pytest.raises(ValueError, match='limit of the samples to be read must be at least 1, got 0'):
        store.read(tmp_path / 'none.npz', limit=0)


def make_samples(count=3, seed=0, statement='epsilon = 1', names=('0', '1'), size=2):
    images = np.random.default_rng(seed).integers(0, 256, [count, size, size, 1], np.uint8)
    return store.Samples(images, np.arange(count, dtype=np.int32) % 2, names, statement)


def test_sets_are_joined_in_the_order_in_which_they_are_named():
    first, second = make_samples(), make_samples(5, seed=1)
    joined = store.join({pathlib.Path('a'): first, pathlib.Path('b'): second})
    np.testing.assert_array_equal(joined.images, [*first.images, *second.images])
    np.testing.assert_array_equal(joined.labels, [0, 1, 0, 0, 1, 0, 1, 0])
    assert joined.statement_text == 'epsilon = 1' and joined.class_names == ('0', '1')


@pytest.mark.parametrize(
    'other, message',
    [
        ({'size': 3}, 'a holds images of shape (2, 2, 1), b (3, 3, 1)'),
        ({'names': ('cat', 'dog')}, 'a holds the classes 0, 1, b cat, dog'),
        ({'statement': 'epsilon = 2'}, 'a and b came with different privacy statements'),
        ({'statement': None}, 'a and b came with different privacy statements'),
    ],
)
def test_sets_that_do_not_belong_together_are_not_joined(other, message):
    sets = {pathlib.Path('a'): make_samples(), pathlib.Path('b'): make_samples(**other)}
    with pytest.raises(ValueError, match=re.escape(message)):
        store.join(sets)


def test_sets_of_the_same_images_are_told_apart_from_others():
    sets = {pathlib.Path('a'): make_samples(10), pathlib.Path('b'): make_samples(10, seed=1)}
    store.check_differ(sets)
    with pytest.raises(ValueError, match='most images of c are in the sets before it too'):
        store.check_differ({**sets, pathlib.Path('c'): make_samples(7, seed=1)})


def test_samples_of_a_run_have_its_statement_and_those_of_others_do_not(tmp_path):
    images, labels = np.zeros([5, 2, 3, 1], np.uint8), np.array([0, 1, 2, 0, 1], np.int32)
    (tmp_path / 'privacy_statement.txt').write_text('of the run')
    of_run = [(name, 'of the run') for name in ('samples.npz', 'matched_images.npz')]
    for name, statement in (*of_run, ('others.npz', None)):
        store.write_file(tmp_path / name, images, labels, _NAMES)
        found = store.read(tmp_path / name, 3)
        assert found.statement_text == statement and found.class_names == _NAMES and len(found.images) == 3


@pytest.mark.parametrize(
    'names, message',
    [
        ({}, 'the label 10000000, but 5 images'),
        ({'class_names': np.array(_NAMES)}, 'the label 10000000, but 3 classes'),
    ],
)
def test_label_that_is_no_class_is_refused_before_as_many_names_are_made(tmp_path, names, message):
    labels = np.array([0, 1, 2, 0, 10**7])
    np.savez(tmp_path / 'others.npz', images=np.zeros([5, 2, 3, 1], np.uint8), labels=labels, **names)
    with pytest.raises(ValueError, match=f'others.npz .*{message}'):
        store.read(tmp_path / 'others.npz')


def write_some(path, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, [20, 4, 4, 1]).astype(np.uint8)
    labels = (np.arange(20) % 3).astype(np.int32)
    store.write_file(path, images, labels, ('zero', 'öne', 'two'))
    return images, labels


def test_samples_come_back_from_their_file(tmp_path):
    images, labels = write_some(tmp_path / 'a.npz')
    found = store.read(tmp_path / 'a.npz')
    assert found.images.dtype == np.uint8 and found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as arrays:
        assert arrays['class_names'].tolist() == ['zero', 'öne', 'two']


class Unwritable:
    """An array that cannot be read, as when memory or the disk gives out half way."""

    def __array__(self, dtype=None):
        raise OSError(28, 'No space left on device')


def test_failed_writing_leaves_what_was_there(tmp_path):
    write_some(tmp_path / 'a.npz')
    before = (tmp_path / 'a.npz').read_bytes()
    with pytest.raises(OSError, match='No space left'):
        store.write_file(tmp_path / 'a.npz', np.zeros([2, 4, 4, 1], np.uint8), Unwritable(), ('a',))
    assert (tmp_path / 'a.npz').read_bytes() == before
    assert os.listdir(tmp_path) == ['a.npz']


def _truncated(path):
    write_some(path)
    path.write_bytes(path.read_bytes()[:-40])


def _corrupt(path):
    write_some(path)
    content = bytearray(path.read_bytes())
    content[60:90] = b'\xff' * 30
    path.write_bytes(content)


def _npy(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros([2, 4, 4, 1], np.uint8))


_IMAGES, _LABELS = np.zeros([2, 4, 4, 1], np.uint8), np.zeros([2], np.int32)

_NOT_SAMPLES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('hello'),
    'truncated': _truncated,
    'corrupt': _corrupt,
    'npy': _npy,
    'no labels': lambda path: np.savez(path, images=_IMAGES),
    'pickled': lambda path: np.savez(path, images=np.array([{}]), labels=_LABELS),
    'float images': lambda path: np.savez(path, images=_IMAGES.astype(np.float32), labels=_LABELS),
    'flat images': lambda path: np.savez(path, images=_IMAGES.reshape(2, -1), labels=_LABELS),
    'more labels': lambda path: np.savez(path, images=_IMAGES, labels=np.zeros([3], np.int32)),
    'float labels': lambda path: np.savez(path, images=_IMAGES, labels=np.zeros([2])),
}


@pytest.mark.parametrize('make', _NOT_SAMPLES.values(), ids=_NOT_SAMPLES.keys())
def test_file_of_another_kind_is_refused_by_name(tmp_path, make):
    make(tmp_path / 'a.npz')
    with pytest.raises(ValueError, match=f'{re.escape(str(tmp_path))}/a.npz does not hold samples'):
        store.read(tmp_path / 'a.npz')


def test_zip_of_a_release_is_to_be_unpacked(tmp_path):
    (tmp_path / 'mine_release.zip').write_bytes(b'PK')
    with pytest.raises(ValueError, match='mine_release.zip is neither .*unpack it'):
        store.read(tmp_path / 'mine_release.zip')
