"""State dicts: PyTorch's hooks, and what a state is checked for before it is taken over."""

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.optimizers import OPTIONS
from fusedstep.optimizers.base.reading import parts_of, real_number, whole_number
from fusedstep.torch.optim.tensors import FLOATS, number

# Hyper-parameters that groups of older versions lack, and those that only this library has.
_SINCE = {"amsgrad", "decoupled_weight_decay", "nesterov", "accumulator", *OPTIONS}


def load(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """`load_state_dict` of an optimizer."""
    state_dict = dict(state_dict)
    for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
        result = before(optimizer, state_dict)
        state_dict = state_dict if result is None else result
    saved_groups, entries = parts_of(state_dict, optimizer.rule)
    groups = [
        _group(optimizer, own, deepcopy(dict(saved)), f"state_dict['param_groups'][{k}]")
        for k, (own, saved) in enumerate(_paired(optimizer.param_groups, saved_groups))
    ]
    placed = {
        place: (param, group)
        for saved, group in zip(saved_groups, groups, strict=True)
        for place, param in zip(saved["params"], group["params"], strict=True)
    }
    state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for place, entry in entries.items():
        if place not in placed:
            raise ValueError(f"state_dict['state']: expected positions of parameters, got {place}")
        param, group = placed[place]
        state[param] = _entry(group.get("rule", optimizer.rule), entry, param, group, f"state_dict['state'][{place}]")
    optimizer._native.check(groups)
    optimizer.__setstate__({"state": state, "param_groups": groups})
    for after in optimizer._optimizer_load_state_dict_post_hooks.values():
        after(optimizer)


def _paired(groups: list[dict[str, Any]], saved: list[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    counts, theirs = ([len(group["params"]) for group in every] for every in (groups, saved))
    if counts != theirs:
        raise ValueError(f"state_dict: expected groups of {counts} parameters, got {theirs}")
    return list(zip(groups, saved, strict=True))


def _group(optimizer: Any, own: dict[str, Any], saved: dict[str, Any], label: str) -> dict[str, Any]:
    """A group as it is afterwards: what the state says, and where it says nothing, what was before."""
    rule = own.get("rule", optimizer.rule)
    if saved.get("rule", optimizer.rule) != rule or ("rule" in saved) != ("rule" in own):
        raise ValueError(f"{label}: expected a group with 'rule' {own.get('rule')!r}, got {saved.get('rule')!r}")
    for name in _core.rules()[rule]["hypers"]:
        if name not in saved and name not in _SINCE:
            got = sorted(saved.keys() - {"params"})
            raise ValueError(f"{label}: expected a state of {rule!r}, got hyper-parameters {got}")
    if rule == "adamw" and not saved.get("decoupled_weight_decay", True):
        raise ValueError(f"{label}: expected a state of 'adamw', got one of Adam with a coupled decay")
    missing = {name: value for name, value in own.items() if name not in saved}
    return {**saved, **missing, "params": own["params"]}


def _entry(rule: str, entry: Mapping[str, Any], param: Tensor, group: dict[str, Any], label: str) -> dict[str, Any]:
    """The state of a parameter, copied."""
    known = _core.rules()[rule]
    numbers = [] if known["shared_scalars"] else known["scalars"]
    names = [*known["states"], "ema", "master"]
    loaded: dict[str, Any] = {}
    for name, value in entry.items():
        its = f"{label}[{name!r}]"
        if name == "step":
            steps = whole_number(value, its)
            loaded[name] = steps if rule == "sparse_adam" else _number(value, float(steps))
        elif name in numbers:
            loaded[name] = _number(value, real_number(value, its))
        elif name in names or (name.endswith("_scale") and name.removesuffix("_scale") in names):
            if value is not None:
                loaded[name] = _copied(value, entry, name, param, group, its)
        else:
            raise ValueError(f"{its}: not a state of {rule!r}, which has {[*names, *numbers]}")
    kept = [name for name in known["states"] if name in loaded]
    if kept and kept not in known["variants"]:
        raise ValueError(f"{label}: has {kept}, expected one of {known['variants']}")
    return loaded


def _number(given: Any, value: float) -> Tensor:
    return given.detach().clone() if isinstance(given, Tensor) and given.dtype in FLOATS[:2] else number(value)


def _copied(
    value: Any, entry: Mapping[str, Any], name: str, param: Tensor, group: dict[str, Any], label: str
) -> Tensor:
    """A state in the layout of its parameter, stored as the group says."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{label}: expected a tensor, got {type(value).__qualname__}")
    if name.endswith("_scale"):
        return value.detach().clone()
    if value.dtype == torch.uint8:
        if entry.get(f"{name}_scale") is None:
            raise ValueError(f"{label}: of 8 bits, which need {name}_scale")
        return value.detach().clone()
    if value.dtype not in FLOATS:
        raise TypeError(f"{label}: expected a tensor of floats, got {value.dtype}")
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    if value.shape != param.shape:
        return value.detach().to(dtype, copy=True)
    with torch.no_grad():
        return torch.empty_like(param, dtype=dtype, requires_grad=False).copy_(value)
