"""How dp_step.py shows what it measured: tables for the terminal and as Markdown, and a picture."""

import collections

from benchmarks import engines as engines_lib
from benchmarks import pictures
from benchmarks import reporting

_COLORS = {
    'ours': pictures.OURS,
    'tf_privacy': '#e69f00',
    'opacus': pictures.OTHER,
    'torch_by_hand': '#cc79a7',
    'jax_privacy': pictures.THIRD,
}


def tables(results):
    """Returns tables of throughput, memory, first steps, and of the plain steps, for each network."""
    found = []
    for network in dict.fromkeys(row['network'] for row in results['rows']):
        cells = {}
        for row in results['rows']:
            if row['network'] == network:
                cells.setdefault((row['units'], row['views']), {})[row['engine']] = row
        cells = dict(sorted(cells.items()))
        present = {key for rows in cells.values() for key in rows}
        keys = [key for key in engines_lib.ENGINES if key in present]
        private = [key for key in keys if engines_lib.ENGINES[key].is_private]
        if private:
            found += [
                _table(
                    f'{network}: private steps, views a second (ours is so many times as fast)',
                    cells,
                    private,
                    _throughput,
                ),
                _table(
                    f'{network}: private steps as a share of plain ones of the same framework',
                    cells,
                    private,
                    lambda row: f'{row["share_of_plain"]:.0%}' if 'share_of_plain' in row else '-',
                ),
            ]
        plain = [key for key in keys if not engines_lib.ENGINES[key].is_private]
        if plain:
            found.append(
                _table(
                    f'{network}: plain steps, views a second (our private one is so many times as fast)',
                    cells,
                    plain,
                    _throughput,
                )
            )
        found.append(
            _table(
                f'{network}: peak memory of the process, GiB; seconds of the first step',
                cells,
                keys,
                lambda row: f'{row["peak_memory_gib"]:.1f}; {row["first_step_secs"]:.0f}',
            )
        )
    return found


def _table(title, cells, keys, text):
    """Returns a table of a row a cell and a column an engine."""
    rows = []
    for (units, views), of_engines in cells.items():
        shown = [of_engines.get(key, {'reason': 'not measured'}) for key in keys]
        rows.append([f'{units} x {views}', *(row['reason'] if 'reason' in row else text(row) for row in shown)])
    return reporting.Table(title, ['units x views', *(engines_lib.ENGINES[key].label for key in keys)], rows)


def _throughput(row):
    ratio = ''
    if row['engine'] != 'ours' and 'ours_times_as_fast' in row:
        ratio = f' ({row["ours_times_as_fast"]:.2g}x)'
    return f'{row["views_per_sec"]:.3g}{ratio}'


def draw(results, path):
    """Draws speeds by K, those of our plain step being 1, a panel a network: at the units of which most was measured.

    Machines and days differ in speed: a bar is of neighbours in time, and may stand beside one of another day.
    """
    speeds = _speeds(results['rows'])
    networks = list(dict.fromkeys(network for network, *_ in speeds))
    figure, panels = pictures.new_panels(max(1, len(networks)), 1, 0.4 + 3.2 * max(1, len(networks)))
    for network, axes in zip(networks, panels[:, 0]):
        counts = collections.Counter(units for of, units, *_ in speeds if of == network)
        units = max(counts, key=lambda count: (counts[count], count))
        views = sorted({count for of, found, count, _ in speeds if (of, found) == (network, units)})
        series = {
            engines_lib.ENGINES[key].label: (color, [speeds.get((network, units, count, key)) for count in views])
            for key, color in _COLORS.items()
            if any((network, units, count, key) in speeds for count in views)
        }
        pictures.draw_bars(axes, [f'K = {count}' for count in views], series, 'speed, our plain step: 1', '%.2f')
        axes.axhline(1.0, color='black', linestyle=':', zorder=0)
        axes.set_title(f'A private step of {units} units x K views, network of {network} parameters', fontsize=11)
        axes.legend(fontsize=9, ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.1), frameon=False)
    pictures.save(figure, path)


def _speeds(rows):
    """Returns {(network, units, views, engine): times as fast as our plain step}, where both were measured."""
    ratios = {
        (row['network'], row['units'], row['views'], row['engine']): row['ours_times_as_fast']
        for row in rows
        if row.get('ours_times_as_fast')
    }
    return {
        key: ratios[(*key[:3], 'ours_plain')] / ratio
        for key, ratio in ratios.items()
        if key[3] in _COLORS and (*key[:3], 'ours_plain') in ratios
    }
