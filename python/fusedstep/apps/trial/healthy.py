"""Fifty healthy runs of the digits network, no two with the same settings."""

from collections.abc import Callable
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.trial.cases import train
from fusedstep.doctor import Doctor

#: An optimizer, its learning rate at the peak, other hyper-parameters.
_OPTIMIZERS: tuple[tuple[type[fs.Optimizer], float, dict[str, Any]], ...] = (
    (fs.SGD, 0.1, {}),
    (fs.SGD, 0.3, {}),
    (fs.SGD, 0.03, {"momentum": 0.9}),
    (fs.SGD, 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    (fs.Momentum, 0.02, {}),
    (fs.Adam, 3e-3, {}),
    (fs.AdamW, 3e-3, {}),
    (fs.AdamW, 1e-2, {"max_grad_norm": 1.0}),
    (fs.RMSprop, 2e-3, {}),
    (fs.Adagrad, 0.03, {}),
    (fs.NAdam, 3e-3, {}),
    (fs.RAdam, 5e-3, {}),
    (fs.Adamax, 5e-3, {}),
    (fs.Lion, 1e-3, {}),
    (fs.LAMB, 1e-2, {}),
    (fs.Adan, 1e-2, {}),
    (fs.AdEMAMix, 3e-3, {}),
)
_EPOCHS = {16: 8, 32: 12, 64: 20, 128: 30, 256: 50}
_HIDDEN: tuple[tuple[int, ...], ...] = ((32,), (64,), (64, 32), (128, 64), (32, 32, 32), (128,), (48, 24))
COUNT = 50


def settings(index: int) -> dict[str, Any]:
    """The settings of a run, by its number from 0 to 49."""
    optimizer, lr, hypers = _OPTIMIZERS[index % len(_OPTIMIZERS)]
    batch_size = list(_EPOCHS)[index % 5]
    return {
        "optimizer": optimizer,
        "lr": lr,
        "hypers": hypers,
        "schedule": ("constant", "cosine", "warm-up")[index // 2 % 3],
        "batch_size": batch_size,
        "batch_norm": index % 2 == 0,
        "hidden": _HIDDEN[index % len(_HIDDEN)],
        "epochs": _EPOCHS[batch_size],
    }


def run(index: int, seed: int, each_epoch: Callable[[Doctor], None] = lambda doctor: None) -> Doctor:
    """Trains with the settings of a number, from a seed; returns the doctor of the run."""
    s = settings(index)
    steps = s["epochs"] * -(-1437 // s["batch_size"])

    def rate(taken: int) -> float:
        if s["schedule"] == "constant":
            return float(s["lr"])
        if s["schedule"] == "warm-up":
            return float(s["lr"] * min(1.0, (taken + 1) / (0.1 * steps)))
        return float(s["lr"] * (1 + np.cos(np.pi * taken / steps)) / 2)

    return train(
        seed,
        lambda params: s["optimizer"](params, lr=rate, telemetry=True, **s["hypers"]),
        hidden=s["hidden"],
        batch_norm=s["batch_norm"],
        batch_size=s["batch_size"],
        epochs=s["epochs"],
        each_epoch=each_epoch,
    )
