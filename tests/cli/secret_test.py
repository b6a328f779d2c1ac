"""Tests that nothing which a run may release tells its secret, in any usual encoding, nor where it was made."""

import base64
import gzip
import pathlib
import shutil
import struct
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import export
from tf_dpdiff.cli import sample
from tf_dpdiff.cli import train
from tf_dpdiff.privacy import seeds
from tf_dpdiff.training import summaries as summaries_lib

TINY = pathlib.Path(__file__).with_name('tiny_digits.gin')
SECRET = bytes((7 * number + 131) % 256 for number in range(32))


@pytest.fixture(name='run', scope='module')
def fixture_run(tmp_path_factory, small_network):
    """A finished run with a known secret and all that its verbs make of it: its folder, and the purposes of its seeds.

    What is private of it lies in checkpoints/ and non_private/, and is not in the folder any more.
    """
    del small_network
    folder, purposes = tmp_path_factory.mktemp('hospital'), set()
    workdir, images = folder / 'ward_3', np.random.default_rng(0).integers(0, 256, [400, 8, 8, 1]).astype(np.uint8)
    np.savez(folder / 'scans.npz', images=images, labels=np.arange(400) % 10)
    derive_key = seeds.PrivateSeed.derive_key

    def record(seed, purpose):
        purposes.add(purpose)
        return derive_key(seed, purpose)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(seeds.PrivateSeed, 'from_os_entropy', lambda: seeds.PrivateSeed(SECRET))
        patched.setattr(seeds.PrivateSeed, 'derive_key', record)
        flags = [f'--gin_file={TINY}', f'--workdir={workdir}', '--gin_param=train.utility = None']
        bindings = (
            'TrainerConfig.log_non_private = True',
            'TrainerConfig.log_every_steps = 1',
            'DATA = @npz_images()',
            f'npz_images.path = "{folder / "scans.npz"}"',
        )
        assert verbs.call(train, *flags, *(f'--gin_param={binding}' for binding in bindings)) == command.DONE
        assert verbs.call(sample, f'--workdir={workdir}', '--num_images=20') == command.DONE
        assert verbs.call(export, f'--workdir={workdir}', f'--output={workdir / "exported"}') == command.DONE
    for private in ('checkpoints', 'non_private'):
        shutil.rmtree(workdir / private)
    return workdir, sorted(purposes)


def of_integer(name, number, num_bytes):
    """Returns an integer in the encodings in which files hold integers, by name."""
    varint, rest = bytearray(), number
    while rest:
        varint.append(rest & 127 | (128 if rest > 127 else 0))
        rest >>= 7
    return {
        f'{name} as decimals': str(number).encode(),
        f'{name} as hex of an integer': f'{number:x}'.encode(),
        f'{name} as little-endian bytes': number.to_bytes(num_bytes, 'little'),
        f'{name} as big-endian bytes': number.to_bytes(num_bytes, 'big'),
        f'{name} in a protocol buffer': bytes(varint),
    }


def of_bytes(name, content):
    """Returns bytes in the encodings in which files and people write bytes, by name."""
    found = {
        f'{name} as it is': content,
        f'{name} as hex': content.hex().encode(),
        f'{name} as capital hex': content.hex().upper().encode(),
        f'{name} as hex with colons': content.hex(':').encode(),
        f'{name} as it is represented': repr(content)[2:-1].encode(),
        f'{name} as a list': repr(list(content))[1:-1].encode(),
        f'{name} as a list without spaces': ','.join(map(str, content)).encode(),
    }
    # Text before it shifts base64 by up to two bytes.
    for shift in range(3):
        for kind, encode in (('base64', base64.b64encode), ('base64 for addresses', base64.urlsafe_b64encode)):
            found[f'{name} as {kind}, shifted by {shift}'] = encode(bytes(shift) + content)[4:-4]
    for order in ('little', 'big'):
        found.update(of_integer(f'{name} as a {order}-endian number', int.from_bytes(content, order), len(content)))
    return found


def traces_of(purposes):
    """Returns all that would tell the secret of the run, or a part of it that cannot be guessed."""
    secret, traces = seeds.PrivateSeed(SECRET), of_bytes('the secret', SECRET)
    for start in range(0, 32, 8):
        traces.update(of_bytes(f'bytes {start} to {start + 7} of the secret', SECRET[start : start + 8]))
    for purpose in purposes:
        traces.update(of_bytes(f'the key of {purpose}', secret.derive_key(purpose)))
        derived = secret.derive(purpose)
        traces.update(of_integer(f'the seed of {purpose}', derived, 8))
        traces[f'the seed of {purpose} as a float'] = struct.pack('<d', float(derived))
        traces[f'the seed of {purpose} as decimals of a float'] = repr(float(derived)).encode()
    return traces


def contents(path):
    """Returns the bytes of a file, and of what is packed in it."""
    found = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    if found[0][:2] == b'\x1f\x8b':
        found.append(gzip.decompress(found[0]))
    if path.name.startswith('events'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found += [text for value in event.summary.value for text in value.tensor.string_val]
            # Scalars are float32, which hold the first digits of a seed.
            found += [
                f'float32 {np.float32(x)!r};'.encode()
                for value in event.summary.value
                for x in np.ravel(tf.make_ndarray(value.tensor))
                if value.tensor.dtype == 1
            ]
    return found


def leaks(workdir, traces):
    """Returns which trace is in which file below a folder."""
    floats = {
        f'{name} as float32': f'float32 {np.float32(int(trace))!r};'.encode()
        for name, trace in traces.items()
        if name.endswith('as decimals') and int(trace) < 2**64
    }
    return {
        (str(path.relative_to(workdir)), name)
        for path in sorted(workdir.rglob('*'))
        if path.is_file()
        for content in contents(path)
        for name, trace in {**traces, **floats}.items()
        if trace in content
    }


def test_nothing_that_may_be_released_tells_the_secret_or_a_seed_that_follows_from_it(run):
    workdir, purposes = run
    # Those of the draws that hide the images; each release of the warm start has one of its own.
    assert {'noise', 'sampling', 'views', 'images_of_owners'} < set(purposes)
    assert any(purpose.startswith('class_means_0_') for purpose in purposes)
    names = {path.relative_to(workdir).parts[0] for path in workdir.rglob('*') if path.is_file()}
    assert {
        'operative_config.gin',
        'tensorboard',
        'saved_model',
        'exported',
        'privacy_statement.txt',
        'model.json',
        'privacy_statement.json',
        'report.html',
        'report.json',
        'samples.npz',
        'samples_20_seed_0',
        'noisy_class_means.npz',
    } <= names | {path.stem for path in workdir.glob('samples_*')}
    assert not leaks(workdir, traces_of(purposes))


# Ways in which a careless line of code would leave a piece of the secret in a run's folder.
def plant_text(workdir, trace):
    path = workdir / 'operative_config.gin'
    path.write_bytes(path.read_bytes() + b'# ' + trace + b'\n')


def plant_array(workdir, trace):
    np.savez(workdir / 'samples.npz', images=np.zeros(3), seed=np.frombuffer(trace, np.uint8))


def plant_packed(workdir, trace):
    with zipfile.ZipFile(workdir / 'packed.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a', trace)


def plant_gzip(workdir, trace):
    (workdir / 'report.html').write_bytes(gzip.compress(b'text ' + trace))


def plant_event(workdir, trace):
    writer = summaries_lib.Summaries(workdir)
    writer.text('settings', trace.decode('latin-1'))
    writer.flush()


@pytest.fixture(name='empty_run')
def fixture_empty_run(tmp_path):
    """A folder in which there is nothing to be found."""
    (tmp_path / 'operative_config.gin').write_text('A.b = 1\n')
    assert not leaks(tmp_path, traces_of(['noise', 'sampling']))
    return tmp_path


@pytest.mark.parametrize('name', sorted(traces_of(['noise'])))
def test_control_each_encoding_is_found(empty_run, name):
    traces = traces_of(['noise', 'sampling'])
    plant_text(empty_run, traces[name])
    assert ('operative_config.gin', name) in leaks(empty_run, traces)


@pytest.mark.parametrize('plant', [plant_array, plant_packed, plant_gzip, plant_event])
def test_control_secret_in_any_kind_of_file_is_found(empty_run, plant):
    traces = traces_of(['noise', 'sampling'])
    plant(empty_run, traces['the secret as hex'])
    assert 'the secret as hex' in {name for _, name in leaks(empty_run, traces)}


def test_control_seed_among_scalars_of_tensorboard_or_in_an_exported_graph_is_found(empty_run):
    derived = seeds.PrivateSeed(SECRET).derive('noise')
    writer = summaries_lib.Summaries(empty_run)
    writer.scalars('finetuning', {'number': float(derived)}, 1)
    writer.flush()
    module = tf.Module()
    module.sample = tf.function(
        lambda step: step + tf.constant(derived, tf.int64), input_signature=[tf.TensorSpec([], tf.int64)]
    )
    tf.saved_model.save(module, str(empty_run / 'saved_model'))
    found = leaks(empty_run, traces_of(['noise', 'sampling']))
    assert {pathlib.Path(path).parts[0] for path, _ in found} == {'tensorboard', 'saved_model'}
    assert {name.partition(' as ')[0].partition(' in ')[0] for _, name in found} == {'the seed of noise'}


def test_no_released_file_tells_where_it_was_made(run):
    found = leaks(run[0], {'a folder of this machine': b'hospital', 'the folder of the program': bytes(TINY.parent)})
    # That the one file which is for whoever repeats the run says so is the control; see `released_configuration`.
    assert found == {('operative_config.gin', 'a folder of this machine')}
