"""Square error against cross-entropy on a softmax."""

from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data

TITLE = "Square error and cross-entropy"

#: Logits of two classes; the third is out of the question.
_REACH = 10.0
_THIRD = -1000.0


def cross_entropy(z: Any) -> tuple[Any, Any]:
    """Losses and gradients of rows of logits whose first class is right."""
    labels = np.zeros(len(z), np.int64)
    loss, gradient = fs.softmax_cross_entropy(z, labels, reduction="none")
    return loss, gradient


def square_error(z: Any) -> tuple[Any, Any]:
    """The same of the mean square error of the probabilities, back through the softmax."""
    p = fs.softmax(z)
    goal = np.zeros_like(p)
    goal[:, 0] = 1.0
    _, dp = fs.mean_squared_error(p, goal, reduction="none")
    dz = p * (dp - (dp * p).sum(axis=1, keepdims=True)) / p.shape[1]
    return ((p - goal) ** 2).mean(axis=1), dz


LOSSES = {"cross-entropy": cross_entropy, "square error": square_error}


def logits(first: Any, second: Any) -> Any:
    """Rows (first, second, third)."""
    first, second = np.broadcast_arrays(first, second)
    return np.stack([first.ravel(), second.ravel(), np.full(first.size, _THIRD)], axis=1)


def descend(loss: Any, lr: float, steps: int) -> tuple[Any, list[float]]:
    """Gradient descent on the logits from the far corner: the path, and its losses."""
    z = logits(-_REACH, _REACH)
    optimizer = fs.SGD(z, lr=lr)
    path, losses = [z[0, :2].copy()], []
    for _ in range(steps):
        value, gradient = loss(z)
        losses.append(float(value[0]))
        optimizer.step(gradient)
        path.append(z[0, :2].copy())
    return np.array(path), losses


def compute(seed: int = 0, quick: bool = False) -> Data:
    """The surfaces, gradients along the diagonal from the far corner to the goal, and gradient descent from there."""
    grid = np.linspace(-_REACH, _REACH, 41 if quick else 201)
    x, y = np.meshgrid(grid, grid)
    along = np.linspace(-_REACH, _REACH, 201)
    surfaces, norms, paths = {}, {}, {}
    claims: Data = {"gradient_norm_far_from_the_goal": {}, "loss_after_descent": {}}
    for name, loss in LOSSES.items():
        surfaces[name] = loss(logits(x, y))[0].reshape(x.shape)
        norms[name] = np.linalg.norm(loss(logits(along, -along))[1], axis=1)
        paths[name], course = descend(loss, 0.5, 100)
        claims["gradient_norm_far_from_the_goal"][name] = norms[name][0]
        claims["loss_after_descent"][name] = {"first": course[0], "last": course[-1]}
    claims["cross_entropy_of_0.8"] = fs.softmax_cross_entropy(np.log([[0.1, 0.8, 0.1]]), np.array([1]))[0]
    return {"grid": grid, "surfaces": surfaces, "along": along, "norms": norms, "paths": paths, "claims": claims}


def caption(data: Data) -> str:
    """What to see."""
    far = data["claims"]["gradient_norm_far_from_the_goal"]
    last = data["claims"]["loss_after_descent"]
    return (
        "The loss over the logits of two classes, of which the first is right. The lines are 100 steps of gradient "
        "descent from the corner where the network is sure of the wrong class (circle: start, star: end). There the "
        f"cross-entropy is steep (gradient {far['cross-entropy']:.2g}), and falls from "
        f"{last['cross-entropy']['first']:.3g} to {last['cross-entropy']['last']:.2g}. The square error is flat there "
        f"(gradient {far['square error']:.1g}), and stays at {last['square error']['last']:.3g}."
    )


def draw(data: Data) -> Any:
    """Two surfaces from above, and the gradients along their diagonal."""
    figure, axes = looks.new(2.6, 1, 3)
    for ax, (name, surface) in zip(axes, data["surfaces"].items(), strict=False):
        mesh = ax.pcolormesh(data["grid"], data["grid"], surface, cmap="cividis", shading="nearest", rasterized=True)
        figure.colorbar(mesh, ax=ax, location="bottom", label="loss", aspect=25)
        path = data["paths"][name]
        ax.plot(*path.T, color="w", lw=2)
        ax.plot(*path[0], "o", color="w", mec="k", ms=6, clip_on=False)
        ax.plot(*path[-1], "*", color="w", mec="k", ms=11, clip_on=False, zorder=5)
        ax.set(title=name.capitalize(), xlabel="logit of the right class", aspect="equal")
    axes[0].set_ylabel("logit of the wrong class")
    for k, (name, norms) in enumerate(data["norms"].items()):
        axes[2].semilogy(data["along"], norms, label=name, **looks.look(k))
    axes[2].set(title="Gradient from corner to corner", xlabel="logit of the right class = −wrong", ylabel="norm")
    axes[2].legend(loc="lower center")
    return figure
