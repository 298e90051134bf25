"""One update in place, without an optimizer object: one function per rule, made from the registry.

Each takes `(param, grad, *states, step, <hyper-parameters>, maximize=False, grad_scale=1.0)`: single arrays, or
lists of equal length (then `step` may be a list too). `step` counts from 1; states start as zeros. The names and
defaults of the hyper-parameters are those of the optimizer class, and so are the errors.

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
from typing import TYPE_CHECKING, Any

from fusedstep import _core
from fusedstep.optimizers import OPTIONS, REGISTRY, Optimizer

__all__ = sorted(REGISTRY)


def _make(optimizer: type[Optimizer]) -> Callable[..., None]:
    rule = optimizer.rule
    description = _core.rules()[rule]
    states: list[str] = description["states"]
    optional = {name for name in states if any(name not in kept for kept in description["variants"])}
    named = [p for p in inspect.signature(optimizer).parameters.values() if p.name not in ("params", "options")]
    named += [inspect.Parameter("maximize", inspect.Parameter.KEYWORD_ONLY, default=OPTIONS["maximize"])]
    defaults = {p.name: p.default for p in named}

    def function(
        param: Any, grad: Any, *given: Any, step: int | list[int], grad_scale: float = 1.0, **hypers: Any
    ) -> None:
        if len(given) < len(states):
            given += tuple(hypers.pop(name, None) for name in states[len(given) :])
        if len(given) != len(states):
            raise TypeError(f"{rule}: expected the states {states}, got {len(given)} arrays")
        for name in hypers:
            if name not in defaults:
                raise TypeError(f"{name}: not a hyper-parameter of {rule}")
        _core.apply(rule, param, grad, given, step, {**defaults, **hypers}, grad_scale)

    positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("param", "grad")]
    positional += [
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None if name in optional else inspect.Parameter.empty
        )
        for name in states
    ]
    keywords = [inspect.Parameter("step", inspect.Parameter.KEYWORD_ONLY)]
    keywords += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in named]
    keywords += [inspect.Parameter("grad_scale", inspect.Parameter.KEYWORD_ONLY, default=1.0)]
    function.__signature__ = inspect.Signature([*positional, *keywords])  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = rule
    function.__doc__ = (
        f"One step of `fusedstep.{optimizer.__name__}` in place; the equations and hyper-parameters are there.\n\n"
        f"Args:\n    param: Array to update, or a list of them.\n    grad: Its gradient.\n"
        + "".join(f"    {name}: State, zeros before the first step; updated.\n" for name in states)
        + "    step: Number of this step, from 1.\n    grad_scale: What the gradient is divided by first.\n"
    )
    return function


globals().update({name: _make(optimizer) for name, optimizer in REGISTRY.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., None]: ...
