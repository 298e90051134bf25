"""What the augmentations check, and how they see either layout."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arguments import choice, number, whole
from fusedstep._common.arrays import as_array, dtype_name

Array = NDArray[Any]
#: Which axes the height, the width and the channels are.
Layout = Literal["NHWC", "NCHW"]


def plain_array(value: Any, name: str) -> Array:
    """An array of anything but objects, without a mask, which would be lost."""
    array = as_array(value, name)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a masked array")
    if array.dtype.hasobject:
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    return np.asarray(array)


def images(value: Any, layout: Layout, dtypes: tuple[str, ...] = ()) -> Array:
    """The argument x, checked, in its own layout."""
    choice(layout, "layout", ("NHWC", "NCHW"))
    array = typed(value, "x", dtypes)
    if array.ndim != 4 or array.size == 0:
        raise ValueError(f"x: expected {layout} images, at least one of one pixel, got shape {array.shape}")
    return array


def typed(value: Any, name: str, dtypes: tuple[str, ...]) -> Array:
    """An array of one of some dtypes, in native byte order; of any that are plain where none are named."""
    array = plain_array(value, name)
    if dtypes and not (dtype_name(array.dtype) in dtypes and array.dtype.isnative):
        raise TypeError(f"{name}: expected {' or '.join(dtypes)}, got {dtype_name(array.dtype)}")
    return array


def result(out: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """Where the result goes: a new array, x itself, or one that shares nothing with x."""
    if out is None:
        return np.empty(shape, x.dtype)
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out: expected an array, got {type(out).__qualname__}")
    if out.dtype != x.dtype or dtype_name(out.dtype) != dtype_name(x.dtype):
        raise TypeError(f"out: expected {dtype_name(x.dtype)} as x, got {dtype_name(out.dtype)}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out: is read-only")
    same = out.strides == x.strides and out.shape == x.shape and out.ctypes.data == x.ctypes.data
    if not same and np.may_share_memory(out, x):
        raise ValueError("out: overlaps x (it may be the same array)")
    return out


def channels_last(array: Array, layout: Layout) -> Array:
    """The same memory as (N, H, W, C)."""
    return array if layout == "NHWC" else array.transpose(0, 2, 3, 1)


def outer_shape(array: Array, layout: Layout, height: int, width: int) -> tuple[int, ...]:
    """The shape of such images with another height and width."""
    n, c = array.shape[0], array.shape[layout.index("C")]
    return (n, height, width, c) if layout == "NHWC" else (n, c, height, width)


def generator(rng: Any) -> np.random.Generator:
    """The argument rng, checked."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__qualname__}")
    return rng


def pair(value: Any, name: str, *, least: int) -> tuple[int, int]:
    """A height and a width; one number is both."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name}: expected a number or (height, width), got {value!r}")
        return whole(value[0], f"{name}[0]", least=least), whole(value[1], f"{name}[1]", least=least)
    both = whole(value, name, least=least)
    return both, both


def interval(value: Any, name: str, *, centre: float, least: float, most: float) -> tuple[float, float]:
    """(low, high) as given, or centre ± value cut off at `least`."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name}: expected a number or (low, high), got {value!r}")
        low, high = number(value[0], f"{name}[0]"), number(value[1], f"{name}[1]")
    else:
        half = number(value, name, least=0)
        low, high = max(least, centre - half) if math.isinf(most) else centre - half, centre + half
    if not least <= low <= high <= most:
        raise ValueError(f"{name}: expected factors in [{least:g}, {most:g}], the lower first, got {value!r}")
    return low, high
