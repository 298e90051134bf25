"""The registry that the tests run from: for every rule, hyper-parameters that must work and inputs that must not.

Torch's hyper-parameters have the same names, so that `torch` is only the name of its class. `oracles.py` says what an
`oracle` is: it is written from the paper, and not from the library.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import oracles


@dataclass(frozen=True)
class Case:
    """What the tests need to know of one rule."""

    valid: list[dict[str, Any]]
    errors: list[tuple[dict[str, Any], type[Exception], str]]  # hyper-parameters, error, what its message says
    torch: str | None = None
    oracle: Callable[..., list[Any]] | None = None  # the paper's equations, where torch does not have all of them
    tolerance: float = 1e-12  # relative difference from torch after 30 steps in float64
    random: dict[str, Any] = field(default_factory=dict)  # name -> function of a generator
    moment: str | None = None  # the state that averages the gradients, for telemetry
    cautious: bool = False  # whether it has the option, as by the papers it may
    sparse: bool = False  # whether it takes row-sparse gradients
    coded: bool = True  # whether its states may be of 8 bits


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
    ({"max_grad_norm": 0.0}, ValueError, r"max_grad_norm: expected a number > 0, or None, got 0\.0"),
    ({"max_grad_norm": float("nan")}, ValueError, "max_grad_norm: expected a number > 0, or None, got nan"),
    ({"max_grad_norm": "1"}, TypeError, "max_grad_norm: expected a number, got str"),
    ({"skip_nonfinite": 1}, TypeError, "skip_nonfinite: expected True or False, got 1"),
    ({"telemetry": None}, TypeError, "telemetry: expected True or False, got None"),
]
BETAS = [
    ({"betas": (1.0, 0.999)}, ValueError, r"betas: expected numbers in \[0, 1\), got \(1\.0, 0\.999\)"),
    ({"betas": (0.9, -0.1)}, ValueError, r"betas: expected numbers in \[0, 1\), got \(0\.9, -0\.1\)"),
    ({"betas": (0.9, float("nan"))}, ValueError, r"betas: expected numbers in \[0, 1\), got \(0\.9, nan\)"),
    ({"betas": (0.9,)}, ValueError, "betas: expected 2 numbers, got 1"),
    ({"betas": 0.9}, TypeError, "betas: expected 2 numbers, got float"),
]
BETAS3 = [
    ({"betas": (0.9, 0.9, 1.0)}, ValueError, r"betas: expected numbers in \[0, 1\), got \(0\.9, 0\.9, 1\.0\)"),
    ({"betas": (0.9, 0.9)}, ValueError, "betas: expected 3 numbers, got 2"),
]
EPS = [
    ({"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0, got -1e-08"),
    ({"eps": float("inf")}, ValueError, "eps: expected a finite number >= 0, got inf"),
]


def not_negative(name):
    return [({name: -0.5}, ValueError, rf"{name}: expected a finite number >= 0, got -0\.5")]


def not_a_flag(*names):
    return [({name: 1}, TypeError, f"{name}: expected True or False, got 1") for name in names]


def log_uniform(low, high):
    return lambda rng: float(np.exp(rng.uniform(np.log(low), np.log(high))))


def uniform(low, high):
    return lambda rng: float(rng.uniform(low, high))


def one_of(*values):
    return lambda rng: values[rng.integers(len(values))]


def betas(*highs):
    return lambda rng: tuple(float(rng.uniform(0.01, high)) for high in highs)


RANDOM_DECAY = {"weight_decay": one_of(0.0, 1e-4, 0.3)}
RANDOM = {"lr": log_uniform(1e-6, 1.0), **RANDOM_DECAY}
ADAM_RANDOM = {**RANDOM, "betas": betas(0.9999, 0.99999), "eps": log_uniform(1e-12, 1e-2)}
FLAG = one_of(False, True)
DECOUPLED = {"decoupled_weight_decay": True}

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
            *not_negative("momentum"),
            ({"dampening": float("nan")}, ValueError, "dampening: expected a finite number, got nan"),
            ({"nesterov": True}, ValueError, "nesterov=True needs momentum > 0 and dampening = 0"),
            ({"nesterov": "yes"}, TypeError, "nesterov: expected True or False, got 'yes'"),
        ],
        torch="SGD",
        random={**RANDOM, "momentum": one_of(0.0, 0.5, 0.99), "dampening": one_of(0.0, 0.2, -1.0)},
        moment="momentum_buffer",
        sparse=True,
    ),
    "momentum": Case(
        valid=[
            {},
            {"lr": 0.1, "weight_decay": 0.1},
            {"lr": 0.1, "nesterov": True},
            {"momentum": 0.5, "maximize": True},
        ],
        errors=[*LR, *DECAY, *OPTIONS, *not_negative("momentum"), *not_a_flag("nesterov")],
        oracle=oracles.momentum,
        random={**RANDOM, "momentum": one_of(0.0, 0.5, 0.99), "nesterov": FLAG},
        moment="velocity",
    ),
    "adagrad": Case(
        valid=[
            {},
            {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1},
            {"initial_accumulator_value": 0.5, "eps": 1e-3, "maximize": True},
            {"lr": 0.1, "accumulator": "mean"},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *EPS,
            *not_negative("lr_decay"),
            *not_negative("initial_accumulator_value"),
            ({"accumulator": "max"}, ValueError, "accumulator: expected 'sum' or 'mean', got 'max'"),
            ({"accumulator": 1}, TypeError, "accumulator: expected 'sum' or 'mean', got 1"),
        ],
        torch="Adagrad",
        oracle=oracles.adagrad,
        random={
            **RANDOM,
            "eps": log_uniform(1e-12, 1e-2),
            "lr_decay": one_of(0.0, 0.1),
            "initial_accumulator_value": one_of(0.0, 0.1),
            "accumulator": one_of("sum", "mean"),
        },
        sparse=True,
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
            *EPS,
            ({"alpha": 1.0}, ValueError, r"alpha: expected a number in \[0, 1\), got 1\.0"),
            ({"momentum": float("inf")}, ValueError, "momentum: expected a finite number >= 0, got inf"),
            *not_a_flag("centered"),
        ],
        torch="RMSprop",
        random={
            **RANDOM,
            "alpha": uniform(0, 0.9999),
            "eps": log_uniform(1e-12, 1e-2),
            "momentum": one_of(0.0, 0.5, 0.99),
            "centered": FLAG,
        },
        moment="momentum_buffer",
    ),
    "adadelta": Case(
        valid=[{}, {"lr": 0.1, "rho": 0.5, "weight_decay": 0.1}, {"eps": 1e-3, "maximize": True}],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *EPS,
            ({"rho": 1.0}, ValueError, r"rho: expected a number in \[0, 1\), got 1\.0"),
        ],
        torch="Adadelta",
        random={**RANDOM, "rho": uniform(0, 0.9999), "eps": log_uniform(1e-12, 1e-2)},
    ),
    "adam": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1},
            {"eps": 0.0, "maximize": True},
            {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1},
            {"lr": 0.1, "weight_decay": 0.1, **DECOUPLED},
        ],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS, *EPS, *not_a_flag("amsgrad", "cautious", "decoupled_weight_decay")],
        torch="Adam",
        oracle=oracles.adam,
        random={**ADAM_RANDOM, "amsgrad": FLAG, "decoupled_weight_decay": FLAG},
        moment="exp_avg",
        cautious=True,
    ),
    "adamw": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.0, 0.999), "weight_decay": 0.3},
            {"weight_decay": 0.0, "maximize": True},
            {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.5)},
        ],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS, *EPS, *not_a_flag("amsgrad")],
        torch="AdamW",
        oracle=oracles.adamw,
        random={**ADAM_RANDOM, "amsgrad": FLAG},
        moment="exp_avg",
        cautious=True,
    ),
    "adamax": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}, {"eps": 1e-3, "maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS, *EPS],
        torch="Adamax",
        oracle=oracles.adamax,
        random=ADAM_RANDOM,
        moment="exp_avg",
        cautious=True,
    ),
    "nadam": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1, "momentum_decay": 0.3},
            {"lr": 0.1, "weight_decay": 0.1, **DECOUPLED, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *BETAS,
            *EPS,
            *not_negative("momentum_decay"),
            *not_a_flag("decoupled_weight_decay"),
        ],
        torch="NAdam",
        oracle=oracles.nadam,
        random={**ADAM_RANDOM, "momentum_decay": uniform(0, 0.1), "decoupled_weight_decay": FLAG},
        moment="exp_avg",
        cautious=True,
    ),
    "radam": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.1},
            {"lr": 0.1, "weight_decay": 0.1, **DECOUPLED, "maximize": True},
        ],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS, *EPS, *not_a_flag("decoupled_weight_decay")],
        torch="RAdam",
        oracle=oracles.radam,
        random={**ADAM_RANDOM, "decoupled_weight_decay": FLAG},
        moment="exp_avg",
        cautious=True,
    ),
    "sparse_adam": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.9)}, {"eps": 1e-3, "maximize": True}],
        errors=[*LR, *(error for error in OPTIONS if "ema_decay" not in error[0]), *BETAS, *EPS],
        torch="SparseAdam",
        random={name: ADAM_RANDOM[name] for name in ("lr", "betas", "eps")},
        moment="exp_avg",
        sparse=True,
        coded=False,
    ),
    "asgd": Case(
        valid=[
            {},
            {"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 3.0, "weight_decay": 0.1},
            {"t0": 0.0, "alpha": 1.0, "maximize": True},
        ],
        errors=[*LR, *DECAY, *OPTIONS, *not_negative("lambd"), *not_negative("alpha"), *not_negative("t0")],
        torch="ASGD",
        random={**RANDOM, "lambd": uniform(0, 0.1), "alpha": uniform(0, 2), "t0": one_of(0.0, 2.0, 1e6)},
        coded=False,
    ),
    "rprop": Case(
        valid=[{}, {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.2)}, {"maximize": True}],
        errors=[
            *LR,
            *OPTIONS,
            ({"etas": (1.0, 1.2)}, ValueError, r"etas: expected \(less than 1, more than 1\)"),
            ({"etas": (0.0, 1.2)}, ValueError, "etas: expected finite numbers > 0"),
            ({"step_sizes": (1.0, 0.5)}, ValueError, r"step_sizes: expected \(smallest, largest\)"),
            ({"step_sizes": (-1.0, 0.5)}, ValueError, "step_sizes: expected finite numbers >= 0"),
        ],
        torch="Rprop",
        random={
            "lr": log_uniform(1e-6, 1.0),
            "etas": lambda rng: (float(rng.uniform(0.1, 0.9)), float(rng.uniform(1.1, 2.0))),
            "step_sizes": lambda rng: (float(rng.uniform(0, 0.01)), float(rng.uniform(0.01, 1.0))),
        },
        coded=False,
    ),
    "adafactor": Case(
        valid=[
            {},
            {"lr": 0.1, "beta2_decay": -0.5, "eps": (1e-6, 1e-2), "weight_decay": 0.1},
            {"d": 2.0, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            ({"beta2_decay": 0.1}, ValueError, "beta2_decay: expected a number <= 0"),
            ({"eps": (None, None)}, ValueError, "eps: expected a number for the second"),
            ({"eps": (-1.0, 1e-3)}, ValueError, "eps: expected finite numbers >= 0, or None, got"),
            ({"d": 0.0}, ValueError, r"d: expected a finite number > 0, got 0\.0"),
        ],
        torch="Adafactor",
        random={**RANDOM, "beta2_decay": uniform(-1, 0), "d": uniform(1, 2)},
        coded=False,
    ),
    "muon": Case(
        valid=[
            {},
            {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.5, "nesterov": False},
            {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
            {"adjust_lr_fn": "original", "eps": 1e-3, "ns_coefficients": (3.0, -3.2, 1.2)},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *EPS,
            ({"momentum": 1.0}, ValueError, r"momentum: expected a number in \[0, 1\), got 1\.0"),
            *not_a_flag("nesterov"),
            ({"ns_coefficients": (1.0, 2.0)}, ValueError, "ns_coefficients: expected 3 numbers, got 2"),
            ({"ns_steps": 2.5}, ValueError, r"ns_steps: expected a whole number >= 0, got 2\.5"),
            (
                {"adjust_lr_fn": "mean"},
                ValueError,
                "adjust_lr_fn: expected 'original' or 'match_rms_adamw', or None, got",
            ),
        ],
        torch="Muon",
        oracle=oracles.muon,
        # torch multiplies in bfloat16, of 8 bits.
        tolerance=3e-2,
        random={**RANDOM, "momentum": uniform(0, 0.99), "nesterov": FLAG},
        moment="momentum_buffer",
    ),
    "lion": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}, {"maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS],
        oracle=oracles.lion,
        random={name: ADAM_RANDOM[name] for name in ("lr", "betas", "weight_decay")},
        moment="exp_avg",
        cautious=True,
    ),
    "lamb": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.3}, {"eps": 1e-3, "maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS, *EPS],
        oracle=oracles.lamb,
        random=ADAM_RANDOM,
        moment="exp_avg",
    ),
    "lars": Case(
        valid=[
            {},
            {"lr": 0.1, "weight_decay": 0.1, "dampening": 0.3, "trust_coefficient": 0.1},
            {"momentum": 0.0, "eps": 1e-3, "maximize": True},
            {"nesterov": True, "weight_decay": 0.01},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *EPS,
            *not_negative("momentum"),
            *not_negative("trust_coefficient"),
            ({"dampening": float("nan")}, ValueError, "dampening: expected a finite number, got nan"),
            ({"nesterov": True, "momentum": 0.0}, ValueError, "nesterov=True needs momentum > 0 and dampening = 0"),
            *not_a_flag("nesterov"),
        ],
        oracle=oracles.lars,
        random={**RANDOM, "momentum": one_of(0.0, 0.9), "trust_coefficient": uniform(0, 0.1)},
        moment="momentum_buffer",
    ),
    "ademamix": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.7, 0.9), "weight_decay": 0.3, "alpha": 5.0},
            {"t_alpha": 10, "t_beta3": 20, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *BETAS3,
            *EPS,
            *not_negative("alpha"),
            ({"t_alpha": -1}, ValueError, "t_alpha: expected a whole number >= 0, or None, got -1"),
            ({"t_beta3": 1.5}, ValueError, r"t_beta3: expected a whole number >= 0, or None, got 1\.5"),
            ({"t_beta3": 5, "betas": (0.0, 0.9, 0.9)}, ValueError, "t_beta3: its schedule needs 0 < beta1 < beta3"),
        ],
        oracle=oracles.ademamix,
        random={
            **RANDOM,
            "betas": lambda rng: (*betas(0.9, 0.9999)(rng), float(rng.uniform(0.9, 0.99999))),
            "alpha": uniform(0, 10),
            "t_alpha": one_of(None, 2, 10**6),
            "t_beta3": one_of(None, 2, 10**6),
        },
        moment="exp_avg_fast",
        cautious=True,
    ),
    "adan": Case(
        valid=[{}, {"lr": 0.1, "betas": (0.5, 0.7, 0.9), "weight_decay": 0.3}, {"eps": 1e-3, "maximize": True}],
        errors=[*LR, *DECAY, *OPTIONS, *BETAS3, *EPS],
        oracle=oracles.adan,
        random={**RANDOM, "betas": betas(0.9, 0.9, 0.9999), "eps": log_uniform(1e-12, 1e-2)},
        moment="exp_avg",
    ),
    "adopt": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1},
            {"lr": 0.1, "weight_decay": 0.1, **DECOUPLED, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *BETAS,
            ({"eps": 0.0}, ValueError, r"eps: expected a finite number > 0, got 0\.0"),
            *not_a_flag("decoupled_weight_decay"),
        ],
        oracle=oracles.adopt,
        random={**ADAM_RANDOM, "decoupled_weight_decay": FLAG},
        moment="exp_avg",
        cautious=True,
    ),
    "schedule_free_adamw": Case(
        valid=[
            {},
            {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1, "warmup_steps": 5},
            {"r": 0.7, "weight_lr_power": 1.5, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *BETAS,
            *EPS,
            ({"betas": (0.0, 0.9)}, ValueError, "betas: expected the first to be more than 0"),
            ({"warmup_steps": 0.5}, ValueError, r"warmup_steps: expected a whole number >= 0, got 0\.5"),
            *not_negative("r"),
            *not_negative("weight_lr_power"),
        ],
        oracle=oracles.schedule_free_adamw,
        random={
            **ADAM_RANDOM,
            "warmup_steps": one_of(0, 2, 100),
            "r": one_of(0.0, 0.3),
            "weight_lr_power": uniform(0, 3),
        },
    ),
    "prodigy": Case(
        valid=[
            {},
            {"betas": (0.5, 0.7), "weight_decay": 0.1, "d0": 1e-2, "use_bias_correction": True},
            {"beta3": 0.5, "safeguard_warmup": True, "d_coef": 0.5, "growth_rate": 1.02, "maximize": True},
        ],
        errors=[
            *LR,
            *DECAY,
            *OPTIONS,
            *BETAS,
            *EPS,
            ({"beta3": 1.0}, ValueError, r"beta3: expected a number in \[0, 1\), or None, got 1\.0"),
            ({"d0": 0.0}, ValueError, r"d0: expected a finite number > 0, got 0\.0"),
            ({"d_coef": -1.0}, ValueError, r"d_coef: expected a finite number > 0, got -1\.0"),
            ({"growth_rate": 0.5}, ValueError, r"growth_rate: expected a number >= 1, got 0\.5"),
            *not_a_flag("use_bias_correction", "safeguard_warmup"),
        ],
        oracle=oracles.prodigy,
        random={
            **ADAM_RANDOM,
            "d0": log_uniform(1e-6, 1e-2),
            "beta3": one_of(None, 0.5),
            "use_bias_correction": FLAG,
            "safeguard_warmup": FLAG,
            "growth_rate": one_of(float("inf"), 1.02),
        },
        moment="exp_avg",
    ),
}

VALID = [(rule, hypers) for rule, case in CASES.items() for hypers in case.valid]
ERRORS = [(rule, *error) for rule, case in CASES.items() for error in case.errors]
