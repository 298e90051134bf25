"""Numbers, names and functions that are given, checked."""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def is_number(value: Any) -> bool:
    """Whether it is a real number of Python or NumPy, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def is_whole(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def kind_of(value: Any) -> str:
    """The name of its type, for an error."""
    return type(value).__name__


def real(value: Any, name: str, *, got: Callable[[Any], str] = kind_of) -> float:
    """A number that may be infinite or NaN; infinite beyond the range of doubles."""
    if not is_number(value):
        raise TypeError(f"{name}: expected a number, got {got(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def number(
    value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> float:
    """A finite number in a range."""
    given = real(value, name)
    if not (math.isfinite(given) and given > above and given >= least and given < below):
        limits = [f"> {above:g}"] * (above > -math.inf) + [f">= {least:g}"] * (least > -math.inf)
        limits += [f"< {below:g}"] * (below < math.inf)
        raise ValueError(f"{name}: expected a finite number {' and '.join(limits)}".rstrip() + f", got {shown(value)}")
    return given


def share(value: Any, name: str, *, closed: bool = False) -> float:
    """A number in [0, 1), or, where it is closed, in [0, 1]."""
    given = number(value, name)
    if not (0 <= given < 1 or (closed and given == 1)):
        raise ValueError(f"{name}: expected a number in [0, 1{']' if closed else ')'}, got {shown(value)}")
    return given


def whole(
    value: Any, name: str, *, least: int = 0, most: int | None = 2**53 - 1, got: Callable[[Any], str] = kind_of
) -> int:
    """A whole number from `least` to `most`; by default less than 2^53, below which doubles hold every one."""
    if not is_whole(value):
        raise TypeError(f"{name}: expected a whole number, got {got(value)}")
    if value < least or (most is not None and value > most):
        limit = "" if most is None else f" and < 2**{(most + 1).bit_length() - 1}"
        raise ValueError(f"{name}: expected a whole number >= {least}{limit}, got {shown(value)}")
    return int(value)


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def function(value: Any, name: str) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {type(value).__qualname__}")


def choice(value: Any, name: str, known: Sequence[str]) -> str:
    """One of some names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {shown(value)}")
    return value


def rising(values: Any, name: str) -> tuple[int, ...]:
    """Whole numbers, each larger than the one before."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name}: expected a list of whole numbers, got {type(values).__name__}")
    numbers = tuple(whole(value, f"{name}[{k}]") for k, value in enumerate(values))
    for before, after in itertools.pairwise(numbers):
        if after <= before:
            raise ValueError(f"{name}: expected rising numbers, got {after} after {before}")
    return numbers


def shown(value: Any) -> str:
    """A value as an error shows it: its repr, if it has one, cut to a readable length."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a nest too deep, a number of too many digits
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
