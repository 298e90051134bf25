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
from fusedstep.torch.optim import codes
from fusedstep.torch.optim.shards import is_dtensor, is_sharded
from fusedstep.torch.optim.tensors import COUNTS, FLOATS, number, state_shape

# Hyper-parameters that groups of older versions lack, and those that only this library has.
_SINCE = {"amsgrad", "decoupled_weight_decay", "nesterov", "accumulator", *OPTIONS}


def load(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """`load_state_dict` of an optimizer."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a dict, got {type(state_dict).__qualname__}")
    state_dict = dict(state_dict)
    for before in optimizer._optimizer_load_state_dict_pre_hooks.values():
        result = before(optimizer, state_dict)
        state_dict = state_dict if result is None else result
    saved_groups, entries = parts_of(_by_position(state_dict, optimizer.param_groups), optimizer.rule)
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
        rule, home, label = group.get("rule", optimizer.rule), optimizer._home(param), f"state_dict['state'][{place}]"
        state[param] = _stored(rule, _entry(rule, entry, param, home, label), entry, param, group)
    optimizer._check(groups)
    optimizer.__setstate__({"state": state, "param_groups": groups})
    for after in optimizer._optimizer_load_state_dict_post_hooks.values():
        after(optimizer)


def _by_position(state_dict: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The state dict with positions in place of names, which `torch.distributed.checkpoint` gives parameters."""
    saved, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(saved, list) or not isinstance(state, Mapping):
        return state_dict
    listed = [group.get("params") if isinstance(group, Mapping) else None for group in saved]
    names = [name for members in listed if isinstance(members, list) for name in members]
    if not names or not all(isinstance(name, str) for name in names):
        return state_dict
    positions = {name: place for place, name in enumerate(names)}
    own = [name for group in groups for name in group.get("param_names") or ()]
    if len(positions) < len(names) or (sorted(map(str, own)) == sorted(names) and own != names):
        raise ValueError(f"state_dict['param_groups']: expected the parameters {own or 'once each'}, got {names}")
    numbered = [{**group, "params": [positions[name] for name in group["params"]]} for group in saved]
    return {**state_dict, "state": {positions.get(k, k): v for k, v in state.items()}, "param_groups": numbered}


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
    # Who steps is this optimizer's: its hooks are there, or they are not.
    kept = {name: value for name, value in own.items() if name not in saved or name in ("params", "in_backward")}
    return {**saved, **kept}


def _entry(rule: str, entry: Mapping[str, Any], param: Tensor, home: torch.device, label: str) -> dict[str, Any]:
    """The state of a parameter, copied to the device `home`."""
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
            # What `torch.distributed.checkpoint` has not found in a flat state dict, it gives as {}.
            if value is not None and not (name.endswith("_scale") and value == {}):
                loaded[name] = _copied(rule, value, entry, name, param, home, its)
        else:
            raise ValueError(f"{its}: not a state of {rule!r}, which has {[*names, *numbers]}")
    kept = [name for name in known["states"] if name in loaded]
    if kept and kept not in known["variants"]:
        raise ValueError(f"{label}: has {kept}, expected one of {known['variants']}")
    if kept and "step" not in loaded and rule not in COUNTS:
        raise ValueError(f"{label}: no 'step'")
    return loaded


def _stored(rule: str, entry: dict[str, Any], given: Any, param: Any, group: dict[str, Any]) -> dict[str, Any]:
    """The entry as `state_dtype` has it: in 16 bits what came in 16 bits, in 8 bits what a state dict of shards has."""
    stored, known = group.get("state_dtype"), _core.rules()[rule]
    if stored in (None, "float32") or param.dtype == torch.float64:
        return entry
    encodes = stored == "8bit" and is_sharded(param) and param.to_local().numel() >= group["min_8bit_size"]
    for name in [name for name in known["states"] if name in entry and name not in known["exact"]]:
        if encodes and entry[name].dtype == torch.float32:
            entry[name], entry[f"{name}_scale"] = codes.encoded(rule, name, entry[name])
        elif stored == "bfloat16" and given[name].dtype == torch.bfloat16:
            entry[name] = entry[name].to(torch.bfloat16)
    return entry


def _number(given: Any, value: float) -> Tensor:
    return given.detach().clone() if isinstance(given, Tensor) and given.dtype in FLOATS[:2] else number(value)


def _copied(
    rule: str, value: Any, entry: Mapping[str, Any], name: str, param: Tensor, home: torch.device, label: str
) -> Tensor:
    """A state in the layout of its parameter."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{label}: expected a tensor, got {type(value).__qualname__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{label}: expected a dense tensor, got one with layout {value.layout}")
    if value.is_meta:
        raise TypeError(f"{label}: expected a tensor with data, got one on meta")
    if is_dtensor(param) != is_dtensor(value) and not name.endswith("_scale"):
        expected, got = ("a DTensor", "a plain tensor") if is_dtensor(param) else ("a plain tensor", "a DTensor")
        functions = "get_ and set_optimizer_state_dict of torch.distributed.checkpoint.state_dict"
        raise TypeError(f"{label}: expected {expected}, as its parameter is, got {got}: use {functions}")
    if name.endswith("_scale"):
        return value.detach().to(home, copy=True)
    _check_shape(rule, name, value, param, label)
    if value.dtype == torch.uint8:
        if entry.get(f"{name}_scale") is None:
            raise ValueError(f"{label}: of 8 bits, which need {name}_scale")
        return value.detach().to(home, copy=True)
    if value.dtype not in FLOATS:
        raise TypeError(f"{label}: expected a tensor of floats, got {value.dtype}")
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    if value.shape != param.shape:
        return value.detach().to(home, dtype, copy=True)
    with torch.no_grad():
        return torch.empty_like(param, dtype=dtype, device=home, requires_grad=False).copy_(value)


def _check_shape(rule: str, name: str, value: Tensor, param: Tensor, label: str) -> None:
    known = _core.rules()[rule]
    kind = known["shapes"][known["states"].index(name)] if name in known["states"] else "same"
    if kind != "same" and param.ndim < 2:
        raise ValueError(f"{label}: expected none beside a parameter of shape {tuple(param.shape)}")
    if list(value.shape) != state_shape(param, kind):
        raise ValueError(f"{label}: expected shape {tuple(state_shape(param, kind))}, got {tuple(value.shape)}")
