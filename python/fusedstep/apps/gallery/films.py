"""Paths that grow, as a GIF."""

from pathlib import Path
from typing import Any

import numpy as np

from fusedstep._common.extras import require


def film(figure: Any, walks: list[tuple[Any, Any]], path: Path, *, frames: int = 60, rate: int = 12) -> None:
    """Writes a GIF in which every line runs along its points.

    Args:
        figure: What is on it all the time.
        walks: Lines of it, each with its points (N, 2).
        path: Of the GIF.
        frames: How many pictures.
        rate: Pictures a second.
    """
    agg = require("matplotlib.backends.backend_agg", "gallery")
    agg.FigureCanvasAgg(figure)
    # Laid out once, or the axes would move.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    writer = require("matplotlib.animation", "gallery").PillowWriter(fps=rate)
    with writer.saving(figure, str(path), 100):
        for k in range(frames):
            for line, points in walks:
                shown = points[: 1 + round((len(points) - 1) * k / (frames - 1))]
                line.set_data(*np.asarray(shown).T)
            writer.grab_frame()
        for _ in range(rate):
            writer.grab_frame()
