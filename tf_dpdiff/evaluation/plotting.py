"""Figures of matplotlib without a display, written whole or not at all."""

import pathlib
from typing import Any

from tf_dpdiff import files


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Returns a matplotlib figure of that many inches, and its axes; touches no global state of pyplot."""
    # Imported here: whoever wants no plot need not wait for it. The Agg backend needs no display.
    from matplotlib import figure as figure_lib
    from matplotlib.backends import backend_agg

    figure = figure_lib.Figure(figsize=(width, height), layout='constrained')
    backend_agg.FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as a PNG file of 120 dots an inch."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
