"""Arrays of other libraries, seen as NumPy arrays without a copy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(value: object, name: str) -> NDArray[Any]:
    """A NumPy view of `value`; TypeError where there is none without a copy."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__array__") and not hasattr(value, "detach"):
            return np.asarray(value, copy=False)
        if hasattr(value, "__dlpack__"):
            # DLPack refuses a torch parameter, for it requires a gradient; its detached alias is the same memory.
            source = value.detach() if hasattr(value, "detach") else value
            return np.asarray(source, copy=False) if hasattr(source, "__array__") else np.from_dlpack(source)
    except (ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name}: {type(value).__qualname__} cannot be used without a copy ({error})") from error
    raise TypeError(f"{name}: expected an array, got {type(value).__qualname__}")
