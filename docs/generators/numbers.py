"""Measured numbers, in tables and within a text, by the name that a page gives them, made from benchmarks/*.json."""

import json
import math
import pathlib
import re
import statistics

from benchmarks import end_to_end
from benchmarks import engines
from benchmarks import limit
from benchmarks import our_peak
from benchmarks import results
from benchmarks import sampling
from docs.generators import published
from tf_dpdiff.training import planner

_FOLDER = pathlib.Path(results.__file__).resolve().parent
_BLOCK = re.compile(r'^(<!-- numbers: (\w+) -->)\n(.*?)^(<!-- /numbers -->)$', re.M | re.S)
_INLINE = re.compile(r'(<!-- number: (\w+) -->)([^<]*)(<!-- /number -->)')
_LOOSE = re.compile(r'<!--\s*/?\s*numbers?\b[^>]*-->')
_NOT_YET = 'not measured yet'
_PEAKS = {
    our_peak.PRODUCT: 'product of matrices',
    our_peak.CONVOLUTION: '3x3 convolution',
    our_peak.MEMORY: 'memory, `a += b`',
}


def rewrite(text: str) -> str:
    """Returns a page with the numbers of today in its blocks.

    Args:
      text: Markdown, with blocks between `<!-- numbers: NAME -->` and `<!-- /numbers -->`, each on a line of its own,
        and single numbers between `<!-- number: NAME -->` and `<!-- /number -->` within a line, which does not
        begin with one of them: that would end the paragraph.

    Raises:
      ValueError: if a block has no end or no such name.
    """
    loose = _LOOSE.findall(_INLINE.sub('', _BLOCK.sub('', text)))
    if loose:
        raise ValueError(f'{loose[0]} begins or ends no block of numbers.')

    def made(known, name):
        if name not in known:
            raise ValueError(f'there are no numbers {name!r}: there are {", ".join(known)}.')
        return known[name]()

    def block(found):
        first, name, _, last = found.groups()
        return f'{first}\n{made(TABLES, name)}\n{last}'

    def single(found):
        first, name, _, last = found.groups()
        return f'{first}{made(SINGLE, name)}{last}'

    return _INLINE.sub(single, _BLOCK.sub(block, text))


def _read(name):
    return json.loads((_FOLDER / f'{name}.json').read_text())


def _markdown(columns, rows):
    lines = ['|' + '|'.join(f' {cell} ' if cell else ' ' for cell in row) + '|' for row in [columns, *rows]]
    return '\n'.join([lines[0], '|' + '---|' * len(columns), *lines[1:]])


def _results_of(name):
    """Returns the runs of a row of results.json."""
    return results.runs_of(_read('results'), [name])[0]


def _accuracy(runs, classifier):
    return results.spread(results.accuracies_of(runs, classifier), '.1%')


def _mean(runs, classifier):
    return f'{statistics.mean(results.accuracies_of(runs, classifier)):.1%}'


def _result(name, label, command):
    runs = _results_of(name)
    first, *rest = sorted(round(60.0 * run['hours']['train']) for run in runs)
    minutes = '; '.join([published.MINUTES.get(name, f'{first}'), *(f'{slow} on a slower day' for slow in rest)])
    accuracy = _accuracy(runs, 'small_cnn')
    if results.accuracies_of(runs, 'wrn_40_4'):
        accuracy += f'; WRN-40-4\\*\\*\\*\\* {_mean(runs, "wrn_40_4")}'
    epsilon = math.ceil(max(run['epsilon'] for run in runs))
    fid = f'{statistics.mean(run["fid"]["synthetic"] for run in runs):.2f}'
    return [label, f'{epsilon}', accuracy, _mean(runs, 'logistic_regression'), fid, minutes, f'`{command}`']


def _of_real(name, label, command):
    run = _results_of(name)[0]
    real = [{'accuracies': run['accuracies_of_real']}]
    fid = f'{run["fid"]["real training images"]:.2f}'
    accuracy = _accuracy(real, 'small_cnn')
    return [label, 'none', accuracy, _mean(real, 'logistic_regression'), fid, '', f'`{command}`']


def _published(rows):
    return [[f'*{row.of}*', row.epsilon, row.accuracy, '', '', '', row.on] for row in rows]


_COLUMNS = ['', 'epsilon', 'accuracy, small network', 'logistic regression', 'FID\\*', 'minutes', 'command']


def _results_mnist():
    rows = [
        _result('mnist', 'warm start and DP-SGD', 'bin/train --gin_file=gin/mnist_cpu.gin'),
        _result(
            'mnist_eps1',
            'the same, most of the budget in the warm start',
            'bin/train --gin_file=gin/mnist_cpu_eps1.gin',
        ),
        _result(
            'mnist_plain',
            "the paper's method alone: the same views, DP-SGD on all weights",
            'benchmarks/results.py --rows mnist_plain',
        ),
        _of_real('mnist', 'trained on the 60,000 real images', 'bin/evaluate --gin_file=gin/mnist_cpu.gin'),
    ]
    return _markdown(_COLUMNS, [*rows, *_published(published.MNIST)])


def _results_cifar10():
    rows = [
        _result(
            'cifar10',
            'warm start on public images, DP-SGD, the best of four candidates',
            'bin/train --gin_file=gin/cifar10_cpu.gin',
        ),
        _result(
            'cifar10_plain',
            "the paper's method alone: half the views, DP-SGD on all weights",
            'benchmarks/results.py --rows cifar10_plain',
        ),
        _of_real('cifar10', 'trained on the 50,000 real images', 'bin/evaluate --gin_file=gin/cifar10_cpu.gin'),
    ]
    return _markdown(_COLUMNS, [*rows, *_published(published.CIFAR10)])


def _results_ablations():
    rows = [
        [
            runs[0]['title'],
            _accuracy(runs, 'small_cnn'),
            _mean(runs, 'logistic_regression'),
            f'{runs[0]["fid"]["synthetic"]:.2f}',
        ]
        for runs in results.runs_of(_read('results'), results.ABLATIONS)
    ]
    return _markdown(['', 'accuracy, small network', 'logistic regression', 'FID\\*'], rows)


def _times(ratio):
    """Returns how many times as fast, with two digits or three."""
    return f'{ratio:.0f}' if ratio >= 20.0 else f'{ratio:.1f}'


def _dp_step():
    cells = {}
    for row in _read('dp_step')['rows']:
        cells.setdefault((row['network'], row['units'], row['views']), {})[row['engine']] = row
    networks = list(dict.fromkeys(network for network, *_ in cells))
    lines = []
    for key in sorted(cells, key=lambda key: (networks.index(key[0]), -key[2], key[1])):
        network, units, views = key
        engines, note = cells[key], '' if key in published.FULL_SPEED else '\\*'
        ratios = [
            engines[peer]['reason'].partition(' (')[0]
            if 'reason' in engines[peer]
            else _times(engines[peer]['ours_times_as_fast'])
            for peer in ('tf_privacy', 'opacus', 'jax_privacy')
        ]
        speed = f'{engines["ours"]["views_per_sec"]:.0f}{note}'
        plain = f'{engines["ours_plain"]["ours_times_as_fast"]:.2f}'
        lines.append([network, f'{units} x {views}', speed, *ratios, plain])
    columns = ['parameters', 'units x views', 'views a second', 'TensorFlow Privacy', 'Opacus', 'jax_privacy']
    return _markdown([*columns, 'our plain step'], lines)


def _settings():
    rows = {row['name']: row for row in _read('settings')['rows']}
    base, notes = rows['as it is'], published.OF_SETTINGS

    def fast(*names):
        return ' / '.join(f'{rows[name]["times_as_fast"]:.2f}' for name in names)

    graph, xla = rows['graph not optimized'], rows['XLA clusters']
    of_graph = (
        f'the first step takes {graph["first_step_secs"]:.0f} s in place of {base["first_step_secs"]:.0f} s, the '
        f'process {graph["peak_memory_gib"]:.1f} GiB in place of {base["peak_memory_gib"]:.1f}'
    )
    units = [f'{count} unit{"s" if count > 1 else ""} at a time' for count in (16, 4, 1)]
    keras = 'tf.keras.layers.GroupNormalization'
    lines = [
        ['bfloat16 (this processor has avx512_bf16, no AMX)', fast('bfloat16'), notes['bfloat16']],
        ['16 / 4 / 1 units at a time', fast(*units), notes['units at a time']],
        ['graph not optimized', fast('graph not optimized'), of_graph],
        ['one operation at a time', fast('one operation at a time'), ''],
        ['without oneDNN', fast('without oneDNN'), ''],
        [
            'XLA (clusters chosen by TensorFlow)',
            fast('XLA clusters'),
            f'the first step takes {xla["first_step_secs"]:.0f} s',
        ],
        ["Keras's group normalization in place of ours", fast(keras), notes['GroupNormalization']],
        ['channels first', fast('channels first'), notes['channels first']],
    ]
    return _markdown(['setting', 'times as fast', ''], lines)


def _scaling():
    found = _read('scaling')
    strong, weak = found['strong_scaling'], found['weak_scaling']
    cases = ('two devices', 'two processes')
    lines = [
        ['same batch on twice the cores: speed-up', *(f'{strong[case]:.2f}' for case in cases)],
        [
            'twice the units on twice the cores: views a second of each replica, against one alone',
            *(f'{weak[case]:.0%}' for case in cases),
        ],
    ]
    return _markdown(['', 'two devices of one process', 'two processes'], lines)


def _serving_load():
    batching = _read('serving_load')['batching']

    def cell(row):
        middle, high = row['p50_ms'], row['p99_ms']
        latency = (
            f'{middle / 1000.0:.1f}, {high / 1000.0:.1f} s' if middle >= 1000.0 else f'{middle:.0f}, {high:.0f} ms'
        )
        speed = row['requests_per_sec']
        return f'{speed:.1f}; {latency}' if speed < 20.0 else f'{speed:.0f}; {latency}'

    lines = [
        ['joined: requests/s; median and 99% latency', *map(cell, batching['on'])],
        ['one by one', *map(cell, batching['off'])],
    ]
    return _markdown(['requests at a time', *(f'{row["concurrency"]}' for row in batching['on'])], lines)


def _scale():
    networks = _read('scale')['sweeps']['network']
    first, *rest = [f'{row["private_over_plain"]:.2f}' for row in networks]
    return _markdown(
        ['parameters', *(row['network'] for row in networks)],
        [['private step beside the plain one', f'{first} times as long', *rest]],
    )


def _sampling_speeds():
    return {
        row['implementation']: f'{row["images_per_sec"]:.0f}'
        for row in _read('sampling')['rows']
        if (row['sampler'], row['num_steps']) == ('dpmpp_2m', 10)
    }


def _sampling():
    speeds = _sampling_speeds()
    columns = ['tf_dpdiff, DPM-Solver++ with 10 steps', "diffusers' UNet2DModel of that size, on PyTorch"]
    return _markdown(columns, [[speeds[sampling.LIBRARY], speeds[sampling.DIFFUSERS]]])


def _end_to_end():
    found = _read('end_to_end')
    shares = {step['views']: end_to_end.outside_gradients(step) for step in found['steps'] if ', K = ' in step['name']}
    of_parts = [
        f'parts of a step but forward and backward: K = {" / ".join(map(str, shares))}, 1.1M parameters',
        ' / '.join(f'{share:.0%}' if share >= 0.01 else 'less than 1%' for share in shares.values()),
    ]
    return _markdown(['what', 'measured'], [of_parts, *map(_whole_run, found['runs'])])


def _whole_run(run):
    secs, parts = run['wall_secs'], end_to_end.by_group(run)
    time = f'{secs:.0f} s' if secs < 600.0 else f'{secs / 60.0:.0f} minutes'
    groups = sorted(('steps', 'tracing', 'sampling', 'start'), key=lambda group: -parts[group])
    return [f'`{run["command"]}`, {time}', ', '.join(f'{group} {parts[group] / secs:.0%}' for group in groups)]


def _limit():
    found = _read('limit')
    cells = {}
    for row in found['rows']:
        cells.setdefault((row['network'], row['units'], row['views']), {})[row['engine']] = row
    shown = [key for key in engines.ENGINES if any(key in of_cell for of_cell in cells.values())] or [
        'ours',
        'ours_plain',
    ]
    lines = []
    for (network, units, views), of_cell in cells.items():
        limits = [row['limit_views_per_sec'] for row in of_cell.values() if 'limit_views_per_sec' in row]
        shares = [
            f'{of_cell[key]["share_of_limit"]:.0%}'
            if 'share_of_limit' in of_cell.get(key, {})
            else of_cell.get(key, {'reason': _NOT_YET})['reason'].partition(' (')[0]
            for key in shown
        ]
        lines.append([network, f'{units} x {views}', f'{max(limits):.0f}' if limits else '', *shares])
    columns = ['parameters', 'units x views', 'limit, views a second', *(engines.ENGINES[key].label for key in shown)]
    return _markdown(columns, lines or [[_NOT_YET] + [''] * (len(columns) - 1)])


def _limit_peaks():
    found, lines = _read('limit'), []
    machine = f'{found["machine"]["processor"]}, {found["machine"]["cores"]} cores'
    for kind, of_dtype in found['peaks'].items():
        unit = 'GB/s' if kind == our_peak.MEMORY else 'GFLOP/s'
        cells = [
            f'{of_dtype[dtype]["per_sec"] / 1e9:.3g} {unit}' if 'per_sec' in of_dtype.get(dtype, {}) else ''
            for dtype in limit.DTYPES
        ]
        lines.append([_PEAKS[kind], *cells])
    head = f'peak of {machine}, TensorFlow {found["versions"]["tensorflow"]}'
    return _markdown([head, *limit.DTYPES], lines or [[_NOT_YET, '', '']])


def _limit_layers():
    found, network = _read('limit'), '1.1M'
    columns = ['layers', 'how many', 'share of the time', 'share of their limit', 'with gradients of units']
    if network not in found['layers']:
        return _markdown(columns, [[_NOT_YET, '', '', '', '']])
    rows, rest = limit.by_label(network, found)
    lines = [
        [
            row['label'],
            f'{row["calls"]}',
            f'{row["share_of_time"]:.0%}',
            f'{row["share_of_limit"]:.0%}',
            f'{_times(row["per_unit_times_as_long"])} times as long',
        ]
        for row in rows
        if row['share_of_time'] >= 0.01
    ]
    others = rest + sum(row['share_of_time'] for row in rows if row['share_of_time'] < 0.01)
    return _markdown(columns, [*lines, ['all else', '', f'{others:.0%}', '', '']])


def _accelerator():
    device, value_bytes, share = published.H100, 2, planner.DEFAULT_UTILIZATION
    peaks = {
        our_peak.CONVOLUTION: device.bfloat16_flops,
        our_peak.PRODUCT: device.bfloat16_flops,
        our_peak.MEMORY: device.memory_bytes,
    }
    lines = []
    for network, counted in _read('limit')['counts'].items():
        moved = value_bytes * sum(layer['calls'] * layer['values_moved'] for layer in counted['layers'])
        by_operations = counted['training_flops'] / device.bfloat16_flops
        by_memory = moved / device.memory_bytes
        views = 1024
        secs = limit.limit_secs(
            counted['layers'], views=views, views_at_a_time=views, per_sec=peaks, value_bytes=value_bytes
        )
        lines.append(
            [
                network,
                _rounded(counted['training_flops'] / 1e9),
                _rounded(moved / 1e6),
                'memory' if by_memory > by_operations else 'operations',
                _rounded(views / secs),
                _rounded(share * views / secs),
            ]
        )
    columns = [
        'parameters',
        'GFLOP a view',
        'MB moved a view',
        'bounded by',
        f'limit of an {device.name}, views a second',
        f'reckoned, at {share:.0%} of the limit',
    ]
    return _markdown(columns, lines)


def _rounded(value):
    """Returns a number with two digits that count: what is reckoned knows no more."""
    digits = 1 - math.floor(math.log10(value))
    return f'{round(value, digits):,.{max(0, digits)}f}'


def _summary():
    def row(label, name, minutes, command, real):
        runs = _results_of(name)
        epsilon = f'{math.ceil(max(run["epsilon"] for run in runs))}'
        on_real = _mean([{'accuracies': _results_of(real)[0]['accuracies_of_real']}], 'small_cnn')
        return [label, epsilon, _mean(runs, 'small_cnn'), on_real, minutes, f'`{command}`']

    return _markdown(
        ['private data', 'epsilon', 'trained on samples', 'trained on real images', 'minutes', 'command'],
        [
            row('MNIST', 'mnist', '29 to 50', 'bin/train --gin_file=gin/mnist_cpu.gin', 'mnist'),
            row('MNIST', 'mnist_eps1', '17 to 31', 'bin/train --gin_file=gin/mnist_cpu_eps1.gin', 'mnist'),
            row("MNIST, the paper's method alone", 'mnist_plain', '40', 'benchmarks/results.py', 'mnist'),
            row('CIFAR-10', 'cifar10', '58 to 99', 'bin/train --gin_file=gin/cifar10_cpu.gin', 'cifar10'),
            published.DIGITS,
            published.CELLS,
        ],
    )


def _own_images():
    columns = ['images', '`--hours`', 'minutes', 'trained on', 'small network', 'logistic regression']
    return _markdown(columns, published.OWN_IMAGES)


TABLES = {
    'summary': _summary,
    'own_images': _own_images,
    'results_mnist': _results_mnist,
    'results_cifar10': _results_cifar10,
    'results_ablations': _results_ablations,
    'dp_step': _dp_step,
    'settings': _settings,
    'scaling': _scaling,
    'serving_load': _serving_load,
    'sampling': _sampling,
    'end_to_end': _end_to_end,
    'scale': _scale,
    'limit': _limit,
    'limit_peaks': _limit_peaks,
    'limit_layers': _limit_layers,
    'accelerator': _accelerator,
}
# Within a text.
SINGLE = {
    'mnist': lambda: _mean(_results_of('mnist'), 'small_cnn'),
    'images_per_sec': lambda: _sampling_speeds()[sampling.LIBRARY],
    'mnist_eps1': lambda: _mean(_results_of('mnist_eps1'), 'small_cnn'),
}
