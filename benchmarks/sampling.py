"""How many images a second samplers draw, ours and those of diffusers (PyTorch).

    .venv/bin/python -I benchmarks/sampling.py --output=benchmarks/sampling.json
    .venv/bin/python -I benchmarks/sampling.py --markdown
    .venv/bin/python -I benchmarks/sampling.py --picture=sampling.png

Ours draw as bin/sample does, each image from a seed of its own, from the weights of a run or (a row for the first
sampler) from an exported model. Theirs is a UNet2DModel with the same levels, blocks, attention, classes and number of
parameters, and the scheduler of the same method; one generator draws for all images. Weights are random. Each sampler
and number of steps is a process of its own, in turns with the others of the same sampler and number. Heun's method
evaluates the network twice a step, so what compares samplers is the time of an evaluation, of a whole batch.

Run it on a quiet machine: PyTorch's threads wait for each other at every layer, and lose much where they share cores
with other work.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import environments
from benchmarks import measuring
from benchmarks import pictures
from benchmarks import reporting

LIBRARY, EXPORTED, DIFFUSERS = 'library', 'exported', 'diffusers'
_WORDS = {LIBRARY: 'ours', EXPORTED: 'ours, exported', DIFFUSERS: 'diffusers'}
SAMPLERS = ('ddim', 'ancestral', 'dpmpp_2m', 'edm_heun')
# A batch of many evaluations is drawn in fewer rounds.
_EVALUATIONS_OF_A_CASE = 60


def describe_network(name):
    """Returns the network as the peer's program reads it, and its number of parameters."""
    from benchmarks import networks
    from tf_dpdiff.networks import denoiser

    config, image_shape = networks.NETWORKS[name]
    wanted = (
        'base_channels',
        'channel_multipliers',
        'num_res_blocks',
        'attention_resolutions',
        'middle_attention',
        'head_channels',
        'groups',
    )
    described = {key: dataclasses.asdict(config)[key] for key in wanted}
    described = {'config': described, 'image_shape': image_shape, 'num_classes': networks.NUM_CLASSES}
    return json.dumps(described), denoiser.build(config, image_shape, networks.NUM_CLASSES).count_params()


def start_ours(flags, kind, sampler, num_steps):
    """Starts a sampler of ours."""
    return measuring.Case(
        kind,
        'our_sampling.py',
        kind,
        f'--network={flags.network}',
        f'--sampler={sampler}',
        f'--num_steps={num_steps}',
        f'--batch_size={flags.batch_size}',
    )


def find_peer():
    """Returns the Python of the peer's environment, or the error that says why there is none."""
    try:
        return environments.make('torch')
    except measuring.CaseError as error:
        return error


def start_theirs(flags, peer, described, sampler, num_steps):
    """Starts a sampler of diffusers.

    Raises:
      measuring.CaseError: if there is no environment for it, if it does not start, or is not of the same size.
    """
    if isinstance(peer, measuring.CaseError):
        raise peer
    network, parameters = described
    case = measuring.Case(
        DIFFUSERS,
        'peers/diffusers_sampling.py',
        f'--network={network}',
        f'--sampler={sampler}',
        f'--num_steps={num_steps}',
        f'--batch_size={flags.batch_size}',
        python=peer,
    )
    if abs(case.facts['parameters'] / parameters - 1.0) > 0.02:
        case.close()
        raise measuring.CaseError(f'{DIFFUSERS}: {case.facts["parameters"]} parameters, ours has {parameters}')
    return case


def measure_group(flags, peer, described, sampler, num_steps):
    """Returns the rows of a sampler and a number of steps."""
    names = [LIBRARY, *([EXPORTED] if sampler == flags.samplers[0] else [])]
    common, rows, missing = {'sampler': sampler, 'num_steps': num_steps}, [], []
    with contextlib.ExitStack() as stack:
        starts = [functools.partial(start_ours, flags, name, sampler, num_steps) for name in names]
        cases = reporting.start_all(stack, starts)
        try:  # After the others: its first batch would be slow beside them.
            cases.append(stack.enter_context(start_theirs(flags, peer, described, sampler, num_steps)))
        except measuring.CaseError as error:
            missing.append({'implementation': DIFFUSERS, **common, 'error': str(error)})
        rounds = max(1, min(flags.rounds, _EVALUATIONS_OF_A_CASE // max(case.facts['evaluations'] for case in cases)))
        seconds = measuring.take_turns(measuring.steps_of(cases), rounds)
    for case in cases:
        secs = statistics.median(seconds[case.name])
        rows.append(
            {
                'implementation': case.name,
                **common,
                **case.facts,
                'images_per_sec': flags.batch_size / secs,
                'ms_per_evaluation': 1000.0 * secs / case.facts['evaluations'],
                'times_as_fast_as_ours': measuring.median_ratio(seconds[LIBRARY], seconds[case.name]),
                'peak_memory_gib': case.peak_memory_gib,
                'seconds': seconds[case.name],
            }
        )
    return rows + missing


def measure(flags):
    """Measures each sampler and number of steps."""
    load, rows = os.getloadavg()[0], []
    if load > 0.5:
        print(
            f'sampling: warning: other work runs on this machine (load {load:.1f}); compare nothing.', file=sys.stderr
        )
    peer, described = find_peer(), describe_network(flags.network)
    for sampler in flags.samplers:
        for num_steps in flags.num_steps:
            print(f'{sampler}, {num_steps} steps ...', file=sys.stderr, flush=True)
            rows += measure_group(flags, peer, described, sampler, num_steps)
    return {
        'versions': measuring.versions('tensorflow', 'keras'),
        'load_before': round(load, 2),  # Of the machine: other work that wants a core.
        'network': flags.network,
        'parameters': described[1],
        'batch_size': flags.batch_size,
        'rows': rows,
    }


def _numbers(row, field, form):
    return form.format(row[field]) if field in row else 'not measured'


def tables(results):
    """Returns images a second, and the time of an evaluation."""
    counts = list(dict.fromkeys(row['num_steps'] for row in results['rows']))
    found = {}
    for row in results['rows']:
        found.setdefault((row['sampler'], row['implementation']), {})[row['num_steps']] = row
    lines = []
    for (sampler, implementation), by_count in found.items():
        lines.append(
            [
                f'{sampler}, {_WORDS[implementation]}',
                *(_numbers(by_count[count], 'images_per_sec', '{:.1f}') for count in counts),
                *(_numbers(by_count[count], 'ms_per_evaluation', '{:.0f}') for count in counts),
            ]
        )
    title = f'{results["parameters"]:,} parameters, batches of {results["batch_size"]}'
    columns = [
        'sampler',
        *(f'images/s, {count} steps' for count in counts),
        *(f'ms an evaluation, {count} steps' for count in counts),
    ]
    errors = list(dict.fromkeys(row['error'] for row in results['rows'] if 'error' in row))
    return [reporting.Table('; '.join([title, *errors]), columns, lines)]


def draw(results, path):
    """Draws images a second of each sampler, for each number of steps."""
    counts = list(dict.fromkeys(row['num_steps'] for row in results['rows']))
    samplers = list(dict.fromkeys(row['sampler'] for row in results['rows']))
    rows = {(row['implementation'], row['sampler'], row['num_steps']): row for row in results['rows']}
    colors = {LIBRARY: pictures.OURS, EXPORTED: pictures.THIRD, DIFFUSERS: pictures.OTHER}
    figure, panels = pictures.new_panels(len(counts), 1, 0.4 + 2.2 * len(counts))
    for axes, count in zip(panels.flat, counts):
        series = {
            _WORDS[name]: (color, [rows.get((name, sampler, count), {}).get('images_per_sec') for sampler in samplers])
            for name, color in colors.items()
        }
        pictures.draw_bars(axes, samplers, series, 'images a second')
        axes.set_title(f'{count} steps', fontsize=10)
    panels[0][0].legend(fontsize=9, frameon=False)
    pictures.save(figure, path)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='1.1M', help='of benchmarks/networks.py (default: %(default)s)')
    parser.add_argument('--samplers', nargs='+', choices=SAMPLERS, default=SAMPLERS, help='(default: all)')
    parser.add_argument('--num_steps', type=int, nargs='+', default=[10, 50], help='(default: 10 50)')
    parser.add_argument('--batch_size', type=int, default=64, help='images drawn together (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='fewer for many steps (default: %(default)s)')

    def measure_checked(flags):
        reporting.check(
            parser.error,
            (min([*flags.num_steps, flags.batch_size, flags.rounds]) > 0, 'numbers must be at least 1.'),
            (not flags.network.startswith('DiT'), '--network must be a UNet, as the one of diffusers is.'),
            (max(flags.num_steps) <= 1000, '--num_steps must be at most 1000.'),
        )
        return measure(flags)

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
