"""Arrays of other libraries, seen as NumPy arrays without a copy; and numbers of bfloat16."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core

#: Words of 16 bits that are numbers of bfloat16, which NumPy has not: `words.view(fusedstep.bfloat16)`. With ml_dtypes,
#: an array of `ml_dtypes.bfloat16` is the same.
bfloat16: np.dtype[Any] = np.dtype(np.uint16, metadata={"fusedstep": "bfloat16"})


def as_array(value: object, name: str) -> NDArray[Any]:
    """A NumPy view of what `value` holds now.

    Raises:
        TypeError: No view is possible without a copy.
        ValueError: Its memory was moved or freed by the object that it came from.
    """
    if not name.isascii():  # half of a pair of surrogates cannot be encoded
        name = name.encode("utf-8", "backslashreplace").decode()
    array = _core.view(value, name)
    _core.require_alive(array, name)
    return array


def foreign_array(value: object, name: str) -> NDArray[Any]:
    """The view of what is no NumPy array, and has no table of functions to ask (`cpp/bind/memory.cpp`)."""
    # A torch parameter gives its memory only without its gradient; the detached alias is the same memory.
    source: Any = value.detach() if hasattr(value, "detach") else value
    kind = type(value).__qualname__
    if hasattr(source, "untyped_storage"):
        _check_storage(source, name)
    if str(getattr(source, "dtype", "")) == "torch.bfloat16":
        return _words_of(source, name).view(bfloat16_dtype())
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


def _check_storage(tensor: Any, name: str) -> None:
    """A torch tensor keeps its shape when its storage shrinks."""
    try:
        held = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return  # a tensor without storage, which is refused where its memory is read
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() and (tensor.storage_offset() + last + 1) * tensor.element_size() > held:
        raise ValueError(f"{name}: its storage is smaller than its shape: it was resized or freed")


def viewed(value: Any, name: str) -> Any:
    """`as_array` of arrays of other libraries; anything else is returned, and a later check refuses it by name."""
    if value is None or isinstance(value, np.ndarray):
        return value
    return as_array(value, name) if hasattr(value, "__array__") or hasattr(value, "__dlpack__") else value


def wrote(*values: object) -> None:
    """Tells autograd of the torch tensors among some objects that they were written."""
    _core.wrote([value for value in values if value is not None])


def _words_of(tensor: Any, name: str) -> NDArray[Any]:
    """The 16-bit words of a torch tensor that NumPy has no dtype for."""
    import torch

    return foreign_array(tensor.view(torch.uint16), name)


def bfloat16_dtype() -> np.dtype[Any]:
    """The dtype of ml_dtypes if it is installed, because it computes and prints; else ours."""
    try:
        import ml_dtypes
    except ImportError:
        return bfloat16
    # Another thread may be in the middle of its import.
    kind = getattr(ml_dtypes, "bfloat16", None)
    return bfloat16 if kind is None else np.dtype(kind)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is exactly our dtype, or that of ml_dtypes, in native byte order."""
    if dtype.metadata is not None and dtype.kind == "u":
        return dtype == np.uint16 and dtype.metadata == {"fusedstep": "bfloat16"}
    return dtype.isnative and dtype.type is getattr(sys.modules.get("ml_dtypes"), "bfloat16", None)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """NumPy's name; "bfloat16" for either dtype of that."""
    if is_bfloat16(dtype):
        return "bfloat16"
    return dtype.str if dtype.name == "bfloat16" else dtype.name


def unmasked(value: object, name: str) -> NDArray[Any]:
    """`as_array`; TypeError for a masked array too, whose mask would be lost."""
    array = as_array(value, name)
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array, got a masked one")
    return array
