"""What all optimizers share: PyTorch's interface on top of one native call a step."""

from collections.abc import Callable
from functools import wraps
from inspect import Signature
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import optimizer as _torchs

from fusedstep import _core
from fusedstep.torch.optim import codes, loading, ranks, trial, zero
from fusedstep.torch.optim.backward import BackwardSteps, refuse_of_all
from fusedstep.torch.optim.shards import Shards
from fusedstep.torch.optim.tensors import COUNTS, number, refuse_param

#: How PyTorch computes, not what: nothing here computes otherwise.
WAYS: dict[str, Any] = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}

_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled


def observed(function: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's wrapper of `step` (hooks, a label for the profiler), entered only where there is something for it."""
    wrapped = torch.optim.Optimizer.profile_hook_step(function)
    before, after = _torchs._global_optimizer_pre_hooks, _torchs._global_optimizer_post_hooks

    @wraps(function)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before or after or self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _profiled():
            return wrapped(self, *args, **kwargs)
        return function(self, *args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]
    return step


class FusedOptimizer(torch.optim.Optimizer):
    """An optimizer of PyTorch's tensors with this library's steps; see `fusedstep.torch.optim`.

    Args:
        params: Parameters, pairs of `named_parameters()`, or groups, as `torch.optim` takes them.
        arguments: Hyper-parameters and options in the order of the subclass's signature.
        named: The same by name.

    Raises:
        TypeError: An argument, or a tensor, of another kind.
        ValueError: A hyper-parameter out of range; a parameter that comes twice.
    """

    rule: ClassVar[str]
    arguments: ClassVar[Signature]
    #: What groups hold beside the arguments.
    constants: ClassVar[dict[str, Any]] = {}
    _step_supports_amp_scaling = True
    #: Whether the next step looks at what groups have become: where their parts lie, and on which ranks.
    _watched = True
    _looked = False
    _shards: Shards | None = None
    _begun: trial.Begun | None = None
    #: Within `ZeroRedundancyOptimizer`.
    _zero = False

    def __init__(self, params: Any, *arguments: Any, **named: Any) -> None:
        self._zero = zero.is_being_made()
        defaults = self._bound(params, arguments, named)
        self._native = self._make_native()
        super().__init__(params, defaults)
        self._follow_backward()

    def _bound(self, params: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """What a group holds that says nothing itself."""
        try:
            bound = self.arguments.bind(params, *arguments, **named)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "params"} | self.constants

    def _usual(self, group: dict[str, Any]) -> dict[str, Any]:
        """What a group of an older version lacks."""
        return {name: p.default for name, p in self.arguments.parameters.items() if name != "params"} | self.constants

    @property
    def _shared(self) -> bool:
        return bool(_core.rules()[self.rule]["shared_scalars"])

    def _make_native(self) -> _core.TensorStep:
        return _core.TensorStep(self.rule, COUNTS.get(self.rule, "tensor"))

    def _follow_backward(self) -> None:
        """Steps in the backward pass, where that was asked for."""
        every = self.defaults.get("in_backward", False)
        if every is False or every is None:
            return
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"in_backward: expected True, False or a number of backward passes, got {every!r}")
        refuse_of_all(self)
        if "_backward" not in self.__dict__:
            self._backward = BackwardSteps(self, int(every))
        self._backward.follow()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters with hyper-parameters of their own; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            TypeError: See the constructor.
            ValueError: See the constructor. Nothing has changed then.
        """
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), Tensor | set):
            param_group["params"] = list(param_group["params"])
            self._refuse_twice(param_group["params"])
        super().add_param_group(param_group)
        try:
            for name, param in zip(_names(self.param_groups[-1]), self.param_groups[-1]["params"], strict=True):
                self._refuse_param(param, f"params[{name!r}]")
            self._check(self.param_groups)
        except BaseException:
            self.param_groups.pop()
            raise
        self._watched, self._looked = True, False
        if "_backward" in self.__dict__:
            self._backward.follow()

    def _refuse_param(self, param: Any, name: str) -> None:
        refuse_param(param, name)

    def _home(self, param: Tensor) -> torch.device:
        """Where the state of a parameter lies."""
        return param.device

    def _check(self, groups: list[dict[str, Any]]) -> None:
        """ValueError or TypeError where groups ask for what cannot be."""
        for group in groups:
            _refuse_ways(group)
            every = self.defaults.get("in_backward", False)
            if group.get("in_backward", every) != every:
                raise ValueError(f"in_backward: holds for all groups: expected {every}, got {group['in_backward']!r}")
        if self._zero:
            zero.refuse_of_all(self._shared, type(self).__name__, groups)
        Shards.refuse(self.rule, groups)
        self._native.check(groups)

    def _refuse_twice(self, params: list[Any]) -> None:
        seen: dict[int, Any] = {}
        for group in self.param_groups:
            seen |= {id(param): name for name, param in zip(_names(group), group["params"], strict=True)}
        for place, given in enumerate(params):
            name, param = given if isinstance(given, tuple) and len(given) == 2 else (place, given)
            if id(param) in seen:
                raise ValueError(f"params[{name!r}]: comes twice, and as params[{seen[id(param)]!r}]")
            seen[id(param)] = name

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have a gradient once.

        A first step with all lr 0 and all gradients 0 makes the states, and counts for nothing: by such a step
        `torch.distributed.checkpoint` asks for them.

        Args:
            closure: Evaluates the model again, and returns the loss.

        Returns:
            The closure's loss; None without.

        Raises:
            TypeError: A tensor of another dtype or kind than can be.
            ValueError: A shape, a number or a hyper-parameter that cannot be; tensors that overlap. Whatever is raised,
                nothing has been written.
        """
        if self._watched and self._begins(closure):
            return None
        loss = None
        if "_backward" in self.__dict__:
            return self._refuse_step(closure)
        if closure is not None:
            if not callable(closure):
                raise TypeError(f"closure: expected a function, got {type(closure).__qualname__}")
            with torch.enable_grad():
                loss = closure()
        own = self.__dict__
        scale = 1.0
        if "found_inf" in own or "grad_scale" in own:
            scale = self._scale()
            if not scale:
                return loss
        if self._shards is None:
            self._native.step(self.param_groups, self.state, scale)
        else:
            self._shards.step(self._make_native, self._native, self.param_groups, self.state, scale)
        return loss

    step = observed(step)

    def _begins(self, closure: Any) -> bool:
        """Whether this step only makes states. Looks at what groups have become, where that may have changed."""
        if self._watched and not self._looked:
            self._shards = Shards.of(self.param_groups)
            if self._shards is not None:
                Shards.refuse(self.rule, self.param_groups)
                self._shards.agree(ranks.described(self))
            self._looked = True
        if self._zero:
            self._check(self.param_groups)
        if trial.is_asked(self, closure, self._shards):
            self._begun = trial.Begun(self)
            self._watched = True
            return True
        if self._begun is not None:
            self._begun.forget(self)
        self._begun, self._watched = None, self._zero
        return False

    def _refuse_step(self, closure: Any) -> None:
        """The steps have been taken, unless somebody wants more than one gradient after the other gives."""
        if closure is not None:
            raise ValueError("closure: expected None with in_backward, which steps in the closure's backward pass")
        if "found_inf" in self.__dict__:
            raise ValueError("in_backward: expected False with a GradScaler, which looks at all gradients first")

    def _scale(self) -> float:
        """What `torch.amp.GradScaler` multiplied the gradients by; 0 where it found an infinity."""
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        found, number = _one_number(found_inf, "found_inf"), _one_number(scale, "grad_scale")
        if found:
            return 0.0
        if number is None:
            return 1.0
        if not number > 0:
            raise ValueError(f"grad_scale: expected a number > 0, got {number}")
        return number

    @property
    def report(self) -> _core.StepReport | None:
        """What the last step did; see `fusedstep.StepReport`. None before the first."""
        return self._native.report

    @property
    def ema(self) -> list[Tensor | None]:
        """The running averages of the parameters (`ema_decay`), in the order of the groups; None before the first."""
        return [self.state[p].get("ema") if p in self.state else None for g in self.param_groups for p in g["params"]]

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups, as `torch.optim.Optimizer.state_dict` gives them.

        States of 8 bits of sharded parameters are float32 there: their scales are of blocks of what is on this rank.
        """
        found: dict[str, Any] = super().state_dict()
        rules = [group.get("rule", self.rule) for group in self.param_groups for _ in group["params"]]
        state = {
            place: codes.without_codes(rules[place], entry) if isinstance(place, int) else entry
            for place, entry in found["state"].items()
        }
        return {**found, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a state that `state_dict` gave, here or of `torch.optim`'s optimizer of the same name.

        Tensors are copied. States are stored in the dtypes that this optimizer gives them, whatever the parameter's.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: A value of another kind.
        """
        loading.load(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self._usual(group).items():
                group.setdefault(name, value)
            group.update(self.constants)
        for entry in self.state.values():
            if self.rule != "sparse_adam" and "step" in entry and not isinstance(entry["step"], Tensor):
                entry["step"] = number(float(entry["step"]))
        if "_native" not in self.__dict__:
            self._native = self._make_native()
        self._watched, self._looked, self._begun = True, False, None
        steps = [float(entry["step"]) for entry in self.state.values() if "step" in entry]
        self._native.taken = int(max(steps, default=self._native.taken))
        self._follow_backward()


def _one_number(value: Any, name: str) -> float | None:
    """What a tensor of one number holds."""
    if value is None:
        return None
    if not (isinstance(value, Tensor) and value.numel() == 1):
        raise TypeError(f"{name}: expected a tensor of one number, or None, got {value!r}")
    if value.is_complex() or value.is_meta or value.is_nested or value.layout is not torch.strided:
        kind = f"{value.dtype} on {value.device} with layout {value.layout}"
        raise TypeError(f"{name}: expected a dense tensor of one real number, or None, got one of {kind}")
    return float(value.detach())


def _names(group: dict[str, Any]) -> Any:
    return group.get("param_names") or range(len(group["params"]))


def _refuse_ways(group: dict[str, Any]) -> None:
    """ValueError where a group asks for a way to compute that there is not."""
    for name, why in (("capturable", "a step here is no CUDA graph's"), ("differentiable", "no step here is recorded")):
        if group.get(name):
            raise ValueError(f"{name}: expected False, for {why}, got {group[name]!r}")
    for name in ("foreach", "fused"):
        if group.get(name) not in (None, True, False):
            raise TypeError(f"{name}: expected True, False or None, got {group[name]!r}")
    if group.get("fused") and group.get("foreach"):
        raise ValueError("fused: expected no foreach=True beside it")
