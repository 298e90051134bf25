"""`HostOffload`: an optimizer that keeps its states and takes its steps on the host."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from fusedstep.torch.offload.layout import refuse_param
from fusedstep.torch.offload.ring import GRANULE
from fusedstep.torch.offload.step import OffloadStep, Plan, members
from fusedstep.torch.optim.optimizer import FusedOptimizer

#: Rules that need whole tensors, with the reason.
_WHOLE = {
    "lamb": "takes the norms of whole tensors",
    "lars": "takes the norms of whole tensors",
    "prodigy": "computes one step size from all tensors",
    "adafactor": "takes means over rows and columns",
    "muon": "orthogonalizes whole matrices",
    "sparse_adam": "takes gradients of some rows",
}


class HostOffload(FusedOptimizer):
    """An optimizer that keeps masters and moments on the host and steps there; parameters may be on an accelerator.

    Gradients are copied to the host in pieces, through a ring of `slots`. The native step of `optimizer` steps them
    there, and the new values are copied back; see `docs/offload.md`. The result has the same bits as `optimizer` with
    `master_weights=True` and the same gradients on the CPU. If all parameters are on the CPU, they are stepped in place
    without a ring, unless `slots` is given.

    `state[p]` has the same names as that of `optimizer`, and its tensors are on the CPU. Each of the two loads the
    state dict of the other. The first step is the first to write the memory of masters and moments, so on a machine of
    several sockets this memory is on the socket of the threads that step it.

    If `LOCAL_WORLD_SIZE` is set, as torchrun does, a step uses the number of usable processors divided by it, unless
    `FUSEDSTEP_NUM_THREADS` or `fusedstep.runtime.set_num_threads` sets the number of threads.

    A parameter that changes between steps is read again, as with `optimizer`. Its version or its address shows the
    change. A write through `.data` changes neither, so the master would overwrite it: use `torch.no_grad()`, or
    `always_read`. A gradient that changes after hooks have copied it is copied again. A write through `.grad.data` does
    not show: use `prefetch=False`.

    If a check of a step raises an error, nothing has changed. If a later copy fails, some parameters have been stepped;
    further steps raise an error until a state dict is loaded.

    Args:
        params: Parameters, pairs of `named_parameters()`, or groups, as `torch.optim` takes them: dense, on any device.
        optimizer: A class of `fusedstep.torch.optim` whose rule is elementwise.
        slots: Number of slots of the ring; 0 for no ring. None: 0 if all parameters are on the CPU, otherwise 4.
        slot_elements: Elements per slot, and at most per piece; a multiple of 4,096.
        offload_fraction: The host steps the first parameters, up to this fraction of all elements. The optimizer of
            `torch.optim` with the same name steps the others on their device, with float32 masters.
        prefetch: Whether to copy each gradient during the backward pass, while the ring has room.
        always_read: Whether to read every parameter again before each step.
        timeout: Seconds after which a copy that has not ended raises an error.
        **arguments: Those of `optimizer`, by name. `master_weights` is True by default, and False by default with
            `stochastic_rounding`.

    Raises:
        TypeError: An argument or a tensor of the wrong type.
        ValueError: A number out of range; an optimizer that needs whole tensors (`LAMB`, `LARS`, `Prodigy`,
            `Adafactor`, `Muon`, `SparseAdam`); `cautious`, `telemetry` or `in_backward`.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import HostOffload, optim
        >>> weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        >>> opt = HostOffload([weight], optim.AdamW, slots=2, lr=1e-3)
        >>> weight.sum().backward()
        >>> opt.step()
        >>> print(weight.dtype, opt.state[weight]["master"].dtype, opt.ring_bytes)
        torch.bfloat16 torch.float32 33554432
    """

    def __init__(
        self,
        params: Any,
        optimizer: type[FusedOptimizer],
        *,
        slots: int | None = None,
        slot_elements: int = 1 << 22,
        offload_fraction: float = 1.0,
        prefetch: bool = True,
        always_read: bool = False,
        timeout: float = 60.0,
        **arguments: Any,
    ) -> None:
        self._be(optimizer)
        self._plan = _planned(slots, slot_elements, offload_fraction, prefetch, always_read, timeout)
        arguments.setdefault("master_weights", not arguments.get("stochastic_rounding", False))
        super().__init__(params, **arguments)

    def _be(self, kind: Any) -> None:
        """Takes over the rule and the arguments of a class."""
        if not (isinstance(kind, type) and issubclass(kind, FusedOptimizer)) or not hasattr(kind, "rule"):
            raise TypeError(
                f"optimizer: expected a class of fusedstep.torch.optim with an elementwise rule, got {kind!r}"
            )
        if kind.rule in _WHOLE:
            raise ValueError(
                f"optimizer: expected one whose rule is elementwise, got {kind.__name__}, which {_WHOLE[kind.rule]}"
            )
        vars(self).update(kind=kind, rule=kind.rule, arguments=kind.arguments, constants=kind.constants)

    def _make_native(self) -> Any:
        kind: Any = vars(self)["kind"]
        return OffloadStep(self.rule, kind.__name__, self._plan)

    def _refuse_param(self, param: Any, name: str) -> None:
        refuse_param(param, name)

    def _home(self, param: Tensor) -> torch.device:
        native: Any = self._native
        return param.device if param in native.staying(self.param_groups) else torch.device("cpu")

    @property
    def ring_bytes(self) -> int:
        """Bytes of the ring; this memory is pinned if a parameter is on an accelerator."""
        native: Any = self._native
        native.fit(self.param_groups, [])
        ring_bytes: int = native.ring.nbytes
        return ring_bytes

    def _follow_backward(self) -> None:
        """Adds hooks that copy gradients, to parameters without one."""
        if self.defaults.get("in_backward") not in (None, False):
            raise ValueError("in_backward: expected False with HostOffload, which steps after the backward pass")
        native: Any = self._native
        if not self._plan.prefetch or not native.slots(self.param_groups):
            return
        hooked = self.__dict__.setdefault("_hooked", {})
        for m in members(self.param_groups):
            if id(m.param) not in hooked and m.param.requires_grad:
                hooked[id(m.param)] = m.param.register_post_accumulate_grad_hook(_bringing(self, m.name))  # type: ignore[no-untyped-call]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `FusedOptimizer.add_param_group`."""
        super().add_param_group(param_group)
        if "_hooked" in self.__dict__:
            self._follow_backward()

    def _scale(self) -> float:
        # GradScaler.unscale_ changes gradients but not their versions.
        if getattr(self, "grad_scale", None) is None:
            native: Any = self._native
            native.forget_gradients()
        return super()._scale()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kind": vars(self)["kind"], "_plan": self._plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "kind" in state:
            self._be(state["kind"])
            self._plan = state["_plan"]
        super().__setstate__(state)
        native: Any = self._native
        native.forget()


def _bringing(optimizer: HostOffload, name: Any) -> Any:
    """A hook for a parameter; it does not keep the optimizer alive."""
    known = ref(optimizer)

    def bring(param: Tensor) -> None:
        of = known()
        if of is not None:
            native: Any = of._native
            native.arrived(of.param_groups, name, param)

    return bring


def _planned(slots: Any, slot_elements: Any, fraction: Any, prefetch: Any, always_read: Any, timeout: Any) -> Plan:
    """The arguments, checked."""
    for name, value, least in (("slots", slots, 0), ("slot_elements", slot_elements, 1)):
        if value is None and name == "slots":
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected a whole number, got {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected a number >= {least}, got {value}")
    if slot_elements % GRANULE:
        raise ValueError(f"slot_elements: expected a multiple of {GRANULE}, got {slot_elements}")
    for name, value in (("prefetch", prefetch), ("always_read", always_read)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout: expected a number of seconds, got {timeout!r}")
    if not timeout > 0:
        raise ValueError(f"timeout: expected a number > 0, got {timeout!r}")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise TypeError(f"offload_fraction: expected a number, got {fraction!r}")
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"offload_fraction: expected a number in (0, 1], got {fraction!r}")
    return Plan(slots, slot_elements, float(fraction), prefetch, always_read, float(timeout))
