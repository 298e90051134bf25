"""Parameters of any structure as one float64 vector, and back; and checks of arguments."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arguments import is_number, number, real
from fusedstep._common.arrays import unmasked
from fusedstep._common.structure import Parameters
from fusedstep.reference.sums import scaled_to_one

Array = NDArray[Any]
Vector = NDArray[np.float64]
#: Gives the gradients at parameters; both of one structure.
Gradient = Callable[[Any], Any]
#: Gives the Hessian at parameters times a vector; all of one structure.
Product = Callable[[Any, Any], Any]

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Space:
    """Maps parameters, in any structure that an optimizer takes, to one vector and back.

    A number counts as an array without axes, and a list of numbers as one array. If `params` has such values, gradients
    may have them in the same places.
    """

    def __init__(self, params: Any) -> None:
        self._params = Parameters(params, leaf=are_numbers)
        self._numbers: list[bool] | None = None
        given = self._params.objects
        arrays = self._arrays(given, "params")
        self._numbers = [are_numbers(entry) for entry in given]
        for label, array in arrays:
            if array.dtype not in _DTYPES:
                raise TypeError(f"{label}: expected float32 or float64, got {array.dtype}")
        self._shapes = [array.shape for _, array in arrays]
        self._dtypes = [array.dtype for _, array in arrays]
        self._ends = np.cumsum([array.size for _, array in arrays]).tolist()
        self.size: int = self._ends[-1] if arrays else 0
        if self.size == 0:
            raise ValueError("params: expected at least one number, got none")
        #: The largest machine epsilon of the parameters' dtypes.
        self.eps = max(float(np.finfo(dtype).eps) for dtype in self._dtypes)
        self.origin = self._joined(arrays)

    def _arrays(self, values: list[Any], name: str) -> list[tuple[str, Array]]:
        """The arrays in order, each with its name for errors."""
        labels = self._params.labels(name)
        return [
            (label, self._array(value, label, k)) for k, (label, value) in enumerate(zip(labels, values, strict=True))
        ]

    def _array(self, value: Any, name: str, k: int) -> Array:
        """The k-th array. It may be a NumPy scalar: arithmetic on arrays without axes gives one."""
        if isinstance(value, np.generic):
            return np.asarray(value)
        if are_numbers(value) and self._takes_numbers(value, k):
            # Numbers have no dtype: gradients take that of the parameters, and parameters take float64.
            return np.asarray(value, np.float64 if self._numbers is None else self._dtypes[k])
        return unmasked(value, name)

    def _takes_numbers(self, value: Any, k: int) -> bool:
        if self._numbers is None:
            return True
        return k < len(self._numbers) and (
            self._numbers[k] or (self._shapes[k] == () and not isinstance(value, (list, tuple)))
        )

    def flat(self, value: Any, name: str, where: str = "") -> Vector:
        """A new float64 vector; an error if structure, a shape or a dtype differs, or a number is not finite."""
        arrays = self._arrays(self._params.values(value, name), name)
        for (label, array), shape, dtype in zip(arrays, self._shapes, self._dtypes, strict=True):
            if array.shape != shape:
                raise ValueError(f"{label}: expected shape {shape}, got {array.shape}")
            if array.dtype != dtype:
                raise TypeError(f"{label}: expected {dtype}, got {array.dtype}")
        return self._joined(arrays, where)

    def _joined(self, arrays: list[tuple[str, Array]], where: str = "") -> Vector:
        for label, array in arrays:
            if not np.isfinite(array).all():
                bad = int(array.size - np.count_nonzero(np.isfinite(array)))
                raise ValueError(f"{label}: expected finite numbers, got {bad} of {array.size} that are not{where}")
        return np.concatenate([array.ravel() for _, array in arrays], dtype=np.float64)

    def pack(self, vector: Vector) -> Any:
        """New arrays in the structure and the dtypes of the parameters."""
        pieces = [
            piece.reshape(shape).astype(dtype)
            for piece, shape, dtype in zip(np.split(vector, self._ends[:-1]), self._shapes, self._dtypes, strict=True)
        ]
        return self._params.built(pieces)


def are_numbers(value: Any) -> bool:
    """Whether it is a number, or nested lists of numbers with a common shape; not an array."""
    if isinstance(value, (list, tuple)):
        if not value:
            return False
        shape = _shape_of(value[0])
        return shape is not None and all(_shape_of(entry) == shape for entry in value)
    return is_number(value)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a number or of nested lists of numbers; None for anything else."""
    if not are_numbers(value):
        return None
    return (len(value), *(_shape_of(value[0]) or ())) if isinstance(value, (list, tuple)) else ()


def size_of(vector: Array) -> float:
    """The Euclidean norm, also where the sum of squares would overflow or underflow."""
    with np.errstate(all="ignore"):
        size = float(np.linalg.norm(vector))
        scaled = None if 1e-140 < size < math.inf else scaled_to_one(vector)
        return size if scaled is None else float(np.ldexp(np.linalg.norm(scaled[0]), scaled[1]))


def scalar(value: Any, name: str) -> float:
    """The value of a number or of an array without axes; it may be infinite or NaN."""
    return real(_held(value), name)


def positive(value: Any, name: str, *, zero: bool = False) -> float:
    """The value of a finite number > 0 or of an array without axes; with `zero`, 0 is allowed."""
    return number(_held(value), name, least=0) if zero else number(_held(value), name, above=0)


def _held(value: Any) -> Any:
    """The number in an array without axes; any other value unchanged."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value[()]
    if hasattr(value, "detach") and getattr(value, "ndim", None) == 0:
        return value.detach().item()
    return value
