"""One ravine, and what goes wrong in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import schedules
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data
from fusedstep.apps.gallery.films import film

TITLE = "The ravine: too large, too small, and a rate per parameter"

_START = np.array([-40.0, 1.0])
_STEEP, _SHARP = 40.0, 5.0


def loss(w: Any) -> Any:
    """½x² + 40 ln cosh(5y): a floor along x between walls, curved 1,000 times more, that are straight higher up."""
    return 0.5 * w[0] ** 2 + _STEEP * (np.logaddexp(_SHARP * w[1], -_SHARP * w[1]) - np.log(2))


def gradient(w: Any) -> Any:
    """Its gradient."""
    return np.array([w[0], _STEEP * _SHARP * np.tanh(_SHARP * w[1])])


def walk(make: Callable[[Any], fs.Optimizer], steps: int) -> Any:
    """The points of a run, the start first."""
    w = _START.copy()
    optimizer = make(w)
    path = [w.copy()]
    for _ in range(steps):
        optimizer.step(gradient(w))
        path.append(w.copy())
    return np.array(path)


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Six runs."""
    # 1e-7 for the 100,000 steps of the notes, or as far in fewer.
    crawl = 10_000 if quick else 100_000
    constant = schedules.constant
    runs: dict[str, tuple[Callable[..., fs.Optimizer], schedules.Schedule, int]] = {
        "large": (fs.SGD, constant(1e-2), 800),
        "small": (fs.SGD, constant(1e-2 / crawl), crawl),
        "adagrad": (_adagrad, constant(0.1), 2500),
        "decayed": (_adagrad, schedules.inverse_sqrt(1.5, 1), 2500),
        "rmsprop": (fs.RMSprop, constant(0.2), 800),
        "warmed": (fs.RMSprop, schedules.warmup(schedules.linear(0.2, 800), 50), 800),
    }
    data: Data = {"paths": {}, "claims": {}}
    for name, (make, lr, steps) in runs.items():
        path = walk(lambda p, make=make, lr=lr: make(p, lr=lr), steps)  # type: ignore[misc]
        moves = np.abs(np.diff(path[:, 1]))
        # From where it has first come down to the floor.
        calm = int(np.argmax(np.abs(path[:, 1]) < 1e-3)) if (np.abs(path[:, 1]) < 1e-3).any() else None
        after = None if calm is None else np.abs(path[calm:, 1])
        data["paths"][name] = path
        data["claims"][name] = {
            "lr": repr(lr),
            "peak": max(lr(step) for step in range(steps)),
            "steps": steps,
            "largest_step_across": moves.max(),
            "largest_distance_across_after_the_floor": None if after is None else after.max(),
            "step_of_that": None if calm is None or after is None else calm + int(after.argmax()),
            "last_distance_along": abs(path[-1, 0]),
            "last_distance_across": abs(path[-1, 1]),
            "last_loss": loss(path[-1]),
        }
    return data


def _adagrad(p: Any, lr: Any) -> fs.Optimizer:
    """Of the notes: the root mean square of all gradients so far."""
    return fs.Adagrad(p, lr=lr, accumulator="mean")


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    return (
        "If the rate is too large, gradient descent bounces between the walls. If it is too small, it comes down to "
        f"the floor, turns, and is still {claims['small']['last_distance_along']:.3g} from the goal after "
        f"{claims['small']['steps']:,} steps. AdaGrad moves along the floor while σ across it shrinks; at step "
        f"{claims['adagrad']['step_of_that']} it jumps "
        f"{claims['adagrad']['largest_distance_across_after_the_floor']:.2g} up the walls. With a decaying rate it "
        f"stays within {claims['decayed']['largest_distance_across_after_the_floor']:.1g} of the floor once it is "
        "there. RMSProp's σ is inaccurate at the start, so its largest step across is "
        f"{claims['rmsprop']['largest_step_across']:.2g}. With a warm-up it is "
        f"{claims['warmed']['largest_step_across']:.2g}, and the decay after it ends the oscillation."
    )


_PANELS = {
    "large": "SGD, rate {peak:g}: too large",
    "small": "SGD, rate {peak:g}: too small",
    "adagrad": "AdaGrad (mean form), rate {peak:g}",
    "decayed": "AdaGrad (mean form), rate {peak:g}/√t",
    "rmsprop": "RMSProp, rate {peak:g}",
    "warmed": "RMSProp, warm-up to {peak:.2g}, then decay",
}


def _maps(data: Data, height: float) -> tuple[Any, dict[str, Any]]:
    figure, axes = looks.new(height, 3, 2, sharex=True, sharey=True)
    x, y = np.meshgrid(np.linspace(-43, 5, 161), np.linspace(-1.7, 1.35, 161))
    panels = dict(zip(_PANELS, axes, strict=True))
    for name, ax in panels.items():
        looks.contours(ax, x, y, loss(np.stack([x, y])), np.array([10, 50, 150, 300, 500, 750, 1000]))
        ax.set_title(_PANELS[name].format(peak=data["claims"][name]["peak"]))
        ax.plot(*_START, "o", color="k", ms=5, zorder=4)
        ax.plot(0, 0, "*", color="k", ms=10, zorder=4)
        ax.set(xlim=(-43, 5), ylim=(-1.7, 1.35))
    figure.supxlabel("x, along the floor (circle: start, diamond: end, star: goal)", fontsize=8)
    figure.supylabel("y, across it", fontsize=8)
    return figure, panels


def _colour(name: str) -> str:
    return looks.BLUE if name in ("decayed", "warmed") else looks.VERMILION


def draw(data: Data) -> Any:
    """A map of each run."""
    figure, panels = _maps(data, 5.4)
    for name, ax in panels.items():
        path = data["paths"][name]
        # 100,000 points of a line would make a large file.
        path = path[:: max(1, len(path) // (250 if name == "small" else 2500))]
        ax.plot(*path.T, color=_colour(name), lw=0.7, marker=".", ms=2.5)
        ax.plot(*path[-1], "D", color=_colour(name), mec="w", ms=6, zorder=5)
        last = data["claims"][name]
        ax.annotate(
            f"{last['steps']:,} steps: loss {last['last_loss']:.3g}", (0.98, 0.04), xycoords="axes fraction", ha="right"
        )
    return figure


def animate(data: Data, path: Path) -> None:
    """The paths as they grow."""
    figure, panels = _maps(data, 5.0)
    walks = []
    for name, ax in panels.items():
        points = data["paths"][name]
        points = points[:: max(1, len(points) // 2000)]
        walks.append((ax.plot([], [], color=_colour(name), lw=0.7, marker="D", ms=5, markevery=[-1])[0], points))
    film(figure, walks, path)
