"""The arrays that somebody trains, held from outside of an optimizer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._arrays import as_array, dtype_name

Array = NDArray[Any]
#: An array, a list of arrays, or a dict of them by name.
Structure = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Weights:
    """An array, a list or a dict of arrays, which are written in place.

    Args:
        params: The arrays, of whatever shows its memory as one.
        kinds: The dtypes that will do; None for any of numbers.

    Raises:
        TypeError: Something that is no array, or of another dtype.
        ValueError: An array that cannot be written; no array at all.
    """

    def __init__(self, params: Structure, kinds: Sequence[str] | None = None) -> None:
        self._names: list[Any] | None = list(params) if isinstance(params, Mapping) else None
        self._single = not isinstance(params, Mapping | list | tuple)
        self._labels, given = self._flat(params, "params")
        self.arrays = [_plain(value, label) for label, value in zip(self._labels, given, strict=True)]
        for label, array in zip(self._labels, self.arrays, strict=True):
            if array.dtype.hasobject or (kinds is not None and dtype_name(array.dtype) not in kinds):
                raise TypeError(f"{label}: expected {', '.join(kinds or ['numbers'])}, got {array.dtype}")
            if not array.flags.writeable:
                raise ValueError(f"{label}: expected an array that can be written, got a read-only one")
        if not self.arrays:
            raise ValueError("params: expected at least one array, got none")

    def built(self, values: Sequence[Array]) -> Structure:
        """Other arrays in the same structure."""
        if self._single:
            return values[0]
        return list(values) if self._names is None else dict(zip(self._names, values, strict=True))

    def copies(self) -> list[Array]:
        """What they hold now."""
        return [array.copy(order="K") for array in self.arrays]

    def read(self, given: Structure, name: str, like: Sequence[Array]) -> list[Array]:
        """Copies of arrays in the same structure, laid out as `like`, of the same shapes and dtypes."""
        kind = "an array" if self._single else "a list" if self._names is None else "a dict"
        found = "a dict" if isinstance(given, Mapping) else "a list" if isinstance(given, list | tuple) else "an array"
        if found != kind:
            raise TypeError(f"{name}: expected {kind}, got {type(given).__name__}")
        if self._names is not None and set(given) != set(self._names):
            raise ValueError(f"{name}: expected {self._names}, got {list(given)}")
        if self._names is not None:
            given = {key: given[key] for key in self._names}
        labels, values = self._flat(given, name)
        if len(values) != len(like):
            raise ValueError(f"{name}: expected {len(like)} arrays, got {len(values)}")
        taken = []
        for label, value, model in zip(labels, values, like, strict=True):
            array = _plain(value, label)
            if dtype_name(array.dtype) != dtype_name(model.dtype):
                raise TypeError(f"{label}: expected dtype {model.dtype}, got {array.dtype}")
            if array.shape != model.shape:
                raise ValueError(f"{label}: expected shape {model.shape}, got {array.shape}")
            copy = np.empty_like(model)
            copy[...] = array.view(model.dtype)
            taken.append(copy)
        return taken

    def write(self, values: Sequence[Array]) -> None:
        """Puts values into the arrays."""
        for array, value in zip(self.arrays, values, strict=True):
            array[...] = value

    @contextmanager
    def holding(self, values: Sequence[Array]) -> Iterator[None]:
        """Other values for a while; the bits come back, whatever happens."""
        before = self.copies()
        try:
            self.write(values)
            yield
        finally:
            self.write(before)

    @staticmethod
    def _flat(params: Structure, name: str) -> tuple[list[str], list[Any]]:
        if isinstance(params, Mapping):
            return [f"{name}[{key!r}]" for key in params], list(params.values())
        if isinstance(params, list | tuple):
            return [f"{name}[{k}]" for k in range(len(params))], list(params)
        return [name], [params]


class Guest:
    """What puts other values into the weights for a while, and takes nothing from them meanwhile."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._away = False

    @contextmanager
    def _in_place(self, values: Sequence[Array]) -> Iterator[None]:
        self._at_home("with")
        self._away = True
        try:
            with self._weights.holding(values):
                yield
        finally:
            self._away = False

    def _at_home(self, what: str) -> None:
        if self._away:
            raise RuntimeError(f"{what}: the weights hold other values until the end of the with block")


def check_keys(state: Any, keys: Sequence[str]) -> None:
    """Refuses a state dict of something else."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dict, got {type(state).__name__}")
    if set(state) != set(keys):
        raise KeyError(f"state: expected {list(keys)}, got {list(state)}")


def _plain(value: Any, label: str) -> Array:
    array = as_array(value, label)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label}: expected an array, got a masked one")
    return np.asarray(array)
