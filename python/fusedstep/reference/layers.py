"""Batch norm and softmax cross-entropy. Results are written into the arrays that the caller gives.

The native kernels take float32; batch norm here takes float64 too, for gradient checks.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.explog import exponential, logarithm
from fusedstep.reference.sums import lane_sum, plane_sum

Array = NDArray[Any]

STATS_BLOCK = 8192  # elements of one channel, for (N, C, L)
STATS_ROWS = 128  # rows, for (N, C)


def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    unbiased: bool,
    y: Array,
    mean: Array,
    inv_std: Array,
) -> None:
    """y = weight · (x − mean) / √(var + eps) + bias; mean and inv_std receive the statistics that were used."""
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        if training:
            count, mean[:], m2 = moments(x)
            inv_std[:] = 1.0 / np.sqrt(m2 / count + eps)
            if running_mean is not None and running_var is not None:
                var = m2 / (count - 1.0 if unbiased else count)
                kept = 1.0 - momentum
                running_mean[:] = kept * running_mean.astype(np.float64) + momentum * mean
                running_var[:] = kept * running_var.astype(np.float64) + momentum * var
        else:
            assert running_mean is not None
            assert running_var is not None
            mean[:] = running_mean
            inv_std[:] = 1.0 / np.sqrt(running_var.astype(np.float64) + eps)
        scale = (inv_std * (1.0 if weight is None else weight.astype(np.float64))).astype(x.dtype)
        shift = np.zeros_like(scale) if bias is None else bias
        y[...] = centred(x, mean) * per_channel(scale, x) + per_channel(shift, x)


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    inv_std: Array,
    training: bool,
    dx: Array,
    dweight: Array,
    dbias: Array,
) -> None:
    """dx = scale · (dy − mean(dy) − d · mean(dy · d) / (var + eps)), d = x − mean; in evaluation dx = scale · dy."""
    x, dy = np.asarray(x), np.asarray(dy)
    with np.errstate(all="ignore"):
        count = float(x.size // x.shape[1])
        d = centred(x, mean)
        sum_dy = channel_sum(dy)
        sum_dy_d = channel_sum(dy.astype(np.float64) * (x.astype(np.float64) - per_channel(mean, x)))
        dbias[:] = sum_dy
        dweight[:] = inv_std * sum_dy_d
        scale = (inv_std * (1.0 if weight is None else weight.astype(np.float64))).astype(x.dtype)
        if training:
            offset = (sum_dy / count).astype(x.dtype)
            slope = ((inv_std * inv_std) * (sum_dy_d / count)).astype(x.dtype)
            dx[...] = per_channel(scale, x) * ((dy - per_channel(offset, x)) - per_channel(slope, x) * d)
        else:
            dx[...] = per_channel(scale, x) * dy


def cross_entropy(logits: Array, labels: Array, dlogits: Array) -> float:
    """The mean of −log softmax(logits)[label]; dlogits receives (softmax − onehot) / rows."""
    logits = np.asarray(logits)
    rows = np.arange(len(labels))
    with np.errstate(all="ignore"):
        top = np.fmax.reduce(logits, axis=1, initial=-np.inf)[:, None]
        label_logit = logits[rows, labels].astype(np.float64) - top[:, 0]
        e = exponential(logits - top)
        total = lane_sum(e)
        # The largest logit adds 1; less is NaN.
        losses = np.where(total >= 1.0, logarithm(total) - label_logit, total)
        scale = 1.0 / len(labels)
        dlogits[...] = e * (scale / total).astype(np.float32)[:, None]
        dlogits[rows, labels] -= np.float32(scale)
        return float(lane_sum(losses) / len(labels))


def per_channel(values: Array, x: Array) -> Array:
    """Shapes (C,) for broadcasting along axis 1 of x."""
    return values.reshape((-1,) + (1,) * (x.ndim - 2))


def centred(x: Array, mean: Array) -> Array:
    """x − mean to the last bit of x's dtype, also where the mean dwarfs the deviation: the mean in two parts."""
    high = mean.astype(x.dtype)
    rest = (mean - high.astype(np.float64)).astype(x.dtype)
    return (x - per_channel(high, x)) - per_channel(rest, x)


def channel_sum(values: Array) -> Array:
    """Sums all axes but 1, in double."""
    if values.ndim == 2:
        total = np.zeros(values.shape[1])
        for block in blocks(values):
            total += row_sum(block)
        return total
    return plane_sum(values.reshape(*values.shape[:2], -1))


def row_sum(values: Array) -> Array:
    """Sums axis 0 in double, row after row."""
    total = np.zeros(values.shape[1])
    for row in values:
        total += row
    return total


def moments(x: Array) -> tuple[float, Array, Array]:
    """Count, mean and sum of squared deviations per channel: two passes over each block, blocks merged in order."""
    count, mean, m2 = 0.0, np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for block in blocks(x):
        block_count = float(block.size // block.shape[1])
        block_mean = channel_sum(block) / block_count
        deviation = block.astype(np.float64) - per_channel(block_mean, block)
        block_m2 = channel_sum(deviation * deviation)
        count, mean, m2 = merge((count, mean, m2), (block_count, block_mean, block_m2))
    return count, mean, m2


def merge(a: tuple[float, Array, Array], b: tuple[float, Array, Array]) -> tuple[float, Array, Array]:
    """Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979."""
    if a[0] == 0.0:
        return b
    count = a[0] + b[0]
    delta = b[1] - a[1]
    mean = a[1] + delta * (b[0] / count)
    m2 = (a[2] + b[2]) + (delta * delta) * (a[0] * b[0] / count)
    return count, mean, m2


def blocks(x: Array) -> Iterator[Array]:
    """What one block of statistics covers: 128 rows; whole planes up to 8,192 values; or a part of one plane."""
    if x.ndim == 2:
        for start in range(0, len(x), STATS_ROWS):
            yield x[start : start + STATS_ROWS]
        return
    x = x.reshape(*x.shape[:2], -1)
    length = x.shape[2]
    if length < STATS_BLOCK:
        planes = STATS_BLOCK // length
        for start in range(0, len(x), planes):
            yield x[start : start + planes]
        return
    for n in range(len(x)):
        for start in range(0, length, STATS_BLOCK):
            yield x[n : n + 1, :, start : start + STATS_BLOCK]
