"""What the figures on the digits network share."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep._common.extras import require
from fusedstep.apps.examples import digits


def load(seed: int) -> tuple[Any, Any, Any, Any]:
    """The pictures, see `fusedstep.apps.examples.digits.load`."""
    require("sklearn", "gallery")
    return digits.load(seed)


def step(model: digits.MLP, optimizer: fs.Optimizer, x: Any, y: Any) -> float:
    """One step of training; the loss before it."""
    loss, dlogits = fs.softmax_cross_entropy(model.forward(x, training=True), y)
    optimizer.step(model.backward(dlogits))
    return float(loss)


def epochs(
    model: digits.MLP, optimizer: fs.Optimizer, x: Any, y: Any, *, batch_size: int, count: int, seed: int
) -> Iterator[float]:
    """Trains; gives the mean loss of each epoch when it is over."""
    for epoch in range(count):
        losses = [step(model, optimizer, x[rows], y[rows]) for rows in digits.batches(len(x), batch_size, seed, epoch)]
        yield float(np.mean(losses))


def in_doubles(
    model: digits.MLP, x: Any, y: Any
) -> tuple[Callable[[Any], Any], Callable[[Any], float], dict[str, Any]]:
    """The gradient and the loss over all rows as functions of the parameters, and these, in float64.

    Curvature by differences wants it, see docs/curvature.md. For a network without batch norm.
    """
    sizes = [model.params["w0"].shape[0], *(model.params[f"b{k}"].size for k in range(model.layers))]
    copy = digits.MLP(sizes, False, 0)
    inputs = x.astype(np.float64)

    def loss_and_dlogits(params: Any) -> tuple[float, Any]:
        copy.params = params
        loss, dlogits = fs.softmax_cross_entropy(copy.forward(inputs, training=False), y)
        return float(loss), dlogits

    return (
        lambda params: copy.backward(loss_and_dlogits(params)[1]),
        lambda params: loss_and_dlogits(params)[0],
        {name: value.astype(np.float64) for name, value in model.params.items()},
    )
