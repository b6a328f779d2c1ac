"""The picture of an audit: what the scores look like, and how well they tell who was in."""

import pathlib

import numpy as np

from tf_dpdiff import files
from tf_dpdiff.evaluation import membership

_IN, _OUT = '#c44e52', '#4c72b0'


def write_picture(
    path: pathlib.Path,
    *,
    attack: membership.MembershipAttack,
    losses: tuple[np.ndarray, np.ndarray],
    canaries: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draws histograms and the ROC curve as a PNG: PRIVATE, as what it shows.

    Args:
      path: Where to.
      attack: The membership attack on real images.
      losses: Of real images that were trained on, and that were not.
      canaries: Of each canary: score, inclusion (bool) and guess; None where there are none.
    """
    # Imported here: it takes a second. Without pyplot, which would look for a display.
    from matplotlib import figure as figure_lib
    from matplotlib import ticker

    figure = figure_lib.Figure(figsize=(15 if canaries else 10, 4.5), layout='constrained', dpi=110)
    panels = list(figure.subplots(1, 3 if canaries else 2))
    if canaries:
        _draw_canaries(panels.pop(0), *canaries)
    _draw_histograms(
        panels[0],
        'loss',
        losses,
        (f'trained on: {attack.num_members:,} real images', f'held out: {attack.num_non_members:,} real images'),
    )
    panels[0].set_title('Losses of real images')
    panels[1].plot(*attack.curve, color=_IN, drawstyle='steps-post', label=f'loss attack, AUC {attack.auc:.3f}')
    panels[1].plot([0, 1], [0, 1], color='grey', linestyle=':', label='guessing')
    panels[1].set(xscale='symlog', yscale='symlog', xlim=(0, 1), ylim=(0, 1))
    for axis, set_scale in ((panels[1].xaxis, panels[1].set_xscale), (panels[1].yaxis, panels[1].set_yscale)):
        set_scale('symlog', linthresh=1e-3, linscale=0.5)  # Logarithmic, with the zero.
        axis.set_major_locator(ticker.FixedLocator([0, 1e-3, 1e-2, 1e-1, 1]))
        axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
        axis.set_minor_locator(ticker.NullLocator())
    panels[1].set(xlabel='false positive rate', ylabel='true positive rate', title='Membership of real images')
    panels[1].legend(loc='lower right', frameon=False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format='png')


def _draw_canaries(panel, scores: np.ndarray, included: np.ndarray, guesses: np.ndarray) -> None:
    _draw_histograms(
        panel,
        'score',
        (scores[included], scores[~included]),
        (f'in: {included.sum()} canaries', f'out: {np.sum(~included)} canaries'),
    )
    for guess, choose, side in ((1, np.min, 'in'), (-1, np.max, 'out')):
        if np.any(guesses == guess):
            edge = choose(scores[guesses == guess])
            panel.axvline(
                edge,
                color='black',
                linewidth=1.0,
                linestyle='--' if guess > 0 else ':',
                label=f'guessed {side} {"from here" if guess > 0 else "up to here"}',
            )
    panel.set_title('Scores of canaries')
    panel.legend(frameon=False, fontsize='small')


def _draw_histograms(panel, name: str, values: tuple[np.ndarray, np.ndarray], legend: tuple[str, str]) -> None:
    edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
    for group, label, color in zip(values, legend, (_IN, _OUT)):
        panel.hist(group, edges, color=color, alpha=0.55, density=True, label=label)
    panel.set(xlabel=name, yticks=[])
    panel.legend(frameon=False, fontsize='small')
