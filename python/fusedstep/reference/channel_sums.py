"""Sums over every channel of an array, block after block.

Every dense array is seen as (n, c, l) in the order of its memory. Rows: l is 1 and the channels are contiguous.
Planes: n · c runs of l values of one channel.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.sums import LANES, lane_tree
from fusedstep.reference.two_doubles import Doubles, TwoDoubles, accumulate

Array = NDArray[Any]

PLANES_BLOCK = 8192  # values of a channel that are summed together: whole planes, or a part of one
LEAST_WIDTH = 64  # narrower rows are summed several at a time, as one wide row


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
    """The axes from the slowest to the fastest. Those of one entry have no place of their own: they come first."""
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis] if x.shape[axis] > 1 else -np.inf)


def is_rows(v: Array) -> bool:
    """Whether a view is one of rows."""
    return bool(v.shape[2] == 1 and v.shape[1] > 1)


def channel_sums(terms: Doubles, exact: bool, rest: Doubles | None = None) -> TwoDoubles:
    """The sum of the (n, c, l) terms of every channel, block after block, and its rounding error."""
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
                high, low = accumulate((high[:, :width], low[:, :width]), (high[:, width:], low[:, width:]))
                width //= 2
            part = high[:, 0], low[:, 0]
        else:
            part = lane_tree(high), np.zeros(channels)
        total = accumulate(total, part)
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
        total = accumulate(total, added(block, lows, exact))
    places = np.zeros(channels), np.zeros(channels)
    for at in range(0, width, channels):
        places = accumulate(places, (total[0][at : at + channels], total[1][at : at + channels]))
    return places


def wide_rows(block: Doubles, width: int) -> list[Doubles]:
    """The values in rows of a width, the last one padded with zeros."""
    padded = np.zeros(-(-block.size // width) * width)
    padded[: block.size] = block
    return list(padded.reshape(-1, width))


def added(rows: list[Doubles], lows: list[Doubles], exact: bool) -> TwoDoubles:
    """Adds up rows one after the other. If `exact`, the low part collects what rounding took away."""
    total = np.zeros_like(rows[0]), np.zeros_like(rows[0])
    for row, low in zip(rows, lows, strict=True):
        total = accumulate(total, (row, low)) if exact else (total[0] + row, total[1])
    return total
