"""The arrays that are trained, as averages and snapshots hold them."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._common.arrays import as_array, dtype_name
from fusedstep._common.structure import Parameters

Array = NDArray[Any]
#: What `fusedstep._common.structure.Parameters` takes.
Structure = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Weights:
    """Arrays in any structure that an optimizer takes, which are written in place.

    It holds the objects that were given, and asks them for their memory whenever it reads or writes.

    Args:
        params: The arrays, or objects that expose their memory as one.
        kinds: The allowed dtypes; None for any dtype of numbers.

    Raises:
        TypeError: Something that is no array, or of another dtype.
        ValueError: An array that cannot be written; no array at all.
    """

    def __init__(self, params: Structure, kinds: Sequence[str] | None = None) -> None:
        self._params = Parameters(params)
        self._known: list[tuple[tuple[int, ...], str]] = []
        arrays = self._look()
        for label, array in zip(self._params.labels("params"), arrays, strict=True):
            if array.dtype.hasobject or (kinds is not None and dtype_name(array.dtype) not in kinds):
                raise TypeError(f"{label}: expected {', '.join(kinds or ['numbers'])}, got {array.dtype}")
            if not array.flags.writeable:
                raise ValueError(f"{label}: expected an array that can be written, got a read-only one")
        if not arrays:
            raise ValueError("params: expected at least one array, got none")
        self._known = [(array.shape, dtype_name(array.dtype)) for array in arrays]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # An older version held what `Parameters` holds.
        if "_given" in state:
            state = {"_params": Parameters.of(state["_given"], state["_single"]), "_known": state["_known"]}
        self.__dict__.update(state)

    @property
    def arrays(self) -> list[Array]:
        """The arrays as they are now.

        Raises:
            ValueError: An array has another shape or dtype than at first, or its memory is gone; the container of the
                arrays holds others.
        """
        self._params.refuse_orphans()
        arrays = self._look()
        for label, array, (shape, dtype) in zip(self._params.labels("params"), arrays, self._known, strict=True):
            if array.shape != shape or dtype_name(array.dtype) != dtype:
                was, now = f"{shape} and {dtype}", f"{array.shape} and {dtype_name(array.dtype)}"
                raise ValueError(f"{label}: is of shape {now}, and was of {was} when it was given")
        return arrays

    def _look(self) -> list[Array]:
        labels = self._params.labels("params")
        return [_plain(owner, label) for label, owner in zip(labels, self._params.objects, strict=True)]

    def built(self, values: Sequence[Array]) -> Structure:
        """Other arrays in the same structure."""
        return self._params.built(values)

    def copies(self) -> list[Array]:
        """Copies of the arrays."""
        return [array.copy(order="K") for array in self.arrays]

    def read(self, given: Structure, name: str, like: Sequence[Array]) -> list[Array]:
        """Copies of arrays in the same structure, laid out as `like`, of the same shapes and dtypes."""
        taken = []
        labels, values = self._params.labels(name), self._params.values(given, name)
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
        """Puts values into the arrays: into all of them, or, where this raises, into none."""
        _core.write(self.arrays, list(values))
        _core.wrote(self._params.objects)

    def exchange(self, values: Sequence[Array], presence: _core.Presence) -> AbstractContextManager[None]:
        """A context in which the arrays hold other values; then their bits come back, whatever happens."""
        return _core.Exchange(self.arrays, list(values), self._params.objects, presence)


class Exchangeable:
    """Puts other values into the weights for a `with` block; meanwhile it does not read the weights."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._presence = _core.Presence()

    def _exchanged(self, values: Sequence[Array]) -> AbstractContextManager[None]:
        self._require_own_weights("with")
        return self._weights.exchange(values, self._presence)

    def _require_own_weights(self, what: str) -> None:
        if self._presence.away:
            raise RuntimeError(f"{what}: the weights hold other values until the end of the with block")

    def __getstate__(self) -> dict[str, Any]:
        self._require_own_weights("copy")
        return {name: value for name, value in self.__dict__.items() if name != "_presence"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._presence = _core.Presence()


def kept(arrays: Sequence[Array], copy: bool) -> list[Array]:
    """The arrays of a state: copies, or the arrays themselves."""
    return [array.copy(order="K") for array in arrays] if flag(copy, "copy") else list(arrays)


def check_keys(state: Any, keys: Sequence[str]) -> None:
    """Refuses a state dict with other keys."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dict, got {type(state).__name__}")
    if set(state) != set(keys):
        raise KeyError(f"state: expected {list(keys)}, got {list(state)}")


def _plain(value: Any, label: str) -> Array:
    array = as_array(value, label)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label}: expected an array, got a masked one")
    return np.asarray(array)
