"""All pictures, as PNG files that are written whole or not at all: grids of images, and plots of what was measured.

Those of accuracy, of a selection with real images and of an audit are PRIVATE, as what they show.
"""

from collections.abc import Sequence
import math
import pathlib
from typing import Any, TYPE_CHECKING

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.data import images as images_lib
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import rounding

if TYPE_CHECKING:  # It imports TensorFlow, which is not needed to draw.
    from tf_dpdiff.evaluation import membership

GREY = 96  # Between images.
_MARKERS = 'os^Dvp*X'
_IN, _OUT = '#c44e52', '#4c72b0'
_MAX_CLASSES_WITH_NUMBERS = 20
_FONT, _FONT_PIXELS, _LONGEST_NAME, _MARGIN = 'DejaVu Sans', 14, 20, 6
_TICKS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 90.0)  # Of errors, in percent.


def class_grid(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str] = (),
    columns: int = 12,
    max_rows: int = 20,
    pixels: int = 480,
) -> np.ndarray:
    """Returns a picture with one row per class.

    Args:
      images: uint8 [images, height, width, channels].
      labels: int [images].
      names: Of the classes, written beside their rows; empty: none are.
      columns: Images a row.
      max_rows: How many classes are shown, the first ones, where there are more.
      pixels: About how wide the picture becomes without the names, by repeating whole pixels.

    Returns:
      uint8 [rows * (height + 1) * k, columns * (width + 1) * k, channels]: below and right of each image is a grey
      line; places without an image are black. With names it is wider: they stand on the left.
    """
    num_classes = min(int(labels.max()) + 1, max_rows)
    height, width, channels = images.shape[1:]
    grid = np.full([num_classes, columns, height + 1, width + 1, channels], GREY, np.uint8)
    for label in range(num_classes):
        row = images[labels == label][:columns]
        grid[label, :, :height, :width] = 0
        grid[label, : len(row), :height, :width] = row
    picture = grid.transpose(0, 2, 1, 3, 4).reshape(num_classes * (height + 1), columns * (width + 1), channels)
    factor = max(1, pixels // picture.shape[1])
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([_names_of_rows(names[:num_classes], picture), picture], axis=1) if names else picture


def _names_of_rows(names: Sequence[str], picture: np.ndarray) -> np.ndarray:
    """Returns what stands on the left of a picture that has as many rows: uint8 [height of the picture, width, ...]."""
    from matplotlib import font_manager  # Its font has the letters of most alphabets.
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont

    row_pixels = len(picture) // len(names)
    font = ImageFont.truetype(font_manager.findfont(_FONT), min(_FONT_PIXELS, max(8, row_pixels - 2)))
    cut = [name if len(name) <= _LONGEST_NAME else f'{name[: _LONGEST_NAME - 1]}…' for name in names]
    width = math.ceil(max(font.getlength(name) for name in cut)) + 2 * _MARGIN
    drawn = Image.new('L', (width, len(picture)), GREY)
    for row, name in enumerate(cut):
        middle = (row + 0.5) * row_pixels
        ImageDraw.Draw(drawn).text((width - _MARGIN, middle), name, fill=255, font=font, anchor='rm')
    return np.repeat(np.asarray(drawn)[..., None], picture.shape[-1], axis=-1)


def write_png(path: pathlib.Path, image_uint8: np.ndarray) -> None:
    """Writes uint8 [height, width, 1 or 3]."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(images_lib.encode_png(image_uint8))


def draw_epsilon(
    path: pathlib.Path,
    points: Sequence[curves.CurvePoint],
    *,
    title: str,
    delta: float,
    target_epsilon: float | None = None,
) -> None:
    """Draws epsilon over steps.

    Args:
      path: The PNG file.
      points: Epsilon after some numbers of steps, the whole run last.
      title: Stands above the plot.
      delta: The delta at which epsilon is meant.
      target_epsilon: A line to compare with, or None.
    """
    figure, axes = _new_figure(7.0, 4.5)
    steps = [point.num_steps for point in points]
    axes.plot(steps, [point.rdp for point in points], '--', color='C1', label='Renyi (RDP), an upper bound')
    axes.plot(steps, [point.pld for point in points], '-', color='C0', label='privacy loss distribution (PLD)')
    if target_epsilon is not None:
        axes.axhline(target_epsilon, color='grey', linewidth=0.8, label=f'epsilon = {rounding.exact(target_epsilon)}')
    axes.set_title(title, fontsize=10)
    axes.set_xlabel('DP-SGD steps')
    axes.set_ylabel(f'epsilon at delta = {rounding.exact(delta)}')
    axes.set_xlim(0, max(steps))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    _save(figure, path)


def draw_utility_curve(path: pathlib.Path, fields: dict) -> None:
    """Draws accuracy on held-out real images over the number of samples that a classifier was trained on.

    Lines are means over seeds, bands one standard deviation, dashed lines the same classifier trained on real images.

    Args:
      path: The PNG file.
      fields: The fields of a `utility.UtilityResult` with a curve.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, figure 3.
    """
    figure, axes = _new_figure(7.0, 4.5)
    for index, entry in enumerate(fields['classifiers']):
        points = [point for point in fields['curve'] if point['classifier'] == entry['classifier']]
        sizes = [point['num_synthetic'] for point in points]
        mean = np.array([point['accuracy_mean'] for point in points])
        std = np.array([point['accuracy_std'] or 0.0 for point in points])
        colour = f'C{index % 10}'
        axes.plot(sizes, 100.0 * mean, color=colour, marker=_MARKERS[index % len(_MARKERS)], label=entry['classifier'])
        axes.fill_between(sizes, 100.0 * (mean - std), 100.0 * (mean + std), color=colour, alpha=0.15, linewidth=0)
        if entry['real_images']:
            axes.axhline(100.0 * entry['real_images']['accuracy_mean'], color=colour, linestyle='--', linewidth=0.9)
    axes.set_xscale('log')
    axes.set_xticks(sizes, [f'{size:,}' for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel('synthetic images trained on')
    axes.set_ylabel(f'accuracy on {fields["num_test"]:,} held-out real images, %')
    if fields['num_real']:
        axes.plot([], [], color='grey', linestyle='--', linewidth=0.9, label=f'on {fields["num_real"]:,} real images')
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    _save(figure, path)


def draw_confusion(path: pathlib.Path, fields: dict, entry: dict) -> None:
    """Draws what a classifier trained on samples takes held-out real images for.

    Args:
      path: The PNG file.
      fields: The fields of a `utility.UtilityResult`.
      entry: One of its classifiers.
    """
    counts = np.array(entry['synthetic_images']['confusion'])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, num_classes = fields['class_names'], len(counts)
    side = min(4.0 + 0.3 * num_classes, 12.0)
    figure, axes = _new_figure(side, side)
    axes.imshow(shares, cmap='Blues', vmin=0.0, vmax=1.0)
    if num_classes <= _MAX_CLASSES_WITH_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = 'white' if shares[row, column] > 0.5 else 'black'
                axes.text(column, row, f'{count:,}', ha='center', va='center', fontsize=9, color=colour)
        axes.set_xticks(range(num_classes), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(num_classes), names)
    axes.set_xlabel('taken for')
    axes.set_ylabel('real image of')
    axes.set_title(f'{entry["classifier"]}, trained on samples', fontsize=10)
    _save(figure, path)


def draw_selection(path: pathlib.Path, fields: dict) -> None:
    """Draws a point a candidate: accuracy after training on real images over accuracy on synthetic ones.

    Axes are logarithmic in the error. Where real images were not looked at, candidates stand below one another by their
    accuracy on synthetic ones.

    Args:
      path: The PNG file.
      fields: What `selection.SelectionResult.to_dict` returns.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, figure 4.
    """
    candidates, is_real = fields['candidates'], fields['num_real_test'] is not None
    figure, axes = _new_figure(6.4, 5.4) if is_real else _new_figure(7.5, 2.0 + 0.25 * len(candidates))
    x = _errors(candidates, 'synthetic_accuracy', fields['num_synthetic_validation'])
    _scale(axes.xaxis, x)
    if is_real:
        y = _errors(candidates, 'real_accuracy', fields['num_real_test'])
        _scale(axes.yaxis, y)
    else:
        y = np.arange(len(candidates))
    for index, family in enumerate(sorted({candidate['classifier'] for candidate in candidates})):
        rows = [row for row, candidate in enumerate(candidates) if candidate['classifier'] == family]
        marker = {'marker': _MARKERS[index % len(_MARKERS)], 'markersize': 7, 'markeredgewidth': 0.6}
        axes.plot(x[rows], y[rows], linestyle='', color=f'C{index}', markeredgecolor='white', label=family, **marker)
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
        spearman, kendall = (
            'undefined' if value is None else f'{value:.2f}'
            for value in (fields['rank_correlation']['synthetic_and_real'][name] for name in ('spearman', 'kendall'))
        )
        axes.set_title(f'Rank correlation: Spearman {spearman}, Kendall {kendall}', fontsize=10)
    else:
        axes.set_yticks(y, [candidate['title'] for candidate in candidates], fontsize=9)
        axes.invert_yaxis()
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=2, fontsize=8, frameon=False)
    _save(figure, path)


def draw_audit(
    path: pathlib.Path,
    *,
    attack: 'membership.MembershipAttack',
    losses: tuple[np.ndarray, np.ndarray],
    canaries: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draws histograms of an audit's scores, and the ROC curve: how well they tell who was in.

    Args:
      path: The PNG file.
      attack: The membership attack on real images.
      losses: The losses of real images that were trained on, and of those that were not.
      canaries: The score, the inclusion (bool) and the guess of each canary; None where there are none.
    """
    from matplotlib import ticker

    figure, panels = _new_figure(15 if canaries else 10, 4.5, 3 if canaries else 2)
    if canaries:
        _draw_canaries(panels[0], *canaries)
    of_losses, of_roc = panels[-2:]
    names = f'trained on: {attack.num_members:,} real images', f'held out: {attack.num_non_members:,} real images'
    _draw_histograms(of_losses, 'loss', losses, names)
    of_losses.set_title('Losses of real images')
    of_roc.plot(*attack.curve, color=_IN, drawstyle='steps-post', label=f'loss attack, AUC {attack.auc:.3f}')
    of_roc.plot([0, 1], [0, 1], color='grey', linestyle=':', label='guessing')
    of_roc.set(xscale='symlog', yscale='symlog', xlim=(0, 1), ylim=(0, 1))
    for axis, set_scale in ((of_roc.xaxis, of_roc.set_xscale), (of_roc.yaxis, of_roc.set_yscale)):
        set_scale('symlog', linthresh=1e-3, linscale=0.5)  # Logarithmic, with the zero.
        axis.set_major_locator(ticker.FixedLocator([0, 1e-3, 1e-2, 1e-1, 1]))
        axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
        axis.set_minor_locator(ticker.NullLocator())
    of_roc.set(xlabel='false positive rate', ylabel='true positive rate', title='Membership of real images')
    of_roc.legend(loc='lower right', frameon=False)
    _save(figure, path, dots_per_inch=110)


def _new_figure(width: float, height: float, num_panels: int = 1) -> tuple[Any, Any]:
    """Returns a matplotlib figure of that many inches, and its axes; touches no global state of pyplot."""
    # Imported here: whoever wants no plot need not wait for it. The Agg backend needs no display.
    from matplotlib import figure as figure_lib
    from matplotlib.backends import backend_agg

    figure = figure_lib.Figure(figsize=(width, height), layout='constrained')
    backend_agg.FigureCanvasAgg(figure)
    return figure, figure.subplots(1, num_panels)


def _save(figure: Any, path: pathlib.Path, dots_per_inch: int = 120) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=dots_per_inch, format='png')


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


def _draw_canaries(panel, scores: np.ndarray, included: np.ndarray, guesses: np.ndarray) -> None:
    names = f'in: {included.sum()} canaries', f'out: {np.sum(~included)} canaries'
    _draw_histograms(panel, 'score', (scores[included], scores[~included]), names)
    for guess, choose, line, label in (
        (1, np.min, '--', 'guessed in from here'),
        (-1, np.max, ':', 'guessed out up to here'),
    ):
        if np.any(guesses == guess):
            edge = choose(scores[guesses == guess])
            panel.axvline(edge, color='black', linewidth=1.0, linestyle=line, label=label)
    panel.set_title('Scores of canaries')
    panel.legend(frameon=False, fontsize='small')


def _draw_histograms(panel, name: str, values: tuple[np.ndarray, np.ndarray], legend: tuple[str, str]) -> None:
    edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
    for group, label, color in zip(values, legend, (_IN, _OUT)):
        panel.hist(group, edges, color=color, alpha=0.55, density=True, label=label)
    panel.set(xlabel=name, yticks=[])
    panel.legend(frameon=False, fontsize='small')
