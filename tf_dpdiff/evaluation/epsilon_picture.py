"""The picture of epsilon over steps."""

from collections.abc import Sequence
import pathlib

from tf_dpdiff.evaluation import plotting
from tf_dpdiff.privacy import curves
from tf_dpdiff.privacy import rounding


def write_picture(
    path: pathlib.Path,
    points: Sequence[curves.CurvePoint],
    *,
    title: str,
    delta: float,
    target_epsilon: float | None = None,
) -> None:
    """Draws epsilon over steps into a PNG file.

    Args:
      path: Where to.
      points: The whole run last.
      title: Of the picture.
      delta: At which epsilon is meant.
      target_epsilon: A line to compare with, or None.
    """
    figure, axes = plotting.new_figure(7.0, 4.5)
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
    plotting.save(figure, path)
