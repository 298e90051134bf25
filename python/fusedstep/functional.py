"""One update in place, without an optimizer object: one function per rule, made from the registry.

Each takes `(param, grad, *states, step, <hyper-parameters>, maximize=False, grad_scale=1.0)`, and `cautious=False`
where the optimizer has it: single arrays, or lists of equal length (then `step` may be a list too). `step` counts
from 1; states start as zeros unless the function says otherwise. The hyper-parameters have the names, defaults and
errors of the optimizer class.

The dtype of the array says how a state is stored: float32, float16 or bfloat16. A state of 8 bits is a pair `(codes,
scales)`: uint8 in the shape of the parameter, and float32 with one number for every 256 elements. Narrow states are
rounded at random, by `seed`, `step` and position in the list; so is a narrow parameter with `stochastic_rounding=True`.
See `Options`.

Examples:
    >>> import numpy as np, fusedstep as fs
    >>> p, g = np.ones(3, np.float32), np.full(3, 2.0, np.float32)
    >>> m, v = np.zeros_like(p), np.zeros_like(p)
    >>> fs.functional.adamw(p, g, m, v, step=1, lr=0.1, weight_decay=0.0)
    >>> print(p.round(4))
    [0.9 0.9 0.9]
"""

import inspect
from collections.abc import Callable
from typing import Any

from fusedstep import _core
from fusedstep.optimizers import OPTIONS, REGISTRY, Optimizer
from fusedstep.reference.rules import RULES

__all__ = sorted(REGISTRY)


def _make(optimizer: type[Optimizer]) -> Callable[..., None]:
    rule = optimizer.rule
    names = [*_core.rules()[rule]["states"], *_core.rules()[rule]["scalars"]]
    named = _keywords(optimizer)
    defaults = {p.name: p.default for p in named}

    def function(
        param: Any, grad: Any, *given: Any, step: int | list[int], grad_scale: float = 1.0, **hypers: Any
    ) -> None:
        if len(given) < len(names):
            given += tuple(hypers.pop(name, None) for name in names[len(given) :])
        if len(given) != len(names):
            raise TypeError(f"{rule}: expected the states {names}, got {len(given)} arrays")
        for name in hypers:
            if name not in defaults:
                raise TypeError(f"{name}: not a hyper-parameter of {rule}")
        _core.apply(rule, param, grad, given, step, {**defaults, **hypers}, grad_scale)

    function.__signature__ = _signature(rule, named)  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = rule
    function.__doc__ = _doc(optimizer)
    return function


def _keyword(name: str, annotation: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _keywords(optimizer: type[Optimizer]) -> list[inspect.Parameter]:
    """The hyper-parameters and the options that a single step has."""
    hypers = [p for p in inspect.signature(optimizer).parameters.values() if p.name not in ("params", "options")]
    options = ["maximize", *(["cautious"] if "cautious" in optimizer.options() else []), "stochastic_rounding", "seed"]
    return [
        # A function takes no schedule.
        *(_keyword(p.name, "float" if p.name == "lr" else _text(p.annotation), p.default) for p in hypers),
        *(_keyword(option, type(OPTIONS[option]).__name__, OPTIONS[option]) for option in options),
    ]


def _signature(rule: str, named: list[inspect.Parameter]) -> inspect.Signature:
    description = _core.rules()[rule]
    states, scalars = description["states"], description["scalars"]
    optional = [name for name in states if any(name not in kept for kept in description["variants"])]
    needed = [name for name in (*states, *scalars) if name not in optional]
    # An array that only some hyper-parameters need comes behind those that all need.
    arrays = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if name in optional else inspect.Parameter.empty,
            annotation="Array | list[Array]",
        )
        for name in ("param", "grad", *needed, *optional)
    ]
    step, grad_scale = _keyword("step", "int | list[int]"), _keyword("grad_scale", "float", 1.0)
    return inspect.Signature([*arrays, step, *named, grad_scale], return_annotation=None)


def _doc(optimizer: type[Optimizer]) -> str:
    description = _core.rules()[optimizer.rule]
    starts = {name: f"{start:g}" if isinstance(start, float) else start for name, start in _starts(optimizer).items()}
    starts |= dict.fromkeys(description["copies"], "a copy of param")
    lists = "one for all" if description["shared_scalars"] else "one, or a list of them"
    states = (
        f"    {name}: State, {starts.get(name, 'zeros')} before the first step; updated.\n"
        for name in description["states"]
    )
    scalars = (
        f"    {name}: float64 array of one element ({lists}), {starts.get(name, '0')} at first; updated.\n"
        for name in description["scalars"]
    )
    return (
        f"One step of `fusedstep.{optimizer.__name__}` in place; the equations and hyper-parameters are there.\n\n"
        f"Args:\n    param: Array to update, or a list of them.\n    grad: Its gradient.\n"
        f"{''.join(states)}{''.join(scalars)}"
        "    step: Number of this step, from 1.\n    grad_scale: What the gradient is divided by first.\n"
    )


def _starts(optimizer: type[Optimizer]) -> dict[str, float | str]:
    return getattr(RULES[optimizer.rule], "starts", {})


def _text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


globals().update({name: _make(optimizer) for name, optimizer in REGISTRY.items()})
