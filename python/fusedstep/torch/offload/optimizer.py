"""`HostOffload`: an optimizer whose states and steps are the host's, wherever its parameters are."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from fusedstep.torch.offload.layout import refuse_param
from fusedstep.torch.offload.ring import GRANULE
from fusedstep.torch.offload.step import OffloadStep, Plan, members
from fusedstep.torch.optim.optimizer import FusedOptimizer

#: Rules that look at whole tensors, with why.
_WHOLE = {
    "lamb": "takes the norms of whole tensors",
    "lars": "takes the norms of whole tensors",
    "prodigy": "takes one step size of all tensors",
    "adafactor": "takes means over rows and columns",
    "muon": "orthogonalizes whole matrices",
    "sparse_adam": "takes gradients of some rows",
}


class HostOffload(FusedOptimizer):
    """An optimizer whose masters, moments and steps are the host's; the parameters may be an accelerator's.

    Gradients come to the host in pieces through a ring of `slots`, are stepped there by the same native step as
    `optimizer`'s own, and the new values go back; see `docs/offload.md`. The result has the bits that `optimizer` with
    `master_weights=True` gives with the same gradients on the CPU. Where all parameters are on the CPU there is nothing
    to bring, and tensors are stepped where they lie, unless `slots` asks for the ring.

    `state[p]` has the same names as `optimizer`'s, and its tensors are on the CPU: a state dict goes from the one to
    the other. Masters and moments begin as memory that nobody has touched, so that it comes to lie beside the threads
    that step it.

    With `LOCAL_WORLD_SIZE` in the environment, as torchrun sets it, a step takes the usable processors by the processes
    of this machine, unless `FUSEDSTEP_NUM_THREADS` or `fusedstep.runtime.set_num_threads` says how many.

    A change of a parameter between steps counts, as it does with `optimizer`: it is seen by the tensor's version and
    memory. A write through `.data` changes neither, so that the master would overwrite it: use `torch.no_grad()`, or
    `always_read`. In the same way a gradient that hooks have brought is read again where it has changed, and a write
    through `.grad.data` is not seen: use `prefetch=False`.

    An error in the checks of a step leaves everything as it was. An error later, of a copy, leaves some parameters
    stepped; further steps are refused then until a state dict is loaded.

    Args:
        params: Parameters, pairs of `named_parameters()`, or groups, as `torch.optim` takes them: dense, on any device.
        optimizer: A class of `fusedstep.torch.optim` whose rule is elementwise.
        slots: How many slots the ring has. 4 by default; 0, for none, where all parameters are on the CPU.
        slot_elements: Elements of a slot, and of a piece at most: a multiple of 4,096.
        offload_fraction: The first parameters, up to this fraction of all elements, are stepped on the host, and the
            others where they are, by `torch.optim`'s optimizer of the same name on float32 masters.
        prefetch: Brings gradients in the backward pass, as soon as each is there, while the ring has room.
        always_read: Reads every parameter back before its step.
        timeout: Seconds after which a copy that has not ended is an error.
        **arguments: Those of `optimizer`, by name. `master_weights` is True by default, but with
            `stochastic_rounding`.

    Raises:
        TypeError: An argument, or a tensor, of another kind.
        ValueError: A number out of range; an `optimizer` or an option that looks at whole tensors (`Lamb`, `Lars`,
            `Prodigy`, `Adafactor`, `Muon`, `SparseAdam`; `cautious`, `telemetry`), or `in_backward`.

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
        """Takes on the rule and the arguments of a class."""
        if not (isinstance(kind, type) and issubclass(kind, FusedOptimizer)) or not hasattr(kind, "rule"):
            raise TypeError(f"optimizer: expected a class of fusedstep.torch.optim, got {kind!r}")
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
        """The memory of the ring: pinned, where a parameter is an accelerator's."""
        native: Any = self._native
        native.fit(self.param_groups, [])
        ring_bytes: int = native.ring.nbytes
        return ring_bytes

    def _follow_backward(self) -> None:
        """Hooks that bring gradients, of the parameters that have none yet."""
        if self.defaults.get("in_backward") not in (None, False):
            raise ValueError("in_backward: expected False with HostOffload, which steps when all gradients are there")
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
        # A GradScaler whose unscale_ was called changes gradients without their versions.
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
    """A hook of a parameter, which does not keep the optimizer alive."""
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
