"""Numbers and names that are given, checked."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def number(
    value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> float:
    """A finite number in a range; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        given = float(value)
    except OverflowError:
        given = math.inf
    if not (math.isfinite(given) and given > above and given >= least and given < below):
        limits = [f"> {above:g}"] * (above > -math.inf) + [f">= {least:g}"] * (least > -math.inf)
        limits += [f"< {below:g}"] * (below < math.inf)
        raise ValueError(f"{name}: expected a finite number {' and '.join(limits)}".rstrip() + f", got {shown(value)}")
    return given


def whole(value: Any, name: str, *, least: int = 0, most: int = 2**53 - 1) -> int:
    """A whole number from `least` to `most`; less than 2^53, up to where doubles count too."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if not least <= value <= most:
        below = (most + 1).bit_length() - 1
        raise ValueError(f"{name}: expected a whole number >= {least} and < 2**{below}, got {shown(value)}")
    return int(value)


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


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
    """What an error shows of a value: its repr, where it has one, cut to what is read."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # a nest too deep, a number of too many digits
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
