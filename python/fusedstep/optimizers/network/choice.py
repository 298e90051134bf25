"""Which parameters of a network are hidden weights."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from fusedstep._common.structure import is_pairs, parse

#: Hyper-parameters of AdamW, which get the prefix "adamw_".
OWN = ("lr", "betas", "eps", "weight_decay")
#: Arguments that only the optimizer of a whole network takes.
NETWORK = ("use_muon", *(f"adamw_{name}" for name in OWN))
_AT_AN_END = re.compile(r"embed|(^|[._])(head|wte|wpe)([._]|$)")

Predicate = Callable[[str, Any], bool]


def is_at_an_end(name: object) -> bool:
    """Whether a name looks like that of an embedding or a head."""
    return _AT_AN_END.search(str(name).lower()) is not None


def is_network(params: Any, named: Mapping[str, Any]) -> bool:
    """Whether `Muon` is for a whole network: one of its arguments is given, or a named parameter is no matrix."""
    if any(name in named for name in NETWORK):
        return True
    if not (isinstance(params, Mapping) or is_pairs(params)):
        return False
    try:
        given = parse(params)
    except (TypeError, ValueError):
        return False
    return any(getattr(param, "ndim", 2) != 2 for param in given.objects)


def hidden(params: Mapping[str, Any], predicate: Predicate | None) -> list[str]:
    """The names of the hidden weights: those that the predicate chooses; without one, see the rule in `Muon`."""
    if predicate is not None:
        return [name for name, param in params.items() if predicate(name, param)]
    weights = [name for name, param in params.items() if getattr(param, "ndim", 0) >= 2]
    return [name for name in weights[1:-1] if not is_at_an_end(name)]
