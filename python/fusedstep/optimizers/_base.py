"""What all optimizers share: parameters, groups, state."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._arrays import as_array, dtype_name
from fusedstep._core import StepReport, Structure
from fusedstep.optimizers._states import load_state, stored_dtype
from fusedstep.schedules._saving import Handover

Array = NDArray[Any]
#: A learning rate, or a function of the number of steps taken so far (0 for the first step).
LearningRate = float | Callable[[int], float]

_PARAM_KEYS = ("params", "param_names")


class Options(TypedDict, total=False):
    """What every optimizer takes beside its own hyper-parameters; a group may set its own, but where it says otherwise.

    Attributes:
        maximize: Climbs instead of descending. False by default.
        ema_decay: Keeps `ema ← ema_decay · ema + (1 − ema_decay) · p` of every parameter, starting from the parameter
            before its first step; in [0, 1). It moves where the parameter has a gradient. None, for no average, by
            default. Not for row-sparse gradients.
        ema_warmup: Lets the first steps weigh more in the average, so that the start is soon forgotten: with
            `min(ema_decay, (1 + t) / (10 + t))` in a parameter's t-th step, as `averaging.EMA`. False by default.
        max_grad_norm: Multiplies all gradients by `min(1, max_grad_norm / (norm + 1e-6))`, with the norm of all of them
            together; > 0, infinity to have the norm reported only. None, for no clipping, by default. For the whole
            step: the same in all groups.
        skip_nonfinite: Leaves out a step whose gradients hold an infinity or a NaN: nothing changes, no state, no count
            of steps. False by default. For the whole step.
        telemetry: Measures gradients, parameters and their change while they are in the cache, see `StepReport`. False
            by default. For the whole step.
        cautious: Leaves out the components of a step that go against the gradient, and scales the others of the tensor
            by `elements / (kept + 1)` (Liang, Chen, Liu and Liu, "Cautious Optimizers", 2024). False by default. Only
            for `Adam`, `AdamW`, `Adamax`, `NAdam`, `RAdam`, `AdEMAMix`, `ADOPT` and `Lion`.
        state_dtype: How the states of float32, float16 and bfloat16 parameters are stored from their first step on:
            "float32"; "bfloat16", in 2 bytes; or "8bit", in 1 byte and a float32 scale, `<state>_scale`, for every 256.
            What is stored in fewer bits is rounded at random, so that its mean is what was computed: rounded to the
            nearest, a moving average would stand still. `ema`, `master`, the copies of parameters of
            `ScheduleFreeAdamW` and `Prodigy`, the `s` of `Prodigy` and the step sizes of `Rprop` stay float32.
            "float32" by default; see `convert_states`. A float64 parameter has float64 states.
        min_8bit_size: Parameters of fewer elements, as norms and biases are, keep float32 states with "8bit". 4096 by
            default.
        master_weights: Keeps a float32 copy, `master`, of every float16 and bfloat16 parameter, takes the steps there,
            and rounds it into the parameter in the same pass. Where a parameter was changed in between, its new value
            holds. False by default: a step of less than half a unit of the parameter is then lost, unless it has
            `stochastic_rounding`.
        stochastic_rounding: Rounds float16 and bfloat16 parameters at random: up with the probability of what is cut
            off, so that small steps add up. Not with `master_weights`. False, to the nearest, by default.
        seed: What the rounding at random depends on, beside a parameter's position, its step and the place of the
            element: the same numbers on every processor and for any number of threads. 0 by default.
    """

    maximize: bool
    ema_decay: float | None
    ema_warmup: bool
    max_grad_norm: float | None
    skip_nonfinite: bool
    telemetry: bool
    cautious: bool
    state_dtype: str
    min_8bit_size: int
    master_weights: bool
    stochastic_rounding: bool
    seed: int


#: Their defaults.
OPTIONS: dict[str, Any] = {
    "maximize": False,
    "ema_decay": None,
    "ema_warmup": False,
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "telemetry": False,
    "cautious": False,
    "state_dtype": "float32",
    "min_8bit_size": 4096,
    "master_weights": False,
    "stochastic_rounding": False,
    "seed": 0,
}

# Of PyTorch's groups: how it computes, not what.
_TORCH_KEYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "decoupled_weight_decay"}
# Hyper-parameters that PyTorch's optimizer of the same name does not have, or has not always had.
_NOT_TORCHS = {"accumulator", "decoupled_weight_decay", "nesterov"}


class Optimizer:
    """An optimizer of NumPy arrays in place; see its subclasses.

    Args:
        params: A float32, float64, float16 or bfloat16 array, a list of them, a dict `{name: array}`, or a list of
            groups `{"params": …, "lr": …, …}` that set their own hyper-parameters. The arrays are updated in place;
            they must be writable, one dense block of memory each (in any order of the axes), and must not overlap.
            bfloat16 is ml_dtypes', PyTorch's, or words of 16 bits that say so: `words.view(fusedstep.bfloat16)`. The
            arithmetic on 16 bits is of float32, rounded once, at the end.
        hypers: Hyper-parameters of the groups that do not set their own.
        options: See `Options`; likewise.
    """

    rule: ClassVar[str]

    def __init__(self, params: Any, hypers: dict[str, Any], options: Options) -> None:
        known = self.options()
        for name in options:
            if name in OPTIONS and name not in known:
                raise TypeError(f"{name}: does not apply to {type(self).__name__}")
            if name not in OPTIONS:
                raise TypeError(f"{name}: not a hyper-parameter of {type(self).__name__}")
        self.defaults: dict[str, Any] = {**hypers, **known, **options}
        self._torch = False
        self._param_groups: list[dict[str, Any]] = []
        self._state: dict[int, dict[str, Any]] = {}
        self._structure = _structure_of(params)
        for group in params if self._structure is Structure.groups else [{"params": params}]:
            self._param_groups.append(self._group(group))
            self._torch = self._torch or _has_tensors(group)
        if not self.param_groups:
            raise ValueError("params: expected at least one group, got an empty list")
        self._native = self._make_native(self._param_groups, 0)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The options that apply to this optimizer, with their defaults; see `Options`."""
        rule = _core.rules()[cls.rule]
        # An average moves rows that a row-sparse gradient leaves alone.
        applies = {"cautious": rule["cautious"], "ema_decay": rule["dense"], "ema_warmup": rule["dense"]}
        return {name: default for name, default in OPTIONS.items() if applies.get(name, True)}

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
                group); None for a parameter that has none this time. Same shape as the parameter; its dtype, or any
                of float32, float16 and bfloat16 for a parameter of one of these; any strides (other than the
                parameter's they cost a copy), read-only allowed.
            grad_scale: What the gradients are divided by first.

        Returns:
            The `StepReport` of this step.

        Raises:
            TypeError: A wrong dtype or kind of argument.
            ValueError: A wrong shape, number of arrays, or hyper-parameter; arrays that overlap.
                Whatever is raised, nothing has been written; `KeyboardInterrupt` may also come after a whole step.
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
        self._torch = self._torch or _has_tensors(group)

    def state_dict(self) -> dict[str, Any]:
        """The state, laid out as PyTorch lays out its own: `state` by position and `param_groups` with positions.

        The arrays are the optimizer's own, not copies; where parameters were given as PyTorch's tensors, they are
        tensors, and `torch.optim`'s optimizer of the same name can load the result (but for a learning rate that is a
        schedule, which it cannot call). `rule` and `step` (steps taken) stand beside PyTorch's keys.
        """
        groups, position = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(position, position + count))})
            position += count
        return {
            "state": {k: {name: self._given_back(v) for name, v in entry.items()} for k, entry in self.state.items()},
            "param_groups": groups,
            "rule": self.rule,
            "step": self._native.taken,
        }

    def _given_back(self, value: Any) -> Any:
        if self._torch and isinstance(value, np.ndarray):
            import torch

            if dtype_name(value.dtype) == "bfloat16":
                return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
            return torch.from_numpy(value)
        return value

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a state that `state_dict` gave, here or of `torch.optim`'s optimizer of the same name.

        Arrays are copied, and stored as `state_dtype` says, which is the loaded state's where that has one: PyTorch's
        float32 or narrow states are rounded to the nearest, or widened, where they have to be. A learning rate that is
        a schedule stays where the state has none; of a `ReduceOnPlateau` in the state see there.

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
        if "rule" not in state_dict:
            for saved in saved_groups:
                self._refuse_other_hypers(saved)
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            names, saved_names = group.get("param_names"), saved.get("param_names")
            if names is not None and saved_names is not None and list(names) != list(saved_names):
                raise ValueError(f"state_dict: expected parameters {list(names)}, got {list(saved_names)}")
        known = [*self.defaults, *self._shared_scalars()]
        groups, handover = [], Handover()
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            hypers = {name: handover.adopt(group.get(name), _plain(saved[name])) for name in known if name in saved}
            kept = {name: value for name, value in group.items() if name not in self._shared_scalars()}
            groups.append({**kept, **hypers})
        params = [param for group in self.param_groups for param in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, entry in state_dict["state"].items():
            position = int(key)
            if not 0 <= position < len(params):
                raise ValueError(f"state_dict: expected positions below {len(params)}, got {position}")
            state[position] = self._load_entry(entry, params[position], position, groups)
        furthest = max((entry.get("step", 0) for entry in state.values()), default=0)
        taken = _whole_number(state_dict.get("step", furthest), "state_dict['step']")
        native = self._make_native(groups, taken)
        handover.finish()
        self._param_groups, self._state, self._native = groups, state, native

    def _refuse_other_hypers(self, saved: Mapping[str, Any]) -> None:
        """PyTorch's state does not name its optimizer, but its groups have its hyper-parameters."""
        own = set(_core.rules()[self.rule]["hypers"])
        other = [name for name in saved if name not in {*own, *OPTIONS, *_PARAM_KEYS, *_TORCH_KEYS}]
        missing = [name for name in own - _NOT_TORCHS if name not in saved]
        if self.rule == "adamw" and not saved.get("decoupled_weight_decay", True):
            other.append("decoupled_weight_decay")  # Adam's
        if missing or other:
            got = sorted(saved.keys() - {"params"})
            raise ValueError(f"state_dict: expected a state of {self.rule!r}, got hyper-parameters {got}")

    def _shared_scalars(self) -> list[str]:
        description = _core.rules()[self.rule]
        return description["scalars"] if description["shared_scalars"] else []

    def _load_entry(
        self, entry: Mapping[str, Any], param: Array, position: int, groups: list[dict[str, Any]]
    ) -> dict[str, Any]:
        rule = _core.rules()[self.rule]
        shapes = {"ema": param.shape, "master": param.shape}
        for name, kind in zip(rule["states"], rule["shapes"], strict=True):
            shapes[name] = _reduced_shape(param.shape, kind)
        scalars = [] if rule["shared_scalars"] else rule["scalars"]
        group = _group_of(groups, position)
        loaded: dict[str, Any] = {}
        for name, value in entry.items():
            label = f"state_dict['state'][{position}][{name!r}]"
            if name == "step":
                loaded[name] = _whole_number(value, label)
            elif name in scalars:
                loaded[name] = _number(value, label)
            elif name in shapes:
                if value is not None:
                    dtype = stored_dtype(rule, name, param, group)
                    loaded |= load_state(rule, name, entry, label, param, shapes[name], dtype)
            elif not (name.endswith("_scale") and name.removesuffix("_scale") in rule["states"]):
                raise ValueError(f"{label}: not a state of {self.rule!r}, which has {[*shapes, *scalars]}")
        kept = [name for name in rule["states"] if name in loaded]
        variants = rule["variants"]
        if set(rule["shapes"]) != {"same"}:  # then they follow from the parameter's axes
            variants = [variants[_core.variant(self.rule, groups[0], param.ndim)]]
        if kept and kept not in variants:
            raise ValueError(f"state_dict['state'][{position}]: has {kept}, expected one of {variants}")
        return loaded

    @property
    def nbytes(self) -> int:
        """Bytes that the states take, with their scales, averages and master weights."""
        return sum(v.nbytes for entry in self.state.values() for v in entry.values() if isinstance(v, np.ndarray))

    def convert_states(self, state_dtype: str) -> None:
        """Stores the states in another way from now on, in all groups; those that are there are converted.

        To fewer bits they are rounded to the nearest; to more they are the same numbers.

        Args:
            state_dtype: See `Options`; so are the states that stay as they are.

        Raises:
            ValueError: It is no way to store states, or not this optimizer's. Nothing has changed then.

        Examples:
            >>> import numpy as np, fusedstep as fs
            >>> p, g = np.ones(10_000, np.float32), np.full(10_000, 0.5, np.float32)
            >>> opt = fs.Adam(p)
            >>> report = opt.step(g)
            >>> print(opt.nbytes)
            80000
            >>> opt.convert_states("8bit")
            >>> print(opt.nbytes, opt.state[0]["exp_avg"].dtype, opt.state[0]["exp_avg_scale"].shape)
            20320 uint8 (40,)
        """
        groups = [{**group, "state_dtype": state_dtype} for group in self.param_groups]
        native = self._make_native(groups, self._native.taken)
        params = [param for group in groups for param in group["params"]]
        converted = {
            position: self._load_entry(entry, params[position], position, groups)
            for position, entry in self.state.items()
        }
        self._param_groups, self._state, self._native = groups, converted, native

    def _group(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if "params" not in given:
            raise ValueError("params: a group has no 'params'")
        for key in given:
            if key not in (*self.defaults, *_PARAM_KEYS):
                what = "does not apply to" if key in OPTIONS else "not a hyper-parameter of"
                raise ValueError(f"{key}: {what} {type(self).__name__}")
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


def _group_of(groups: list[dict[str, Any]], position: int) -> dict[str, Any]:
    """The group of the parameter at a position."""
    for group in groups:
        if position < len(group["params"]):
            return group
        position -= len(group["params"])
    raise IndexError(position)


def _has_tensors(group: Mapping[str, Any]) -> bool:
    """Whether its parameters are PyTorch's."""
    params = group["params"]
    if isinstance(params, Mapping):
        params = list(params.values())
    return any(hasattr(param, "detach") for param in (params if isinstance(params, (list, tuple)) else [params]))


def _whole_number(value: Any, label: str) -> int:
    """A step count; PyTorch keeps them in tensors of floats."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not number.is_integer() or not 0 <= number < 2**53:
        raise ValueError(f"{label}: expected a whole number >= 0, got {value!r}")
    return int(number)


def _number(value: Any, label: str) -> float:
    """A scalar of a state, which may be infinite or NaN as the parameters may."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{label}: expected a number, got {type(value).__qualname__}") from None


def _plain(value: Any) -> Any:
    """A hyper-parameter; PyTorch's learning rate may be a tensor."""
    return float(value) if hasattr(value, "detach") else value


def _reduced_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    if kind == "rows":
        return (*shape[:-1], 1)
    return (*shape[:-2], 1, *shape[-1:]) if kind == "columns" else shape


def _structure_of(params: Any) -> Structure:
    if isinstance(params, Mapping):
        return Structure.dict
    if not isinstance(params, (list, tuple)):
        return Structure.array
    if params and all(isinstance(entry, Mapping) for entry in params):
        return Structure.groups
    return Structure.list
