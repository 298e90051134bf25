"""Parameters that several processes hold parts of (DTensors): whose part is where, and sums over all parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusedstep.torch.optim.ranks import agree, as_seen_by_all

#: (number, offset, whole, follows) of a part; None: a tensor that is here as a whole.
Part = tuple[int, int, int, bool] | None
#: Of each tensor its sums, as (value, exponent) for value · 2^exponent.
Sums = list[list[tuple[float, int]]]

_NARROW = (torch.float16, torch.bfloat16)
#: Rules that parts do not do for, and what they need the whole for.
_WHOLE = {
    "adafactor": "takes means of its rows and columns",
    "muon": "makes the whole matrix orthogonal",
    "sparse_adam": "takes gradients of some of its rows",
}

#: Rules that add something up over whole tensors; options that do, with the value that asks for nothing.
_SUMS = ("lamb", "lars", "prodigy")
_OF_ALL = {"max_grad_norm": None, "skip_nonfinite": False, "telemetry": False, "cautious": False}


def is_dtensor(tensor: Any) -> bool:
    """Whether it is a DTensor. Imports nothing: without `torch.distributed.tensor` there is none."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def is_sharded(tensor: Any) -> bool:
    """Whether processes hold different parts of it."""
    return is_dtensor(tensor) and bool(_dims(tensor))


def _dims(tensor: Any) -> tuple[int, ...]:
    """The dimensions of the mesh along which processes hold different parts."""
    mesh = tensor.device_mesh
    return tuple(k for k, p in enumerate(tensor.placements) if not p.is_replicate() and mesh.size(k) > 1)


def _offset(tensor: Any) -> int | None:
    """The place in the whole of its first element here; None where what is here is not one piece of it."""
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
        """Puts in place of the sums of the parts here those of all parts, added in the order of the ranks."""
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
        """ValueError where one process has a gradient that another lacks."""
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
    """Where the parts of an optimizer's parameters lie, for a native step of those that are here.

    Attributes:
        parts: Of each parameter in the order of the groups (number, offset, whole, follows), or None where all of it is
            here.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.parts: list[Part] = []
        self._names: list[str] = []
        #: Those of which no place is known, with the number of their group.
        self._unplaced: list[tuple[int, int, Any]] = []
        #: Of each DTensor its group, its place there, its number and its placements.
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
        """The shards of groups; None where no parameter is a DTensor."""
        there = any(is_dtensor(param) for group in groups for param in group["params"])
        return cls(groups) if there else None

    @staticmethod
    def refuse(rule: str, groups: list[dict[str, Any]]) -> None:
        """TypeError or ValueError where a step of parts cannot be that of the whole.

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
        """Sums over all parts, with the same bits in every process. All processes must call it.

        Args:
            places: Parameters that have a gradient, in the order of the groups.
            sums: Of each of them, those of its part here.
            count: How many each has, where there are none to see it from.

        Returns:
            Of each of them, those of all of it.

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
        """ValueError where processes describe the optimizer differently, those with replicas as well."""
        for mesh in self._meshes:
            agree(description, [mesh.get_group(k) for k in range(mesh.ndim) if mesh.size(k) > 1])

    def everywhere(self, here: bool) -> bool:
        """Whether something holds in all processes."""
        for group, device in self._groups():
            here = bool(as_seen_by_all(np.full((1, 1), float(here)), group, device).all())
        return here

    def step(
        self, make: Callable[[], Any], native: Any, groups: list[dict[str, Any]], state: Any, scale: float
    ) -> None:
        """A native step of the parts that are here.

        Args:
            make: Makes a native step like `native`.
            native: The optimizer's.
            groups: Its groups.
            state: Its state.
            scale: What gradients are divided by.
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
        """Groups with gradients that lie elsewhere than their parameters, and gradients that do not."""
        moved: dict[int, list[Any]] = {}
        for place, k, number, placements in self._dtensors:
            param = groups[place]["params"][k]
            grad = param.grad
            if grad is None or getattr(grad, "placements", None) == placements:
                continue
            if not is_dtensor(grad):
                raise TypeError(
                    f"grads[{self._names[number]}]: expected a DTensor, as its parameter is, got a plain tensor"
                )
            if place not in moved:
                moved[place] = [other.grad for other in groups[place]["params"]]
            moved[place][k] = grad.redistribute(param.device_mesh, placements)
        return [(groups[place], grads) for place, grads in moved.items()]

    def _step_of_nothing(self, native: Any, group: dict[str, Any]) -> None:
        """Asks as often as those do who have gradients, so that they hear of it."""
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
        raise ValueError(f"{label}: expected all of a parameter for {rule}, which {_WHOLE[rule]}, {got}")
    if group.get("in_backward"):
        raise ValueError(f"in_backward: expected False with sharded parameters; {label}: {got}")
    if _offset(param) is None:
        _refuse_random(group, param, label)


def _refuse_flat(rule: str, group: dict[str, Any], label: str) -> None:
    """ValueError where a step needs more of a parameter than `FullyShardedDataParallel` leaves on a rank."""
    why = f"{label} is a piece of FullyShardedDataParallel's, which does not say of what: use fully_shard"
    if rule in _SUMS or rule in _WHOLE:
        raise ValueError(f"params: expected none that are pieces for {rule}, whose step needs whole tensors; {why}")
    for name, nothing in _OF_ALL.items():
        if group.get(name) not in (None, nothing):
            raise ValueError(f"{name}: expected {nothing}, for {why}")


def _refuse_random(group: dict[str, Any], param: Any, label: str) -> None:
    """ValueError where random words are needed that nobody can say, for the part is not one piece of the whole."""
    asked = "stochastic_rounding" if group.get("stochastic_rounding") and param.dtype in _NARROW else None
    if group.get("state_dtype") not in (None, "float32") and param.dtype != torch.float64:
        asked = "state_dtype"
    if asked:
        raise ValueError(
            f"{asked}: expected none with {label}, whose part here is not one piece of its memory (placements "
            f"{param.placements}): random rounding goes by the place in the whole"
        )
