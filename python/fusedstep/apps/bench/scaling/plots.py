"""Pictures of a forecast."""

from collections.abc import Sequence
from typing import Any

from fusedstep._common.extras import require
from fusedstep.apps.bench.scaling.forecast import Forecast

#: Of Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SETTINGS = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def figure(forecasts: Sequence[Forecast], steps: Sequence[dict[str, Any]]) -> Any:
    """What the optimizer adds to a step, the parts of one model's steps, and measured beside predicted.

    Args:
        forecasts: Those of all modes.
        steps: What was measured, see `measure`; may be empty.
    """
    rows = 2 + bool(steps)
    modes = list(dict.fromkeys(entry.mode for entry in forecasts))
    drawn = require("matplotlib.figure", "gallery").Figure(figsize=(9.0, 3.3 * rows), layout="constrained")
    parts = drawn.subfigures(rows, 1)
    shown = _middle({entry.elements for entry in forecasts})
    names = sorted({name for entry in forecasts for name in entry.busy})
    for row, (panel, draw) in enumerate(((parts[0], _added), (parts[1], _parts))):
        axes = panel.subplots(1, len(modes), sharey=True, squeeze=False)[0]
        for mode, one in zip(modes, axes, strict=True):
            mine = [entry for entry in forecasts if entry.mode == mode and (row == 0 or entry.elements == shown)]
            draw(one, mine, names)
            _over_nodes(one, mine)
            one.set_title(mode if row == 0 else "")
        axes[0].set_ylabel("seconds added to a step" if row == 0 else "seconds of each part")
        handles = {
            label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
        }
        what = (
            "parameters (hollow: the memory does not suffice)"
            if row == 0
            else f"parts of a step, {size(shown)} parameters"
        )
        panel.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), title=what)
    if steps:
        _measured(parts[2].subplots(), steps)
    return drawn


def save(forecasts: Sequence[Forecast], steps: Sequence[dict[str, Any]], path: str) -> None:
    """Draws into a file; its ending says the format."""
    with require("matplotlib", "gallery").rc_context(SETTINGS):
        figure(forecasts, steps).savefig(path, dpi=160)


def size(elements: int) -> str:
    """Parameters, shortly.

    Examples:
        >>> size(1_000_000_000), size(2_500_000)
        ('1 billion', '2.5 million')
    """
    return f"{elements / 1e9:,g} billion" if elements >= 10**8 else f"{elements / 1e6:,g} million"


def _middle(elements: set[int]) -> int:
    return sorted(elements)[len(elements) // 2]


def _added(axes: Any, forecasts: Sequence[Forecast], _: Sequence[str]) -> None:
    """One line a model; hollow where the memory does not suffice."""
    for k, elements in enumerate(sorted({entry.elements for entry in forecasts})):
        mine = [entry for entry in forecasts if entry.elements == elements]
        look = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "ms": 6}
        axes.plot(
            [entry.nodes for entry in mine], [entry.exposed for entry in mine], lw=1.2, label=size(elements), **look
        )
        lacking = [entry for entry in mine if not entry.fits]
        axes.plot([e.nodes for e in lacking], [e.exposed for e in lacking], ls="", mfc="white", **look)


def _parts(axes: Any, forecasts: Sequence[Forecast], names: Sequence[str]) -> None:
    """One line a part, and the gradients, behind which it may hide."""
    nodes = [entry.nodes for entry in forecasts]
    axes.plot(nodes, [entry.gradients for entry in forecasts], color="0.6", lw=3, label="gradients arrive")
    for k, name in enumerate(names):
        seconds = [entry.busy.get(name, 0.0) for entry in forecasts]
        if any(seconds):
            look = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
            axes.plot(nodes, seconds, lw=1.2, ms=4, label=name, **look)


def _over_nodes(axes: Any, forecasts: Sequence[Forecast]) -> None:
    axes.set(xscale="log", yscale="log", xlabel="nodes")
    counts = sorted({entry.nodes for entry in forecasts})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def _measured(axes: Any, steps: Sequence[dict[str, Any]]) -> None:
    """Bars side by side, with the ratio above."""
    for shift, name, colour in ((-0.2, "predicted", COLOURS[4]), (0.2, "measured", COLOURS[0])):
        axes.bar(
            [k + shift for k in range(len(steps))],
            [1e3 * entry[name] for entry in steps],
            0.38,
            color=colour,
            label=name,
        )
    for k, entry in enumerate(steps):
        high = 1e3 * max(entry["predicted"], entry["measured"])
        axes.annotate(f"{entry['ratio']:.2f}", (k, high), (0, 3), textcoords="offset points", ha="center")
    labels = [f"{entry['mode']}\n{entry['ranks']} process{'es' * (entry['ranks'] > 1)}" for entry in steps]
    axes.set_xticks(range(len(steps)), labels)
    axes.set(ylabel="milliseconds a step", title="on this machine (above: measured over predicted)")
    axes.legend(loc="upper left")
    axes.margins(y=0.12)
