"""How many units a second the data deliver, beside what the private step consumes.

    .venv/bin/python -I benchmarks/data.py --output=benchmarks/data.json
    .venv/bin/python -I benchmarks/data.py --markdown
    .venv/bin/python -I benchmarks/data.py --picture=data.png

Two things come before a gradient. Batches: a Poisson sample of units, padded to whole chunks, and their images,
gathered from memory, from a memory-mapped .npy file (which the system keeps in memory here; one larger than memory
costs what its disk does) or for owners, whose K views look at images of their own, drawn at random. Views:
augmentation, timestep, noise, for K views of a unit. Both run in turns with whole steps, whose batch is made beforehand
and whose views have no augmentation. A share is of a step that draws batch or views in the way named, and is taken
within a round.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import measuring
from benchmarks import our_data
from benchmarks import pictures
from benchmarks import reporting

_PLAIN = 'none'  # The augmentation of the steps.
_WORDS = {
    'digits': 'digits, 8x8, in memory',
    'memory': '28x28, in memory',
    'npy': '28x28, memory-mapped .npy',
    'owners': '28x28, owners of 10 images',
    'none': 'without augmentation',
    'flip': 'flip (KerasCV)',
    'pad_and_crop': 'pad and crop',
    'rotation': 'rotation (KerasCV)',
}
# Repeated within a measured step, since one takes milliseconds.
_BATCHES = {'batches': 100, 'views': 10}


def start_data(flags, kind, name):
    """Starts a case that draws batches from a source, or views with an augmentation."""
    option = f'--source={name}' if kind == 'batches' else f'--augmentation={name}'
    return measuring.Case(
        name,
        'our_data.py',
        kind,
        option,
        f'--num_images={flags.num_images}',
        f'--units={flags.units}',
        f'--views={flags.views}',
        f'--units_per_chunk={flags.units_per_chunk}',
        f'--batches={_BATCHES[kind]}',
    )


def start_step(flags, network):
    """Starts the private step of a network."""
    return measuring.Case(
        network,
        'our_step.py',
        'private',
        f'--network={network}',
        f'--units={flags.units}',
        f'--views={flags.views}',
        f'--units_per_chunk={flags.units_per_chunk}',
    )


def measure(flags):
    """Runs the steps in turns with what draws batches, then with what draws views."""
    seconds_of_steps, found = {network: [] for network in flags.networks}, {}
    with contextlib.ExitStack() as steps_stack:
        steps = reporting.start_all(
            steps_stack, [functools.partial(start_step, flags, name) for name in flags.networks]
        )
        for kind, names in (('batches', our_data.SOURCES), ('views', tuple(our_data.AUGMENTATIONS))):
            print(f'{kind} ...', file=sys.stderr, flush=True)
            with contextlib.ExitStack() as stack:
                cases = reporting.start_all(stack, [functools.partial(start_data, flags, kind, name) for name in names])
                seconds = measuring.take_turns(measuring.steps_of([*steps, *cases]), flags.rounds)
                found[kind] = {case.name: {'seconds': seconds[case.name], **case.facts} for case in cases}
            for row in found[kind].values():
                row['seconds'] = [value / _BATCHES[kind] for value in row['seconds']]
                row['units_per_sec'] = flags.units / statistics.median(row['seconds'])
                row['share_of_step'] = {}
            for network in flags.networks:
                seconds_of_steps[network] += seconds[network]
                for name, row in found[kind].items():
                    plain = found[kind][_PLAIN]['seconds'] if kind == 'views' else [0.0] * flags.rounds
                    row['share_of_step'][network] = share_of_step(row['seconds'], plain, seconds[network])
        parameters = {case.name: case.facts['parameters'] for case in steps}
    return {
        'versions': measuring.versions('tensorflow', 'keras', 'keras-cv', 'numpy'),
        'units_a_step': flags.units,
        'views_a_unit': flags.views,
        'num_images': flags.num_images,
        'steps': {
            network: {
                'parameters': parameters[network],
                'units_per_sec': flags.units / statistics.median(seconds),
                'seconds': seconds,
            }
            for network, seconds in seconds_of_steps.items()
        },
        **found,
    }


def share_of_step(seconds, plain, of_step):
    """Returns the median share that a part has of a step which holds it in place of the plain one."""
    return statistics.median(part / (step - instead + part) for part, instead, step in zip(seconds, plain, of_step))


def tables(results):
    """Returns one table: what delivers, what consumes."""
    networks = list(results['steps'])
    lines = []
    for kind in ('batches', 'views'):
        for name, row in results[kind].items():
            # Steps are of images of 28x28.
            shares = [
                '' if name == 'digits' else f'{100.0 * row["share_of_step"][network]:.2g}%' for network in networks
            ]
            lines.append([f'{kind}: {_WORDS[name]}', f'{row["units_per_sec"]:,.0f}', *shares])
    for network in networks:
        lines.append(
            [
                f'private step, {network} parameters',
                f'{results["steps"][network]["units_per_sec"]:,.0f}',
                *[''] * len(networks),
            ]
        )
    title = (
        f'{results["units_a_step"]} units per step, K = {results["views_a_unit"]}, {results["num_images"]:,} images; '
        'shares are of a step of the network of so many parameters'
    )
    return [
        reporting.Table(title, ['', 'units a second', *(f'share of a step, {network}' for network in networks)], lines)
    ]


def draw(results, path):
    """Draws units a second of all, on a logarithmic axis."""
    bars = [(f'step, {network} parameters', pictures.OTHER, row) for network, row in results['steps'].items()]
    bars += [(f'views: {_WORDS[name]}', pictures.THIRD, row) for name, row in results['views'].items()]
    bars += [(f'batches: {_WORDS[name]}', pictures.OURS, row) for name, row in results['batches'].items()]
    labels, colors, rows = zip(*bars)
    figure, panels = pictures.new_panels(1, 1, 3.8)
    pictures.draw_log_bars(
        panels[0][0],
        labels,
        colors,
        [row['units_per_sec'] for row in rows],
        f'units a second, K = {results["views_a_unit"]}',
    )
    pictures.save(figure, path)


def main():
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=['0.26M', '1.1M'])
    parser.add_argument('--num_images', type=int, default=60000, help='of the sets that are generated')
    parser.add_argument('--units', type=int, default=128, help='a step')
    parser.add_argument('--views', type=int, default=4, help='K')
    parser.add_argument('--units_per_chunk', type=int, default=32, help='held in memory at a time')
    parser.add_argument('--rounds', type=int, default=5)

    def measure_checked(flags):
        reporting.check(
            parser.error,
            (min(flags.units, flags.views, flags.units_per_chunk, flags.rounds) > 0, 'numbers must be at least 1.'),
            (flags.units % flags.units_per_chunk == 0, '--units must be whole chunks of --units_per_chunk.'),
            # A unit is ten images where it is an owner; the digits are 1,437.
            (
                flags.units <= min(1437, flags.num_images // our_data.IMAGES_OF_OWNER),
                f'--units must be at most 1,437, and --num_images {our_data.IMAGES_OF_OWNER} times as many.',
            ),
        )
        return measure(flags)

    reporting.run(parser, measure=measure_checked, tables=tables, draw=draw)


if __name__ == '__main__':
    main()
