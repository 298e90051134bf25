"""Groups of parameters."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fusedstep._common.arrays import as_array
from fusedstep._common.brief import plural
from fusedstep._common.structure import is_array
from fusedstep._core import Structure

Array = NDArray[Any]
#: What a group holds beside hyper-parameters.
PARAM_KEYS = ("params", "param_names")


def structure_of(params: Any) -> Structure:
    """The structure of given parameters."""
    if isinstance(params, Mapping):
        return Structure.dict
    if is_array(params) or not isinstance(params, list | tuple):
        return Structure.array
    if params and all(isinstance(entry, Mapping) for entry in params):
        return Structure.groups
    return Structure.list


def group_of(groups: list[dict[str, Any]], position: int) -> dict[str, Any]:
    """The group of the parameter at a position."""
    for group in groups:
        if position < len(group["params"]):
            return group
        position -= len(group["params"])
    raise IndexError(position)


def arrays_of(groups: list[dict[str, Any]]) -> list[tuple[str, Array]]:
    """All parameters as arrays, each with what to call it."""
    found: list[tuple[str, Array]] = []
    for group in groups:
        places = range(len(found), len(found) + len(group["params"]))
        for name, param in zip(group.get("param_names", places), group["params"], strict=True):
            found.append((f"params[{name!r}]", as_array(param, f"params[{name!r}]")))
    return found


def described(group: Mapping[str, Any]) -> str:
    """How many arrays and numbers a group has."""
    sizes = [as_array(param, "params").size for param in group["params"]]
    return f"{plural(len(sizes), 'array')} of {plural(sum(sizes), 'parameter')}"
