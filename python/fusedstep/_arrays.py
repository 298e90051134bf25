"""Arrays of other libraries, seen as NumPy arrays without a copy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(value: object, name: str) -> NDArray[Any]:
    """A NumPy view of `value`; TypeError where there is none without a copy."""
    if isinstance(value, np.ndarray):
        return value
    # A torch parameter gives its memory only without its gradient; the detached alias is the same memory.
    source: Any = value.detach() if hasattr(value, "detach") else value
    kind = type(value).__qualname__
    if str(getattr(source, "dtype", "")) == "torch.bfloat16":
        return _words_of(source, name).view(_bfloat16(name))
    try:
        if hasattr(source, "__array__"):
            array, again = source.__array__(), source.__array__()
            if array.size > 0 and not np.may_share_memory(array, again):
                raise ValueError("each look at it is a new array")
            return np.asarray(array)
        if hasattr(source, "__dlpack__"):
            return np.from_dlpack(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: {kind} cannot be used without a copy ({error})") from error
    raise TypeError(f"{name}: expected an array, got {kind}")


def _words_of(tensor: Any, name: str) -> NDArray[Any]:
    """The 16-bit words of a torch tensor that NumPy has no dtype for."""
    import torch

    return as_array(tensor.view(torch.uint16), name)


def _bfloat16(name: str) -> Any:
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise TypeError(f"{name}: bfloat16 needs ml_dtypes: pip install 'fusedstep[bfloat16]'") from error
    return ml_dtypes.bfloat16
