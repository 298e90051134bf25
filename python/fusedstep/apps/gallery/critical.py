"""The three kinds of critical points, and the way out of a saddle."""

from collections import Counter
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data

TITLE = "Critical points, their directions, and an escape"

#: The wells lie askew, so that the eigenvectors are not the axes.
_ANGLE = np.pi / 6
_TURN = np.array([[np.cos(_ANGLE), -np.sin(_ANGLE)], [np.sin(_ANGLE), np.cos(_ANGLE)]])


def wells(w: Any) -> Any:
    """Σ (u² − 1)² / 4 over both coordinates of a turned plane: four wells around a hill."""
    u = np.tensordot(_TURN.T, w, 1)
    return ((u**2 - 1) ** 2 / 4).sum(axis=0)


def wells_gradient(w: Any) -> Any:
    """Its gradient."""
    u = _TURN.T @ w
    return _TURN @ (u * (u**2 - 1))


def product(w: Any) -> Any:
    """(1 − w₁·w₂)²: two linear weights in a row, one sample x = 1, y = 1."""
    return (1 - w[0] * w[1]) ** 2


def product_gradient(w: Any) -> Any:
    """Its gradient."""
    return -2 * (1 - w[0] * w[1]) * w[::-1]


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Classifies the nine critical points of the wells and the saddle of the product, and leaves the latter."""
    places = [_TURN @ np.array([a, b], float) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    points = [fs.curvature.classify(wells_gradient, place, seed=seed) for place in places]

    origin = np.zeros(2)
    saddle = fs.curvature.classify(product_gradient, origin, seed=seed)
    stuck = origin.copy()
    descent = fs.SGD(stuck, lr=0.1)
    for _ in range(100):
        descent.step(product_gradient(stuck))
    out = fs.curvature.escape(product, product_gradient, origin, point=saddle)
    w = np.array(out.params)
    path = [origin, w.copy()]
    optimizer = fs.SGD(w, lr=0.1)
    for _ in range(30 if quick else 100):
        optimizer.step(product_gradient(w))
        path.append(w.copy())
    return {
        "places": np.array(places),
        "points": points,
        "saddle": saddle,
        "path": np.array(path),
        "claims": {
            "kinds": dict(Counter(point.kind for point in points)),
            "saddle_kind": saddle.kind,
            "saddle_eigenvalues": saddle.eigenvalues,
            "way_out": np.abs(saddle.directions[0]),
            "loss_at_saddle": out.loss_before,
            "loss_of_descent_from_the_saddle": product(stuck),
            "loss_after_escape": out.loss_after,
            "loss_at_the_end": product(w),
        },
    }


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    low, high = claims["saddle_eigenvalues"]
    return (
        "Left: a loss with four minima, four saddles and a maximum, and the eigenvectors of the Hessian at each point. "
        "The loss rises along a solid line and falls along a dashed one; a saddle has both. "
        f"Right: (1 − w₁w₂)² at the origin, where the gradient is 0. Gradient descent stays there, at a loss of "
        f"{claims['loss_of_descent_from_the_saddle']:.3g}. The eigenvalues {low:.3g} and {high:.3g} show that it is a "
        f"saddle. A step along the eigenvector of {low:.3g} lowers the loss to {claims['loss_after_escape']:.2g}, and "
        "gradient descent then reaches the minimum."
    )


_LOOKS = {
    "minimum": (looks.BLUE, "o"),
    "saddle": (looks.BLACK, "X"),
    "maximum": (looks.VERMILION, "^"),
}


def draw(data: Data) -> Any:
    """Two surfaces from above."""
    figure, (left, right) = looks.new(3.8, 1, 2)
    figure.get_layout_engine().set(h_pad=0.07)
    grid = np.linspace(-1.75, 1.75, 161)
    x, y = np.meshgrid(grid, grid)
    looks.contours(left, x, y, wells(np.stack([x, y])), np.array([0.02, 0.06, 0.12, 0.2, 0.25, 0.32, 0.45, 0.7, 1.1]))
    seen = set()
    for place, point in zip(data["places"], data["points"], strict=True):
        colour, marker = _LOOKS[point.kind]
        for value, direction in zip(point.eigenvalues, point.directions, strict=True):
            ends = np.stack([place - 0.3 * direction, place + 0.3 * direction])
            style = "-" if value > 0 else (0, (2, 1.2))
            left.plot(*ends.T, color=looks.BLUE if value > 0 else looks.VERMILION, ls=style, lw=1.6)
        label = None if point.kind in seen else point.kind
        seen.add(point.kind)
        left.plot(*place, marker=marker, color=colour, mec="w", ms=9, ls="none", label=label, zorder=5)
    left.plot([], [], color=looks.BLUE, label="the loss rises")
    left.plot([], [], color=looks.VERMILION, ls=(0, (2, 1.2)), label="the loss falls")
    left.set(title="Three kinds", xlabel="$w_1$", ylabel="$w_2$", aspect="equal")

    looks.contours(right, x, y, product(np.stack([x, y])), np.array([0.05, 0.2, 0.5, 0.8, 1, 1.3, 2, 3, 5, 8]))
    for value, direction in zip(data["saddle"].eigenvalues, data["saddle"].directions, strict=True):
        falls = value < 0
        colour, style = (looks.VERMILION, (0, (2, 1.2))) if falls else (looks.BLUE, "-")
        ends = np.stack([-0.6 * direction, 0.6 * direction])
        right.plot(*ends.T, color=colour, ls=style, lw=1.6)
        # Not on the side to which the path goes.
        side = -np.sign(direction @ data["path"][1]) if falls else np.sign(direction[1])
        at = 0.66 * direction * side
        text = f"λ = {value:.2g}".replace("-", "−")
        right.annotate(text, at, ha="center", va="top" if at[1] < 0 else "bottom", color=colour)
    right.plot(0, 0, marker="X", color=looks.BLACK, mec="w", ms=9, ls="none", zorder=6)
    right.plot(*data["path"][:2].T, color=looks.GREEN, lw=2.2, label="escape", zorder=4)
    right.plot(*data["path"][1:].T, color=looks.PURPLE, marker=".", ms=5, lw=1, label="then gradient descent", zorder=5)
    right.set(title="Out of the saddle of $(1 - w_1 w_2)^2$", xlabel="$w_1$", ylabel="$w_2$", aspect="equal")
    figure.legend(loc="outside lower center", ncols=4)
    return figure
