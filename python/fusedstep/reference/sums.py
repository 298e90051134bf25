"""The order of every sum."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 32


def lane_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums the last axis in double: value i to lane i mod 32, then the lanes in a tree, far half to near half."""
    length = values.shape[-1]
    rows = -(-length // LANES)
    padded = np.zeros((*values.shape[:-1], rows * LANES))
    padded[..., :length] = values
    lanes = np.zeros((*values.shape[:-1], LANES))
    for row in range(rows):
        lanes += padded[..., row * LANES : (row + 1) * LANES]
    return lane_tree(lanes)


def lane_tree(lanes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds the lanes of the last axis, a power of two of them."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def plane_sum(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums the axes (N, L) of an (N, C, L) array, giving (C,): each plane is padded to whole rows of lanes."""
    n, c, length = values.shape
    rows = -(-length // LANES)
    padded = np.zeros((n, c, rows * LANES))
    padded[..., :length] = values
    lanes = np.zeros((c, LANES))
    for plane in padded:
        for row in range(rows):
            lanes += plane[:, row * LANES : (row + 1) * LANES]
    return lane_tree(lanes)
