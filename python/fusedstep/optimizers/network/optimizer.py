"""Muon and AdamW as one optimizer of a whole network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from textwrap import indent
from typing import Any

import numpy as np

from fusedstep._common.arrays import as_array
from fusedstep._common.structure import Nested, Parameters
from fusedstep._core import StepReport
from fusedstep.optimizers.adamw import AdamW
from fusedstep.optimizers.base.hypers import meant, same_hyper
from fusedstep.optimizers.base.reading import parts_of, whole_number
from fusedstep.optimizers.muon import Muon
from fusedstep.optimizers.network.choice import NETWORK, OWN, hidden
from fusedstep.reference.ranged import total_of

Array = np.ndarray[Any, Any]
#: Options that need the gradients of both rules together.
_OF_ALL = ("max_grad_norm", "skip_nonfinite")


class MuonNetwork(Muon):
    """The optimizer that `Muon` creates for a whole network; see `Muon`.

    Args:
        params: A dict by name, also with nested dicts and lists, or pairs `(name, array)`.
        *arguments: The arguments of `Muon`.
        **named: The arguments of `Muon` by name, `use_muon` and the arguments of AdamW.

    Raises:
        TypeError: An argument or a parameter of the wrong type.
        ValueError: A hyper-parameter out of range; no hidden weight, or only hidden weights; `telemetry`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> opt = fs.Muon({"a": np.ones((2, 2)), "b": np.ones((2, 2)), "c": np.ones((2, 2))}, adamw_lr=0.1)
        >>> type(opt).__name__
        'MuonNetwork'
    """

    def __init__(self, params: Any, *arguments: Any, **named: Any) -> None:
        asked = {name: named.pop(name) for name in NETWORK if name in named}
        predicate = asked.pop("use_muon", None)
        if predicate is not None and not callable(predicate):
            raise TypeError(f"use_muon: expected a function of a name and an array, got {predicate!r}")
        self._all = Parameters(params)
        by_name = self._by_name()
        chosen = hidden(by_name, predicate)
        if not 0 < len(chosen) < len(by_name):
            raise ValueError(
                f"use_muon: expected some of the parameters {list(by_name)}, got {chosen}; use Muon with a list "
                f"of matrices if all are hidden, AdamW if none is"
            )
        self._names = chosen
        self._muon = Muon(self._matrices(), *arguments, **named)
        options = {name: value for name, value in named.items() if name not in Muon._fields}
        own = {name.removeprefix("adamw_"): value for name, value in asked.items() if value is not None}
        with _renamed():
            self._adamw = AdamW(self._others(), **own, **options)
        self.defaults = self._muon.defaults
        self._refuse_apart()

    def _by_name(self) -> dict[str, Any]:
        (given,) = self._all.groups if not self._all.grouped else [None]
        if given is None or given.names is None:
            raise ValueError("params: expected a dict of names for a whole network")
        return dict(zip(given.names, given.objects, strict=True))

    def _matrices(self) -> dict[str, Any]:
        by_name = self._by_name()
        return {name: _flat(by_name[name], f"params[{name!r}]") for name in self._names}

    def _others(self) -> dict[str, Any]:
        return {name: param for name, param in self._by_name().items() if name not in self._names}

    def _refuse_apart(self) -> None:
        """ValueError for options that the two rules do not support, or that differ between them."""
        (muon,), (adamw,) = self._muon.param_groups, self._adamw.param_groups
        if muon["telemetry"] or adamw["telemetry"]:
            raise ValueError(
                "telemetry: expected False in Muon for a whole network, whose two rules step one after the other"
            )
        for name in _OF_ALL:
            if not same_hyper(muon[name], adamw[name]):
                raise ValueError(f"{name}: holds for the whole step: expected the same in all groups")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The group of Muon and that of AdamW. If you change a hyper-parameter here, the next step uses it."""
        return [*self._muon.param_groups, *self._adamw.param_groups]

    @property
    def state(self) -> dict[int, dict[str, Any]]:
        """The states by the index of the parameter in the groups, in the shapes of the parameters."""
        by_name = self._by_name()
        states = {k: _shaped(entry, by_name[self._names[k]].shape) for k, entry in self._muon.state.items()}
        return states | {k + len(self._names): entry for k, entry in self._adamw.state.items()}

    def step(self, grads: Any, grad_scale: float = 1.0) -> StepReport:
        """Updates all parameters once, after all checks of both rules; see `Optimizer.step`.

        An interrupt between the two rules leaves only the parameters of Muon stepped.
        """
        self._refuse_apart()
        self._all.refuse_orphans()
        by_name = self._by_name()
        (given,) = self._all.groups
        tree = given.container if isinstance(given.container, Nested) else Nested(by_name)
        found = dict(zip(by_name, tree.grads(grads), strict=True))
        of_muon = {name: _flat_grad(found.pop(name), by_name[name], name) for name in self._names}
        muon, adamw = self._muon, self._adamw
        calls = [
            (one._param_groups, one._state, one._given, its, grad_scale)
            for one, its in ((muon, of_muon), (adamw, found))
        ]
        asked = any(muon.param_groups[0][name] for name in _OF_ALL)
        squares = muon._native.look(*calls[0], asked) + adamw._native.look(*calls[1], asked)
        muon._native.refuse_overlaps(muon._param_groups, adamw._native, adamw._param_groups)
        measured = None
        if asked:
            value, exponent = total_of([(value, exponent) for value, exponent, _ in squares])
            measured = (value, exponent, sum(nonfinite for _, _, nonfinite in squares))
        report = muon._native.step(*calls[0], measured)
        rates = (report.lr, adamw._native.step(*calls[1], measured).lr)
        return type(report)((report[0], rates, *report[2:]))

    def rebind(self, params: Any) -> None:
        """Replaces the parameters by other arrays and keeps the states. See `Optimizer.rebind`."""
        before, names = self._all, list(self._by_name())
        try:
            self._all = Parameters(params)
            if list(self._by_name()) != names:
                raise ValueError(f"params: expected {names}, got {list(self._by_name())}")
            with self._both():
                self._muon.rebind(self._matrices())
                self._adamw.rebind(self._others())
        except BaseException:
            self._all = before
            raise

    @contextmanager
    def _both(self) -> Iterator[None]:
        """Changes both optimizers, or on an error neither."""
        kept = [(one, dict(one.__dict__)) for one in (self._muon, self._adamw)]
        try:
            yield
        except BaseException:
            for one, attributes in kept:
                one.__dict__.clear()
                one.__dict__.update(attributes)
            raise

    @property
    def ema(self) -> Any:
        """The running averages of the parameters (`ema_decay`), structured like the parameters."""
        order = [*self._names, *self._others()]
        found = {name: self.state.get(k, {}).get("ema") for k, name in enumerate(order)}
        return self._all.built([found[name] for name in self._by_name()])

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Not available: a whole network has exactly two groups.

        Raises:
            ValueError: Always.
        """
        raise ValueError("add_param_group: expected a new optimizer, because a whole network has one group per rule")

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """One state dict of both rules. Its groups have a key "rule"; Muon's is first. See `Optimizer.state_dict`."""
        muon, adamw = self._muon.state_dict(copy=copy), self._adamw.state_dict(copy=copy)
        by_name, count = self._by_name(), len(self._names)
        state = {k: _shaped(entry, by_name[self._names[k]].shape) for k, entry in muon["state"].items()}
        state |= {k + count: entry for k, entry in adamw["state"].items()}
        groups = [{**group, "rule": "muon"} for group in muon["param_groups"]]
        groups += [
            {**group, "params": [k + count for k in group["params"]], "rule": "adamw"}
            for group in adamw["param_groups"]
        ]
        return {"state": state, "param_groups": groups, "rule": self.rule, "step": muon["step"]}

    def load_state_dict(self, state_dict: Mapping[str, Any], *, hypers: bool = True) -> None:
        """Loads a state dict of `fs.Muon` or `fusedstep.torch.optim.Muon` for a whole network.

        See `Optimizer.load_state_dict`.

        Raises:
            ValueError: The state dict of another optimizer or for other parameters. Nothing has changed.
            TypeError: An array of another dtype.
        """
        groups, entries = parts_of(state_dict, self.rule)
        rules = [group.get("rule") for group in groups]
        if rules != ["muon", "adamw"]:
            raise ValueError(f"state_dict: expected a group of 'muon' and one of 'adamw', got {rules}")
        furthest = max((whole_number(entry.get("step", 0), "step") for entry in entries.values()), default=0)
        step, count = state_dict.get("step", furthest), len(groups[0]["params"])
        parts = [
            {"rule": rule, "step": step, "param_groups": [{**group, "params": list(range(len(group["params"])))}]}
            for rule, group in zip(rules, groups, strict=True)
        ]
        of_muon = {k: _flat_entry(entry) for k, entry in entries.items() if k < count}
        of_adamw = {k - count: entry for k, entry in entries.items() if k >= count}
        with self._both():
            self._muon.load_state_dict({**parts[0], "state": of_muon}, hypers=hypers)
            self._adamw.load_state_dict({**parts[1], "state": of_adamw}, hypers=hypers)

    def convert_states(self, state_dtype: str) -> None:
        """Changes how both rules store their states, and converts the present ones; see `Optimizer.convert_states`."""
        with self._both():
            self._muon.convert_states(state_dtype)
            self._adamw.convert_states(state_dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a hyper-parameter of Muon, one of AdamW (`adamw_lr`), or an option of both."""
        if name.startswith("_") or name == "defaults":
            object.__setattr__(self, name, value)
        elif name in NETWORK[1:]:
            setattr(self._adamw, name.removeprefix("adamw_"), value)
        elif name in self.defaults:
            setattr(self._muon, name, value)
            if name not in Muon._fields:
                setattr(self._adamw, name, value)
        else:
            raise AttributeError(f"{name}: not a hyper-parameter of Muon{meant(name, [*self.defaults, *NETWORK[1:]])}")

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Matrices of arrays with more axes are views, which were copied by themselves.
        self._muon.rebind(self._matrices())

    def __repr__(self) -> str:
        lines = [indent(f"{one!r},", "    ") for one in (self._muon, self._adamw)]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def _of(rule: str, name: str) -> property:
    return property(lambda self: getattr(getattr(self, rule), name), doc=f"`{name}` of one of the rules.")


for _name in Muon._fields:
    setattr(MuonNetwork, _name, _of("_muon", _name))
for _name in OWN:
    setattr(MuonNetwork, f"adamw_{_name}", _of("_adamw", _name))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:]))


def _flat(param: Any, label: str) -> Any:
    """A parameter as a matrix of the same memory."""
    axes = getattr(param, "ndim", 2)
    if axes < 2:
        raise ValueError(f"{label}: expected 2 axes or more for Muon, got shape {tuple(param.shape)}")
    if axes == 2:
        return param
    if not (isinstance(param, np.ndarray) and param.flags.c_contiguous):
        raise ValueError(f"{label}: expected a C-contiguous NumPy array for Muon with more than 2 axes")
    return param.reshape(_matrix(param.shape))


def _flat_grad(grad: Any, param: Any, name: str) -> Any:
    if grad is None or getattr(param, "ndim", 2) == 2:
        return grad
    array = as_array(grad, f"grads[{name!r}]")
    if array.shape != param.shape:
        shape = tuple(param.shape)
        raise ValueError(f"grads[{name!r}]: expected shape {shape} as params[{name!r}] has, got {array.shape}")
    return array.reshape(_matrix(array.shape))


def _flat_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of Muon's state, with its arrays as matrices."""
    return {
        name: value.reshape(_matrix(tuple(value.shape))) if getattr(value, "ndim", 0) > 2 else value
        for name, value in entry.items()
    }


def _shaped(entry: Mapping[str, Any], shape: Any) -> dict[str, Any]:
    """An entry of Muon's state, with its arrays in the shape of the parameter."""
    return {
        name: value.reshape(tuple(shape)) if getattr(value, "ndim", 0) == 2 else value for name, value in entry.items()
    }


@contextmanager
def _renamed() -> Iterator[None]:
    """Gives hyper-parameters in AdamW's errors the prefix "adamw_"."""
    try:
        yield
    except (TypeError, ValueError) as error:
        name = str(error).partition(":")[0].partition("[")[0]
        if name not in OWN:
            raise
        raise type(error)(f"adamw_{error}") from None
