"""A figure of one pair of axes, as all of this library look."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fusedstep._common.extras import require
from fusedstep._common.files import save_figure


@contextmanager
def saved_axes(path: str) -> Iterator[Any]:
    """Axes to draw on, saved when done; the suffix of the path says as what."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=150)
