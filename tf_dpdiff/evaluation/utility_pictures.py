"""Pictures of downstream accuracy: against the number of samples, and class by class. PRIVATE, as what they show."""

import pathlib

import numpy as np

from tf_dpdiff.evaluation import plotting

_MAX_CLASSES_WITH_NUMBERS = 20
_MARKERS = 'os^Dvp*X'


def draw_curve(path: pathlib.Path, fields: dict) -> None:
    """Draws accuracy on held-out real images over the number of samples that a classifier was trained on.

    Lines are means over seeds, bands one standard deviation, dashed lines the same classifier trained on real images.

    Args:
      path: The PNG file.
      fields: Of `utility.UtilityResult`, with a curve.

    References: Ghalebikesabi et al. 2023, arXiv:2302.13861, figure 3.
    """
    figure, axes = plotting.new_figure(7.0, 4.5)
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
    plotting.save(figure, path)


def draw_confusion(path: pathlib.Path, fields: dict, entry: dict) -> None:
    """Draws what a classifier trained on samples takes held-out real images for.

    Args:
      path: The PNG file.
      fields: Of `utility.UtilityResult`.
      entry: One of its classifiers.
    """
    counts = np.array(entry['synthetic_images']['confusion'])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names, num_classes = fields['class_names'], len(counts)
    side = min(4.0 + 0.3 * num_classes, 12.0)
    figure, axes = plotting.new_figure(side, side)
    axes.imshow(shares, cmap='Blues', vmin=0.0, vmax=1.0)
    if num_classes <= _MAX_CLASSES_WITH_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column,
                    row,
                    f'{count:,}',
                    ha='center',
                    va='center',
                    fontsize=9,
                    color='white' if shares[row, column] > 0.5 else 'black',
                )
        axes.set_xticks(range(num_classes), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(num_classes), names)
    axes.set_xlabel('taken for')
    axes.set_ylabel('real image of')
    axes.set_title(f'{entry["classifier"]}, trained on samples', fontsize=10)
    plotting.save(figure, path)
