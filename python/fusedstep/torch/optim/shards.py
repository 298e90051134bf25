"""Parameters that are sharded over processes (DTensors): the position of each shard, and sums over all shards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedstep.torch.optim.ranks import agree, as_seen_by_all

#: (number, offset, whole, follows) of a shard; None: this process has the whole tensor.
Part = tuple[int, int, int, bool] | None
#: The sums of each tensor, as (value, exponent) for value · 2^exponent.
Sums = list[list[tuple[float, int]]]

_NARROW = (torch.float16, torch.bfloat16)
#: Rules that cannot step shards, with the reason.
_WHOLE = {
    "adafactor": "takes means of its rows and columns",
    "muon": "makes the whole matrix orthogonal",
    "sparse_adam": "takes gradients of some of its rows",
}

#: Rules and options that need sums over whole tensors; the options with the value that turns them off.
_SUMS = ("lamb", "lars", "prodigy")
_OF_ALL = {"max_grad_norm": None, "skip_nonfinite": False, "telemetry": False, "cautious": False}


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a DTensor. Imports nothing: without `torch.distributed.tensor` there is none."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def is_sharded(tensor: Any) -> bool:
    """Whether processes have different shards of it."""
    return is_dtensor(tensor) and bool(_dims(tensor))


def _dims(tensor: Any) -> tuple[int, ...]:
    """The dimensions of the mesh along which processes have different shards."""
    mesh = tensor.device_mesh
    return tuple(k for k, p in enumerate(tensor.placements) if not p.is_replicate() and mesh.size(k) > 1)


def _offset(tensor: Any) -> int | None:
    """The position of the shard's first element in the whole; None if the shard is not contiguous there."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = [tensor.placements[k] for k in _dims(tensor)]
    local = tensor.to_local()
    if not all(type(p) is Shard for p in placements) or not tensor.is_contiguous() or not local.is_contiguous():
        return None
    lengths, starts = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if local.numel() == 0:
        return 0
    cut = [axis for axis, length in enumerate(lengths) if length != tensor.shape[axis]]
    if cut and any(lengths[axis] != 1 for axis in range(cut[-1])):
        return None
    return int(sum(start * stride for start, stride in zip(starts, tensor.stride(), strict=True)))


class _Family(NamedTuple):
    """The parameters that are sharded along the same dimensions of the same mesh."""

    groups: list[Any]
    members: list[int]
    device: torch.device

    def add(self, places: dict[int, int], sums: Sums, count: int, names: list[str]) -> None:
        """Replaces the sums of this process's shards by those of all shards, added in the order of the ranks."""
        nothing = [(0.0, 0)] * count
        given = [sums[places[member]] if member in places else nothing for member in self.members]
        values = np.array([[value for value, _ in of] for of in given], np.float64).reshape(-1, count)
        exponents = np.array([[exponent for _, exponent in of] for of in given], np.float64).reshape(-1, count)
        present = np.array([[member in places] for member in self.members], np.float64)
        for group in self.groups:
            every = as_seen_by_all(np.concatenate([present, values, exponents], axis=1), group, self.device)
            self._require_same(every[:, :, 0], group, names)
            values, exponents = _added(every[:, :, 1 : 1 + count], every[:, :, 1 + count :])
        for row, member in enumerate(self.members):
            if member in places:
                pairs = zip(values[row].tolist(), exponents[row].tolist(), strict=True)
                sums[places[member]] = [(value, int(exponent)) for value, exponent in pairs]

    def _require_same(self, present: Any, group: Any, names: list[str]) -> None:
        """ValueError if only some processes have a gradient."""
        ranks = torch.distributed.get_process_group_ranks(group)
        for row, member in enumerate(self.members):
            having = present[:, row]
            if having.any() and not having.all():
                have, lack = ranks[int(having.argmax())], ranks[int(having.argmin())]
                raise ValueError(f"grads[{names[member]}]: rank {lack} has none, rank {have} has one")


def _added(values: Any, exponents: Any) -> tuple[Any, Any]:
    """Sums along the first axis, in its order, of values · 2^exponents."""
    top = np.where(values != 0, exponents, -np.inf).max(axis=0)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.zeros(values.shape[1:])
    with np.errstate(all="ignore"):
        for value, exponent in zip(values, exponents, strict=True):
            total += np.ldexp(value, np.clip(exponent - top, -5000, 0).astype(np.int32))
    return total, top


class Shards:
    """The positions of the shards of an optimizer's parameters, for a native step on this process's shards.

    Attributes:
        parts: For each parameter, in the order of the groups, (number, offset, whole, follows); None if this process
            has all of it.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.parts: list[Part] = []
        self._names: list[str] = []
        #: Shards without a known position: number of the group, number, parameter.
        self._unplaced: list[tuple[int, int, Any]] = []
        #: For each DTensor its group, its index there, its number and its placements.
        self._dtensors: list[tuple[int, int, int, Any]] = []
        families: dict[Any, _Family] = {}
        meshes: dict[Any, None] = {}
        for place, group in enumerate(groups):
            for k, (name, param) in enumerate(zip(_names(group, len(self.parts)), group["params"], strict=True)):
                number = len(self.parts)
                self._names.append(repr(name))
                self.parts.append(None)
                if is_dtensor(param):
                    meshes.setdefault(param.device_mesh)
                    self._dtensors.append((place, k, number, param.placements))
                if not is_sharded(param):
                    continue
                offset = _offset(param)
                self.parts[-1] = number, offset or 0, param.numel(), True
                if offset is None:
                    self._unplaced.append((place, number, param))
                key = (param.device_mesh, _dims(param))
                if key not in families:
                    families[key] = _family(param)
                families[key].members.append(number)
        self._families = list(families.values())
        self._meshes = list(meshes)

    @classmethod
    def of(cls, groups: list[dict[str, Any]]) -> "Shards | None":
        """The shards of groups; None if no parameter is a DTensor."""
        there = any(is_dtensor(param) for group in groups for param in group["params"])
        return cls(groups) if there else None

    @staticmethod
    def refuse(rule: str, groups: list[dict[str, Any]]) -> None:
        """TypeError or ValueError if a step on shards cannot equal the step on whole parameters.

        Args:
            rule: The optimizer's.
            groups: Its groups.
        """
        count = 0
        for group in groups:
            for name, param in zip(_names(group, count), group["params"], strict=True):
                if is_dtensor(param):
                    _refuse(rule, group, param, f"params[{name!r}]")
                elif getattr(param, "_fsdp_flattened", False):
                    _refuse_flat(rule, group, f"params[{name!r}]")
            count += len(group["params"])

    def add(self, places: list[int], sums: Sums, count: int | None = None) -> Sums:
        """Sums over all shards, with the same bits in every process. Collective: all processes must call it.

        Args:
            places: The parameters that have a gradient, in the order of the groups.
            sums: For each of these parameters, the sums over this process's shard.
            count: How many sums each parameter has; needed if `sums` is empty.

        Returns:
            For each of these parameters, the sums over all shards.

        Raises:
            ValueError: Processes have gradients of different parameters.
        """
        count = len(sums[0]) if count is None else count
        added, where = list(sums), {place: k for k, place in enumerate(places)}
        for family in self._families:
            family.add(where, added, count, self._names)
        return added

    def _groups(self) -> list[tuple[Any, torch.device]]:
        found = {id(group): (group, family.device) for family in self._families for group in family.groups}
        return list(found.values())

    def agree(self, description: dict[str, str]) -> None:
        """ValueError if processes describe the optimizer differently, including processes with replicas."""
        for mesh in self._meshes:
            agree(description, [mesh.get_group(k) for k in range(mesh.ndim) if mesh.size(k) > 1])

    def everywhere(self, here: bool) -> bool:
        """Whether `here` is true in all processes."""
        for group, device in self._groups():
            here = bool(as_seen_by_all(np.full((1, 1), float(here)), group, device).all())
        return here

    def step(
        self, make: Callable[[], Any], native: Any, groups: list[dict[str, Any]], state: Any, scale: float
    ) -> None:
        """A native step on this process's shards.

        Args:
            make: Creates a native step like `native`.
            native: The optimizer's native step.
            groups: The optimizer's groups.
            state: The optimizer's state.
            scale: The number that gradients are divided by.
        """
        for place, number, param in self._unplaced:
            _refuse_random(groups[place], param, f"params[{self._names[number]}]")
        laid = self._laid_alike(groups)
        try:
            for group, grads in laid:
                group["_grads"] = grads
            if native.step(groups, state, scale, self.parts, self.add):
                return
        finally:
            for group, _ in laid:
                del group["_grads"]
        if self._families and all(param.grad is None for group in groups for param in group["params"]):
            self._step_of_nothing(make(), groups[0])

    def _laid_alike(self, groups: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[Any]]]:
        """The groups in which a gradient has other placements than its parameter, with redistributed gradients."""
        moved: dict[int, list[Any]] = {}
        for place, k, number, placements in self._dtensors:
            param = groups[place]["params"][k]
            grad = param.grad
            if grad is None or getattr(grad, "placements", None) == placements:
                continue
            if not is_dtensor(grad):
                raise TypeError(
                    f"grads[{self._names[number]}]: expected a DTensor like its parameter, got a plain tensor"
                )
            if place not in moved:
                moved[place] = [other.grad for other in groups[place]["params"]]
            moved[place][k] = grad.redistribute(param.device_mesh, placements)
        return [(groups[place], grads) for place, grads in moved.items()]

    def _step_of_nothing(self, native: Any, group: dict[str, Any]) -> None:
        """Joins the collectives of the processes that have gradients; they then raise an error."""
        nothing = torch.zeros(1)
        nothing.grad = torch.zeros(1)

        def add(_: list[int], sums: Sums) -> Sums:
            self.add([], [], len(sums[0]))
            return sums

        alone = {name: value for name, value in group.items() if name != "param_names"}
        native.step([{**alone, "params": [nothing]}], {}, 1.0, None, add)


def _names(group: dict[str, Any], before: int) -> Any:
    return group.get("param_names") or range(before, before + len(group["params"]))


def _family(param: Any) -> _Family:
    mesh = param.device_mesh
    return _Family([mesh.get_group(k) for k in _dims(param)], [], torch.device(mesh.device_type))


def _refuse(rule: str, group: dict[str, Any], param: Any, label: str) -> None:
    got = f"got placements {param.placements}"
    if "rule" in group:
        raise TypeError(f"{label}: expected a plain tensor in Muon for a whole network, {got}")
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(f"{label}: expected a parameter that is sharded or replicated, {got}")
    if not is_sharded(param):
        return
    if rule in _WHOLE:
        raise ValueError(f"{label}: expected a whole parameter for {rule}, which {_WHOLE[rule]}, {got}")
    if group.get("in_backward"):
        raise ValueError(f"in_backward: expected False with sharded parameters; {label}: {got}")
    if _offset(param) is None:
        _refuse_random(group, param, label)


def _refuse_flat(rule: str, group: dict[str, Any], label: str) -> None:
    """ValueError if a step needs whole tensors: `FullyShardedDataParallel` leaves a rank with flat pieces."""
    got = f"got {label}, a flat piece of FullyShardedDataParallel: use fully_shard"
    if rule in _SUMS or rule in _WHOLE:
        raise ValueError(f"params: expected whole tensors for {rule}, {got}")
    for name, nothing in _OF_ALL.items():
        if group.get(name) not in (None, nothing):
            raise ValueError(f"{name}: expected {nothing} with flat pieces of parameters, {got}")


def _refuse_random(group: dict[str, Any], param: Any, label: str) -> None:
    """ValueError if random rounding is on, but the position of a shard in the whole is not known."""
    asked = "stochastic_rounding" if group.get("stochastic_rounding") and param.dtype in _NARROW else None
    if group.get("state_dtype") not in (None, "float32") and param.dtype != torch.float64:
        asked = "state_dtype"
    if asked:
        raise ValueError(
            f"{asked}: expected no random rounding with {label}, whose shard is not contiguous in the whole "
            f"(placements {param.placements}): random rounding depends on the position of an element there"
        )
