"""What all optimizers share: parameters, groups, state."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._arrays import as_array
from fusedstep._core import StepReport, Structure

Array = NDArray[Any]
#: A learning rate, or a function of the number of steps taken so far (0 for the first step).
LearningRate = float | Callable[[int], float]

_PARAM_KEYS = ("params", "param_names")


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyper-parameters; a group may set its own.

    Attributes:
        maximize: Climbs instead of descending. False by default.
        ema_decay: Keeps `ema ← ema_decay · ema + (1 − ema_decay) · p` of every parameter, starting from the parameter
            before its first step; in [0, 1). None, for no average, by default.
    """

    maximize: bool
    ema_decay: float | None


#: Their defaults.
OPTIONS: dict[str, Any] = {"maximize": False, "ema_decay": None}


class Optimizer:
    """An optimizer of NumPy arrays in place; see its subclasses.

    Args:
        params: A float32 or float64 array, a list of them, a dict `{name: array}`, or a list of groups
            `{"params": …, "lr": …, …}` that set their own hyper-parameters. The arrays are updated in place; they must
            be writable, one dense block of memory each (in any order of the axes), and must not overlap.
        hypers: Hyper-parameters of the groups that do not set their own.
        options: See `Options`; likewise.
    """

    rule: ClassVar[str]

    def __init__(self, params: Any, hypers: dict[str, Any], options: Options) -> None:
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"{name}: not a hyper-parameter of {type(self).__name__}")
        self.defaults: dict[str, Any] = {**hypers, **OPTIONS, **options}
        self._param_groups: list[dict[str, Any]] = []
        self._state: dict[int, dict[str, Any]] = {}
        self._structure = _structure_of(params)
        for group in params if self._structure is Structure.groups else [{"params": params}]:
            self._param_groups.append(self._group(group))
        if not self.param_groups:
            raise ValueError("params: expected at least one group, got an empty list")
        self._native = self._make_native(self._param_groups, 0)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, one dict each; a hyper-parameter changed here holds from the next step on.

        State belongs to a parameter's position: groups and parameters are added (`add_param_group`), never removed.
        """
        return self._param_groups

    @property
    def state(self) -> dict[int, dict[str, Any]]:
        """Per parameter, by its position: the step count and the state arrays, from its first step on."""
        return self._state

    def step(self, grads: Any, grad_scale: float = 1.0) -> StepReport:
        """Updates all parameters once.

        Args:
            grads: The gradients, in the same structure as `params` (with groups: one flat list, or one entry per
                group); None for a parameter that has none this time. Same shape and dtype as the parameter; any
                strides (other than the parameter's they cost a copy), read-only allowed.
            grad_scale: What the gradients are divided by first.

        Returns:
            The `StepReport` of this step.

        Raises:
            TypeError: A wrong dtype or kind of argument.
            ValueError: A wrong shape, number of arrays, or hyper-parameter; arrays that overlap.
                Whatever is raised, nothing has been written.
        """
        return self._native.step(self._param_groups, self._state, grads, grad_scale)

    @property
    def ema(self) -> Any:
        """The running averages of the parameters (`ema_decay`), structured like the parameters.

        None for a parameter before its first step, and without `ema_decay`. Groups give one flat list.
        """
        averages = [self.state.get(k, {}).get("ema") for k in range(sum(len(g["params"]) for g in self.param_groups))]
        if self._structure is Structure.array:
            return averages[0]
        if self._structure is Structure.dict:
            return dict(zip(self.param_groups[0]["param_names"], averages, strict=True))
        return averages

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters with hyper-parameters of their own; from then on, gradients come as for groups.

        Raises:
            TypeError: See the constructor.
            ValueError: See the constructor.
        """
        added = self._group(group)
        native = self._make_native([*self._param_groups, added], self._native.taken, Structure.groups)
        self._param_groups.append(added)
        self._structure, self._native = Structure.groups, native

    def state_dict(self) -> dict[str, Any]:
        """The state, laid out as PyTorch lays out its own: `state` by position and `param_groups` with positions.

        The arrays are the optimizer's own, not copies. `rule` and `step` (steps taken) stand beside PyTorch's keys.
        """
        groups, position = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(position, position + count))})
            position += count
        return {
            "state": {k: dict(state) for k, state in self.state.items()},
            "param_groups": groups,
            "rule": self.rule,
            "step": self._native.taken,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state that `state_dict` gave, copying its arrays.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: An array of another dtype.
        """
        for key in ("state", "param_groups"):
            if key not in state_dict:
                raise ValueError(f"state_dict: no {key!r}")
        if state_dict.get("rule", self.rule) != self.rule:
            raise ValueError(f"state_dict: expected a state of {self.rule!r}, got one of {state_dict['rule']!r}")
        saved_groups = state_dict["param_groups"]
        counts = [len(group["params"]) for group in self.param_groups]
        saved_counts = [len(group["params"]) for group in saved_groups]
        if counts != saved_counts:
            raise ValueError(f"state_dict: expected groups of {counts} parameters, got {saved_counts}")
        groups = []
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            hypers = {name: saved[name] for name in self.defaults if name in saved}
            groups.append({**group, **hypers})
        params = [param for group in self.param_groups for param in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, entry in state_dict["state"].items():
            position = int(key)
            if not 0 <= position < len(params):
                raise ValueError(f"state_dict: expected positions below {len(params)}, got {position}")
            state[position] = self._load_entry(entry, params[position], position)
        furthest = max((entry.get("step", 0) for entry in state.values()), default=0)
        taken = _whole_number(state_dict.get("step", furthest), "state_dict['step']")
        native = self._make_native(groups, taken)
        self._param_groups, self._state, self._native = groups, state, native

    def _load_entry(self, entry: Mapping[str, Any], param: Array, position: int) -> dict[str, Any]:
        known = {*_core.rules()[self.rule]["states"], "ema"}
        loaded: dict[str, Any] = {}
        for name, value in entry.items():
            label = f"state_dict['state'][{position}][{name!r}]"
            if name == "step":
                loaded[name] = _whole_number(value, label)
            elif name not in known:
                raise ValueError(f"{label}: not a state of {self.rule!r}, which has {sorted(known)}")
            elif value is not None:
                source = as_array(value, label)
                if source.dtype != param.dtype:
                    raise TypeError(f"{label}: expected dtype {param.dtype}, got {source.dtype}")
                if source.shape != param.shape:
                    raise ValueError(f"{label}: expected shape {param.shape}, got {source.shape}")
                loaded[name] = np.empty_like(param)
                loaded[name][...] = source
        variants = _core.rules()[self.rule]["variants"]
        kept = [name for name in _core.rules()[self.rule]["states"] if name in loaded]
        if kept and kept not in variants:
            raise ValueError(f"state_dict['state'][{position}]: has {kept}, expected one of {variants}")
        return loaded

    def _group(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if "params" not in given:
            raise ValueError("params: a group has no 'params'")
        unknown = [key for key in given if key not in self.defaults and key not in _PARAM_KEYS]
        if unknown:
            raise ValueError(f"{unknown[0]}: not a hyper-parameter of {type(self).__name__}")
        params = given["params"]
        group: dict[str, Any] = {**self.defaults, **given}
        if isinstance(params, Mapping):
            group["param_names"] = list(params)
            params = list(params.values())
        elif not isinstance(params, (list, tuple)):
            params = [params]
        group["params"] = [as_array(param, f"params[{k}]") for k, param in enumerate(params)]
        return group

    def _make_native(
        self, groups: list[dict[str, Any]], taken: int, structure: Structure | None = None
    ) -> _core.Optimizer:
        native = _core.Optimizer(self.rule, self._structure if structure is None else structure, taken)
        native.check(groups)
        return native

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": self._native.taken, "_structure": self._structure.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._structure = getattr(Structure, state["_structure"])
        self._native = self._make_native(self._param_groups, state["_native"])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for group in self.param_groups:
            count = sum(param.size for param in group["params"])
            hypers = ", ".join(f"{name}={group[name]!r}" for name in self.defaults)
            lines.append(f"    {len(group['params'])} arrays of {count:,} parameters: {hypers}")
        return "\n".join([*lines, ")"])


def _whole_number(value: Any, label: str) -> int:
    """A step count; PyTorch keeps them in tensors of floats."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not number.is_integer() or not 0 <= number < 2**53:
        raise ValueError(f"{label}: expected a whole number >= 0, got {value!r}")
    return int(number)


def _structure_of(params: Any) -> Structure:
    if isinstance(params, Mapping):
        return Structure.dict
    if not isinstance(params, (list, tuple)):
        return Structure.array
    if params and all(isinstance(entry, Mapping) for entry in params):
        return Structure.groups
    return Structure.list
