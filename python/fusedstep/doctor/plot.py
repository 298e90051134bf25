"""A picture of how large the steps of a run are."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from fusedstep._common.extras import require
from fusedstep._common.files import save_figure

#: ‖Δθ‖ / ‖θ‖ of steps that are about right.
HEALTHY = (1e-4, 1e-2)


def plot_update_ratios(
    telemetry: Mapping[str, Sequence[float | None]], *, path: str | PathLike[str] | None = None, ax: Any = None
) -> Any:
    """Draws ‖Δθ‖ / ‖θ‖ of every step, of all parameters together and the largest of any tensor.

    A healthy step is about a thousandth of the weights; the band is a factor of ten on either side.

    Args:
        telemetry: Of a run file, or of a `RunRecorder`: `update_ratio`, and `largest_update_ratio` if there is one.
        path: Where to save the picture (.png, .svg, .pdf); None not to.
        ax: Matplotlib's axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[train]` is not installed.
        ValueError: There is no `update_ratio`.

    Examples:
        >>> import os, tempfile, numpy as np, fusedstep as fs
        >>> p = np.ones(2, np.float32)
        >>> recorder = fs.doctor.RunRecorder(fs.AdamW(p, telemetry=True))
        >>> for _ in range(3):
        ...     report = recorder.step(p - 2)
        >>> path = os.path.join(tempfile.mkdtemp(), "ratios.png")
        >>> axes = fs.doctor.plot_update_ratios(recorder.telemetry, path=path)
        >>> print(axes.get_yscale(), os.path.exists(path))
        log True
    """
    if "update_ratio" not in telemetry:
        raise ValueError("telemetry: expected update_ratio, which telemetry=True measures")
    figures = require("matplotlib.figure", "train", "plots need matplotlib")
    if ax is None:
        ax = figures.Figure(figsize=(4.8, 3.0), layout="constrained").subplots()
    ax.axhspan(*HEALTHY, color="0.92", lw=0, label="about right")
    # Colours of Okabe and Ito, told apart with any colour vision; lines differ in style too.
    for name, label, colour, style in (
        ("largest_update_ratio", "largest of a tensor", "#E69F00", ":"),
        ("update_ratio", "all parameters", "#0072B2", "-"),
    ):
        values = np.array(telemetry.get(name, ()), dtype=float)
        # Neither a step that stood still nor one that was lost has a place on a logarithmic axis.
        values[~(values > 0)] = np.nan
        if np.isfinite(values).any():
            marker = "o" if len(values) < 3 else None
            at = np.arange(1, len(values) + 1)
            ax.plot(at, values, color=colour, ls=style, lw=1.0, label=label, marker=marker)
    ax.set(xlabel="step", ylabel="‖Δθ‖ / ‖θ‖", yscale="log", title="Size of the steps")
    if ax.lines:
        ax.legend(facecolor="white", edgecolor="none", framealpha=0.85)
    else:
        ax.text(0.5, 0.5, "no finite step was measured", transform=ax.transAxes, ha="center", color="0.4")
    ax.spines[["top", "right"]].set_visible(False)
    if path is not None:
        save_figure(ax.figure, path, dpi=150)
    return ax
