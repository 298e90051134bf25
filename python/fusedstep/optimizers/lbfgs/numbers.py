"""Numbers that come from a closure, a state or a group, checked."""

import math
import operator
from typing import Any

import numpy as np

from fusedstep._common.arguments import shown


def number(value: Any, label: str) -> float:
    """Anything that is one number: of Python, NumPy, PyTorch."""
    array = isinstance(value, np.ndarray) and value.ndim > 0
    if isinstance(value, (bool, np.bool_, str, bytes, bytearray)) or array:
        raise TypeError(f"{label}: expected a number, got {kind(value)}")
    try:
        # PyTorch warns where a tensor that requires a gradient becomes a number.
        return float(value.detach() if hasattr(value, "detach") else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{label}: expected a number, got {kind(value)}") from error


def finite(value: Any, label: str) -> float:
    """A finite number."""
    given = number(value, label)
    if not math.isfinite(given):
        raise ValueError(f"{label}: expected a finite number, got {shown(value)}")
    return given


def not_negative(value: Any, name: str) -> float:
    """A finite number >= 0."""
    given = number(value, name)
    if not (math.isfinite(given) and given >= 0.0):
        raise ValueError(f"{name}: expected a finite number >= 0, got {shown(value)}")
    return given


def count(value: Any, name: str) -> int:
    """A whole number >= 1."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a whole number, got {kind(value)}")
    try:
        whole = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected a whole number, got {kind(value)}") from error
    if not 1 <= whole < 2**53:
        raise ValueError(f"{name}: expected a whole number >= 1, got {shown(value)}")
    return whole


def kind(value: object) -> str:
    """The name of a value's type in errors."""
    return type(value).__qualname__
