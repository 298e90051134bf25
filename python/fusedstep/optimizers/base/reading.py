"""Reads state dicts: the kind of every part is checked, and numbers are taken out of arrays and tensors."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fusedstep._common.arguments import shown
from fusedstep._common.arrays import as_array, dtype_name
from fusedstep.reference.codec import widened


def parts_of(state_dict: Any, rule: str) -> tuple[list[Mapping[str, Any]], dict[int, Mapping[str, Any]]]:
    """The groups, and the entries by position; TypeError or ValueError where something is of another kind."""
    _mapping(state_dict, "state_dict")
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(f"state_dict: no {key!r}")
    given = state_dict.get("rule", rule)
    if not isinstance(given, str) or given != rule:
        raise ValueError(f"state_dict: expected a state of {rule!r}, got one of {shown(given)}")
    groups = _sequence(state_dict["param_groups"], "state_dict['param_groups']")
    for k, group in enumerate(groups):
        label = f"state_dict['param_groups'][{k}]"
        if "params" not in _mapping(group, label):
            raise ValueError(f"{label}: no 'params'")
        _sequence(group["params"], f"{label}['params']")
        if group.get("param_names") is not None:
            for name in _sequence(group["param_names"], f"{label}['param_names']"):
                if not isinstance(name, Hashable):
                    raise TypeError(f"{label}['param_names']: expected names, got {shown(name)}")
    entries: dict[int, Mapping[str, Any]] = {}
    for key, entry in _mapping(state_dict["state"], "state_dict['state']").items():
        position = _position(key)
        if position in entries:
            raise ValueError(f"state_dict['state']: position {position} is there twice, as a number and as a string")
        entries[position] = _mapping(entry, f"state_dict['state'][{key!r}]")
        for name in entry:
            if not isinstance(name, str):
                raise TypeError(f"state_dict['state'][{key!r}]: expected names of states, got {shown(name)}")
    return list(groups), entries


def whole_number(value: Any, label: str) -> int:
    """A step count; PyTorch keeps them in tensors of floats."""
    number = _scalar(value, label)
    if not isinstance(number, int | float) or isinstance(number, bool) or not number >= 0 or number % 1 != 0:
        raise ValueError(f"{label}: expected a whole number >= 0, got {shown(value)}")
    if number >= 2**53:
        raise ValueError(f"{label}: expected a whole number >= 0 and < 2**53, got {shown(value)}")
    return int(number)


def real_number(value: Any, label: str) -> float:
    """A scalar of a state, which may be infinite or NaN as the parameters may."""
    number = _scalar(value, label)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise TypeError(f"{label}: expected a number, got {type(value).__qualname__}")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(f"{label}: expected a number that a double holds, got {shown(value)}") from None


def hyper_parameter(value: Any, label: str) -> Any:
    """A hyper-parameter as it stands in a group; PyTorch's may be tensors of one number."""
    if isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        return type(value)(hyper_parameter(item, f"{label}[{k}]") for k, item in enumerate(value))
    return real_number(value, label) if hasattr(value, "detach") else value


def _scalar(value: Any, label: str) -> Any:
    """The number in an array, a tensor or a NumPy scalar of one number; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        return value
    array = as_array(value, label)
    if array.size != 1 or isinstance(array, np.ma.MaskedArray):
        return value
    return (widened(array) if dtype_name(array.dtype) == "bfloat16" else array).item()


def _mapping(value: Any, label: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label}: expected a dict, got {type(value).__qualname__}")
    return value


def _sequence(value: Any, label: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{label}: expected a list, got {type(value).__qualname__}")
    return value


def _position(key: Any) -> int:
    """The position of a parameter; a string where the state dict went through JSON."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and key == (key.lstrip("0") or "0") and len(key) < 20:
        return int(key)
    if isinstance(key, bool | str) or not isinstance(key, int | np.integer):
        kind = ValueError if isinstance(key, str) else TypeError
        raise kind(f"state_dict['state']: expected positions of parameters, got {shown(key)}")
    return int(key)
