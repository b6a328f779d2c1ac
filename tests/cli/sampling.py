"""Runs that were never trained, and calls of bin/sample on them."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tests.cli import verbs
from tf_dpdiff.cli import command
from tf_dpdiff.cli import sample
from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import denoiser
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import seeds
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import folder as folder_lib
from tf_dpdiff.runs import source as source_lib
from tf_dpdiff.sampling import draw as draw_lib
from tf_dpdiff.sampling import store
from tf_dpdiff.serving import export
from tf_dpdiff.training import checkpoints

NAMES = ('cat', 'öwl', 'dog')
formats = pytest.mark.parametrize('kind', ['tfds', 'png', 'npz', 'npz file'])


def make_run(
    workdir,
    *,
    seed=0,
    label_drop_probability=0.1,
    image_shape=(4, 4, 1),
    noise_multiplier=5.0,
    step_counts=(),
    described=False,
):
    """Makes what a finished run leaves and bin/sample reads, with weights that were drawn and not trained."""
    workdir.mkdir()
    network = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
    model, generator = denoiser.build(network, image_shape, len(NAMES)), np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.3, variable.shape))
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    description = folder_lib.ModelDescription(
        image_shape, NAMES, network, process, samplers.SamplerConfig('ddim', 2), label_drop_probability
    )
    description.write(workdir)
    config = plan_lib.DpSgdConfig(
        target_delta=1e-5,
        expected_batch_size=100,
        num_steps=10,
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier + seed,
    )
    plan = plan_lib.make_plan(config, 5000)
    statement = statement_lib.PrivacyStatement('one image', 'toys', plan, plan.planned_ledger(), 8, run_id=str(seed))
    folder_lib.write_statement(workdir, statement)
    state = checkpoints.RunState(seeds.PrivateSeed.from_os_entropy())
    state.run_id, state.ledger = statement.run_id, statement.ledger
    checkpoints.RunCheckpoint(workdir / 'checkpoints', {'data_fingerprint': 'toys'}, average=model).save(state)
    image_sampler = source_lib.load_run(workdir, description, step_counts)
    beside = folder_lib.paths_beside_model(workdir) if described else folder_lib.statement_paths(workdir)
    export.export_saved_model(image_sampler, workdir / 'saved_model', beside)
    return workdir


def flags_of(run, output, kind='npz', num_images=60, **flags):
    """Returns the flags of a command; in the format 'npz file' the output ends in .npz."""
    given = {
        'workdir': run,
        'output': f'{output}.npz' if kind == 'npz file' else output,
        'format': kind.split()[0],
        'num_images': num_images,
        **({'name': 'toy_set'} if kind == 'tfds' else {}),
        **flags,
    }
    return [f'--{name}={value}' for name, value in given.items() if value is not None]


def call(*arguments, **flags):
    """Calls bin/sample and returns its exit code."""
    return verbs.call(sample, *flags_of(*arguments, **flags))


def draw(run, output, kind='npz', **flags):
    """Draws a set and reads it back."""
    assert call(run, output, kind, **flags) == command.DONE
    return store.read(f'{output}.npz' if kind == 'npz file' else output)


def error_of(capsys):
    """Returns the last line, which says what went wrong."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('sample: error: ') and not [line for line in lines if 'Traceback' in line]
    assert sum('error' in line for line in lines) == 1
    return lines[-1]


def contents(folder):
    """Returns what tells whether files are the same, by their paths."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def images_of(run, labels):
    """Returns the images of labels, with seeds from 0, as the exported model of a run draws them itself."""
    sample_fn = export.load_sample_fn(run / 'saved_model')
    # In batches of the same size, on which a network's last bits depend.
    padded = np.pad(labels, (0, -len(labels) % draw_lib.CHUNK_SIZE))
    batches = [
        sample_fn(tf.constant(padded[seeds], tf.int32), tf.constant(seeds)).numpy()
        for seeds in np.arange(len(padded), dtype=np.int64).reshape(-1, draw_lib.CHUNK_SIZE)
    ]
    return np.concatenate(batches)[: len(labels)]
