"""The look of the figures: colours that any colour vision tells apart, lines that differ in style too, 8 points."""

from collections.abc import Sequence
from typing import Any

from fusedstep._common.extras import require

#: Of Okabe and Ito, but for yellow, which is too light for a line.
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK)
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: The widest that a figure may be, in inches.
WIDTH = 7.0

SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "path",
    # The same numbers give the same file.
    "svg.hashsalt": "fusedstep",
}


def new(height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, a flat list in reading order."""
    figure = require("matplotlib.figure", "gallery").Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def look(k: int) -> dict[str, Any]:
    """Colour and style of line k."""
    return {"color": COLOURS[k % len(COLOURS)], "ls": STYLES[k % len(STYLES)]}


def contours(axes: Any, x: Any, y: Any, z: Any, levels: Sequence[float] | Any) -> None:
    """Level lines in grey, below everything else that is drawn."""
    axes.contour(x, y, z, levels=levels, colors="0.75", linewidths=0.6, linestyles="-", zorder=0)


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend for the whole figure, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
