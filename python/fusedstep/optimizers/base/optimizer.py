"""What all optimizers share: parameters, groups, state."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._common.arrays import dtype_name
from fusedstep._common.structure import Given, Nested, listed, parse
from fusedstep._core import StepReport, Structure
from fusedstep.optimizers.base import state_dict as dicts
from fusedstep.optimizers.base.fields import Field, attribute, constructor, documented, fields_of
from fusedstep.optimizers.base.groups import PARAM_KEYS, arrays_of, described, structure_of
from fusedstep.optimizers.base.hypers import meant, same_hyper, warn_of_replaced
from fusedstep.optimizers.base.options import OPTIONS, Arguments, Options
from fusedstep.optimizers.base.reading import whole_number
from fusedstep.optimizers.base.states import relaid
from fusedstep.schedules.saving import ScheduleLoader

#: A learning rate, or a function of the number of steps taken so far (0 for the first step).
LearningRate = float | Callable[[int], float]


class Optimizer(Arguments):
    """An optimizer of NumPy arrays in place; see its subclasses.

    Args:
        params: A float32, float64, float16 or bfloat16 array, a list or an iterator of them (`net.parameters()`, pairs
            of `net.named_parameters()`), a dict `{name: array}`, dicts and lists within a dict, or a list of groups
            `{"params": …, "lr": …, …}` that set their own hyper-parameters. The arrays are updated in place; they must
            be writable, one dense block of memory each (in any order of the axes), and must not overlap. The optimizer
            holds the given objects, and looks up their memory in every step: it may move. A list or dict must keep the
            same arrays, see `rebind`. bfloat16 is ml_dtypes', PyTorch's, or 16-bit words marked as such:
            `words.view(fusedstep.bfloat16)`. 16-bit numbers are computed in float32, and rounded once, at the end.
        hypers: Hyper-parameters of the groups that do not set their own.
        options: Likewise, see `Options`.
    """

    rule: ClassVar[str]
    _fields: ClassVar[dict[str, Field]] = {}

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
        self._structure = structure_of(given)
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
                group); None for a parameter without a gradient in this step. Same shape as the parameter; its dtype, or
                any of float32, float16 and bfloat16 for a parameter of one of these; any strides (strides other than
                the parameter's cost a copy); read-only arrays too.
            grad_scale: The gradients are divided by it first.

        Returns:
            The `StepReport` of this step.

        Raises:
            TypeError: A wrong dtype or kind of argument.
            ValueError: A wrong shape, number of arrays, or hyper-parameter; arrays that overlap.
                After any error nothing has been written; `KeyboardInterrupt` may also come after a whole step.
        """
        return self._native.step(self._param_groups, self._state, self._given, grads, grad_scale)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = fields_of(cls, _core.rules()[cls.rule]["hypers"])
        if not own:
            return
        cls._fields = {**cls._fields, **own}
        if "__init__" not in vars(cls):
            cls.__init__ = constructor(cls, cls._fields, Optimizer.__init__)  # type: ignore[method-assign]
        for name in (*own, *(cls.options() if "rule" in vars(cls) else ())):
            setattr(cls, name, attribute(name))
        if "rule" in vars(cls):
            cls.__doc__ = documented(cls.__doc__)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a hyper-parameter in all groups, from the next step on; any other public name is an error."""
        known = self.__dict__.get("defaults", {})
        if name in known:
            for group in self._param_groups:
                group[name] = value
        elif type(self).__module__.startswith("fusedstep.") and known and not name.startswith("_"):
            raise AttributeError(f"{name}: not a hyper-parameter of {type(self).__name__}{meant(name, known)}")
        else:
            super().__setattr__(name, value)

    def rebind(self, params: Any) -> None:
        """Replaces the parameters by other arrays; the states stay.

        Call it after you replaced entries of the dict or list, or changed the dtype of parameters or the order of their
        axes in memory.

        Args:
            params: As many arrays as before, in the same structure, with the same names and shapes. With groups, a list
                of groups whose hyper-parameters, if given, are unchanged.

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
        form = structure_of(given)
        if form is not self._structure:
            raise ValueError(f"params: expected a {self._structure.name} as was given first, got a {form.name}")
        entries = given if form is Structure.groups else [{"params": given}]
        if len(entries) != len(self._param_groups):
            raise ValueError(f"params: expected {len(self._param_groups)} groups, got {len(entries)}")
        groups, all_given = [], []
        for old, entry in zip(self._param_groups, entries, strict=True):
            for name, value in entry.items():
                if name not in PARAM_KEYS and not (name in old and same_hyper(old[name], value)):
                    raise ValueError(f"{name}: expected {old.get(name)!r} as it is, for this takes arrays alone")
            hypers = {name: value for name, value in old.items() if name not in PARAM_KEYS}
            new, one = self._group({"params": entry["params"]} if "params" in entry else {})
            new |= hypers
            if len(new["params"]) != len(old["params"]) or new.get("param_names") != old.get("param_names"):
                had = old.get("param_names", f"{len(old['params'])} arrays")
                raise ValueError(f"params: expected {had}, got {new.get('param_names', len(new['params']))}")
            groups.append(new)
            all_given.append(one)
        native = self._make_native(groups, self._native.taken)
        state: dict[int, dict[str, Any]] = {}
        for k, ((shape, dtype), (label, now)) in enumerate(zip(self._native.known, arrays_of(groups), strict=True)):
            if now.shape != shape:
                raise ValueError(f"{label}: expected shape {shape}, got {now.shape}")
            if k in self._state:
                entry, same = self._state[k], dtype_name(now.dtype) == dtype
                state[k] = relaid(self.rule, entry, now) if same else dicts.load_entry(self.rule, entry, now, k, groups)
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
        """Adds a group of parameters; from then on, gradients come as for groups.

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

        If the parameters are PyTorch's tensors, so are the arrays, and the optimizer of the same name in `torch.optim`
        can load the result (except a schedule, which it cannot call). Beside PyTorch's keys there are `rule` and `step`
        (steps taken).

        Args:
            copy: False gives the optimizer's own arrays, as PyTorch does. The next step changes them.
        """
        made = dicts.made_of(self.state, self.param_groups, flag(copy, "copy"))
        return {**made, "rule": self.rule, "step": self._native.taken}

    def load_state_dict(self, state_dict: Mapping[str, Any], *, hypers: bool = True) -> None:
        """Loads a state dict of this optimizer, or of the one of the same name in `torch.optim`.

        Arrays are copied, and stored in this optimizer's `state_dtype`: other dtypes are rounded to the nearest, or
        widened. How states and parameters are stored (`state_dtype`, `min_8bit_size`, `master_weights`,
        `stochastic_rounding`) stays as it is here. A schedule stays if the state has no learning rate. For a
        `ReduceOnPlateau` in the state, see its documentation.

        Args:
            state_dict: The state.
            hypers: Whether to load the other hyper-parameters too; a warning names those that change. False keeps the
                optimizer's own.

        Warns:
            UserWarning: Hyper-parameters were replaced by others.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: An array of another dtype.
        """
        saved_groups, entries = dicts.checked(self.rule, state_dict, self.param_groups)
        taken_over = [name for name in self.defaults if name not in dicts.STORAGE] if flag(hypers, "hypers") else []
        loader = ScheduleLoader()
        groups, replaced = dicts.merged(self.rule, self.param_groups, saved_groups, taken_over, loader)
        self._make_native(groups, 0)  # checks the hyper-parameters, which say how states are stored
        state = dicts.loaded(self.rule, entries, groups)
        furthest = max((entry.get("step", 0) for entry in state.values()), default=0)
        taken = whole_number(state_dict.get("step", furthest), "state_dict['step']")
        native = self._make_native(groups, taken)
        warn_of_replaced(replaced)
        loader.finish()
        self._param_groups, self._state, self._native = groups, state, native

    @property
    def nbytes(self) -> int:
        """Bytes that the states take, with their scales, averages and master weights."""
        return sum(v.nbytes for entry in self.state.values() for v in entry.values() if isinstance(v, np.ndarray))

    def convert_states(self, state_dtype: str) -> None:
        """Changes how all groups store their states, and converts the present states.

        Fewer bits round to the nearest; more bits keep the numbers as they are.

        Args:
            state_dtype: See `Options`, which also names the states that stay float32.

        Raises:
            ValueError: An unknown `state_dtype`, or one that this optimizer does not have. Nothing has changed then.

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
        converted = dicts.loaded(self.rule, self.state, groups)
        self._param_groups, self._state, self._native = groups, converted, native

    def _group(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Given]:
        """A group as `param_groups` has it, and its parameters as they were given."""
        if "params" not in given:
            raise ValueError("params: a group has no 'params'")
        for key in given:
            if key not in (*self.defaults, *PARAM_KEYS):
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


def refuse_unknown(rule: str, group: Mapping[str, Any], index: int) -> None:
    """ValueError where a group has a key that nothing reads."""
    description = _core.rules()[rule]
    known = {*description["hypers"], *description["scalars"], *OPTIONS, *PARAM_KEYS}
    for key in group:
        if key not in known:
            raise ValueError(f"param_groups[{index}][{key!r}]: not a hyper-parameter of {rule}{meant(key, known)}")
