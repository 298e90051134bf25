"""The registry that the tests run from: for every rule, hyper-parameters that must work and inputs that must not.

Torch's hyper-parameters have the same names, so that `torch` is only the name of its class.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """What the tests need to know of one rule."""

    valid: list[dict[str, Any]]
    errors: list[tuple[dict[str, Any], type[Exception], str]]  # hyper-parameters, error, what its message says
    torch: str | None = None
    random: dict[str, Any] = field(default_factory=dict)  # name -> function of a generator


LR = [
    ({"lr": -1e-3}, ValueError, r"lr: expected a finite number >= 0, got -0\.001"),
    ({"lr": float("nan")}, ValueError, "lr: expected a finite number >= 0, got nan"),
    ({"lr": float("inf")}, ValueError, "lr: expected a finite number >= 0, got inf"),
    ({"lr": "fast"}, TypeError, "lr: expected a number, got str"),
    ({"lr": True}, TypeError, "lr: expected a number, got bool"),
    ({"lr": 10**400}, ValueError, "lr: expected a finite number >= 0, got 1000"),
    ({"lr": np.True_}, TypeError, "lr: expected a number, got numpy.bool"),
]
DECAY = [
    ({"weight_decay": -0.1}, ValueError, r"weight_decay: expected a finite number >= 0, got -0\.1"),
    ({"weight_decay": float("nan")}, ValueError, "weight_decay: expected a finite number >= 0, got nan"),
    ({"weight_decay": None}, TypeError, "weight_decay: expected a number, got NoneType"),
]
OPTIONS = [
    ({"maximize": 1}, TypeError, "maximize: expected True or False, got 1"),
    ({"ema_decay": 1.0}, ValueError, r"ema_decay: expected a number in \[0, 1\), got 1\.0"),
    ({"ema_decay": -0.1}, ValueError, r"ema_decay: expected a number in \[0, 1\), got -0\.1"),
]
BETAS = [
    ({"betas": (1.0, 0.999)}, ValueError, r"betas: expected numbers in \[0, 1\), got \(1\.0, 0\.999\)"),
    ({"betas": (0.9, -0.1)}, ValueError, r"betas: expected numbers in \[0, 1\), got \(0\.9, -0\.1\)"),
    ({"betas": (0.9, float("nan"))}, ValueError, r"betas: expected numbers in \[0, 1\), got \(0\.9, nan\)"),
    ({"betas": (0.9,)}, ValueError, "betas: expected 2 numbers, got 1"),
    ({"betas": 0.9}, TypeError, "betas: expected 2 numbers, got float"),
    ({"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0, got -1e-08"),
    ({"eps": float("inf")}, ValueError, "eps: expected a finite number >= 0, got inf"),
]


def log_uniform(low, high):
    return lambda rng: float(np.exp(rng.uniform(np.log(low), np.log(high))))


ADAM_RANDOM = {
    "lr": log_uniform(1e-6, 1.0),
    "betas": lambda rng: (float(rng.uniform(0, 0.9999)), float(rng.uniform(0, 0.99999))),
    "eps": log_uniform(1e-12, 1e-2),
    "weight_decay": lambda rng: float(rng.choice([0.0, 1e-4, 0.3])),
}

CASES = {
    "sgd": Case(
        valid=[
            {},
            {"lr": 0.1, "weight_decay": 0.01},
            {"lr": 0.1, "momentum": 0.9},
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            ({"momentum": -0.1}, ValueError, r"momentum: expected a finite number >= 0, got -0\.1"),
            ({"dampening": float("nan")}, ValueError, "dampening: expected a finite number, got nan"),
            ({"nesterov": True}, ValueError, "nesterov=True needs momentum > 0 and dampening = 0"),
            ({"nesterov": "yes"}, TypeError, "nesterov: expected True or False, got 'yes'"),
        ],
        torch="SGD",
        random={
            "lr": log_uniform(1e-6, 1.0),
            "momentum": lambda rng: float(rng.choice([0.0, 0.5, 0.99])),
            "dampening": lambda rng: float(rng.choice([0.0, 0.2, -1.0])),
            "weight_decay": lambda rng: float(rng.choice([0.0, 1e-4, 0.3])),
        },
    ),
    "adam": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}, {"eps": 0.0, "maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS],
        torch="Adam",
        random=ADAM_RANDOM,
    ),
    "adamw": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.0, 0.999), "weight_decay": 0.3}, {"weight_decay": 0.0, "maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS],
        torch="AdamW",
        random=ADAM_RANDOM,
    ),
    "rmsprop": Case(
        valid=[
            {},
            {"lr": 0.1, "alpha": 0.9, "weight_decay": 0.1, "momentum": 0.9},
            {"lr": 0.1, "alpha": 0.5, "centered": True, "maximize": True},
            {"lr": 0.1, "eps": 1e-3, "momentum": 0.5, "centered": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            ({"alpha": 1.0}, ValueError, r"alpha: expected a number in \[0, 1\), got 1\.0"),
            ({"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0, got -1e-08"),
            ({"momentum": float("inf")}, ValueError, "momentum: expected a finite number >= 0, got inf"),
            ({"centered": 1}, TypeError, "centered: expected True or False, got 1"),
        ],
        torch="RMSprop",
        random={
            "lr": log_uniform(1e-6, 1.0),
            "alpha": lambda rng: float(rng.uniform(0, 0.9999)),
            "eps": log_uniform(1e-12, 1e-2),
            "weight_decay": lambda rng: float(rng.choice([0.0, 1e-4, 0.3])),
            "momentum": lambda rng: float(rng.choice([0.0, 0.5, 0.99])),
            "centered": lambda rng: bool(rng.integers(2)),
        },
    ),
}

VALID = [(rule, hypers) for rule, case in CASES.items() for hypers in case.valid]
ERRORS = [(rule, *error) for rule, case in CASES.items() for error in case.errors]
