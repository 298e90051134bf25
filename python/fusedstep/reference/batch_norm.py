"""Batch norm: statistics, normalization, and their gradients. Results are written into arrays that the caller gives.

Every dense array is seen as (n, c, l) in the order of its memory. Rows: l is 1 and the channels are contiguous.
Planes: n · c runs of l values of one channel.

Statistics are taken in one pass, of d = x − pivot, where the pivot is the mean of the channel's first values: Chan,
Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.codec import narrowed, widened
from fusedstep.reference.sums import LANES, lane_tree

Array = NDArray[Any]
Doubles = NDArray[np.float64]
#: What rounding left of a sum is carried beside it: high and low parts.
TwoDoubles = tuple[Doubles, Doubles]

PIVOT_VALUES = 16  # values that the pivot is the mean of
PLANES_BLOCK = 8192  # values of a channel that are summed together: whole planes, or a part of one
LEAST_WIDTH = 64  # narrower rows are summed several at a time, as one wide row


def batch_statistics(x: Array, channel_axis: int, eps: float, mean: Doubles, inv_std: Doubles, m2: Doubles) -> None:
    """The mean, 1 / √(var + eps) and the sum of squared deviations of every channel."""
    with np.errstate(all="ignore"):
        v = view(x, channel_axis)
        (mean[:], _), (m2[:], _) = moments(v, exact=False)
        inv_std[:] = 1.0 / np.sqrt(m2 / count_of(v) + eps)


def exact_statistics(
    x: Array, channel_axis: int, mean: Doubles, m2: Doubles, mean_low: Doubles, m2_low: Doubles
) -> None:
    """The same with twice the precision of double, in two parts."""
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
        ones, zeros = np.ones(len(mean)), np.zeros(len(mean))
        scale = inv_std * (ones if weight is None else weight.astype(np.float64))
        shift = zeros if bias is None else bias.astype(np.float64)
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


def view(x: Array, channel_axis: int) -> Array:
    """(n, c, l) in the order of memory, without a copy."""
    x = np.asarray(x)
    channels = x.shape[channel_axis]
    if channels == 1:
        return x.transpose(memory_order(x)).reshape(min(1, x.size), 1, x.size)
    order = memory_order(x)
    place = order.index(channel_axis)
    sizes = [x.shape[axis] for axis in order]
    outer, inner = int(np.prod(sizes[:place])), int(np.prod(sizes[place + 1 :]))
    return x.transpose(order).reshape(outer, channels, inner)


def memory_order(x: Array) -> list[int]:
    """The axes from the slowest to the fastest; those of one entry lie anywhere, and come first."""
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis] if x.shape[axis] > 1 else -np.inf)


def is_rows(v: Array) -> bool:
    """Whether a view is one of rows."""
    return bool(v.shape[2] == 1 and v.shape[1] > 1)


def count_of(v: Array) -> float:
    """Values per channel."""
    return float(v.shape[0] * v.shape[2])


def per_channel(values: Doubles, v: Array) -> Array:
    """Shapes (C,) for broadcasting, in the view's dtype."""
    column: Array = values.astype(v.dtype)[:, None]
    return column


def centred(values: Array, mean: Doubles) -> Array:
    """x − mean to the last bit of x's dtype, also where the mean dwarfs the deviation: the mean in two parts."""
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


def merge(
    a: tuple[int, TwoDoubles, TwoDoubles], b: tuple[int, TwoDoubles, TwoDoubles]
) -> tuple[TwoDoubles, TwoDoubles]:
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


def quotient(a: int, b: int, shape: tuple[int, ...]) -> TwoDoubles:
    """a / b of whole numbers below 2^53, for every channel."""
    near = np.full(shape, a / b)
    product, error = two_product(near, np.full(shape, float(b)))
    return near, ((a - product) - error) / b


def channel_sums(terms: Doubles, exact: bool, rest: Doubles | None = None) -> TwoDoubles:
    """Sums the (n, c, l) terms of every channel, and what rounding took from them: block after block."""
    rest = np.zeros_like(terms) if rest is None else rest
    if is_rows(terms):
        return row_sums(terms[:, :, 0], rest[:, :, 0], exact)
    return plane_sums(terms, rest, exact)


def plane_sums(terms: Doubles, rest: Doubles, exact: bool) -> TwoDoubles:
    """Each run of a channel's values is padded to whole rows of 32 lanes; the lanes of a block are added row by row."""
    channels = terms.shape[1]
    total = np.zeros(channels), np.zeros(channels)
    for block, lows in zip(plane_blocks(terms), plane_blocks(rest), strict=True):
        high, low = added(lane_rows(block), lane_rows(lows), exact)
        if exact:
            width = LANES // 2
            while width > 0:
                high, low = gathered((high[:, :width], low[:, :width]), (high[:, width:], low[:, width:]))
                width //= 2
            part = high[:, 0], low[:, 0]
        else:
            part = lane_tree(high), np.zeros(channels)
        total = gathered(total, part)
    return total


def lane_rows(block: Doubles) -> list[Doubles]:
    """The (C, 32) rows of a block of planes, one plane after the other."""
    planes, channels, length = block.shape
    padded = np.zeros((planes, channels, -(-length // LANES) * LANES))
    padded[:, :, :length] = block
    return [plane[:, at : at + LANES] for plane in padded for at in range(0, padded.shape[2], LANES)]


def plane_blocks(terms: Doubles) -> Iterator[Doubles]:
    """Whole planes up to 8,192 values a channel, or parts of one plane."""
    n, _, length = terms.shape
    if length < PLANES_BLOCK:
        planes = PLANES_BLOCK // length
        for start in range(0, n, planes):
            yield terms[start : start + planes]
        return
    for k in range(n):
        for start in range(0, length, PLANES_BLOCK):
            yield terms[k : k + 1, :, start : start + PLANES_BLOCK]


def row_sums(terms: Doubles, rest: Doubles, exact: bool) -> TwoDoubles:
    """Rows are summed one after the other in blocks; several narrow ones make a wide row, whose places add up last."""
    channels = terms.shape[1]
    width = -(-LEAST_WIDTH // channels) * channels
    values = (128 if width >= 256 else 32768 // width) * width
    total = np.zeros(width), np.zeros(width)
    for start in range(0, terms.size, values):
        block, lows = (wide_rows(part.reshape(-1)[start : start + values], width) for part in (terms, rest))
        total = gathered(total, added(block, lows, exact))
    places = np.zeros(channels), np.zeros(channels)
    for at in range(0, width, channels):
        places = gathered(places, (total[0][at : at + channels], total[1][at : at + channels]))
    return places


def wide_rows(block: Doubles, width: int) -> list[Doubles]:
    """The values in rows of a width, the last one padded with zeros."""
    padded = np.zeros(-(-block.size // width) * width)
    padded[: block.size] = block
    return list(padded.reshape(-1, width))


def added(rows: list[Doubles], lows: list[Doubles], exact: bool) -> TwoDoubles:
    """Adds up rows one after the other; exact, with what rounding took and takes away."""
    total = np.zeros_like(rows[0]), np.zeros_like(rows[0])
    for row, low in zip(rows, lows, strict=True):
        total = gathered(total, (row, low)) if exact else (total[0] + row, total[1])
    return total


def gathered(total: TwoDoubles, more: TwoDoubles) -> TwoDoubles:
    """The sum, whose low part may grow beyond half a unit of the high one."""
    high, low = two_sum(total[0], more[0])
    return high, total[1] + (more[1] + low)


def two_sum(a: Doubles, b: Doubles) -> TwoDoubles:
    """a + b without error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Doubles, b: Doubles) -> TwoDoubles:
    """a · b without error, by Dekker's splitting: the C++ has a fused multiply-add for it."""
    product = a * b
    # Near the ends of the doubles the parts are of numbers times a power of 2, so that none of them leaves the range.
    size = np.abs(product)
    scale = np.where(size > 2.0**900, 2.0**-100, np.where(size < 2.0**-800, 2.0**250, 1.0))
    larger, smaller = np.where(np.abs(a) >= np.abs(b), (a, b), (b, a))
    x, y = larger * np.minimum(scale, 1.0), smaller * np.maximum(scale, 1.0)
    near = x * y
    x_high, x_low = split(x)
    y_high, y_low = split(y)
    error = ((x_high * y_high - near) + x_high * y_low + x_low * y_high) + x_low * y_low
    return product, ((near - product * scale) + error) / scale


def split(a: Doubles) -> TwoDoubles:
    """Two halves of 26 bits each."""
    huge = np.where(np.abs(a) > 2.0**990, 2.0**-30, 1.0)  # whose product would overflow
    small = a * huge
    scaled = small * 134217729.0
    high = (scaled - (scaled - small)) / huge
    return high, a - high


def multiply(a: TwoDoubles, b: TwoDoubles) -> TwoDoubles:
    """a · b."""
    product, error = two_product(a[0], b[0])
    return two_sum(product, error + (a[0] * b[1] + a[1] * b[0]))


def add(a: TwoDoubles, b: TwoDoubles) -> TwoDoubles:
    """a + b."""
    total, error = two_sum(a[0], b[0])
    rest, below = two_sum(a[1], b[1])
    near, low = two_sum(total, error + rest)
    return two_sum(near, low + below)


def negative(a: TwoDoubles) -> TwoDoubles:
    """−a."""
    return -a[0], -a[1]


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
