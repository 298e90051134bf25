"""Dropout, mixup and early stopping against overfitting."""

from collections.abc import Callable
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.apps.gallery import looks, network
from fusedstep.apps.gallery.drawing import Data

TITLE = "Dropout, mixup, early stopping"

_SIZES = [64, 256, 10]
_ROWS = 500
_WRONG = 0.3
_LR = 3e-3
_PATIENCE = 10

Mix = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]


def as_they_are(x: Any, targets: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """No mixture."""
    return x, targets


def mixed(x: Any, targets: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Mixup in all proportions alike."""
    pair: tuple[Any, Any] = fs.data.mixup(x, targets, 1.0, rng=rng)
    return pair


_PLAIN = "no regularization"
#: Dropout, and what is done to a batch.
WAYS: dict[str, tuple[float, Mix]] = {
    _PLAIN: (0.0, as_they_are),
    "dropout 0.5": (0.5, as_they_are),
    "mixup": (0.0, mixed),
}


def train(dropout: float, mix: Mix, epochs: int, seed: int) -> dict[str, Any]:
    """Trains on few rows, some of them with a wrong label; the test loss of each epoch, and where to have stopped."""
    train_x, train_y, test_x, test_y = network.load(seed)
    rng = np.random.default_rng((seed, 1))
    x, y = train_x[:_ROWS], train_y[:_ROWS].copy()
    held_x, held_y = train_x[_ROWS : 2 * _ROWS], train_y[_ROWS : 2 * _ROWS]
    wrong = rng.random(_ROWS) < _WRONG
    y[wrong] = rng.integers(0, 10, int(wrong.sum()))
    targets = fs.data.one_hot(y, 10)
    model = digits.MLP(_SIZES, False, seed, dropout=dropout)
    optimizer = fs.Adam(model.params, lr=_LR)
    stopping = fs.EarlyStopping(_PATIENCE, params=model.params)
    step, course, stopped = 0, [], False
    for epoch in range(epochs):
        for rows in digits.batches(_ROWS, 32, seed, epoch):
            batch, goal = mix(x[rows], targets[rows], rng)
            _, dlogits = fs.softmax_cross_entropy(model.forward(batch, training=True, step=step), goal)
            optimizer.step(model.backward(dlogits))
            step += 1
        course.append(model.evaluate(test_x, test_y))
        if not stopped:
            last = {name: value.copy() for name, value in model.params.items()}
            stopped = stopping.observe(model.evaluate(held_x, held_y)[0], epoch + 1)
            # The run goes on, to show what would have come.
            for name, value in model.params.items():
                value[...] = last[name]
    stopping.restore()
    loss, accuracy = model.evaluate(test_x, test_y)
    return {"course": np.array(course), "stopped": {"epoch": stopping.best_step, "loss": loss, "accuracy": accuracy}}


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Every way from several seeds."""
    epochs, seeds = (60, range(seed, seed + 2)) if quick else (100, range(seed, seed + 5))
    data: Data = {
        "courses": {},
        "claims": {"epochs": epochs, "seeds": len(seeds), "rows": _ROWS, "wrong_labels": _WRONG},
    }
    for name, (dropout, mix) in WAYS.items():
        runs = [train(dropout, mix, epochs, number) for number in seeds]
        course = np.mean([run["course"] for run in runs], axis=0)
        data["courses"][name] = course
        data["claims"][name] = {
            "last_loss": course[-1, 0],
            "last_accuracy": course[-1, 1],
            "lowest_loss": course[:, 0].min(),
            "lowest_loss_at_epoch": int(course[:, 0].argmin()) + 1,
            "stopped": {
                key: float(np.mean([run["stopped"][key] for run in runs])) for key in ("epoch", "loss", "accuracy")
            },
        }
    return data


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    last = {name: claims[name]["last_loss"] for name in WAYS}
    stopped = claims[_PLAIN]["stopped"]
    return (
        f"Digits learned from {claims['rows']} rows; {claims['wrong_labels']:.0%} have a label drawn at random "
        f"(means of {claims['seeds']} seeds). Without regularization the loss on held-out digits falls to "
        f"{claims[_PLAIN]['lowest_loss']:.2g}, then rises to {last[_PLAIN]:.2g} as the network learns the wrong "
        f"labels by heart. With dropout it ends at {last['dropout 0.5']:.2g}, with mixup at {last['mixup']:.2g}. Stars "
        f"mark the epoch that early stopping on validation rows returns to. Early stopping alone gives a loss of "
        f"{stopped['loss']:.2g}, and an accuracy of {stopped['accuracy']:.1%} instead of "
        f"{claims[_PLAIN]['last_accuracy']:.1%}."
    )


def draw(data: Data) -> Any:
    """Loss and accuracy on held-out digits over the epochs."""
    figure, axes = looks.new(3.1, 1, 2)
    for k, (name, course) in enumerate(data["courses"].items()):
        epochs = np.arange(1, len(course) + 1)
        stopped = data["claims"][name]["stopped"]
        for ax, value, at in zip(
            axes, (course[:, 0], 100 * course[:, 1]), (stopped["loss"], 100 * stopped["accuracy"]), strict=True
        ):
            ax.plot(epochs, value, label=name, **looks.look(k))
            ax.plot(stopped["epoch"], at, "*", ms=12, color=looks.COLOURS[k], mec="k", mew=0.6, zorder=5)
    axes[0].plot([], [], "*", ms=10, color="w", mec="k", mew=0.6, label="early stopping")
    axes[0].set(title="Loss on held-out digits", xlabel="epoch", ylabel="cross-entropy (nats)")
    top = max(course[4:, 0].max() for course in data["courses"].values())
    axes[0].set_ylim(top=1.1 * top)
    axes[1].set(title="Accuracy on held-out digits", xlabel="epoch", ylabel="%", ylim=(70, 95))
    looks.legend_below(figure, axes[0], 4)
    return figure
