"""Batch norm: statistics, normalization, and their gradients.

Results as large as x are written into arrays that the caller gives, seen as (n, c, l): see `channel_sums`.

Statistics are taken in one pass, of d = x − pivot, where the pivot is the mean of the channel's first values: Chan,
Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.channel_sums import channel_sums, is_rows, view
from fusedstep.reference.codec import narrowed, widened
from fusedstep.reference.sums import lane_tree
from fusedstep.reference.two_doubles import (
    Doubles,
    TwoDoubles,
    add,
    multiply,
    negative,
    quotient,
    two_product,
    two_sum,
)

Array = NDArray[Any]
#: For some values of every channel: their number, their mean, and the sum of squared deviations from it.
Moments = tuple[int, TwoDoubles, TwoDoubles]

PIVOT_VALUES = 16  # values that the pivot is the mean of


def batch_statistics(x: Array, channel_axis: int, eps: float, mean: Doubles, inv_std: Doubles, m2: Doubles) -> None:
    """The mean, 1 / √(var + eps) and the sum of squared deviations of every channel."""
    with np.errstate(all="ignore"):
        v = view(x, channel_axis)
        (mean[:], _), (m2[:], _) = moments(v, exact=False)
        inv_std[:] = inverse_deviation(m2, count_of(v), eps)


def inverse_deviation(m2: Array, count: float, eps: float) -> Doubles:
    """1 / √(var + eps), var = m2 / count, the biased variance. In evaluation m2 is the running variance, count is 1."""
    with np.errstate(all="ignore"):
        deviation: Doubles = 1.0 / np.sqrt(m2.astype(np.float64) / count + eps)
        return deviation


def channel_scale(inv_std: Doubles, weight: Array | None) -> Doubles:
    """The factor of a channel's deviations: inv_std · weight."""
    with np.errstate(all="ignore"):
        return inv_std * (np.ones_like(inv_std) if weight is None else weight.astype(np.float64))


def running_statistics(
    running_mean: Array,
    running_var: Array,
    mean: Doubles,
    m2: Doubles,
    count: float,
    momentum: float,
    unbiased: bool,
) -> tuple[Array, Array]:
    """running ← (1 − momentum) · running + momentum · batch, rounded to the dtype of the running ones.

    The batch's variance is m2 / (count − 1), or m2 / count where it is not to be unbiased.
    """
    with np.errstate(all="ignore"):
        var = m2 / (count - 1.0 if unbiased else count)
        moved_mean = (1.0 - momentum) * running_mean.astype(np.float64) + momentum * mean
        moved_var = (1.0 - momentum) * running_var.astype(np.float64) + momentum * var
        return moved_mean.astype(running_mean.dtype), moved_var.astype(running_var.dtype)


def all_finite(mean: Doubles, m2: Doubles) -> bool:
    """Whether the statistics of a batch have neither NaN nor infinity."""
    return bool(np.isfinite(mean).all() and np.isfinite(m2).all())


def cumulative_momentum(batches: int) -> float:
    """The momentum with which running statistics are the average of all batches so far."""
    return 1.0 / (batches + 1)


def exact_statistics(
    x: Array, channel_axis: int, mean: Doubles, m2: Doubles, mean_low: Doubles, m2_low: Doubles
) -> None:
    """The mean and the sum of squared deviations with twice the precision of double, in two parts."""
    with np.errstate(all="ignore"):
        (mean[:], mean_low[:]), (m2[:], m2_low[:]) = moments(view(x, channel_axis), exact=True)


def normalize(
    x: Array,
    channel_axis: int,
    weight: Array | None,
    bias: Array | None,
    residual: Array | None,
    mean: Doubles,
    inv_std: Doubles,
    y: Array,
    mask: NDArray[np.uint16] | None,
    folded: bool,
) -> None:
    """y = weight · (x − mean) · inv_std + bias, plus the residual, through relu where there is a mask.

    Folded, it is one multiplication and one addition.
    """
    with np.errstate(all="ignore"):
        v, out = view(x, channel_axis), view(y, channel_axis)
        values = widened(v)
        scale = channel_scale(inv_std, weight)
        shift = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
        if folded:
            z = values * per_channel(scale, values) + per_channel(shift - mean * scale, values)
        else:
            z = centred(values, mean) * per_channel(scale, values) + per_channel(shift, values)
        if residual is not None:
            z = z + widened(view(residual, channel_axis))
        if mask is not None:
            passing = ~(z <= 0)
            mask[: words(v)] = packed(passing)
            z = np.where(passing, z, z.dtype.type(0))
        out[...] = narrowed(z, y.dtype)


def gradient_sums(
    dy: Array,
    x: Array,
    channel_axis: int,
    mask: NDArray[np.uint16] | None,
    mean: Doubles,
    sum_dy: Doubles,
    sum_dy_d: Doubles,
) -> None:
    """Σ dy and Σ dy · (x − mean) of every channel, of the dy that relu lets pass."""
    with np.errstate(all="ignore"):
        v = view(x, channel_axis)
        g = masked(widened(view(dy, channel_axis)), mask).astype(np.float64)
        d = widened(v).astype(np.float64) - mean[:, None]
        for total, terms in ((sum_dy, g), (sum_dy_d, g * d)):
            high, low = channel_sums(terms, exact=False)
            total[:] = high + low


def gradient(
    dy: Array,
    x: Array,
    channel_axis: int,
    mask: NDArray[np.uint16] | None,
    scale: Doubles,
    mean: Doubles,
    inv_std: Doubles,
    sum_dy: Doubles,
    sum_dy_d: Doubles,
    count: float,
    training: bool,
    dx: Array,
    dresidual: Array | None,
) -> None:
    """dx = scale · (dy − mean(dy) − d · mean(dy · d) / (var + eps)), d = x − mean; in evaluation dx = scale · dy."""
    with np.errstate(all="ignore"):
        values = widened(view(x, channel_axis))
        g = masked(widened(view(dy, channel_axis)), mask)
        residual_gradient = g if dresidual is None else narrowed(g, dresidual.dtype)
        if training:
            offset = per_channel(sum_dy / count, values)
            slope = per_channel((inv_std * inv_std) * (sum_dy_d / count), values)
            g = (g - offset) - centred(values, mean) * slope
        x_gradient = narrowed(g * per_channel(scale, values), dx.dtype)
        results = [(view(dx, channel_axis), x_gradient)]
        if dresidual is not None:
            results.append((view(dresidual, channel_axis), residual_gradient))
        # Nothing fails from here on.
        for place, result in results:
            place[...] = result


def parameter_gradients(inv_std: Doubles, sum_dy: Doubles, sum_dy_d: Doubles, dtype: Any) -> tuple[Array, Array]:
    """dweight = Σ dy · (x − mean) · inv_std and dbias = Σ dy, rounded to a dtype."""
    with np.errstate(all="ignore"):
        return (inv_std * sum_dy_d).astype(dtype), sum_dy.astype(dtype)


def merge_gradient_sums(parts: Iterable[tuple[Doubles, Doubles]]) -> tuple[Doubles, Doubles]:
    """Σ dy and Σ dy · (x − mean) over all parts, which are added one after the other."""
    first, *others = parts
    sum_dy, sum_dy_d = first[0].copy(), first[1].copy()
    for dy, dy_d in others:
        sum_dy += dy
        sum_dy_d += dy_d
    return sum_dy, sum_dy_d


def count_of(v: Array) -> float:
    """Values per channel."""
    return float(v.shape[0] * v.shape[2])


def per_channel(values: Doubles, v: Array) -> Array:
    """Shapes (C,) for broadcasting, in the view's dtype."""
    column: Array = values.astype(v.dtype)[:, None]
    return column


def centred(values: Array, mean: Doubles) -> Array:
    """x − mean to the last bit of x's dtype, even where the mean is far larger: it is taken off in two parts."""
    high = mean.astype(values.dtype)
    rest = mean - high.astype(np.float64)
    result: Array = (values - high[:, None]) - per_channel(rest, values)
    return result


def pivots(v: Array) -> Doubles:
    """The mean of each channel's first 16 values: of the first plane, or of the first rows."""
    values = widened(v)
    if is_rows(v):
        first = values[:PIVOT_VALUES, :, 0].astype(np.float64)
        total = np.add.reduce(first, axis=0, initial=0.0)
        mean = total / len(first)
    else:
        first = values[0, :, :PIVOT_VALUES].astype(np.float64)
        lanes = np.zeros((len(first), PIVOT_VALUES))
        lanes[:, : first.shape[1]] = first
        mean = lane_tree(lanes) / first.shape[1]
    pivot: Doubles = mean.astype(values.dtype).astype(np.float64)
    return pivot


def moments(v: Array, exact: bool) -> tuple[TwoDoubles, TwoDoubles]:
    """The mean and the sum of squared deviations of every channel."""
    pivot = pivots(v)
    x = widened(v).astype(np.float64)
    d, rest = two_sum(x, -pivot[:, None])
    total = channel_sums(d, exact, rest if exact else None)
    return from_sums(pivot, two_sum(*total), two_sum(*channel_sums(d * d, exact)), count_of(v))


def from_sums(pivot: Doubles, total: TwoDoubles, squares: TwoDoubles, count: float) -> tuple[TwoDoubles, TwoDoubles]:
    """Mean and m2 from Σ d and Σ d²: pivot + Σ d / n, and Σ d² − (Σ d)² / n."""
    near = total[0] / count
    product, error = two_product(near, np.full_like(near, count))
    shift = near, ((total[0] - product) - error + total[1]) / count
    mean, rest = two_sum(pivot, shift[0])
    m2 = add(squares, negative(multiply(total, shift)))
    below = m2[0] < 0.0
    return two_sum(mean, rest + shift[1]), (np.where(below, 0.0, m2[0]), np.where(below, 0.0, m2[1]))


def merge_all(parts: Iterable[Moments], channels: int) -> Moments:
    """The moments of all parts together, which are merged one after the other; of none they are 0."""
    zeros = np.zeros(channels)
    total: Moments = 0, (zeros, zeros), (zeros, zeros)
    for part in parts:
        if part[0]:
            total = total[0] + part[0], *merge(total, part)
    return total


def merge(a: Moments, b: Moments) -> tuple[TwoDoubles, TwoDoubles]:
    """Mean and m2 of two parts together, the second not empty.

    With δ = mean_b − mean_a: mean = mean_a + δ · n_b / n, m2 = m2_a + m2_b + δ² · n_a · n_b / n.
    """
    if a[0] == 0:
        return b[1], b[2]
    with np.errstate(all="ignore"):
        delta = add(b[1], negative(a[1]))
        share = quotient(b[0], a[0] + b[0], delta[0].shape)
        between = multiply(
            multiply(delta, delta), multiply(share, (np.full_like(delta[0], a[0]), np.zeros_like(delta[0])))
        )
        return add(a[1], multiply(delta, share)), add(add(a[2], b[2]), between)


def words(v: Array) -> int:
    """Words of the mask: rows are one run of bits, planes are padded to whole words."""
    n, c, length = v.shape
    return -(-v.size // 16) if is_rows(v) else n * c * -(-length // 16)


def packed(passing: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """One bit a value, the first the lowest of its word."""
    runs = passing.reshape(1, -1) if is_rows(passing) else passing.reshape(-1, passing.shape[2])
    padded = np.zeros((len(runs), -(-runs.shape[1] // 16) * 16), bool)
    padded[:, : runs.shape[1]] = runs
    bits: NDArray[np.uint16] = np.packbits(padded, axis=1, bitorder="little").reshape(-1).view("<u2")
    return bits


def masked(values: Array, mask: NDArray[np.uint16] | None) -> Array:
    """The values where the mask has a bit, else 0."""
    if mask is None:
        return values
    runs, length = (1, values.size) if is_rows(values) else (values.size // values.shape[2], values.shape[2])
    bits = np.unpackbits(mask[: words(values)].astype("<u2").view(np.uint8), bitorder="little").reshape(runs, -1)
    return np.where(bits[:, :length].reshape(values.shape) == 1, values, values.dtype.type(0))
