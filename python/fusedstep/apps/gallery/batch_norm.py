"""Digits with and without batch norm, over learning rates."""

from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.apps.gallery import looks, network
from fusedstep.apps.gallery.drawing import Data

TITLE = "Batch norm and the learning rate"

_SIZES = [64, 64, 64, 64, 10]
_GOOD, _FAILED = 0.9, 0.5
_NAMES = {False: "without batch norm", True: "with batch norm"}


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Loss and accuracy on held-out digits after a few epochs, from several seeds."""
    rates = np.geomspace(1e-3, 10**1.5, 10 if quick else 28)
    seeds = range(seed, seed + (2 if quick else 5))
    epochs = 5
    accuracies = {name: np.empty((len(seeds), len(rates))) for name in _NAMES.values()}
    losses = {name: np.empty((len(seeds), len(rates))) for name in _NAMES.values()}
    with np.errstate(all="ignore"):
        for i, number in enumerate(seeds):
            train_x, train_y, test_x, test_y = network.load(number)
            for normalized, name in _NAMES.items():
                for k, lr in enumerate(rates):
                    model = digits.MLP(_SIZES, normalized, number)
                    optimizer = fs.SGD(model.params, lr=float(lr))
                    for _ in network.epochs(
                        model, optimizer, train_x, train_y, batch_size=64, count=epochs, seed=number
                    ):
                        pass
                    losses[name][i, k], accuracies[name][i, k] = model.evaluate(test_x, test_y)
    claims: Data = {"epochs": epochs, "seeds": len(seeds), "learning_rates": rates}
    for name in _NAMES.values():
        mean = accuracies[name].mean(axis=0)
        good = rates[mean >= _GOOD]
        failed = rates[(mean < _FAILED) & (rates > rates[mean.argmax()])]
        claims[name] = {
            "mean_accuracy": mean,
            "best_accuracy": mean.max(),
            "best_lr": rates[mean.argmax()],
            "smallest_good_lr": good.min() if good.size else None,
            "largest_good_lr": good.max() if good.size else None,
            "fails_from_lr": failed.min() if failed.size else None,
        }
    return {"rates": rates, "accuracies": accuracies, "losses": losses, "claims": claims}


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    without, with_ = (claims[name] for name in _NAMES.values())
    return (
        f"Accuracy on held-out digits after {claims['epochs']} epochs of SGD, for a network of three hidden layers "
        f"(means of {claims['seeds']} seeds; thin lines: each seed). Without batch norm {_good(without)} reach "
        f"{_GOOD:.0%}; with batch norm {_good(with_)} do. Training fails (accuracy below {_FAILED:.0%}) from "
        f"{_rate(without['fails_from_lr'])} on without batch norm, and from {_rate(with_['fails_from_lr'])} on with it."
    )


def _good(entry: Data) -> str:
    low, high = entry["smallest_good_lr"], entry["largest_good_lr"]
    return "no rate" if low is None else f"rates from {low:.2g} to {high:.2g}"


def _rate(lr: float | None) -> str:
    return "no rate" if lr is None else f"{lr:.2g}"


def draw(data: Data) -> Any:
    """Accuracy over the learning rate."""
    figure, (axes,) = looks.new(3.0, width=5.2)
    for k, (name, runs) in enumerate(data["accuracies"].items()):
        appearance = looks.look(k)
        axes.semilogx(data["rates"], 100 * runs.T, color=appearance["color"], lw=0.5, alpha=0.5)
        axes.semilogx(data["rates"], 100 * runs.mean(axis=0), marker=looks.MARKERS[k], ms=4, label=name, **appearance)
    for level in (_GOOD, _FAILED):
        axes.axhline(100 * level, color="0.6", lw=0.8, ls=":", zorder=0)
    axes.set(xlabel="learning rate", ylabel="accuracy on held-out digits (%)", ylim=(0, 103))
    looks.legend_below(figure, axes, 2)
    return figure
