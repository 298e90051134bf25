"""Arrays that share memory: how one lies in another, to save it once and load it shared."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arrays import bfloat16_dtype, dtype_name

Array = NDArray[Any]

#: The most work to decide whether two arrays share an element (`max_work` of `numpy.shares_memory`).
_WORK = 100_000


class View(NamedTuple):
    """Where an array lies in the memory of another, in bytes; an axis of length 1 has the stride 0."""

    of: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]


def in_memory(array: Array) -> list[int]:
    """The axes as they lie in memory, the slowest first; in C order where they leave gaps."""
    axes = sorted(range(array.ndim), key=lambda k: -array.strides[k])
    dense = array.transpose(axes).flags.c_contiguous
    return axes if dense and not array.flags.c_contiguous else sorted(axes)


def ties(arrays: Mapping[str, Array], labels: Mapping[str, str]) -> dict[str, View]:
    """Views for the arrays that lie within another one.

    Raises:
        ValueError: Two share memory, and neither holds all of the other in one dense block.
    """
    views: dict[str, View] = {}
    for cluster in _clusters(arrays):
        roots: list[str] = []
        for name in sorted(cluster, key=lambda name: (-_extent(arrays[name]), not _dense(arrays[name]))):
            holder = _holder(name, roots, arrays, labels)
            if holder is None:
                roots.append(name)
            else:
                views[name] = holder
    return views


def place(view: View, root: Array) -> Array:
    """The view of an array; the array itself where it is all of it.

    Raises:
        ValueError: It does not lie in the array.
    """
    dtype = bfloat16_dtype() if view.dtype == "bfloat16" else np.dtype(view.dtype)
    steps = list(zip(view.shape, view.strides, strict=True))
    reach = [(length - 1) * stride for length, stride in steps]
    first = view.offset + sum(min(0, r) for r in reach)
    last = view.offset + sum(max(0, r) for r in reach) + dtype.itemsize
    count = np.prod([float(length) for length in view.shape], dtype=np.float64)
    unaligned = [n for n in (view.offset, *view.strides) if n % dtype.itemsize]
    if first < 0 or last > root.nbytes or not 1 <= count <= root.nbytes / dtype.itemsize or unaligned:
        raise ValueError(f"no view of {root.nbytes} bytes: {view}")
    if view == _view(view.of, root, root.ctypes.data) and dtype == root.dtype:
        return root
    memory = root.transpose(in_memory(root)).reshape(-1).view(np.uint8)
    return np.ndarray(view.shape, dtype, memory, view.offset, view.strides)


def _clusters(arrays: Mapping[str, Array]) -> Iterator[list[str]]:
    """Names of arrays whose addresses overlap, in the order that they were given in."""
    order = {name: k for k, name in enumerate(arrays)}
    cluster: list[str] = []
    end = 0
    for name in sorted((name for name in arrays if arrays[name].size), key=lambda name: _bounds(arrays[name])[0]):
        low, high = _bounds(arrays[name])
        if cluster and low >= end:
            if len(cluster) > 1:
                yield sorted(cluster, key=order.__getitem__)
            cluster, end = [], 0
        cluster.append(name)
        end = max(end, high)
    if len(cluster) > 1:
        yield sorted(cluster, key=order.__getitem__)


def _holder(name: str, roots: list[str], arrays: Mapping[str, Array], labels: Mapping[str, str]) -> View | None:
    """How it lies in one of the roots; None if it shares memory with none of them."""
    array = arrays[name]
    low, high = _bounds(array)
    for other in roots:
        root = arrays[other]
        start, end = _bounds(root)
        if low >= end or start >= high:
            continue
        dense = _dense(root)
        if _view("", array, start) == _view("", root, start) and array.dtype == root.dtype:
            # The file has no gaps, even where the array has some in memory.
            return _view(other, root if dense else np.empty(root.shape, root.dtype), None)
        within = start <= low and high <= end and array.nbytes <= root.nbytes and (low - start) % array.itemsize == 0
        if dense and within and not any(step % array.itemsize for step in array.strides):
            return _view(other, array, start)
        if _share(array, root):
            raise ValueError(
                f"{labels[name]}: shares memory with {labels[other]}, which does not hold all of it in one dense "
                "block: they cannot be loaded as tied (save the array that both are views of)"
            )
    return None


def _share(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _view(of: str, array: Array, start: int | None) -> View:
    strides = tuple(0 if n == 1 else step for n, step in zip(array.shape, array.strides, strict=True))
    offset = 0 if start is None else array.ctypes.data - start
    return View(of, dtype_name(array.dtype), array.shape, offset, strides)


def _bounds(array: Array) -> tuple[int, int]:
    """The first address and the one behind the last, of an array that is not empty."""
    reach = [(length - 1) * step for length, step in zip(array.shape, array.strides, strict=True)]
    start: int = array.ctypes.data
    return start + sum(min(0, r) for r in reach), start + sum(max(0, r) for r in reach) + array.itemsize


def _dense(array: Array) -> bool:
    return array.transpose(in_memory(array)).flags.c_contiguous


def _extent(array: Array) -> int:
    low, high = _bounds(array)
    return high - low
