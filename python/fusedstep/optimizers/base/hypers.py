"""Hyper-parameters in groups: whether two are the same, and unknown names."""

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from fusedstep.schedules.base import Schedule


def same_hyper(a: Any, b: Any) -> bool:
    """Whether two hyper-parameters are the same; a list is the tuple of its entries.

    Two schedules are the same if they have the same arguments, whatever a `ReduceOnPlateau` has observed.
    """
    if isinstance(a, Schedule) and type(a) is type(b):
        made = [field.name for field in fields(a) if field.init]  # type: ignore[arg-type]
        return all(same_hyper(getattr(a, name), getattr(b, name)) for name in made)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_hyper, a, b))
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return False


def meant(name: Any, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one that is nearest to it, if any is near."""
    names = {other.lower(): other for other in known if not other.startswith("_")}
    close = difflib.get_close_matches(str(name).lower(), names, 1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def warn_of_replaced(replaced: Mapping[str, tuple[Any, Any]]) -> None:
    """Says which hyper-parameters a state has replaced: by name, the old and the new one."""
    if replaced:
        what = ", ".join(f"{name} {own!r} by {loaded!r}" for name, (own, loaded) in replaced.items())
        warnings.warn(f"load_state_dict: replaced {what}; hypers=False keeps one's own", stacklevel=3)
