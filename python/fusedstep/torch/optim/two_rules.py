"""A step of Muon and one of AdamW, with the interface of a native step of one rule."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.reference.ranged import total_of
from fusedstep.torch.optim.tensors import refuse

MUON, ADAMW = "muon", "adamw"
#: What looks at the gradients of both rules together.
_OF_ALL = ("max_grad_norm", "skip_nonfinite")
#: A sum of squares in two numbers, and how many elements are not finite.
_Squares = tuple[float, int, float]


class TwoRules:
    """The native steps of both rules; a group's key "rule" says whose it is."""

    def __init__(self) -> None:
        self._muon, self._adamw = _core.TensorStep(MUON, "where needed"), _core.TensorStep(ADAMW, "tensor")
        self._taken = 0
        self._last: tuple[_core.TensorStep, tuple[float, ...]] | None = None

    def check(self, groups: list[dict[str, Any]]) -> None:
        """Hyper-parameters and options, as a step would find them."""
        for group in groups:
            if group.get("telemetry"):
                raise ValueError(
                    "telemetry: expected False in Muon for a whole network, whose two rules step one by one"
                )
            for name in _OF_ALL:
                if group.get(name) != groups[0].get(name):
                    raise ValueError(f"{name}: holds for the whole step: expected the same in all groups")
        self._muon.check(_of(MUON, groups))
        self._adamw.check(_of(ADAMW, groups))

    def step(self, groups: list[dict[str, Any]], state: dict[Any, Any], grad_scale: float) -> bool:
        """Both steps, after all checks of both; False where no parameter has a gradient, or the step was skipped."""
        self.check(groups)
        groups = _numbered(groups)
        others = _of(ADAMW, groups)
        step = partial(self._step_matrices, others=others, state=state, grad_scale=grad_scale)
        stepped, squares = _of_matrices(_of(MUON, groups), state, step)
        stepped = self._adamw.step(others, state, grad_scale, measured=squares) or stepped
        self._taken += stepped
        self._remember(groups)
        return stepped

    def begin(self, groups: list[dict[str, Any]], state: dict[Any, Any]) -> None:
        """The states as they begin: no step."""
        self.check(groups)
        groups = _numbered(groups)
        _of_matrices(_of(MUON, groups), state, self._muon.begin)
        self._adamw.begin(_of(ADAMW, groups), state)

    def _step_matrices(
        self,
        flat: list[dict[str, Any]],
        entries: dict[Any, Any],
        others: list[dict[str, Any]],
        state: dict[Any, Any],
        grad_scale: float,
    ) -> tuple[bool, _Squares | None]:
        """Muon's step, after all checks of both; and the squares of all gradients, where they are asked for."""
        self._muon.check_step(flat, entries, grad_scale)
        self._adamw.check_step(others, state, grad_scale)
        self._muon.refuse_overlaps(flat, self._adamw, others)
        asked = any(group.get(name) for group in [*flat, *others] for name in _OF_ALL)
        squares = self._measured(flat, others) if asked else None
        return self._muon.step(flat, entries, grad_scale, measured=squares), squares

    def _measured(self, flat: list[dict[str, Any]], others: list[dict[str, Any]]) -> _Squares:
        """The squares of the gradients of both."""
        all_squares = self._muon.measure(flat) + self._adamw.measure(others)
        value, exponent = total_of([(value, exponent) for value, exponent, _ in all_squares])
        return value, exponent, sum(nonfinite for _, _, nonfinite in all_squares)

    def _remember(self, groups: list[dict[str, Any]]) -> None:
        """What a report of this step needs, which is made where somebody asks for it."""
        stepping = {group["rule"] for group in groups if any(param.grad is not None for param in group["params"])}
        if stepping:
            rule = self._muon if MUON in stepping else self._adamw
            self._last = rule, tuple(float(group["lr"]) for group in groups)

    @property
    def report(self) -> _core.StepReport | None:
        """Of the last step of both; None before the first."""
        if self._last is None:
            return None
        rule, rates = self._last
        report = rule.report
        assert report is not None
        return type(report)((self._taken, rates[0] if len(rates) == 1 else rates, *report[2:]))

    @property
    def taken(self) -> int:
        """How many steps there were."""
        return self._taken

    @taken.setter
    def taken(self, taken: int) -> None:
        self._taken = self._muon.taken = self._adamw.taken = taken


def _of(rule: str, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["rule"] == rule]


def _numbered(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups, with positions among all parameters for the names of those that have none."""
    numbers = count()
    return [{"param_names": [next(numbers) for _ in group["params"]]} | group for group in groups]


def _members(group: dict[str, Any]) -> Any:
    return zip(group["param_names"], group["params"], strict=True)


def _of_matrices(groups: list[dict[str, Any]], state: dict[Any, Any], call: Callable[[Any, Any], Any]) -> Any:
    """What a native step of matrices does, with their entries in the shapes of the parameters afterwards."""
    matrices = [_Matrix(param, name) for group in groups for name, param in _members(group)]
    places = iter(matrices)
    flat = [{**group, "params": [next(places).flat for _ in group["params"]]} for group in groups]
    entries = {matrix.flat: matrix.entry(state[matrix.param]) for matrix in matrices if matrix.param in state}
    done = call(flat, entries)
    for matrix in matrices:
        if matrix.flat in entries:
            matrix.keep(entries[matrix.flat], state)
    return done


class _Matrix:
    """A parameter as a matrix of the same memory: of more than 2 axes, those behind the first in the order of memory.

    Gradients in another order than their parameter's are copied into it.
    """

    def __init__(self, param: Tensor, name: Any) -> None:
        self.param, self.flat, self._name = param, param, name
        if param.ndim == 2 or param.grad is None:
            return
        strides = param.stride()
        behind = sorted(range(1, param.ndim), key=lambda axis: -strides[axis])
        self._order = (0, *behind)
        self._lengths = [param.shape[axis] for axis in self._order]
        self._shape = (param.shape[0], param[:1].numel() if len(param) else 0)
        grad = param.grad
        refuse(grad, f"grads[{name!r}]")
        if grad.dtype != param.dtype:
            raise TypeError(f"grads[{name!r}]: expected dtype {param.dtype}, got {grad.dtype}")
        if grad.shape != param.shape:
            raise ValueError(f"grads[{name!r}]: expected shape {tuple(param.shape)}, got {tuple(grad.shape)}")
        self.flat = self._flattened(param, f"params[{name!r}]")
        self.flat.grad = grad.detach().permute(self._order).reshape(self._shape)

    def _flattened(self, tensor: Tensor, label: str) -> Tensor:
        try:
            return tensor.detach().permute(self._order).view(self._shape)
        except RuntimeError:
            raise ValueError(f"{label}: expected memory that is one matrix, got strides {tensor.stride()}") from None

    def entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Its state, of the shape of the matrix."""
        if self.flat is self.param:
            return entry
        return {
            name: self._flattened(value, f"state[{self._name!r}][{name!r}]")
            if isinstance(value, Tensor) and value.shape == self.param.shape
            else value
            for name, value in entry.items()
        }

    def keep(self, entry: dict[str, Any], state: dict[Any, Any]) -> None:
        """Enters what the step has added, and tells autograd of what it has written."""
        if self.flat is self.param:
            state[self.param] = entry
            return
        own = state.setdefault(self.param, {})
        for name, value in entry.items():
            if not isinstance(value, Tensor):
                own[name] = value
            elif own.get(name) is None:
                shaped = value.shape == self._shape and not name.endswith("_scale")
                inverse = sorted(range(self.param.ndim), key=self._order.__getitem__)
                own[name] = value.view(self._lengths).permute(inverse) if shaped else value
            elif value.shape == self._shape:
                torch.autograd.graph.increment_version(own[name])
