"""What the functions and the layer of batch norm take, and how it is checked."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusedstep._core import BatchNormSaved

#: float32, float64, float16 or ml_dtypes.bfloat16.
Array = NDArray[Any]
#: (C,) float32; float64 too where x is float64.
Channels = NDArray[Any]
Doubles = NDArray[np.float64]
Activation = Literal["relu"] | None


def channels(given: Any, name: str, like: Any) -> Doubles:
    """A (C,) float64 array without its subclass, which may have arithmetic of its own."""
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a float64 array, got {type(given).__name__}")
    array = np.asarray(given) if isinstance(given, np.ndarray) else None
    if array is None or array.dtype != np.float64:
        got = type(given).__name__ if array is None else array.dtype
        raise TypeError(f"{name}: expected a float64 array, got {got}")
    if array.ndim != 1 or array.shape != np.asarray(like).shape:
        raise ValueError(f"{name}: expected shape (C,), got {array.shape}")
    return array


def listed(parts: Any, name: str) -> list[Any]:
    """The parts that workers computed."""
    if not isinstance(parts, Sequence):
        raise TypeError(f"{name}: expected a list, got {type(parts).__name__}")
    if not parts:
        raise ValueError(f"{name}: expected at least one, got none")
    return list(parts)


def require_saved(saved: BatchNormSaved) -> BatchNormSaved:
    """Refuses what the forward pass did not give."""
    if not isinstance(saved, BatchNormSaved):
        raise TypeError(f"saved: expected what batch_norm gave, got {type(saved).__name__}")
    return saved
