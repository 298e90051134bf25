"""A picture of schedules."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.extras import require
from fusedstep._common.files import save_figure

#: Colours of Okabe and Ito, told apart with any colour vision; lines differ in style too.
_LOOKS = [
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (1, 1))),
    ("#000000", (0, (7, 2))),
]
#: The most points of a curve: enough to look smooth on paper.
_POINTS = 2001

Function = Callable[[int], float]


def plot(
    schedules: Function | Sequence[Function] | Mapping[str, Function],
    steps: int,
    *,
    path: str | PathLike[str] | None = None,
    ax: Any = None,
) -> Any:
    """Draws the learning rate over the steps of a run.

    Of a longer run it evaluates two thousand steps, evenly spread.

    Args:
        schedules: One, a list, or a dict by name; of this module or other functions of the number of steps.
        steps: How long the run is, >= 1.
        path: Where to save the picture (.png, .svg, .pdf); None not to.
        ax: Matplotlib's axes to draw on; None for new ones.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[train]` is not installed.
        TypeError: Something that is no schedule.
        ValueError: `steps` is out of range; no schedule.

    Examples:
        >>> import os, tempfile
        >>> from fusedstep import schedules
        >>> path = os.path.join(tempfile.mkdtemp(), "lr.png")
        >>> curves = {"cosine": schedules.cosine(1e-3, 500), "linear": schedules.linear(1e-3, 500)}
        >>> axes = schedules.plot(curves, 500, path=path)
        >>> print([line.get_label() for line in axes.lines], os.path.exists(path))
        ['cosine', 'linear'] True
    """
    steps = whole(steps, "steps", least=1)
    named = _named(schedules)
    if not named:
        raise ValueError("schedules: expected at least one, got none")
    for name, schedule in named:
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(f"schedules: expected a schedule{name and ' as ' + repr(name)}, got {schedule!r}")
    at = np.unique(np.linspace(0, steps - 1, min(steps, _POINTS)).round().astype(np.int64)).tolist()
    curves = [[schedule(step) for step in at] for _, schedule in named]
    figures = require("matplotlib.figure", "train", "plots need matplotlib")
    if ax is None and path is None:
        ax = require("matplotlib.pyplot", "train").subplots(figsize=(4.8, 3.0), layout="constrained")[1]
    elif ax is None:
        # Without pyplot, which would keep it.
        ax = figures.Figure(figsize=(4.8, 3.0), layout="constrained").subplots()
    for k, ((name, _), curve) in enumerate(zip(named, curves, strict=True)):
        colour, style = _LOOKS[k % len(_LOOKS)]
        ax.plot(at, curve, color=colour, ls=style, label=name or None, marker="o" if len(at) < 3 else None)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.spines[["top", "right"]].set_visible(False)
    if any(name for name, _ in named):
        # Above, for curves go through every corner.
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    if path is not None:
        save_figure(ax.figure, path, dpi=150)
    return ax


def _named(schedules: Any) -> list[tuple[str, Any]]:
    if isinstance(schedules, Mapping):
        return [(str(name), schedule) for name, schedule in schedules.items()]
    if isinstance(schedules, list | tuple):
        return [(f"{k + 1} {type(schedule).__name__}", schedule) for k, schedule in enumerate(schedules)]
    return [("", schedules)]
