"""What all optimizers share: parameters, groups, state."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._common.arrays import as_array, dtype_name
from fusedstep._common.brief import plural
from fusedstep._common.structure import Given, Nested, is_array, listed, parse
from fusedstep._core import StepReport, Structure
from fusedstep.optimizers._reading import hyper_parameter, parts_of, real_number, whole_number
from fusedstep.optimizers._states import load_state, relaid, stored_dtype
from fusedstep.schedules._base import Schedule
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

# How states and parameters are stored: it belongs to an optimizer, not to the state that it loads.
_STORAGE = ("state_dtype", "min_8bit_size", "master_weights", "stochastic_rounding")
# Of PyTorch's groups: how it computes, not what.
_TORCH_KEYS = {"foreach", "fused", "capturable", "differentiable", "initial_lr", "decoupled_weight_decay"}
# Hyper-parameters that PyTorch's optimizer of the same name does not have, or has not always had.
_NOT_TORCHS = {"accumulator", "decoupled_weight_decay", "nesterov"}


class Optimizer:
    """An optimizer of NumPy arrays in place; see its subclasses.

    Args:
        params: A float32, float64, float16 or bfloat16 array, a list of them or anything that gives them one after the
            other (`net.parameters()`, pairs of `net.named_parameters()`), a dict `{name: array}`, dicts and lists
            within a dict, or a list of groups `{"params": …, "lr": …, …}` that set their own hyper-parameters. The
            arrays are updated in place; they must be writable, one dense block of memory each (in any order of the
            axes), and must not overlap. What is given is held, and its memory looked at anew in every step: it may
            move. A list or dict must go on holding the same arrays, see `rebind`.
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
        self._state: dict[int, dict[str, Any]] = {}
        given = listed(params)
        self._structure = _structure_of(given)
        grouped = self._structure is Structure.groups
        pairs = [self._group(group) for group in (given if grouped else [{"params": given}])]
        self._param_groups: list[dict[str, Any]] = [group for group, _ in pairs]
        self._given: list[Given] = [given for _, given in pairs]
        if not grouped and not self._param_groups[0]["params"]:
            raise ValueError("params: expected at least one array, got none")
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
        return self._native.step(self._param_groups, self._state, self._given, grads, grad_scale)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "rule" in cls.__dict__:
            for name in (*_core.rules()[cls.rule]["hypers"], *cls.options()):
                setattr(
                    cls, name, property(_read_hyper(name), doc=f"`{name}` of the groups, a tuple where they differ.")
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a hyper-parameter in all groups, from the next step on; what is none, and no attribute, is refused."""
        known = self.__dict__.get("defaults", {})
        if name in known:
            for group in self._param_groups:
                group[name] = value
        elif type(self).__module__.startswith("fusedstep.") and known and not name.startswith("_"):
            raise AttributeError(f"{name}: not a hyper-parameter of {type(self).__name__}{_meant(name, known)}")
        else:
            super().__setattr__(name, value)

    def rebind(self, params: Any) -> None:
        """Goes on with other arrays in the place of those that were given; states stay.

        For entries of a dict or list that were replaced, and parameters that have another dtype or another order of
        their axes in memory now.

        Args:
            params: The parameters, in the structure that they were given in, or with groups as a list of groups, whose
                other keys must be as they are; as many, with the same names and shapes.

        Raises:
            TypeError: See the constructor.
            ValueError: Another structure, number, name or shape. Nothing has changed then.

        Examples:
            >>> import numpy as np, fusedstep as fs
            >>> params = {"w": np.ones(2, np.float32)}
            >>> opt = fs.Adam(params, lr=0.5)
            >>> report = opt.step({"w": np.ones(2, np.float32)})
            >>> params["w"] = params["w"] * 3  # a new array
            >>> opt.rebind(params)
            >>> report = opt.step({"w": np.ones(2, np.float32)})
            >>> print(report.step, params["w"])
            2 [1. 1.]
        """
        given = listed(params)
        form = _structure_of(given)
        if form is not self._structure:
            raise ValueError(f"params: expected a {self._structure.name} as was given first, got a {form.name}")
        entries = given if form is Structure.groups else [{"params": given}]
        if len(entries) != len(self._param_groups):
            raise ValueError(f"params: expected {len(self._param_groups)} groups, got {len(entries)}")
        groups, all_given = [], []
        for old, entry in zip(self._param_groups, entries, strict=True):
            for name, value in entry.items():
                if name not in _PARAM_KEYS and not (name in old and same_hyper(old[name], value)):
                    raise ValueError(f"{name}: expected {old.get(name)!r} as it is, for this takes arrays alone")
            hypers = {name: value for name, value in old.items() if name not in _PARAM_KEYS}
            new, one = self._group({"params": entry["params"]} if "params" in entry else {})
            new |= hypers
            if len(new["params"]) != len(old["params"]) or new.get("param_names") != old.get("param_names"):
                had = old.get("param_names", f"{len(old['params'])} arrays")
                raise ValueError(f"params: expected {had}, got {new.get('param_names', len(new['params']))}")
            groups.append(new)
            all_given.append(one)
        native = self._make_native(groups, self._native.taken)
        state: dict[int, dict[str, Any]] = {}
        for k, ((shape, dtype), (label, now)) in enumerate(zip(self._native.known, _arrays(groups), strict=True)):
            if now.shape != shape:
                raise ValueError(f"{label}: expected shape {shape}, got {now.shape}")
            if k in self._state:
                entry, same = self._state[k], dtype_name(now.dtype) == dtype
                state[k] = relaid(self.rule, entry, now) if same else self._load_entry(entry, now, k, groups)
        self._param_groups, self._given, self._state, self._native = groups, all_given, state, native

    @property
    def ema(self) -> Any:
        """The running averages of the parameters (`ema_decay`), structured like the parameters.

        None for a parameter before its first step, and without `ema_decay`. Groups give one flat list.
        """
        averages = [self.state.get(k, {}).get("ema") for k in range(sum(len(g["params"]) for g in self.param_groups))]
        if self._structure is Structure.array:
            return averages[0]
        if self._structure is not Structure.groups and isinstance(self._given[0].container, Nested):
            return self._given[0].container.built(averages)
        if self._structure is Structure.dict:
            return dict(zip(self.param_groups[0]["param_names"], averages, strict=True))
        return averages

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds parameters with hyper-parameters of their own; from then on, gradients come as for groups.

        Raises:
            TypeError: See the constructor.
            ValueError: See the constructor.
        """
        added, given = self._group(group)
        groups = [*self._param_groups, added]
        native = self._make_native(groups, self._native.taken, Structure.groups)
        self._param_groups.append(added)
        self._given.append(given)
        self._structure, self._native = Structure.groups, native

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """The state, laid out as PyTorch lays out its own: `state` by position and `param_groups` with positions.

        Where parameters were given as PyTorch's tensors, the arrays are tensors, and `torch.optim`'s optimizer of the
        same name can load the result (but for a learning rate that is a schedule, which it cannot call). `rule` and
        `step` (steps taken) stand beside PyTorch's keys.

        Args:
            copy: False for the optimizer's own arrays (as PyTorch gives), which the next step changes: for who writes
                them out at once.
        """
        flag(copy, "copy")
        torch = any(hasattr(param, "detach") for group in self.param_groups for param in group["params"])
        groups, position = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(position, position + count))})
            position += count
        return {
            "state": {
                k: {name: _given_back(value, copy, torch) for name, value in entry.items()}
                for k, entry in self.state.items()
            },
            "param_groups": groups,
            "rule": self.rule,
            "step": self._native.taken,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, hypers: bool = True) -> None:
        """Takes over a state that `state_dict` gave, here or of `torch.optim`'s optimizer of the same name.

        Arrays are copied, and stored as this optimizer's `state_dtype` says: those of another dtype are rounded to the
        nearest, or widened. How states and parameters are stored (`state_dtype`, `min_8bit_size`, `master_weights`,
        `stochastic_rounding`) stays as it is here. A learning rate that is a schedule stays where the state has none;
        of a `ReduceOnPlateau` in the state see there.

        Args:
            state_dict: The state.
            hypers: Whether the other hyper-parameters become those of the state; a warning says which did change. False
                for one's own.

        Warns:
            UserWarning: Hyper-parameters were replaced by others.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: An array of another dtype.
        """
        saved_groups, entries = parts_of(state_dict, self.rule)
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
        taken_over = [name for name in self.defaults if name not in _STORAGE] if flag(hypers, "hypers") else []
        groups, handover = [], Handover()
        replaced: dict[str, tuple[Any, Any]] = {}
        for k, (group, saved) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            label = f"state_dict['param_groups'][{k}]"
            new = {name: value for name, value in group.items() if name not in self._shared_scalars()}
            for name in taken_over:
                if name in saved:
                    value = hyper_parameter(saved[name], f"{label}[{name!r}]")
                    if not same_hyper(group[name], value):
                        replaced[name] = group[name], value
                    new[name] = handover.adopt(group.get(name), value)
            for name in self._shared_scalars():
                if saved.get(name) is not None:
                    new[name] = real_number(saved[name], f"{label}[{name!r}]")
            groups.append(new)
        self._make_native(groups, 0)  # the hyper-parameters say how states are stored
        params = [array for _, array in _arrays(groups)]
        state: dict[int, dict[str, Any]] = {}
        for position, entry in entries.items():
            if not 0 <= position < len(params):
                raise ValueError(f"state_dict: expected positions below {len(params)}, got {position}")
            state[position] = self._load_entry(entry, params[position], position, groups)
        furthest = max((entry.get("step", 0) for entry in state.values()), default=0)
        taken = whole_number(state_dict.get("step", furthest), "state_dict['step']")
        native = self._make_native(groups, taken)
        warn_of_replaced(replaced)
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
                loaded[name] = whole_number(value, label)
            elif name in scalars:
                loaded[name] = real_number(value, label)
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
        params = [array for _, array in _arrays(groups)]
        converted = {
            position: self._load_entry(entry, params[position], position, groups)
            for position, entry in self.state.items()
        }
        self._param_groups, self._state, self._native = groups, converted, native

    def _group(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Given]:
        """A group as `param_groups` has it, and its parameters as they were given."""
        if "params" not in given:
            raise ValueError("params: a group has no 'params'")
        for key in given:
            if key not in (*self.defaults, *_PARAM_KEYS):
                what = "does not apply to" if key in OPTIONS else "not a hyper-parameter of"
                raise ValueError(f"{key}: {what} {type(self).__name__}")
        parsed = parse(given["params"])
        group: dict[str, Any] = {**self.defaults, **given, "params": parsed.objects}
        if parsed.names is not None:
            group["param_names"] = parsed.names
        return group, parsed.copied()

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
            hypers = ", ".join(f"{name}={group[name]!r}" for name in self.defaults)
            lines.append(f"    {described(group)}: {hypers}")
        return "\n".join([*lines, ")"])


def _group_of(groups: list[dict[str, Any]], position: int) -> dict[str, Any]:
    """The group of the parameter at a position."""
    for group in groups:
        if position < len(group["params"]):
            return group
        position -= len(group["params"])
    raise IndexError(position)


def _read_hyper(name: str) -> Callable[[Optimizer], Any]:
    def read(self: Optimizer) -> Any:
        values = [group[name] for group in self.param_groups]
        return values[0] if all(same_hyper(value, values[0]) for value in values) else tuple(values)

    return read


def _arrays(groups: list[dict[str, Any]]) -> list[tuple[str, Array]]:
    """All parameters as arrays, each with what to call it."""
    found: list[tuple[str, Array]] = []
    for group in groups:
        places = range(len(found), len(found) + len(group["params"]))
        for name, param in zip(group.get("param_names", places), group["params"], strict=True):
            found.append((f"params[{name!r}]", as_array(param, f"params[{name!r}]")))
    return found


def described(group: Mapping[str, Any]) -> str:
    """How many arrays and numbers a group has."""
    sizes = [as_array(param, "params").size for param in group["params"]]
    return f"{plural(len(sizes), 'array')} of {plural(sum(sizes), 'parameter')}"


def refuse_unknown(rule: str, group: Mapping[str, Any], index: int) -> None:
    """ValueError where a group has a key that nothing reads."""
    description = _core.rules()[rule]
    known = {*description["hypers"], *description["scalars"], *OPTIONS, *_PARAM_KEYS}
    for key in group:
        if key not in known:
            raise ValueError(f"param_groups[{index}][{key!r}]: not a hyper-parameter of {rule}{_meant(key, known)}")


def warn_of_replaced(replaced: Mapping[str, tuple[Any, Any]]) -> None:
    """Says which hyper-parameters a state brought in the place of one's own: pairs of both."""
    if replaced:
        what = ", ".join(f"{name} {own!r} by {loaded!r}" for name, (own, loaded) in replaced.items())
        warnings.warn(f"load_state_dict: replaced {what}; hypers=False keeps one's own", stacklevel=3)


def _meant(name: Any, known: Iterable[str]) -> str:
    """What a wrong name may have been meant to be."""
    names = {other.lower(): other for other in known if not other.startswith("_")}
    close = difflib.get_close_matches(str(name).lower(), names, 1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def same_hyper(a: Any, b: Any) -> bool:
    """Whether two hyper-parameters are the same; a list is the tuple of its entries.

    Schedules are the same that were made so, wherever a `ReduceOnPlateau` is by now.
    """
    if isinstance(a, Schedule) and type(a) is type(b):
        made = [field.name for field in fields(a) if field.init]  # type: ignore[arg-type]
        return all(same_hyper(getattr(a, name), getattr(b, name)) for name in made)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_hyper, a, b))
    try:
        return a is b or bool(a == b)
    except (TypeError, ValueError, RuntimeError):
        return False


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


def _structure_of(params: Any) -> Structure:
    if isinstance(params, Mapping):
        return Structure.dict
    if is_array(params) or not isinstance(params, list | tuple):
        return Structure.array
    if params and all(isinstance(entry, Mapping) for entry in params):
        return Structure.groups
    return Structure.list
