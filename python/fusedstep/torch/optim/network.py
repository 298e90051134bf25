"""Muon for a whole network: hidden weights by Muon, all other parameters by AdamW, in one optimizer."""

from collections.abc import Callable
from inspect import Parameter
from typing import Any

from torch import Tensor

from fusedstep import _core, optimizers
from fusedstep.optimizers.network.choice import NETWORK as _NETWORK
from fusedstep.optimizers.network.choice import OWN as _OWN
from fusedstep.optimizers.network.choice import is_at_an_end
from fusedstep.torch.optim.classes import made, signature_of
from fusedstep.torch.optim.two_rules import ADAMW, MUON, TwoRules

_Matrices: Any = made(optimizers.Muon, "fusedstep.torch.optim")
_ADAMW = {name: p.default for name, p in signature_of(optimizers.AdamW).parameters.items() if name != "params"}

Predicate = Callable[[str | None, Tensor], bool]


class Muon(_Matrices):  # type: ignore[misc]
    """Momentum, orthogonalized: for matrices, or for a whole network with AdamW for the rest.

    Matrices alone are stepped as `fusedstep.Muon` does, with PyTorch's arguments. A whole network's hidden weights are
    stepped by Muon and its other parameters by AdamW: where `params` are pairs of `named_parameters()` that are not all
    matrices, and wherever one of the arguments below is given. A convolution is a matrix of shape (out, -1) then.

    Without a predicate a weight is hidden if it has 2 axes or more, if it is neither the first nor the last such
    parameter, and if its name has neither "embed" in it nor "head", "wte" or "wpe" as a word between dots and
    underscores. `add_param_group` looks at axes and name only.

    Each group has a key "rule", "muon" or "adamw", and its own `lr`. A group that is given with this key goes there as
    a whole, with hyper-parameters under the names of that optimizer. A step is one of all parameters: clipping takes
    the norm of all gradients, a skipped step is skipped by both rules, and `report` tells of both.

    Args:
        params: Parameters, pairs of `named_parameters()`, or groups.
        *arguments: Those of `torch.optim.Muon`, in its order.
        **named: The same by name, the options of `fusedstep.Options`, and those of a whole network: `use_muon`, a
            predicate `use_muon(name, param) -> bool` in place of the default, with None for a name that is not known;
            `adamw_lr`, `adamw_betas`, `adamw_eps` and `adamw_weight_decay`, by default those of `AdamW`.

    Raises:
        TypeError: An argument, or a tensor, of another kind.
        ValueError: A hyper-parameter out of range; a parameter that comes twice, or that Muon cannot step;
            `telemetry` for a whole network, whose two rules step one by one.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import optim
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> opt = optim.Muon(model.named_parameters(), lr=0.02, adamw_lr=1e-3)
        >>> print([(group["rule"], group["param_names"]) for group in opt.param_groups])
        [('muon', ['1.weight']), ('adamw', ['0.weight', '0.bias', '1.bias', '2.weight', '2.bias'])]
    """

    __module__ = "fusedstep.torch.optim"
    __signature__ = _Matrices.arguments.replace(
        parameters=[
            *_Matrices.arguments.parameters.values(),
            *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in _NETWORK),
        ]
    )

    def __init__(self, params: Any, *arguments: Any, **named: Any) -> None:
        asked = {name: named.pop(name) for name in _NETWORK if named.get(name) is not None}
        named = {name: value for name, value in named.items() if name not in _NETWORK}
        groups = _groups(params)
        self._network = groups is not None and (bool(asked) or _is_network(groups))
        if groups is None or not self._network:
            super().__init__(params if groups is None else groups, *arguments, **named)
            return
        usual = {f"adamw_{name}": asked.get(f"adamw_{name}", _ADAMW[name]) for name in _OWN}
        _refuse_hypers(usual)
        predicate = asked.get("use_muon")
        if predicate is not None and not callable(predicate):
            raise TypeError(f"use_muon: expected a function of a name and a parameter, got {predicate!r}")
        defaults = self._bound(groups, arguments, named) | usual
        choose = predicate or _hidden_of(groups)
        parts = [part for group in groups for part in _split(group, defaults, choose)]
        super().__init__(parts, *arguments, **named)
        self.defaults |= {**usual, "use_muon": predicate}

    def _make_native(self) -> Any:
        return TwoRules() if self._network else super()._make_native()

    def _usual(self, group: dict[str, Any]) -> dict[str, Any]:
        if group.get("rule") == ADAMW:
            return {**_ADAMW, "decoupled_weight_decay": True}
        usual: dict[str, Any] = super()._usual(group)
        return usual

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, or of a whole network's the part of each rule; see `FusedOptimizer.add_param_group`."""
        if isinstance(param_group, dict):
            _refuse_keys(param_group, self._network)
        if not self._network or not isinstance(param_group, dict):
            super().add_param_group(param_group)
            return
        parts = [param_group]
        if "rule" not in param_group:
            listed = _groups([param_group])
            parts = _split(listed[0], self.defaults, self.defaults.get("use_muon") or is_hidden) if listed else parts
        elif param_group["rule"] not in (MUON, ADAMW):
            raise ValueError(f"rule: expected {MUON!r} or {ADAMW!r}, got {param_group['rule']!r}")
        before = len(self.param_groups)
        try:
            for part in parts:
                self._add_part(part)
        except BaseException:
            del self.param_groups[before:]
            raise

    def _add_part(self, part: dict[str, Any]) -> None:
        usual = self._usual(part)
        if part["rule"] == ADAMW:
            part |= {name: value for name, value in usual.items() if name not in part}
        super().add_param_group(part)
        group = self.param_groups[-1]
        for name in self.defaults.keys() - usual.keys():
            group.pop(name, None)
        for place, param in enumerate(group["params"]):
            if part["rule"] == MUON and param.ndim < 2:
                name = group["param_names"][place] if "param_names" in group else place
                raise ValueError(f"params[{name!r}]: expected 2 axes or more for Muon, got shape {tuple(param.shape)}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._network = any("rule" in group for group in state["param_groups"])
        super().__setstate__(state)


def is_hidden(name: str | None, param: Tensor) -> bool:
    """Whether axes and name are those of a hidden weight."""
    if name is None:
        raise ValueError("use_muon: expected a predicate for parameters without names")
    return param.ndim >= 2 and not is_at_an_end(name)


def _hidden_of(groups: list[dict[str, Any]]) -> Predicate:
    """`is_hidden` between the first and the last weight of a network."""
    weights = [param for group in groups for _, param in map(_named, group["params"]) if param.ndim >= 2]
    ends = {id(param) for param in weights[:1] + weights[-1:]}
    return lambda name, param: is_hidden(name, param) and id(param) not in ends


def _named(given: Any) -> tuple[Any, Any]:
    return given if isinstance(given, tuple) and len(given) == 2 else (None, given)


def _groups(params: Any) -> list[dict[str, Any]] | None:
    """Groups with lists of tensors or of pairs; None for what `torch.optim` refuses, or has an order for."""
    if isinstance(params, Tensor | dict | set):
        return None
    try:
        given = list(params)
    except TypeError:
        return None
    groups = [dict(group) for group in given] if given and isinstance(given[0], dict) else [{"params": given}]
    for group in groups:
        members = group.get("params")
        if isinstance(members, set) or members is None:
            return None
        group["params"] = [members] if isinstance(members, Tensor) else list(members)
    every = [param for group in groups for _, param in map(_named, group["params"])]
    return groups if every and all(isinstance(param, Tensor) for param in every) else None


def _refuse_keys(group: dict[str, Any], network: bool) -> None:
    """ValueError where a group says what nobody would read."""
    if "use_muon" in group:
        raise ValueError("use_muon: expected an argument of the optimizer; a group has a key 'rule' for it")
    unread = [name for name in ("rule", *_NETWORK[1:]) if name in group and (not network or name != "rule")]
    if unread and not network:
        raise ValueError(f"{unread[0]}: expected none in a group of Muon for matrices alone")
    if unread and "rule" in group:
        raise ValueError(f"{unread[0]}: expected none in a group with a rule, got {group[unread[0]]!r}")


def _is_network(groups: list[dict[str, Any]]) -> bool:
    """Whether a group speaks of AdamW; or names are known, and something that is no matrix."""
    if any(name in group for group in groups for name in ("rule", *_NETWORK)):
        return True
    pairs = [_named(given) for group in groups for given in group["params"]]
    return all(name is not None for name, _ in pairs) and any(param.ndim != 2 for _, param in pairs)


def _split(group: dict[str, Any], defaults: dict[str, Any], choose: Predicate) -> list[dict[str, Any]]:
    """The part of a group that goes to Muon, and that of AdamW."""
    _refuse_keys(group, True)
    if "rule" in group:
        return [group]
    chosen: dict[str, list[Any]] = {MUON: [], ADAMW: []}
    for given in group["params"]:
        chosen[MUON if choose(*_named(given)) else ADAMW].append(given)
    asked = {name: group.get(name, defaults[name]) for name in _NETWORK[1:]}
    _refuse_hypers(asked)
    plain = {name: value for name, value in group.items() if name not in _NETWORK}
    shared = {name: plain.get(name, defaults[name]) for name in _ADAMW.keys() & defaults.keys() if name not in _OWN}
    others = {name: value for name, value in plain.items() if name not in defaults}
    adamw = {**_ADAMW, **others, **shared, **{name: asked[f"adamw_{name}"] for name in _OWN}}
    parts = ({**plain, "rule": MUON}, {**adamw, "rule": ADAMW})
    return [{**part, "params": chosen[part["rule"]]} for part in parts if chosen[part["rule"]]]


def _refuse_hypers(asked: dict[str, Any]) -> None:
    """AdamW's errors under the names that the hyper-parameters have here."""
    hypers = _ADAMW | {name: asked[f"adamw_{name}"] for name in _OWN}
    try:
        _core.TensorStep(ADAMW, "tensor").check([hypers])
    except (TypeError, ValueError) as error:
        raise type(error)(f"adamw_{error}") from None
