"""State dicts of an optimizer: made of its state, and read back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arrays import dtype_name
from fusedstep.optimizers.base.groups import PARAM_KEYS, Array, arrays_of, group_of
from fusedstep.optimizers.base.hypers import same_hyper
from fusedstep.optimizers.base.options import OPTIONS
from fusedstep.optimizers.base.reading import hyper_parameter, parts_of, real_number, whole_number
from fusedstep.optimizers.base.states import load_state, stored_dtype
from fusedstep.schedules.saving import ScheduleLoader

State = dict[int, dict[str, Any]]
Groups = list[dict[str, Any]]

#: How states and parameters are stored: it belongs to an optimizer, not to the state that it loads.
STORAGE = ("state_dtype", "min_8bit_size", "master_weights", "stochastic_rounding")
# Keys of PyTorch's groups that say how it computes, not what.
_TORCH_KEYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "decoupled_weight_decay"}
# Hyper-parameters that PyTorch's optimizer of the same name does not have, or has not always had.
_NOT_TORCHS = {"accumulator", "decoupled_weight_decay", "nesterov"}


def made_of(state: State, groups: Groups, copy: bool) -> dict[str, Any]:
    """`state` and `param_groups` as PyTorch lays them out: tensors where the parameters are."""
    as_tensors = any(hasattr(param, "detach") for group in groups for param in group["params"])
    numbered, position = [], 0
    for group in groups:
        count = len(group["params"])
        numbered.append({**group, "params": list(range(position, position + count))})
        position += count
    entries = {
        k: {name: _given_back(value, copy, as_tensors) for name, value in entry.items()} for k, entry in state.items()
    }
    return {"state": entries, "param_groups": numbered}


def checked(rule: str, state_dict: Any, groups: Groups) -> tuple[list[Mapping[str, Any]], dict[int, Mapping[str, Any]]]:
    """Its groups and its entries by position; ValueError if it is for another rule or other parameters."""
    saved_groups, entries = parts_of(state_dict, rule)
    counts = [len(group["params"]) for group in groups]
    saved_counts = [len(group["params"]) for group in saved_groups]
    if counts != saved_counts:
        raise ValueError(f"state_dict: expected groups of {counts} parameters, got {saved_counts}")
    if "rule" not in state_dict:
        for saved in saved_groups:
            _refuse_other_hypers(rule, saved)
    for group, saved in zip(groups, saved_groups, strict=True):
        names, saved_names = group.get("param_names"), saved.get("param_names")
        if names is not None and saved_names is not None and list(names) != list(saved_names):
            raise ValueError(f"state_dict: expected parameters {list(names)}, got {list(saved_names)}")
    return saved_groups, entries


def merged(
    rule: str, groups: Groups, saved_groups: list[Mapping[str, Any]], taken_over: list[str], loader: ScheduleLoader
) -> tuple[Groups, dict[str, tuple[Any, Any]]]:
    """New groups with the saved values of some hyper-parameters; and those that changed, with the old and new value."""
    scalars = _shared_scalars(rule)
    new_groups: Groups = []
    replaced: dict[str, tuple[Any, Any]] = {}
    for k, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        label = f"state_dict['param_groups'][{k}]"
        new = {name: value for name, value in group.items() if name not in scalars}
        for name in taken_over:
            if name in saved:
                value = hyper_parameter(saved[name], f"{label}[{name!r}]")
                if not same_hyper(group[name], value):
                    replaced[name] = group[name], value
                new[name] = loader.adopt(group.get(name), value)
        for name in scalars:
            if saved.get(name) is not None:
                new[name] = real_number(saved[name], f"{label}[{name!r}]")
        new_groups.append(new)
    return new_groups, replaced


def loaded(rule: str, entries: Mapping[int, Mapping[str, Any]], groups: Groups) -> State:
    """The states as these groups store them, copied."""
    params = [array for _, array in arrays_of(groups)]
    state: State = {}
    for position, entry in entries.items():
        if not 0 <= position < len(params):
            raise ValueError(f"state_dict: expected positions below {len(params)}, got {position}")
        state[position] = load_entry(rule, entry, params[position], position, groups)
    return state


def load_entry(
    name_of_rule: str, entry: Mapping[str, Any], param: Array, position: int, groups: Groups
) -> dict[str, Any]:
    """A copy of the states of one parameter, as its group stores them."""
    rule = _core.rules()[name_of_rule]
    shapes = {"ema": param.shape, "master": param.shape}
    for name, kind in zip(rule["states"], rule["shapes"], strict=True):
        shapes[name] = _reduced_shape(param.shape, kind)
    scalars = [] if rule["shared_scalars"] else rule["scalars"]
    group = group_of(groups, position)
    loaded: dict[str, Any] = {}
    for name, value in entry.items():
        label = f"state_dict['state'][{position}][{name!r}]"
        if name == "step":
            loaded[name] = whole_number(value, label)
        elif name in scalars:
            loaded[name] = real_number(value, label)
        elif name in shapes:
            if value is not None:
                dtype = stored_dtype(rule, name, param, group)
                loaded |= load_state(rule, name, entry, label, param, shapes[name], dtype)
        elif not (name.endswith("_scale") and name.removesuffix("_scale") in rule["states"]):
            raise ValueError(f"{label}: not a state of {name_of_rule!r}, which has {[*shapes, *scalars]}")
    kept = [name for name in rule["states"] if name in loaded]
    variants = rule["variants"]
    if set(rule["shapes"]) != {"same"}:  # then they follow from the parameter's axes
        variants = [variants[_core.variant(name_of_rule, groups[0], param.ndim)]]
    if kept and kept not in variants:
        raise ValueError(f"state_dict['state'][{position}]: has {kept}, expected one of {variants}")
    return loaded


def _refuse_other_hypers(rule: str, saved: Mapping[str, Any]) -> None:
    """PyTorch's state does not name its optimizer, but its groups have its hyper-parameters."""
    own = set(_core.rules()[rule]["hypers"])
    other = [name for name in saved if name not in {*own, *OPTIONS, *PARAM_KEYS, *_TORCH_KEYS}]
    missing = [name for name in own - _NOT_TORCHS if name not in saved]
    if rule == "adamw" and not saved.get("decoupled_weight_decay", True):
        other.append("decoupled_weight_decay")  # Adam's
    if missing or other:
        got = sorted(saved.keys() - {"params"})
        raise ValueError(f"state_dict: expected a state of {rule!r}, got hyper-parameters {got}")


def _shared_scalars(rule: str) -> list[str]:
    description = _core.rules()[rule]
    return description["scalars"] if description["shared_scalars"] else []


def _given_back(value: Any, copy: bool, as_tensor: bool) -> Any:
    """An entry of a state, as a state dict has it."""
    if not isinstance(value, np.ndarray):
        return value
    array = value.copy(order="K") if copy else value
    if not as_tensor:
        return array
    import torch

    if dtype_name(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _reduced_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    if kind == "rows":
        return (*shape[:-1], 1)
    return (*shape[:-2], 1, *shape[-1:]) if kind == "columns" else shape
