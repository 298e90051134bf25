"""Measures of reports, gradients and activations."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arrays import dtype_name, unmasked
from fusedstep._common.structure import flat
from fusedstep._core import StepReport
from fusedstep.doctor.run import finite
from fusedstep.reference.codec import widened
from fusedstep.sparse import RowSparse

Gradients = list[NDArray[np.float64] | None]


def measured(report: StepReport | None) -> dict[str, float]:
    """The telemetry in a report, as a record has it; the largest of several learning rates.

    Raises:
        TypeError: It is no report.
    """
    if report is None:
        return {}
    if not isinstance(report, StepReport):
        raise TypeError(f"report: expected a StepReport or None, got {type(report).__name__}")
    lr = report.lr
    names = ("grad_norm", "update_norm", "param_norm", "update_ratio", "grad_momentum_cosine", "nonfinite")
    given = {name: getattr(report, name) for name in names}
    given["lr"] = max(lr) if isinstance(lr, tuple) else lr
    ratios = [tensor.update_ratio for tensor in report.tensors or () if tensor is not None]
    given["largest_update_ratio"] = max((r for r in ratios if r is not None and math.isfinite(r)), default=None)
    if report.update_norm is None:
        del given["largest_update_ratio"], given["update_ratio"], given["grad_momentum_cosine"]
    return {name: math.nan if value is None else finite(value) for name, value in given.items()}


def flattened(grads: Any) -> Gradients:
    """Copies of all gradients of a structure that `Optimizer.step` takes, one flat list of doubles.

    None stands for one that is missing or row-sparse.

    Raises:
        TypeError: One of them is no array of floating-point numbers.
    """
    if isinstance(grads, Iterator):
        raise TypeError(f"grads: expected a list, got {type(grads).__name__}: the step has gone through it")
    return [_doubles(value, label) for label, value in flat(grads, "grads")]


def _doubles(grad: Any, label: str) -> NDArray[np.float64] | None:
    if grad is None or isinstance(grad, RowSparse):
        return None
    array = unmasked(grad, label)
    if dtype_name(array.dtype) == "bfloat16":
        array = widened(array)
    if array.dtype.kind != "f":
        raise TypeError(f"{label}: expected arrays of floating-point numbers or None, got {array.dtype}")
    return np.array(array, np.float64).ravel()


def grad_cosine(before: Gradients, now: Gradients) -> float:
    """The cosine of the angle between two gradients, over what both have; NaN where it is not a number."""
    if [None if g is None else g.size for g in before] != [None if g is None else g.size for g in now]:
        return math.nan
    pairs = [(a, b) for a, b in zip(before, now, strict=True) if a is not None and b is not None]
    # Scaled, because the squares of numbers beyond 10^±154 leave the range of doubles.
    pairs = list(zip(*(_scaled([pair[k] for pair in pairs]) for k in (0, 1)), strict=True))
    with np.errstate(all="ignore"):
        dot, aa, bb = (sum(float(x[i] @ x[j]) for x in pairs) for i, j in ((0, 1), (0, 0), (1, 1)))
    norms = math.sqrt(aa) * math.sqrt(bb) if aa >= 0 and bb >= 0 else 0.0
    return max(-1.0, min(1.0, dot / norms)) if norms > 0 and math.isfinite(dot / norms) else math.nan


def _scaled(vectors: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The vectors times the power of 2 that brings the largest number below 1."""
    with np.errstate(all="ignore"):
        largest = max((float(np.abs(v).max(initial=0.0)) for v in vectors), default=0.0)
        if not (0 < largest < math.inf):
            return vectors
        return [np.ldexp(v, -int(np.frexp(largest)[1])) for v in vectors]


def dead_part(activations: Any) -> float:
    """The largest part of a layer's units that are 0 for every row.

    Args:
        activations: One array per layer, (rows, units, …): a list, a dict, these within each other, or one array.

    Raises:
        TypeError: Something else than arrays.
        ValueError: An array without units, or without rows; no array.

    Returns:
        In [0, 1].

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.doctor.dead_part([np.ones((3, 2)), np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 2.0]])])
        0.5
    """
    parts = []
    for label, layer in flat(activations, "activations"):
        array = unmasked(layer, label)
        if dtype_name(array.dtype) == "bfloat16":  # as words, −0 is not 0
            array = widened(array)
        if array.ndim < 2 or 0 in array.shape:
            raise ValueError(f"{label}: expected shape (rows, units, …), got {array.shape}")
        axes = tuple(axis for axis in range(array.ndim) if axis != 1)
        parts.append(float((array == 0).all(axis=axes).mean()))
    if not parts:
        raise ValueError("activations: expected at least one array, got none")
    return max(parts)
