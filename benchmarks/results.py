"""Makes the results on real images of docs/results.md: trains each row, evaluates its samples, collects what came out.

    .venv/bin/python -I benchmarks/results.py --output=benchmarks/results.json --rows mnist mnist_eps1
    .venv/bin/python -I benchmarks/results.py --output=benchmarks/results.json --rows mnist --runs=3
    .venv/bin/python -I benchmarks/results.py --output=benchmarks/results.json --rows mnist --wide_resnet
    .venv/bin/python -I benchmarks/results.py --output=benchmarks/results.json --ablations
    .venv/bin/python -I benchmarks/results.py --markdown
    .venv/bin/python -I benchmarks/results.py --picture=results.png

Each row is a run of bin/train, from a public checkpoint, and one of bin/evaluate, in runs/results/ROW; further runs of
the same row, with secrets of their own, are in ROW.2, ROW.3. A run that was begun is gone on with, and one that is done
is only collected; hours count all tries. With --wide_resnet the paper's classifier is trained on the samples too, for a
few epochs. The data are looked for where TensorFlow Datasets looks, TFDS_DATA_DIR. What --output holds and is not asked
for stays as it is.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting
from tf_dpdiff import files
from tf_dpdiff.privacy import rounding

_SECONDS = 'seconds.json'


@dataclasses.dataclass(frozen=True)
class Row:
    """A run.

    Attributes:
      title: For the table.
      gin_files: Its configuration.
      bindings: What differs from it.
      of_evaluation: What differs in how it is evaluated.
    """

    title: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...] = ()
    of_evaluation: tuple[str, ...] = ()

    def flags(self, folder, verb='train'):
        """Returns the flags of bin/train or of bin/evaluate, each of which takes what it reads alone."""
        bindings = self.bindings if verb == 'train' else self.of_evaluation
        return [*(f'--gin_file={name}' for name in self.gin_files), *_bind(bindings), f'--workdir={folder}']


def _bind(bindings):
    return [f'--gin_param={binding}' for binding in bindings]


# What classifiers of real images reach depends on no run: it is measured beside the first run of a recipe alone.
_NO_REAL_IMAGES = 'UtilityConfig.real_images = False'

_MNIST, _CIFAR10 = ('gin/mnist_cpu.gin',), ('gin/cifar10_cpu.gin',)
# The paper's method: DP-SGD on all weights of a public model, and nothing before or after it. A step on all weights of
# the colour network takes as long as two on norms and embeddings: half as many take as long as the recipe.
_PLAIN = (
    'train.warm_start = None',
    'FinetuningConfig.trainable = ()',
    'finetuning/OptimizationConfig.learning_rate = 1e-3',
)
_CIFAR10_PLAIN = (*_PLAIN, 'NUM_STEPS = 60', 'SamplerConfig.num_candidates = 1', 'SamplerConfig.num_steps = 20')
ROWS = {
    'mnist': Row('MNIST, epsilon 10', _MNIST),
    'mnist_eps1': Row('MNIST, epsilon 1', ('gin/mnist_cpu_eps1.gin',)),
    'mnist_plain': Row("MNIST, epsilon 10, the paper's method alone", _MNIST, _PLAIN, (_NO_REAL_IMAGES,)),
    'cifar10': Row('CIFAR-10, epsilon 10', _CIFAR10),
    'cifar10_plain': Row(
        "CIFAR-10, epsilon 10, the paper's method alone", _CIFAR10, _CIFAR10_PLAIN, (_NO_REAL_IMAGES,)
    ),
}

# Each ablation begins with the same short warm start, and then sees as many views at the same epsilon: what differs is
# how they are spent. Without a warm start so few views teach no classes.
_ABLATION = (
    'WarmStartConfig.num_steps = 400',
    'finetuning/OptimizationConfig.warmup_steps = 2',
    'GenerateConfig.num_images = 5000',
)
_OF_ABLATION = (
    'evaluate.neighbors = None',
    _NO_REAL_IMAGES,
    "UtilityConfig.classifiers = (('small_cnn', {'num_epochs': 12}), 'logistic_regression')",
)
_ALL_WEIGHTS = ('FinetuningConfig.trainable = ()', 'finetuning/OptimizationConfig.learning_rate = 5e-4')
_UNIFORM = ('finetuning/TimestepMixture.components = ((1.0, 0, 1000),)',)


def _ablation(title, bindings=(), *, batch_size=1024, num_steps=24, multiplicity=4):
    sizes = (
        f'EXPECTED_BATCH_SIZE = {batch_size}',
        f'NUM_STEPS = {num_steps}',
        f'AUGMENTATION_MULTIPLICITY = {multiplicity}',
    )
    return Row(title, _MNIST, (*_ABLATION, *sizes, *bindings), _OF_ABLATION)


ABLATIONS = {
    'base': _ablation('norms and embeddings, batch 1,024, K = 4, 24 steps'),
    'multiplicity_1': _ablation('K = 1, 96 steps', num_steps=96, multiplicity=1),
    'multiplicity_16': _ablation('K = 16, 6 steps', num_steps=6, multiplicity=16),
    'batch_256': _ablation('batch 256, 96 steps', batch_size=256, num_steps=96),
    'batch_4096': _ablation('batch 4,096, 6 steps', batch_size=4096, num_steps=6),
    'uniform_timesteps': _ablation('uniform timesteps', _UNIFORM),
    'all_weights': _ablation('all weights', _ALL_WEIGHTS),
    'adapters': _ablation(
        'adapters of rank 8 and embeddings',
        ('UNetConfig.adapter_rank = 8', "FinetuningConfig.trainable = ('adapter', 'embedding')"),
    ),
    'no_pretraining': _ablation('all weights, no pre-training', (*_ALL_WEIGHTS, 'FinetuningConfig.init_from = None')),
    'warm_start_alone': _ablation('one step: the warm start alone', num_steps=1),
}

# The paper's classifier: on two cores it takes longer than all else together, so one seed, and few epochs.
WIDE_RESNET = (
    "UtilityConfig.classifiers = (('wrn_40_4', {'num_epochs': 2, 'min_steps': 1, 'compute_dtype': 'mixed_bfloat16'}),)",
    'UtilityConfig.num_seeds = 1',
    _NO_REAL_IMAGES,
    'evaluate.quality = None',
    'evaluate.neighbors = None',
)

FURTHER_RUNS = (_NO_REAL_IMAGES,)


def run(row, folder, flags, of_evaluation=()):
    """Trains and evaluates a row, where that is not done; returns what came out.

    Args:
      row: The run.
      folder: Its work directory.
      flags: Of the program.
      of_evaluation: Bindings of the evaluation beside the row's.
    """
    statement = folder / 'privacy_statement.json'
    evaluation, of_wide_resnet = (
        folder / 'non_private' / f'evaluation_{samples}' / 'evaluation.json' for samples in ('samples', 'wide_resnet')
    )
    of_row = row.flags(folder, 'evaluate')
    if not statement.exists():
        _run_command('train', folder, row.flags(folder), flags)
    if not evaluation.exists():
        _run_command('evaluate', folder, [*of_row, *_bind(of_evaluation)], flags)
    if flags.wide_resnet and not of_wide_resnet.exists():
        # An evaluation is kept by the name of its samples: that of the other classifiers stays.
        samples = folder / 'wide_resnet.npz'
        shutil.copyfile(folder / 'samples.npz', samples)
        more = [f'--samples={samples}', *_bind(WIDE_RESNET)]
        _run_command('evaluate', folder, [*of_row, *more], flags, timed_as='wide_resnet')
        samples.unlink()
    return collect(row, _read(statement), _read(evaluation), _read(folder / _SECONDS), _read(of_wide_resnet))


def _run_command(verb, folder, of_command, flags, timed_as=None):
    """Runs a command; adds up its seconds."""
    command = [str(measuring.ROOT / 'bin' / verb), *of_command]
    print(shlex.join(command), file=sys.stderr, flush=True)
    started = time.monotonic()
    environment = measuring.environment_with_data(flags.data_dir)
    done = subprocess.run(command, cwd=measuring.ROOT, env=environment, check=False)
    if folder.is_dir():
        secs, name = _read(folder / _SECONDS), timed_as or verb
        files.write_text(
            folder / _SECONDS, json.dumps({**secs, name: secs.get(name, 0.0) + time.monotonic() - started})
        )
    if done.returncode:
        raise measuring.CaseError(f'{folder.name}: bin/{verb} ended with exit code {done.returncode}')


def _read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def collect(row, statement, evaluation, secs, of_wide_resnet):
    """Returns the fields of a row: of a statement, of evaluations, and of the seconds of the commands."""
    classifiers = [
        entry for found in (evaluation, of_wide_resnet) if found for entry in found['utility']['classifiers']
    ]

    def accuracies(source):
        return {entry['classifier']: entry[source]['accuracy_of_seeds'] for entry in classifiers if entry.get(source)}

    return {
        'title': row.title,
        'command': shlex.join(['bin/train', *row.flags('WORKDIR')]),
        'epsilon': statement['epsilon'],
        'delta': statement['delta'],
        'steps': statement['steps_run'],
        'expected_batch_size': statement['expected_batch_size'],
        'augmentation_multiplicity': statement['augmentation_multiplicity'],
        'noise_multiplier': statement['noise_multiplier'],
        'num_samples': evaluation['num_samples'],
        'accuracies': accuracies('synthetic_images'),
        'accuracies_of_real': accuracies('real_images'),
        'fid': {entry['images']: entry['fid'] for entry in evaluation['quality']['rows']},
        'fid_protocol': evaluation['quality']['protocol'],
        'hours': {verb: value / 3600.0 for verb, value in secs.items()},
    }


def measure(flags):
    """Runs rows one after the other; what is done is written after each."""
    rows = _read(flags.output).get('rows', {}) if flags.output else {}
    folder, chosen = _chosen(flags)
    for name, number in itertools.product(flags.rows or chosen, range(1, flags.runs + 1)):
        key = name if number == 1 else f'{name}.{number}'
        if key in rows and number < flags.runs and not (folder / key).exists():
            continue  # Measured before, and its files are gone: the runs after it are what is asked for.
        rows[key] = run(chosen[name], folder / key, flags, FURTHER_RUNS if number > 1 else ())
        results = {'versions': measuring.versions('tensorflow', 'keras', 'dp-accounting', 'scikit-learn'), 'rows': rows}
        if flags.output:
            measuring.write_results(flags.output, **results)
    return results


def _chosen(flags):
    """Returns the folder of the runs, and the rows that there are to choose from."""
    return (flags.folder / 'ablations', ABLATIONS) if flags.ablations else (flags.folder, ROWS)


def spread(values, form):
    """Returns the mean, and the range where there are several values; nothing where there are none."""
    if not values:
        return ''
    mean = f'{statistics.mean(values):{form}}'
    return f'{mean} ({min(values):{form}} to {max(values):{form}})' if len(values) > 1 else mean


def tables(results):
    """Returns a row a run, the ablations in a table of their own."""
    titles = 'accuracy on real test images after training on samples', 'the same of ablations, MNIST, equal views'
    groups = runs_of(results, ROWS), runs_of(results, ABLATIONS)
    return [_table(title, rows) for title, rows in zip(titles, groups) if rows]


def runs_of(results, names):
    """Returns the runs of each row that was measured."""
    found = [[row for key, row in results['rows'].items() if key.partition('.')[0] == name] for name in names]
    return [runs for runs in found if runs]


def accuracies_of(runs, classifier):
    """Returns the accuracy of each run, means over seeds of the classifier; of each seed, where there is one run."""
    of_seeds = [run['accuracies'][classifier] for run in runs if classifier in run['accuracies']]
    return of_seeds[0] if len(of_seeds) == 1 else [statistics.mean(values) for values in of_seeds]


def _table(title, rows):
    classifiers = list(dict.fromkeys(name for runs in rows for run in runs for name in run['accuracies']))
    lines = [_line(runs, classifiers) for runs in rows]
    return reporting.Table(title, ['', 'runs', 'epsilon', 'hours', 'FID*', *classifiers], lines)


def _line(runs, classifiers):
    hours = [run['hours'].get('train', 0.0) for run in runs]
    fids = [run['fid']['synthetic'] for run in runs]
    accuracies = [spread(accuracies_of(runs, name), '.1%') for name in classifiers]
    epsilon = rounding.round_up(max(run['epsilon'] for run in runs))
    return [runs[0]['title'], str(len(runs)), epsilon, spread(hours, '.2f'), spread(fids, '.2f'), *accuracies]


def draw(results, path):
    """Draws the accuracies of all rows."""
    rows = runs_of(results, (*ROWS, *ABLATIONS))
    names = list(dict.fromkeys(name for runs in rows for run in runs for name in run['accuracies']))
    figure, panels = pictures.new_panels(1, 1, 4.0)
    colors = (pictures.OURS, pictures.OTHER, pictures.THIRD)
    means = {
        name: (
            colors[index % len(colors)],
            [
                100.0 * statistics.mean(values) if values else None
                for values in (accuracies_of(runs, name) for runs in rows)
            ],
        )
        for index, name in enumerate(names)
    }
    pictures.draw_bars(panels[0][0], [runs[0]['title'] for runs in rows], means, 'accuracy on real test images, %')
    panels[0][0].legend(fontsize=9, frameon=False)
    pictures.save(figure, path)


def main():
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ablations', action='store_true', help='make the rows of the ablations, not the results')
    parser.add_argument('--rows', nargs='+', help=f'(default: all) of {", ".join(ROWS)}; of {", ".join(ABLATIONS)}')
    parser.add_argument('--runs', type=int, default=1, help='of each row, with secrets of their own (default: 1)')
    parser.add_argument(
        '--wide_resnet', action='store_true', help='train WRN-40-4 on the samples too, which takes long'
    )
    parser.add_argument('--folder', type=pathlib.Path, default=measuring.ROOT / 'runs' / 'results', help='of the runs')
    parser.add_argument('--data_dir', type=pathlib.Path, help='where TensorFlow Datasets has prepared data sets')

    def measure_checked(flags):
        names = list(_chosen(flags)[1])
        reporting.check(
            parser.error,
            (set(flags.rows or ()) <= set(names), f'--rows must be of {", ".join(names)}.'),
            (flags.runs >= 1, '--runs must be at least 1.'),
        )
        return measure(flags)

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
