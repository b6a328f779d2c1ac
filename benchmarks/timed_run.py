"""Runs bin/train with timers around its parts; a program of end_to_end.py.

The timers are put on from outside, on functions that modules call by their names: the library has none. What a timed
function spends in another one counts for that one alone, so the rows of a run add up to its time.
"""

import argparse
import builtins
import collections
import contextlib
import functools
import importlib
import json
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

INTERPRETER, TENSORFLOW, IMPORTS = 'interpreter', 'import of TensorFlow', 'other imports'
CONFIGURATION, IMAGES = 'configuration', 'images read and compared'
CALIBRATION, NETWORKS = 'calibration of the noise', 'networks built'
CHECKS, MAKING = 'checks of the model', 'steps and optimizers made'
FIRST_STEP, FIRST_GRID = 'tracing and first step', 'tracing and first grid'
FIRST_CHUNK = 'tracing and first chunk of samples'
STEPS, BATCHES = 'steps', 'batches drawn and gathered'
CHECKPOINTS, TENSORBOARD, GRIDS, EPSILON = 'checkpoints', 'TensorBoard', 'grids', 'epsilon on the way and over steps'
DIVERGENCE = 'checks for divergence'
SAMPLING, PICTURES, REPORT, EXPORT = 'sampling', 'samples written, denoising drawn', 'report', 'export'
EVALUATION, EXIT, OTHER = 'evaluation', 'exit', 'other'
# Group -> its rows, in the order of a run; those of steps have the name of their stage behind them.
GROUPS = {
    'start': (INTERPRETER, TENSORFLOW, IMPORTS, CONFIGURATION, IMAGES, CALIBRATION, NETWORKS, CHECKS, MAKING),
    'tracing': (FIRST_STEP, FIRST_GRID, FIRST_CHUNK),
    'steps': (STEPS, BATCHES),
    'checkpoints, logging, grids': (DIVERGENCE, CHECKPOINTS, TENSORBOARD, EPSILON, GRIDS),
    'sampling': (SAMPLING,),
    'evaluation, report, export': (PICTURES, REPORT, EXPORT, EVALUATION),
    'other': (EXIT, OTHER),
}


class Timers:
    """Seconds of the main thread by row, and of the processor in all threads meanwhile."""

    def __init__(self):
        self.seconds, self.cpu_seconds, self.calls = (collections.defaultdict(float) for _ in range(3))
        self._thread, self._rows = threading.get_ident(), [OTHER]
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def charge(self):
        """Gives the time since the last change to the row that is running."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds[self._rows[-1]] += wall - self._wall
        self.cpu_seconds[self._rows[-1]] += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    @contextlib.contextmanager
    def row(self, name):
        """A context whose time counts for a row."""
        if threading.get_ident() != self._thread:  # The main thread waits, in a row of its own.
            yield
            return
        self.charge()
        self._rows.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self.charge()
            self._rows.pop()

    def timed(self, name, function):
        """Returns the function with its time counting for a row."""

        @functools.wraps(function)
        def timed_function(*args, **kwargs):
            with self.row(name):
                return function(*args, **kwargs)

        return timed_function

    def wrap(self, name, owner, *attributes):
        """Replaces attributes of a module or class by timed ones."""
        for attribute in attributes:
            setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))

    def timed_from_second(self, first, later, function):
        """Returns the function with its first call, in which it is traced, counting for a row of its own."""
        names = iter([first])

        @functools.wraps(function)
        def timed_function(*args, **kwargs):
            with self.row(next(names, later)):
                return function(*args, **kwargs)

        return timed_function

    def time_imports(self):
        """Lets what is imported from now on count as such, also where a function does it."""
        original = builtins.__import__

        def timed_import(name, *args, **kwargs):
            if name in sys.modules:
                return original(name, *args, **kwargs)
            with self.row(IMPORTS):
                return original(name, *args, **kwargs)

        builtins.__import__ = timed_import
        self.wrap(IMPORTS, importlib, 'import_module')


def _time_start(timers):
    """Times what happens up to the first step; called before gin looks the functions up."""
    from tf_dpdiff.data import datasets
    from tf_dpdiff.data import overlap
    from tf_dpdiff.data import procedural
    from tf_dpdiff.data import tfds_images

    for source, name in ((datasets, 'digits'), (procedural, 'random_strokes'), (tfds_images, 'tfds_images')):
        timers.wrap(IMAGES, source, name)
    timers.wrap(IMAGES, overlap, 'image_digests', 'check_is_not_private')
    timers.wrap(IMAGES, datasets.ImageDataset, 'fingerprint')
    for name in ('train', 'held_out'):
        read = getattr(datasets.PrivateData, name).fget
        setattr(datasets.PrivateData, name, property(timers.timed(IMAGES, read)))
    from tf_dpdiff.cli import gin_config
    from tf_dpdiff.cli import strategy_flags
    from tf_dpdiff.networks import denoiser
    from tf_dpdiff.privacy import plan
    from tf_dpdiff.training import finetuning
    from tf_dpdiff.training import strategies

    timers.wrap(CONFIGURATION, gin_config, 'parse')
    timers.wrap(CONFIGURATION, strategy_flags, 'configured')
    timers.wrap(CONFIGURATION, strategies, 'start')
    timers.wrap(CALIBRATION, plan, 'make_plan')
    timers.wrap(NETWORKS, denoiser, 'build')
    timers.wrap(CHECKS, finetuning, 'check_model')


def _time_stages(timers):
    """Times the steps of each stage; returns {stage: its compiled step, run step by step}."""
    from tf_dpdiff.data import pipelines
    from tf_dpdiff.privacy import plan as plan_lib
    from tf_dpdiff.privacy import sampling
    from tf_dpdiff.training import finetuning
    from tf_dpdiff.training import pretraining
    from tf_dpdiff.training import train_step
    from tf_dpdiff.training import warm_start

    made, compiled = [], {}

    def keep(make):
        return lambda *args, **kwargs: made.append(make(*args, **kwargs)) or made[-1]

    def timed_stage(make):

        def make_stage(*args, **kwargs):
            with timers.row(MAKING):
                stage = make(*args, **kwargs)
            compiled[stage.name] = made[-1]
            stage.begin = timers.timed(IMAGES, stage.begin)
            stage.run_step = timers.timed_from_second(
                f'{FIRST_STEP}: {stage.name}', f'{STEPS}: {stage.name}', stage.run_step
            )
            return stage

        return make_stage

    for name in ('compile_private_step', 'compile_public_step'):
        setattr(train_step, name, keep(getattr(train_step, name)))
    for stage in (pretraining, warm_start, finetuning):
        stage.make_stage = timed_stage(stage.make_stage)
    timers.wrap(BATCHES, pipelines, 'gather', 'gather_units', 'random_indices')
    timers.wrap(BATCHES, sampling, 'pad_batches')
    timers.wrap(BATCHES, sampling.PoissonSampler, 'sample')
    timers.wrap(EPSILON, plan_lib.DpSgdPlan, 'epsilon')
    return compiled


def _time_output(timers):
    """Times checkpoints, TensorBoard, samples, and what is written at the end."""
    from tf_dpdiff.evaluation import utility
    from tf_dpdiff.privacy import statement
    from tf_dpdiff.runs import folder
    from tf_dpdiff.runs import outcome
    from tf_dpdiff.runs import report
    from tf_dpdiff.runs import tensorboard_events
    from tf_dpdiff.sampling import draw as draw_lib
    from tf_dpdiff.serving import export
    from tf_dpdiff.training import checkpoints
    from tf_dpdiff.training import divergence
    from tf_dpdiff.training import summaries

    timers.wrap(DIVERGENCE, divergence.NetworkCheck, 'weights_are_finite', 'predictions_are_finite')
    timers.wrap(DIVERGENCE, divergence, 'check_released')
    timers.wrap(CHECKPOINTS, checkpoints, 'read_state')
    timers.wrap(CHECKPOINTS, checkpoints.RunCheckpoint, '__init__', 'save')
    timers.wrap(TENSORBOARD, summaries.Summaries, 'scalars', 'stage_image', 'flush')
    timers.wrap(TENSORBOARD, tensorboard_events, 'write_settings', 'write_timesteps', 'write_epsilon')
    make_grid_drawer = tensorboard_events.make_grid_drawer
    tensorboard_events.make_grid_drawer = lambda model: timers.timed_from_second(
        FIRST_GRID, GRIDS, make_grid_drawer(model)
    )
    timers.wrap(SAMPLING, outcome, 'draw')
    draw = draw_lib.in_pieces

    @functools.wraps(draw)
    def timed_draw(*args, **kwargs):
        with contextlib.closing(draw(*args, **kwargs)) as pieces:
            with timers.row(FIRST_CHUNK):
                first = next(pieces)
            yield first
            yield from pieces

    draw_lib.in_pieces = timed_draw
    timers.wrap(PICTURES, outcome, 'write')
    timers.wrap(REPORT, report, 'write')
    timers.wrap(REPORT, folder, 'write_statement')
    timers.wrap(EPSILON, statement.PrivacyStatement, 'to_dict', 'epsilon_over_steps')
    timers.wrap(EXPORT, export, 'export_saved_model')
    timers.wrap(EVALUATION, utility, 'measure')


def main():
    """Runs the command and writes what it took, whatever its exit code is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--started', type=float, required=True, help='when the process was started, by time.time()')
    parser.add_argument('--report', type=pathlib.Path, required=True)
    flags, argv = parser.parse_known_args()
    timers = Timers()
    timers.seconds[INTERPRETER] = time.time() - flags.started
    timers.cpu_seconds[INTERPRETER], timers.calls[INTERPRETER] = time.process_time(), 1
    with timers.row(TENSORFLOW):
        importlib.import_module('tensorflow')
    timers.time_imports()
    with timers.row(IMPORTS):
        _time_start(timers)
        from tf_dpdiff.cli import train

        compiled = _time_stages(timers)
        _time_output(timers)
    try:
        train.run(argv)
    except SystemExit as ended:
        code = ended.code
    timers.charge()
    rows = {
        name: {'secs': secs, 'cpu_secs': timers.cpu_seconds[name], 'calls': int(timers.calls[name])}
        for name, secs in timers.seconds.items()
    }
    traces = {name: step.experimental_get_tracing_count() for name, step in compiled.items()}
    flags.report.write_text(json.dumps({'rows': rows, 'traces': traces}))
    sys.exit(code)


if __name__ == '__main__':
    main()
