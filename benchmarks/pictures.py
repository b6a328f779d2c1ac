"""Pictures of benchmarks: readable where a page shows them 800 pixels wide."""

OURS, OTHER, THIRD = '#0072b2', '#d55e00', '#009e73'  # Told apart by the colour-blind, too.
_DPI = 200


def new_panels(rows, columns, height):
    """Returns a figure 8 inches wide and its axes [rows][columns]."""
    from matplotlib import figure as figure_lib
    from matplotlib.backends import backend_agg

    figure = figure_lib.Figure(figsize=(8.0, height), layout='constrained')
    backend_agg.FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(axis='y', alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, panels


def draw_bars(axes, groups, series, ylabel, number_format='%.3g'):
    """Draws a group of bars each, with their numbers; series: {name: (colour, one value or None a group)}."""
    width = 0.8 / len(series)
    for index, (name, (color, values)) in enumerate(series.items()):
        places = [group - 0.4 + width * (index + 0.5) for group in range(len(groups))]
        drawn = [(place, value) for place, value in zip(places, values) if value is not None]
        if not drawn:
            continue
        bars = axes.bar(*zip(*drawn), width=width, color=color, label=name)
        # On white: lines of the grid, and those that a picture adds, do not strike a number through.
        background = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.3}
        axes.bar_label(bars, fmt=number_format, fontsize=8, padding=1.5, bbox=background)
    axes.set_xticks(range(len(groups)), groups, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.margins(y=0.12)


def draw_lines(axes, positions, labels, series, *, xlabel='', ylabel=''):
    """Draws lines over evenly spaced positions from zero up; series: {name: (colour, values)}."""
    for name, (color, values) in series.items():
        axes.plot(positions, values, marker='o', markersize=4, color=color, label=name)
    axes.set_xticks(positions, labels, fontsize=9)
    axes.set_ylim(0.0, 1.08 * max(value for _, values in series.values() for value in values))
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)


def draw_log_bars(axes, labels, colors, values, xlabel):
    """Draws lying bars with their numbers on a logarithmic axis, the first one at the bottom."""
    bars = axes.barh(range(len(labels)), values, color=colors)
    axes.bar_label(bars, [f'{value:,.0f}' for value in values], fontsize=9, padding=3)
    axes.set_xscale('log')
    axes.set_xlim(min(values) / 3.0, max(values) * 6.0)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.grid(visible=False, axis='y')
    axes.set_xlabel(xlabel, fontsize=10)


def save(figure, path):
    """Writes a figure as a PNG file."""
    figure.savefig(path, dpi=_DPI, format='png')
