"""Gradients that have few rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arguments import whole
from fusedstep._common.arrays import as_array
from fusedstep.reference.codec import widened

Array = NDArray[Any]


def _plain(value: Any, name: str) -> Array:
    array = as_array(value, name)
    if isinstance(array, np.ma.MaskedArray):  # its mask would be lost
        raise TypeError(f"{name}: expected a plain NumPy array, got MaskedArray")
    return np.asarray(array)  # a subclass may have arithmetic of its own


class RowSparse:
    """The gradient of an array with few rows in use, such as an embedding.

    It stands for the array of shape `shape` with `values[k]` in row `indices[k]`, summed for repeated indices, and
    zeros elsewhere. An optimizer that takes it (`SGD`, `Adagrad`, `SparseAdam`) reads and writes no other rows of the
    parameter and its state.

    Args:
        indices: The rows, in any order, repeated or not; integers, shape (k,).
        values: Their values; float32, float16, bfloat16 or float64, as for any gradient; shape (k, *shape[1:]).
        shape: The parameter's shape, of at least one axis.

    Raises:
        TypeError: Indices that are no integers; anything that is no array.
        ValueError: Shapes that do not match; a row index that is out of range.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> table = np.zeros((4, 2), np.float32)
        >>> grad = fs.RowSparse([3, 1, 3], np.ones((3, 2), np.float32), table.shape)
        >>> report = fs.SGD(table, lr=1.0).step(grad)
        >>> print(table[:, 0])
        [ 0. -1.  0. -2.]
    """

    def __init__(self, indices: Any, values: Any, shape: tuple[int, ...]) -> None:
        if isinstance(indices, (list, tuple)):
            indices = np.asarray(indices, dtype=None if len(indices) else np.int64)
        self.indices: Array = indices
        self.values: Array = values
        if not isinstance(shape, list | tuple):
            raise TypeError(f"shape: expected a tuple of whole numbers, got {type(shape).__name__}")
        self.shape = tuple(whole(length, f"shape[{k}]") for k, length in enumerate(shape))
        self._check("")

    def _check(self, prefix: str) -> None:
        self.indices, self.values = (_plain(getattr(self, name), f"{prefix}{name}") for name in ("indices", "values"))
        if self.indices.dtype.kind not in "iu":
            raise TypeError(f"{prefix}indices: expected integers, got dtype {self.indices.dtype}")
        if self.indices.ndim != 1:
            raise ValueError(f"{prefix}indices: expected one axis, got shape {self.indices.shape}")
        if not self.shape:
            raise ValueError(f"{prefix}shape: expected at least one axis, got ()")
        expected = (len(self.indices), *self.shape[1:])
        if self.values.shape != expected:
            raise ValueError(f"{prefix}values: expected shape {expected}, got {self.values.shape}")
        if self.indices.size:
            low, high = int(self.indices.min()), int(self.indices.max())
            if low < 0 or high >= self.shape[0]:
                raise ValueError(
                    f"{prefix}indices: expected rows from 0 to {self.shape[0] - 1}, got {low if low < 0 else high}"
                )

    def coalesced(self, name: str = "") -> tuple[NDArray[np.int64], Array]:
        """The rows in rising order, once each, and their values: those of repeated rows are summed in the order given.

        The sums are taken in double and rounded once, to float32 where the values are narrower.
        """
        self._check(f"{name}.")
        indices = self.indices.astype(np.int64)
        rows, places = np.unique(indices, return_inverse=True)
        if len(rows) == len(indices):
            return rows, np.ascontiguousarray(self.values[np.argsort(indices)])
        given = widened(self.values)
        sums = np.zeros((len(rows), *self.shape[1:]))
        with np.errstate(all="ignore"):
            np.add.at(sums, places, given)
            return rows, sums.astype(given.dtype, copy=False)

    def __repr__(self) -> str:
        return f"RowSparse({len(self.indices)} rows of shape {self.shape}, {self.values.dtype})"
