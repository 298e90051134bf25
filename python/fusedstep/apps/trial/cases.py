"""Runs with a known problem: they train the digits network, or minimize a function of a few numbers."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.doctor import Doctor

Make = Callable[[Any], fs.Optimizer]
Rng = np.random.Generator
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """A run with a known problem.

    Args:
        name: Its name.
        verdict: The doctor's verdict that is right.
        run: Trains from a seed; returns the doctor of the run.
    """

    name: str
    verdict: str
    run: Callable[[int], Doctor]


@cache
def _data(seed: int) -> tuple[Any, Any, Any, Any]:
    return digits.load(seed)


def train(
    seed: int,
    make: Make,
    *,
    hidden: tuple[int, ...] = (32,),
    batch_norm: bool = False,
    batch_size: int = 64,
    epochs: int = 10,
    rows: int | None = None,
    prepare: Callable[[digits.MLP], None] = lambda model: None,
    relabel: Callable[[Rng, Any], Any] = lambda rng, y: y,
    order: Callable[[Any], Iterator[Any]] | None = None,
    spoil: Callable[[int, dict[str, Any]], None] = lambda step, grads: None,
    each_epoch: Callable[[Doctor], None] = lambda doctor: None,
) -> Doctor:
    """Trains the digits network with a doctor.

    Args:
        seed: Seed of the split, the weights and the batches.
        make: Creates the optimizer from the parameters.
        hidden: Sizes of the hidden layers.
        batch_norm: Whether the hidden layers have batch norm.
        batch_size: Rows per batch.
        epochs: Passes over the data.
        rows: Number of training rows; None for all.
        prepare: Changes the network before training.
        relabel: Computes the training labels from the true labels.
        order: Computes the batches (row numbers) from the labels, the same in every epoch; None for shuffled batches.
        spoil: Changes the gradients of a step, counted from 0.
        each_epoch: Called after every epoch's evaluation.
    """
    train_x, train_y, test_x, test_y = _data(seed)
    train_x, train_y = train_x[:rows], relabel(np.random.default_rng((seed, 1)), train_y[:rows])
    model = digits.MLP([64, *hidden, 10], batch_norm, seed)
    prepare(model)
    optimizer = make(model.params)
    doctor = Doctor(optimizer, batch_size=batch_size, batch_norm=batch_norm, chance_loss=math.log(10))
    step = 0
    with np.errstate(all="ignore"):
        for epoch in range(epochs):
            batches = digits.batches(len(train_x), batch_size, seed, epoch) if order is None else order(train_y)
            todo = list(batches)
            for k, picked in enumerate(todo):
                logits = model.forward(train_x[picked], training=True)
                loss, dlogits = fs.softmax_cross_entropy(logits, train_y[picked])
                grads = model.backward(dlogits)
                spoil(step, grads)
                report = optimizer.step(grads)
                step += 1
                if k + 1 < len(todo):
                    doctor.observe(loss, report=report, grads=grads)
            test_loss, accuracy = model.evaluate(test_x, test_y)
            doctor.observe(
                loss,
                test_loss,
                report=report,
                grads=grads,
                activations=model.activations() or None,
                val_accuracy=accuracy,
            )
            each_epoch(doctor)
    return doctor


def descend(
    start: Doubles, loss: Callable[[Doubles], float], grad: Callable[[Doubles], Doubles], make: Make, steps: int
) -> Doctor:
    """Minimizes a function of a few numbers with a doctor."""
    point = start.copy()
    optimizer = make(point)
    doctor = Doctor(optimizer)
    for _ in range(steps):
        value, g = loss(point), grad(point)
        doctor.observe(value, report=optimizer.step(g), grads=g)
    return doctor


def sgd(lr: Any, **options: Any) -> Make:
    """SGD with telemetry."""
    return lambda params: fs.SGD(params, lr=lr, telemetry=True, **options)


def adamw(lr: Any, **options: Any) -> Make:
    """AdamW with telemetry."""
    return lambda params: fs.AdamW(params, lr=lr, telemetry=True, **options)


def scaled_weights(factor: float) -> Callable[[digits.MLP], None]:
    """Multiplies the weights by a factor."""

    def change(model: digits.MLP) -> None:
        for name, value in model.params.items():
            if name.startswith("w"):
                value *= np.float32(factor)

    return change


def _hidden_biases(value: float) -> Callable[[digits.MLP], None]:
    def change(model: digits.MLP) -> None:
        for k in range(model.layers - 1):
            model.params[f"b{k}"][...] = value

    return change


def _noisy(part: float) -> Callable[[Rng, Any], Any]:
    """Draws this fraction of the labels at random."""
    return lambda rng, y: np.where(rng.random(len(y)) < part, rng.integers(0, 10, len(y)), y)


def _saddle(seed: int) -> Doctor:
    rng = np.random.default_rng(seed)
    return descend(
        rng.normal(0.0, 1e-4, 2),
        lambda w: float((1 - w[0] * w[1]) ** 2),
        lambda w: -2 * (1 - w[0] * w[1]) * w[::-1],
        sgd(10 ** rng.uniform(-3, -2)),
        100,
    )


def _descend_ravine(rng: Rng, make: Make) -> Doctor:
    """The floor falls slowly along x; across, the walls are straight: x²/1000 + √(1 + (10 y)²)."""
    return descend(
        np.array([rng.uniform(20, 40), rng.uniform(0.5, 1.5)]),
        lambda p: float(0.001 * p[0] ** 2 + np.sqrt(1 + (10 * p[1]) ** 2)),
        lambda p: np.array([0.002 * p[0], 100 * p[1] / np.sqrt(1 + (10 * p[1]) ** 2)]),
        make,
        200,
    )


def _ravine(seed: int) -> Doctor:
    rng = np.random.default_rng(seed)
    return _descend_ravine(rng, sgd(rng.uniform(0.1, 0.3)))


def _momentum_ravine(seed: int) -> Doctor:
    """The same walls under momentum."""
    rng = np.random.default_rng(seed)
    return _descend_ravine(rng, lambda p: fs.SGD(p, lr=rng.uniform(0.1, 0.3), momentum=0.5, telemetry=True))


def _flat_walk(seed: int) -> Doctor:
    """Along the floor of a ravine, (1 + e^(−x/50)) / 10 + y²/2: AdaGrad's mean form forgets how steep the walls are."""
    rng = np.random.default_rng(seed)
    lr = rng.uniform(0.2, 0.3)
    return descend(
        np.array([0.0, rng.uniform(0.8, 1.2)]),
        lambda p: float(0.1 + 0.1 * np.exp(-p[0] / 50) + p[1] ** 2 / 2),
        lambda p: np.array([-0.002 * np.exp(-p[0] / 50), p[1]]),
        lambda p: fs.Adagrad(p, lr=lr, accumulator="mean", telemetry=True),
        1200,
    )


def _one_class_first(y: Any) -> Iterator[Any]:
    """150 batches of zeros, then 60 of everything."""
    rng = np.random.default_rng(len(y))
    zeros = np.flatnonzero(y == 0)
    yield from (rng.choice(zeros, 16) for _ in range(150))
    yield from (rng.choice(len(y), 16) for _ in range(60))


def _nan_at(when: int) -> Callable[[int, dict[str, Any]], None]:
    def spoil(step: int, grads: dict[str, Any]) -> None:
        if step == when:
            grads["w0"][0, 0] = np.nan

    return spoil


CASES: tuple[Case, ...] = (
    Case("saddle of (1 − w₁w₂)²", "at_critical_point", _saddle),
    Case(
        "all weights zero",
        "at_critical_point",
        lambda s: train(s, sgd(0.1), batch_size=2000, epochs=40, prepare=scaled_weights(0.0)),
    ),
    Case("walls of a ravine", "bouncing", _ravine),
    Case("walls of a ravine, momentum", "bouncing", _momentum_ravine),
    Case(
        "steps of the sign, no hidden layer",
        "bouncing",
        lambda s: train(
            s, lambda p: fs.Lion(p, lr=0.15, betas=(0.0, 0.0), telemetry=True), hidden=(), batch_size=2000, epochs=80
        ),
    ),
    Case("sgd, lr 1e-7", "crawling", lambda s: train(s, sgd(1e-7), epochs=5)),
    Case("adamw, lr 1e-7", "crawling", lambda s: train(s, adamw(1e-7), epochs=5)),
    Case("clipped to 1e-4", "crawling", lambda s: train(s, sgd(0.1, max_grad_norm=1e-4), epochs=5)),
    Case("sgd, lr 1e3", "exploding", lambda s: train(s, sgd(1e3), epochs=5)),
    Case("adamw, lr 10", "exploding", lambda s: train(s, adamw(10.0), epochs=5)),
    Case("lr · 1.1 every step", "exploding", lambda s: train(s, sgd(lambda n: 0.1 * 1.1**n), epochs=5)),
    Case(
        "lr 1, momentum 0.99, batch norm",
        "exploding",
        lambda s: train(s, sgd(1.0, momentum=0.99), batch_norm=True, epochs=6),
    ),
    Case("adagrad after a flat walk", "adagrad_blow_up", _flat_walk),
    Case(
        "rmsprop, one class first",
        "adagrad_blow_up",
        lambda s: train(
            s,
            lambda p: fs.RMSprop(p, lr=1e-3, alpha=0.9, telemetry=True),
            batch_size=16,
            epochs=1,
            order=_one_class_first,
        ),
    ),
    Case(
        "lr / 1000 after two epochs",
        "decayed_too_early",
        lambda s: train(s, sgd(lambda n: 0.05 if n < 46 else 5e-5), epochs=8),
    ),
    Case(
        "lr · 0.93 every step",
        "decayed_too_early",
        lambda s: train(s, adamw(lambda n: 3e-3 * 0.93**n), epochs=8),
    ),
    Case(
        "weights / 10",
        "bad_initialization",
        lambda s: train(s, sgd(0.03), hidden=(32, 32, 32), epochs=6, prepare=scaled_weights(0.1)),
    ),
    Case(
        "weights · 30",
        "bad_initialization",
        lambda s: train(s, adamw(1e-3), hidden=(32, 32), epochs=8, prepare=scaled_weights(30.0)),
    ),
    Case("biases of −10", "dead_units", lambda s: train(s, sgd(0.1), epochs=8, prepare=_hidden_biases(-10.0))),
    Case(
        "100 rows, half the labels wrong",
        "overfitting",
        lambda s: train(s, adamw(1e-2), hidden=(64,), rows=100, relabel=_noisy(0.5), epochs=60, batch_size=20),
    ),
    Case(
        "labels shuffled",
        "overfitting",
        lambda s: train(
            s, adamw(1e-2), hidden=(64,), rows=200, relabel=lambda rng, y: rng.permutation(y), epochs=60, batch_size=20
        ),
    ),
    Case("two hidden units", "underfitting", lambda s: train(s, adamw(3e-2), hidden=(2,), batch_norm=True, epochs=60)),
    Case(
        "weight decay 0.1 (coupled)",
        "underfitting",
        lambda s: train(s, sgd(0.1, weight_decay=0.1), epochs=20),
    ),
    Case(
        "batch norm on two rows",
        "batch_too_small_for_batch_norm",
        lambda s: train(s, adamw(3e-3), batch_norm=True, batch_size=2, epochs=2),
    ),
    Case("a NaN in one gradient", "nonfinite", lambda s: train(s, sgd(0.1), epochs=5, spoil=_nan_at(50 + s % 20))),
)
