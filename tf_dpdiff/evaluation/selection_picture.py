"""The picture of a selection: whether samples rank classifiers as real images do. PRIVATE where it shows those."""

import pathlib

import numpy as np

from tf_dpdiff.evaluation import plotting

_MARKERS = 'os^Dvp*X'
_TICKS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 90.0)  # Of errors, in percent.


def draw_selection(path: pathlib.Path, fields: dict) -> None:
    """Draws a point a candidate: accuracy after training on real images over accuracy on synthetic ones.

    Axes are logarithmic in the error. Where real images were not looked at, candidates stand below one another by their
    accuracy on synthetic ones.

    Args:
      path: The PNG file.
      fields: From `selection.SelectionResult.to_dict`.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, figure 4.
    """
    candidates, is_real = fields['candidates'], fields['num_real_test'] is not None
    figure, axes = plotting.new_figure(6.4, 5.4) if is_real else plotting.new_figure(7.5, 2.0 + 0.25 * len(candidates))
    x = _errors(candidates, 'synthetic_accuracy', fields['num_synthetic_validation'])
    _scale(axes.xaxis, x)
    if is_real:
        y = _errors(candidates, 'real_accuracy', fields['num_real_test'])
        _scale(axes.yaxis, y)
    else:
        y = np.arange(len(candidates))
    families = sorted({candidate['classifier'] for candidate in candidates})
    for index, family in enumerate(families):
        rows = [row for row, candidate in enumerate(candidates) if candidate['classifier'] == family]
        axes.plot(
            x[rows],
            y[rows],
            linestyle='',
            color=f'C{index}',
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=7,
            markeredgecolor='white',
            markeredgewidth=0.6,
            label=family,
        )
    _ring(axes, x[0], y[0], 14, 'black', f'chosen by samples: {fields["chosen"]}')
    axes.set_xlabel(
        f'accuracy on {fields["num_synthetic_validation"]:,} synthetic images,\ntrained on '
        f'{fields["num_synthetic_train"]:,} others, %'
    )
    if is_real:
        best = [candidate['title'] for candidate in candidates].index(fields['regret']['real']['best'])
        _ring(axes, x[best], y[best], 19, 'C3', f'best on real images: {candidates[best]["title"]}')
        axes.set_ylabel(
            f'accuracy on {fields["num_real_test"]:,} held-out real images,\ntrained on '
            f'{fields["num_real_train"]:,} real ones, %'
        )
        found = fields['rank_correlation']['synthetic_and_real']
        axes.set_title(
            f'Rank correlation: Spearman {_number(found["spearman"])}, Kendall {_number(found["kendall"])}', fontsize=10
        )
    else:
        axes.set_yticks(y, [candidate['title'] for candidate in candidates], fontsize=9)
        axes.invert_yaxis()
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2, fontsize=8, frameon=False)
    plotting.save(figure, path)


def _errors(candidates, name: str, num_images: int) -> np.ndarray:
    """Returns errors in percent; what makes none is drawn as half an image."""
    return np.array([max(100.0 * (1.0 - candidate[name]), 50.0 / num_images) for candidate in candidates])


def _scale(axis, errors: np.ndarray) -> None:
    """Makes an axis of errors logarithmic, since good candidates differ by little, and names it by accuracies."""
    from matplotlib import ticker

    low, high = 0.7 * errors.min(), min(1.4 * errors.max(), 115.0)
    axis.axes.set(**{f'{axis.axis_name}scale': 'log', f'{axis.axis_name}lim': (high, low)})
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_ticks([error for error in _TICKS if low <= error <= high])
    axis.set_major_formatter(lambda error, unused_position: f'{100.0 - error:g}')


def _ring(axes, x: float, y: float, size: float, colour: str, label: str) -> None:
    style = {'linestyle': '', 'marker': 'o', 'markerfacecolor': 'none', 'markeredgecolor': colour}
    axes.plot([x], [y], markersize=size, markeredgewidth=1.3, **style)
    axes.plot([], [], markersize=9, label=label, **style)


def _number(value: float | None) -> str:
    return 'undefined' if value is None else f'{value:.2f}'
