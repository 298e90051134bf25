"""The state of an optimizer, with the schedules among its hyper-parameters."""

from typing import Any

from fusedstep._common.arguments import shown
from fusedstep.checkpoint.fields import as_dict, as_list, field, position
from fusedstep.checkpoint.values import Array, decode, encode, encode_dict
from fusedstep.optimizers import LBFGS, Optimizer
from fusedstep.schedules.base import Schedule
from fusedstep.schedules.saving import Table, assemble, can_save


def state_of(optimizer: Any) -> dict[str, Any]:
    """Its state dict; without a copy where it can be had."""
    state: dict[str, Any] = (
        optimizer.state_dict(copy=False) if isinstance(optimizer, Optimizer | LBFGS) else optimizer.state_dict()
    )
    return state


def encode_optimizer(state_dict: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """A state dict as JSON; its arrays go into `tensors`."""
    state, groups, schedules, rows, table = {}, [], [], [], Table()
    for k, entry in state_dict["state"].items():
        state[str(k)] = encode_dict(entry, f"state/{k}", tensors)
    for k, group in enumerate(state_dict["param_groups"]):
        schedules.append([name for name, value in group.items() if callable(value) and not can_save(value)])
        rows.append({name: table.add(value) for name, value in group.items() if can_save(value)})
        kept = {name: value for name, value in group.items() if not callable(value)}
        groups.append(encode_dict(kept, f"param_groups/{k}", tensors))
    rest = {key: value for key, value in state_dict.items() if key not in ("state", "param_groups")}
    encoded = {
        **encode_dict(rest, "optimizer", tensors),
        "state": state,
        "param_groups": groups,
        "schedules": schedules,
    }
    if table.rows:
        encoded["schedule_table"] = encode(table.rows, "schedules", tensors)
        encoded["schedule_rows"] = rows
    return encoded


def decode_optimizer(saved: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """A state dict for `load_state_dict`."""
    groups = [as_dict(group, "a group") for group in field(saved, "param_groups", list)]
    schedules = [as_list(names, str, "a group's schedules") for names in field(saved, "schedules", list)]
    if len(schedules) != len(groups):
        raise ValueError(f"damaged: {len(groups)} groups, schedules of {len(schedules)}")
    for group in groups:
        field(group, "params", list)
    field(saved, "rule", str)
    field(saved, "step", int)
    scheduled = _decode_schedules(saved, groups, tensors)
    apart = ("state", "param_groups", "schedule_table", "schedule_rows")
    return {
        **{key: decode(value, tensors) for key, value in saved.items() if key not in apart},
        "state": {
            position(k): {name: decode(value, tensors) for name, value in as_dict(entry, "a state").items()}
            for k, entry in field(saved, "state", dict).items()
        },
        "param_groups": [
            {name: decode(value, tensors) for name, value in group.items()} | own
            for group, own in zip(groups, scheduled, strict=True)
        ],
        "schedules": schedules,
    }


def _decode_schedules(
    saved: dict[str, Any], groups: list[dict[str, Any]], tensors: dict[str, Array]
) -> list[dict[str, Schedule]]:
    """Per group, the hyper-parameters that are schedules."""
    if "schedule_table" not in saved and "schedule_rows" not in saved:
        return [{} for _ in groups]
    made = assemble(decode(field(saved, "schedule_table", list), tensors))
    rows = [as_dict(own, "a group's schedules") for own in field(saved, "schedule_rows", list)]
    if len(rows) != len(groups):
        raise ValueError(f"damaged: {len(groups)} groups, schedules of {len(rows)}")
    for group, own in zip(groups, rows, strict=True):
        for name, row in own.items():
            if name in group or type(row) is not int or not 0 <= row < len(made):
                raise ValueError(f"damaged: {name!r} is schedule {shown(row)}")
    return [{name: made[row] for name, row in own.items()} for own in rows]
