"""The step of `HostOffload`, with the interface of a native step: whole tensors of the host, or through slots."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from fusedstep import _core
from fusedstep.torch.offload.copies import copies_of
from fusedstep.torch.offload.device import DeviceStep, refuse, squares, staying
from fusedstep.torch.offload.layout import (
    NARROW,
    Span,
    flat,
    here,
    is_alone,
    is_direct,
    overlapped,
    read_gradient,
    refuse_freed,
    refuse_overlaps,
    refuse_param,
)
from fusedstep.torch.offload.pipeline import Measured, Pipeline, Stepped, cut
from fusedstep.torch.offload.ring import Gradient, Ring
from fusedstep.torch.offload.states import Beginnings, Hosted
from fusedstep.torch.offload.threads import budgeted
from fusedstep.torch.optim.shards import is_dtensor
from fusedstep.torch.optim.tensors import COUNTS

#: Options that need whole tensors, with the value that turns them off.
_OF_WHOLE = {"cautious": False, "telemetry": False}


@dataclass(frozen=True)
class Plan:
    """The arguments of `HostOffload`, see there.

    Attributes:
        slots: Number of slots; 0: tensors on the CPU are stepped in place; None: 0 if all parameters are on the CPU,
            otherwise 4.
        slot_elements: Elements per slot.
        fraction: The fraction of all elements that is stepped on the host.
        prefetch: Whether hooks copy gradients before the step.
        always_read: Whether each step reads the parameters again.
        timeout: Seconds after which a copy that has not ended raises an error.
    """

    slots: int | None
    slot_elements: int
    fraction: float
    prefetch: bool
    always_read: bool
    timeout: float


class Member(NamedTuple):
    """A parameter among the groups.

    Attributes:
        number: Its index among all parameters.
        place: The index of its group.
        name: Its name, or its index.
        param: The parameter.
        grad: Its gradient, or None.
    """

    number: int
    place: int
    name: Any
    param: Tensor
    grad: Tensor | None


def members(groups: list[dict[str, Any]]) -> Iterator[Member]:
    """All parameters."""
    number = 0
    for place, group in enumerate(groups):
        names = group.get("param_names") or [None] * len(group["params"])
        grads = group.get("_grads") or [param.grad for param in group["params"]]
        for name, param, grad in zip(names, group["params"], grads, strict=True):
            yield Member(number, place, number if name is None else name, param, grad)
            number += 1


class OffloadStep:
    """The steps of one optimizer.

    Args:
        rule: Its rule.
        name: Its class's name, which PyTorch's optimizer may have too.
        plan: How parameters get to the host.
    """

    def __init__(self, rule: str, name: str, plan: Plan) -> None:
        self._rule, self._name, self._plan = rule, name, plan
        counts = COUNTS.get(rule, "tensor")
        self._native = _core.TensorStep(rule, counts)
        self._beginnings = Beginnings(_core.TensorStep(rule, counts))
        self._hosted: dict[Tensor, Hosted] = {}
        self._copies: dict[torch.device, Any] = {}
        self._stays: set[Tensor] = set()
        #: What steps write, and of which parameters, as it was last looked at.
        self._spans: list[Span] = []
        self._apart: set[Tensor] = set()
        self._lock = Lock()
        #: The thread that takes a step.
        self._stepping: int | None = None
        self._failed: str | None = None
        self.ring = Ring(plan.slots or 0, plan.slot_elements)

    # What the optimizer asks of a native step.

    def check(self, groups: list[dict[str, Any]]) -> None:
        """Hyper-parameters and options, as a step would find them."""
        for group in groups:
            for name, nothing in _OF_WHOLE.items():
                if group.get(name) not in (None, nothing):
                    raise ValueError(f"{name}: expected {nothing} with HostOffload, which steps tensors in pieces")
        if self._plan.fraction < 1.0:
            refuse(self._name, groups)
            for m in members(groups):
                if is_dtensor(m.param):
                    raise ValueError(f"offload_fraction: expected 1 with a DTensor, which params[{m.name!r}] is")
        if self._plan.slots == 0:
            for m in members(groups):
                if m.param.device.type != "cpu":
                    raise ValueError(f"slots: expected at least 1 with params[{m.name!r}] on {m.param.device}, got 0")
        self._native.check(groups)

    @property
    def report(self) -> _core.StepReport | None:
        """Of the last step; None before the first."""
        return self._native.report

    @property
    def taken(self) -> int:
        """How many steps there were."""
        return self._native.taken

    @taken.setter
    def taken(self, taken: int) -> None:
        self._native.taken = taken

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin(self, groups: list[dict[str, Any]], state: dict[Any, Any]) -> None:
        """Makes the states of the parameters that have a gradient, as they begin: no step."""
        self.check(groups)
        stays = self.staying(groups)
        those = [m for m in members(groups) if m.grad is not None and m.param not in stays]
        made = {param: self._made(m, state, begun)[0] for m, param, begun in self._begun(groups, those)}
        for param, entry in made.items():
            if "master" in entry:
                here(entry["master"]).copy_(here(param))
            state.setdefault(param, {}).update(entry)

    # torch.compile breaks its graph here: copies of memory are nothing that it could follow.
    @_disable_dynamo
    @torch.inference_mode(False)
    @torch.no_grad()
    def step(
        self, groups: list[dict[str, Any]], state: dict[Any, Any], grad_scale: float, parts: Any = None, add: Any = None
    ) -> bool:
        """One step; returns False if no parameter has a gradient, or if the step was skipped.

        `parts` and `add` are those of a native step: for shards, their positions in the whole parameters, and a
        function that sums over all shards.
        """
        with self._lock:
            if self._stepping not in (None, get_ident()):
                raise RuntimeError("step: this optimizer is in the middle of a step")
            self._stepping = get_ident()
        try:
            return self._step(groups, state, grad_scale, parts, add)
        finally:
            self._stepping = None

    def _step(
        self, groups: list[dict[str, Any]], state: dict[Any, Any], grad_scale: float, parts: Any, add: Any
    ) -> bool:
        if self._failed is not None:
            raise RuntimeError(
                f"step: an earlier step failed midway ({self._failed}): load a state dict and the weights"
            )
        self.check(groups)
        with budgeted():
            if self.slots(groups) == 0 and self._plan.fraction == 1.0:
                return self._whole(groups, state, grad_scale, parts, add)
            return self._through(groups, state, grad_scale, parts, add)

    def _begun(self, groups: list[dict[str, Any]], those: list[Member]) -> Iterator[tuple[Member, Tensor, Any]]:
        """For each member, the initial states of one element."""
        keys = [Beginnings.key(m.place, groups[m.place], m.param) for m in those]
        begun = self._beginnings.make(groups, set(keys))
        return ((m, m.param, begun[key]) for m, key in zip(those, keys, strict=True))

    def _made(self, member: Member, state: dict[Any, Any], begun: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        refuse_param(member.param, f"params[{member.name!r}]")
        hosted = Hosted(member.param, self._rule)
        return hosted.prepare(state.get(member.param) or {}, begun, repr(member.name))

    # Whole tensors of the host.

    def _whole(
        self, groups: list[dict[str, Any]], state: dict[Any, Any], grad_scale: float, parts: Any, add: Any
    ) -> bool:
        new = [m for m in members(groups) if m.grad is not None and not state.get(m.param)]
        if not new:
            return self._native.step(groups, state, grad_scale, parts, add)
        parts = list(parts) if parts is not None else [None for _ in members(groups)]
        fresh = {}
        for m, param, begun in self._begun(groups, new):
            fresh[param], begins = self._made(m, state, begun)
            part = parts[m.number] or (m.number, 0, param.numel(), True)
            parts[m.number] = (*part, begins)
        trial, taken = {**state, **fresh}, self._native.taken
        try:
            return self._native.step(groups, trial, grad_scale, parts, add)
        finally:
            # Also where an interrupt comes after the native step.
            if self._native.taken != taken:
                state.update({param: trial[param] for param in fresh})

    # Through slots.

    def slots(self, groups: list[dict[str, Any]]) -> int:
        """How many slots there are; 0: tensors are stepped where they lie."""
        if self._plan.slots is not None:
            return self._plan.slots
        return 0 if all(param.device.type == "cpu" for group in groups for param in group["params"]) else 4

    def staying(self, groups: list[dict[str, Any]]) -> set[Tensor]:
        """The parameters that are stepped where they are."""
        if self._plan.fraction == 1.0:
            return set()
        return staying([param for group in groups for param in group["params"]], self._plan.fraction)

    def fit(self, groups: list[dict[str, Any]], grads: list[Tensor]) -> None:
        """Makes a ring for these parameters, unless it is there."""
        count = self.slots(groups) or (1 if self._plan.fraction < 1.0 else 0)
        if count != self.ring.count:
            self.ring = Ring(count, self._plan.slot_elements)
        self._stays = self.staying(groups)
        params = [param for group in groups for param in group["params"] if param not in self._stays]
        grad_bytes = max((tensor.dtype.itemsize for tensor in (*params, *grads)), default=0)
        value_bytes = max((param.dtype.itemsize for param in params if param.dtype in NARROW), default=0)
        self.ring.fit(grad_bytes, value_bytes, any(param.device.type != "cpu" for param in params))

    def copies(self, device: torch.device) -> Any:
        """The copies of a device."""
        if device not in self._copies:
            self._copies[device] = copies_of(device)
        return self._copies[device]

    @_disable_dynamo
    @torch.inference_mode(False)
    @torch.no_grad()
    def arrived(self, groups: list[dict[str, Any]], name: Any, param: Tensor) -> None:
        """Copies a gradient of a backward pass into the ring, as far as it has room."""
        grad = param.grad
        if grad is None or self._failed is not None or is_dtensor(param):
            return
        if not is_direct(param, grad) or not is_alone(grad):
            return
        with self._lock:
            if self._stepping is not None:
                return
            if not self.ring.slots:
                self.fit(groups, [grad])
            if param in self._stays or not self.ring.holds(grad.dtype):
                return
            source, copies, row = Gradient(grad, param), self.copies(param.device), flat(grad)
            if self.ring.renew(param, row, source):
                return
            for piece in cut(param, param.numel(), self._plan.slot_elements):
                if self.ring.load(piece, row, f"grads[{name!r}]", source, copies) is None:
                    break

    def forget_gradients(self) -> None:
        """Makes the next step read all gradients again."""
        self.ring.clear()

    def forget(self) -> None:
        """Makes the next step read parameters, states and gradients again, for example after loading a state."""
        self._hosted.clear()
        self._apart.clear()
        self._failed = None
        self.ring.clear()

    def _collect(
        self, groups: list[dict[str, Any]], state: dict[Any, Any], those: list[Member], parts: Any
    ) -> list[Stepped]:
        """What is known and checked of the parameters that the host steps."""
        stepped = []
        for m, param, begun in self._begun(groups, those):
            hosted = self._hosted.get(param) or Hosted(param, self._rule)
            before = state.get(param) or {}
            made, begins = hosted.prepare(before, begun, repr(m.name))
            grad = read_gradient(hosted.local, m.grad, f"grads[{m.name!r}]")
            self._hosted[param] = hosted
            size = hosted.local.numel()
            _, offset, whole, _ = (parts and parts[m.number]) or (m.number, 0, size, True)
            one = Stepped(
                hosted,
                m.number,
                offset,
                whole,
                m.place,
                m.name,
                grad,
                self.copies(param.device),
                {**before, **made},
                begins,
                self._plan.always_read or hosted.is_read or "master" in made,
                cut(param, size, self._plan.slot_elements),
                Gradient(param.grad if not is_dtensor(param) and param.grad is not None else grad, hosted.local),
            )
            one.numbers = dict(hosted.numbers(one.entry, repr(m.name)))
            stepped.append(one)
        self._refuse_overlaps(stepped)
        return stepped

    def _refuse_overlaps(self, stepped: list[Stepped]) -> None:
        """ValueError where a step would write what it writes elsewhere, or still reads."""
        apart = all(one.param in self._apart and not one.hosted.moved for one in stepped)
        if apart and not any(overlapped(self._spans, one.grad) for one in stepped):
            return
        spans = refuse_overlaps(span for one in stepped for span in one.hosted.spans(repr(one.name)))
        for one in stepped:
            other = overlapped(spans, one.grad)
            if other is not None:
                raise ValueError(f"{one.label}: overlaps {other} in memory")
        self._spans, self._apart = spans, {one.param for one in stepped}
        for one in stepped:
            one.hosted.moved = False

    def _through(
        self, groups: list[dict[str, Any]], state: dict[Any, Any], grad_scale: float, parts: Any, add: Any
    ) -> bool:
        self._stays = stays = self.staying(groups)
        those = [m for m in members(groups) if m.grad is not None]
        for m in those:
            refuse_param(m.param, f"params[{m.name!r}]")
            refuse_freed(here(m.param), f"params[{m.name!r}]")
        stepped = self._collect(groups, state, [m for m in those if m.param not in stays], parts)
        rest = [
            (groups[m.place], m.param, read_gradient(here(m.param), m.grad, f"grads[{m.name!r}]"))
            for m in those
            if m.param in stays
        ]
        if not those:
            self.ring.clear()
            return False
        self.fit(groups, [one.grad for one in stepped])
        run = Pipeline(self._native, self.ring, groups, stepped, grad_scale, add, self._plan.timeout)
        whole = groups[0]
        measured: Measured | None = None
        try:
            if whole.get("max_grad_norm") is not None or whole.get("skip_nonfinite"):
                measured = run.measure(squares([grad for _, _, grad in rest]))
            if not run.update(measured):
                return False
            if rest:
                run.wrote = True
                self._step_rest(rest, state, grad_scale)
            self._keep(stepped, state)
        except BaseException as error:
            self.ring.clear()
            self._native.taken = run.taken
            if run.wrote:
                self._failed = f"{type(error).__name__}: {error}"
            raise
        self._native.taken = run.taken + 1
        return True

    def _keep(self, stepped: list[Stepped], state: dict[Any, Any]) -> None:
        """Enters what the step has made into the state."""
        for one in stepped:
            entry = state.get(one.param, {})
            entry.update(one.entry)
            if entry:
                state[one.param] = entry
            one.hosted.advance(entry, one.after)
            self._tell(one, entry)
            one.hosted.look()

    def _tell(self, one: Stepped, entry: dict[str, Any]) -> None:
        """Increments the versions of tensors that the native step has written through other tensors."""
        wrote = [entry[name] for name in one.hosted.rows]
        torch.autograd.graph.increment_version([*wrote, one.param] if is_dtensor(one.param) else wrote)

    def _step_rest(self, rest: list[Any], state: dict[Any, Any], grad_scale: float) -> None:
        report = self._native.report
        clip = 1.0 if report is None or report.clip_coefficient is None else report.clip_coefficient
        shaped = [(group, param, grad.as_strided(param.shape, param.stride())) for group, param, grad in rest]
        DeviceStep(self._name, shaped, state, clip / grad_scale).run()
