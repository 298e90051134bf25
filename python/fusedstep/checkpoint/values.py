"""Values as JSON, with dicts of one key for what JSON lacks; arrays are kept apart."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arguments import shown
from fusedstep._common.arrays import dtype_name, unmasked

#: How deep lists and dicts may stand in each other.
DEEPEST = 100

#: What safetensors calls the dtypes of NumPy, and bfloat16.
DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}

Array = NDArray[Any]


def encode(value: Any, name: str, tensors: dict[str, Array], depth: int = 0) -> Any:
    """`value` as JSON; its arrays go into `tensors`."""
    if isinstance(value, (np.bool, np.number, np.str_)):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        _check_digits(value, name)
        return value
    if isinstance(value, float):
        # Infinity and NaN are no JSON, though Python would write them.
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (list, tuple, dict)) and depth == DEEPEST:
        raise ValueError(f"{name:.80}…: expected lists and dicts at most {DEEPEST} deep, and none that holds itself")
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{name}/{k}", tensors, depth + 1) for k, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": encode_dict(value, name, tensors, depth + 1)}
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return {"tensor": add(unmasked(value, name), name, name, tensors)}
    raise TypeError(f"{name}: cannot save a value of type {type(value).__qualname__}")


def _check_digits(value: int, name: str) -> None:
    """Refuses a number of more digits than Python reads."""
    most = sys.int_info.default_max_str_digits
    if value.bit_length() > 3 * most and abs(value) >= 10**most:
        raise ValueError(f"{name}: expected a number of at most {most} digits, got one of {value.bit_length()} bits")


def encode_dict(values: Mapping[Any, Any], name: str, tensors: dict[str, Array], depth: int = 0) -> dict[str, Any]:
    """A dict by strings as JSON."""
    for key in values:
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected keys that are strings, got {shown(key)}")
    return {key: encode(value, f"{name}/{key}", tensors, depth) for key, value in values.items()}


def decode(value: Any, tensors: dict[str, Array], depth: int = 0) -> Any:
    """The value that `encode` made JSON of."""
    if depth > DEEPEST:
        raise ValueError(f"damaged: lists and dicts more than {DEEPEST} deep")
    if isinstance(value, list):
        return [decode(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("float", "inf" | "-inf" | "nan" as text)]:
            return float(text)
        case [("tuple", list(items))]:
            return tuple(decode(item, tensors, depth + 1) for item in items)
        case [("dict", dict(items))]:
            return {key: decode(item, tensors, depth + 1) for key, item in items.items()}
        case [("tensor", str(name))]:
            return take(tensors, name)
    raise ValueError(f"damaged: {shown(value)} is no value")


def add(array: Array, name: str, label: str, tensors: dict[str, Array]) -> str:
    """Adds an array under a name like `name`, which it returns."""
    check_array(array, name, label)
    # Two paths may read the same: {"a": {"b": …}, "a/b": …}.
    while name in tensors:
        name += "'"
    # A new view, because another thread may give the array another shape.
    tensors[name] = np.ndarray.view(array, np.ndarray)
    return name


def check_array(array: Array, name: str, label: str) -> None:
    """Refuses a dtype that cannot be saved, and a name that is not Unicode."""
    if dtype_name(array.dtype) not in DTYPES or array.dtype != array.dtype.newbyteorder("<"):
        raise TypeError(f"{label}: cannot save dtype {array.dtype!r}, expected one of {', '.join(DTYPES)}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{label}: {error}") from error


def take(tensors: dict[str, Array], name: str) -> Array:
    """The array of that name; it can be taken once."""
    if name not in tensors:
        raise ValueError(f"damaged: no tensor {name!r}")
    return tensors.pop(name)
