"""Six optimizers on a ravine, and at a saddle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data
from fusedstep.apps.gallery.films import film

TITLE = "Six optimizers on a ravine and at a saddle"

Make = Callable[[Any, float], fs.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p, lr: fs.SGD(p, lr=lr),
    "momentum": lambda p, lr: fs.Momentum(p, lr=lr, momentum=0.9),
    "Nesterov": lambda p, lr: fs.Momentum(p, lr=lr, momentum=0.9, nesterov=True),
    "AdaGrad": lambda p, lr: fs.Adagrad(p, lr=lr),
    "RMSProp": lambda p, lr: fs.RMSprop(p, lr=lr),
    "Adam": lambda p, lr: fs.Adam(p, lr=lr),
}

#: How many times more the loss curves across the ravine than along it.
_CONDITION = 100.0
_TURN = np.deg2rad(20)
_AXES = np.array([[np.cos(_TURN), -np.sin(_TURN)], [np.sin(_TURN), np.cos(_TURN)]])
_RAVINE_START = _AXES @ np.array([-3.0, 0.6])
_SADDLE_START = np.array([-1.5, 1e-3])
_SADDLE_RATE = 0.03
_LEFT = 0.5


def ravine(w: Any) -> Any:
    """½(u² + 100 v²), turned by 20 degrees."""
    u = np.tensordot(_AXES.T, w, 1)
    return 0.5 * (u[0] ** 2 + _CONDITION * u[1] ** 2)


def ravine_gradient(w: Any) -> Any:
    """Its gradient."""
    return _AXES @ (np.array([1.0, _CONDITION]) * (_AXES.T @ w))


def saddle(w: Any) -> Any:
    """½x² − ½y² + ¼y⁴: a saddle at the origin, minima at y = ±1."""
    return 0.5 * w[0] ** 2 - 0.5 * w[1] ** 2 + 0.25 * w[1] ** 4


def saddle_gradient(w: Any) -> Any:
    """Its gradient."""
    return np.array([w[0], -w[1] + w[1] ** 3])


def walk(make: Make, lr: float, start: Any, gradient: Callable[[Any], Any], steps: int) -> Any:
    """The points of a run, the start first."""
    w = start.copy()
    optimizer = make(w, lr)
    path = [w.copy()]
    for _ in range(steps):
        optimizer.step(gradient(w))
        path.append(w.copy())
    return np.array(path)


def best_walk(make: Make, steps: int, rates: Any) -> tuple[float, Any]:
    """The learning rate whose run on the ravine has the lowest mean of log losses, and that run."""
    best: tuple[float, float, Any] = (np.inf, 0.0, None)
    for lr in rates:
        path = walk(make, float(lr), _RAVINE_START, ravine_gradient, steps)
        score = float(np.log10(ravine(path.T) + 1e-12).mean())
        if score < best[0]:
            best = (score, float(lr), path)
    return best[1:]


def first(reached: Any) -> int | None:
    """The step from which on a condition holds; None if never."""
    return int(np.argmax(reached)) if reached.any() else None


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Runs on the ravine at the best rate of a grid, and at the saddle at one rate for all."""
    steps = 150
    rates = np.geomspace(1e-3, 3, 12 if quick else 36)
    data: Data = {"ravine": {}, "saddle": {}, "claims": {"ravine": {}, "saddle": {}}}
    with np.errstate(all="ignore"):
        for name, make in OPTIMIZERS.items():
            lr, path = best_walk(make, steps, rates)
            data["ravine"][name] = path
            losses = ravine(path.T)
            data["claims"]["ravine"][name] = {
                "lr": lr,
                "steps_to_a_thousandth": first(losses < 1e-3 * losses[0]),
                "last_loss": losses[-1],
            }
            path = walk(make, _SADDLE_RATE, _SADDLE_START, saddle_gradient, 400)
            data["saddle"][name] = path
            data["claims"]["saddle"][name] = {"steps_to_leave": first(np.abs(path[:, 1]) > _LEFT)}
    return data


def caption(data: Data) -> str:
    """What to see."""
    to = {name: entry["steps_to_a_thousandth"] for name, entry in data["claims"]["ravine"].items()}
    leave = {name: entry["steps_to_leave"] for name, entry in data["claims"]["saddle"].items()}
    return (
        "Above: a ravine whose curvature across is a hundred times that along, each optimizer at the best learning "
        f"rate of a grid. Steps to a thousandth of the loss: {_listed(to)}. "
        f"Below: from a point near the ridge of a saddle (cross), all at a rate of {_SADDLE_RATE:g}. Steps to leave "
        f"the ridge: {_listed(leave)}. Optimizers that divide a gradient by its size move fast even where it is small."
    )


def _listed(steps: dict[str, int | None]) -> str:
    return ", ".join(f"{name} {'never' if count is None else count}" for name, count in steps.items())


_LOOKS = {name: looks.look(k) | {"marker": looks.MARKERS[k], "ms": 4} for k, name in enumerate(OPTIMIZERS)}


def _maps(ravine_axes: Any, saddle_axes: Any) -> None:
    x, y = np.meshgrid(np.linspace(-3.6, 1.0, 161), np.linspace(-1.7, 0.9, 161))
    looks.contours(ravine_axes, x, y, ravine(np.stack([x, y])), np.geomspace(0.02, 60, 11))
    ravine_axes.set(title="Ravine", xlim=(-3.6, 1.0), ylim=(-1.7, 0.9), xlabel="$w_1$", ylabel="$w_2$")
    ravine_axes.plot(0, 0, "*", color="k", ms=10, zorder=6)
    x, y = np.meshgrid(np.linspace(-1.7, 0.7, 161), np.linspace(-0.4, 1.4, 161))
    looks.contours(saddle_axes, x, y, saddle(np.stack([x, y])), np.linspace(-0.25, 1.5, 22))
    saddle_axes.set(title="Saddle", xlim=(-1.7, 0.7), ylim=(-0.4, 1.4), xlabel="$w_1$", ylabel="$w_2$")
    saddle_axes.plot(0, 0, "X", color="k", mec="w", ms=9, zorder=6)
    saddle_axes.plot(0, 1, "*", color="k", ms=10, zorder=6)


def draw(data: Data) -> Any:
    """Paths, and losses over the steps."""
    figure, axes = looks.new(5.6, 2, 2)
    _maps(axes[0], axes[2])
    for name, appearance in _LOOKS.items():
        lr = data["claims"]["ravine"][name]["lr"]
        for k, (where, loss) in enumerate((("ravine", ravine), ("saddle", saddle))):
            path = data[where][name]
            # The ravine's floor would be a tangle.
            shown, every = (path[:41], 5) if where == "ravine" else (path, 20)
            axes[2 * k].plot(*shown.T, markevery=every, lw=1.1, **appearance)
            label = f"{name} (ravine: lr {lr:.2g})"
            axes[2 * k + 1].plot(loss(path.T), markevery=len(path) // 6, label=label, **appearance)
    axes[0].set_title("Ravine, first 40 steps")
    axes[1].set(title="Ravine", xlabel="step", ylabel="loss", yscale="log", ylim=(1e-8, 300))
    axes[3].set(title="Saddle", xlabel="step", ylabel="loss", ylim=(-0.3, 0.6))
    looks.legend_below(figure, axes[1], 3)
    return figure


def animate(data: Data, path: Path) -> None:
    """The paths as they grow."""
    figure, axes = looks.new(3.6, 1, 2)
    _maps(*axes)
    walks = []
    for ax, where, steps in ((axes[0], "ravine", 150), (axes[1], "saddle", 150)):
        for name, appearance in _LOOKS.items():
            walks.append(
                (ax.plot([], [], label=name, markevery=[-1], lw=1.1, **appearance)[0], data[where][name][:steps])
            )
    looks.legend_below(figure, axes[0], 6)
    film(figure, walks, path)
