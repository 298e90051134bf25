"""One update in place, without an optimizer object: one function per rule, made from the registry.

Each takes `(param, grad, *states, step, <hyper-parameters>, maximize=False, grad_scale=1.0)`, and `cautious=False`
where the optimizer has it: single arrays, or lists of equal length (then `step` may be a list too). `step` counts
from 1; states start as zeros, where the function does not say otherwise. The names and defaults of the
hyper-parameters are those of the optimizer class, and so are the errors.

A state says itself how it is stored: float32, float16, bfloat16, or a pair `(codes, scales)` of 8 bits, uint8 like the
parameter and float32 with one number for every 256 elements. What is stored in fewer bits is rounded at random, by
`seed`, `step` and position in the list; so is a narrow parameter with `stochastic_rounding=True`. See `Options`.

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

__all__ = sorted(REGISTRY)

# States and scalars that do not start as zeros.
_STARTS = {
    "mu_product": "1",
    "mu": "1",
    "eta": "lr",
    "step_size": "lr",
    "sum": "initial_accumulator_value",
    "z": "a copy of param",
    "p0": "a copy of param",
    "d": "d0",
    "d_max": "d0",
}


def _make(optimizer: type[Optimizer]) -> Callable[..., None]:
    rule = optimizer.rule
    description = _core.rules()[rule]
    states: list[str] = description["states"]
    scalars: list[str] = description["scalars"]
    given_names = [*states, *scalars]
    optional = {name for name in states if any(name not in kept for kept in description["variants"])}
    named = [p for p in inspect.signature(optimizer).parameters.values() if p.name not in ("params", "options")]
    options = ["maximize", *(["cautious"] if description["cautious"] else []), "stochastic_rounding", "seed"]
    named += [
        inspect.Parameter(
            option, inspect.Parameter.KEYWORD_ONLY, default=OPTIONS[option], annotation=type(OPTIONS[option]).__name__
        )
        for option in options
    ]
    defaults = {p.name: p.default for p in named}

    def function(
        param: Any, grad: Any, *given: Any, step: int | list[int], grad_scale: float = 1.0, **hypers: Any
    ) -> None:
        if len(given) < len(given_names):
            given += tuple(hypers.pop(name, None) for name in given_names[len(given) :])
        if len(given) != len(given_names):
            raise TypeError(f"{rule}: expected the states {given_names}, got {len(given)} arrays")
        for name in hypers:
            if name not in defaults:
                raise TypeError(f"{name}: not a hyper-parameter of {rule}")
        _core.apply(rule, param, grad, given, step, {**defaults, **hypers}, grad_scale)

    def positional(name: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation="Array | list[Array]"
        )

    def keyword(name: str, annotation: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    parameters = [positional("param"), positional("grad")]
    parameters += [positional(name, None if name in optional else inspect.Parameter.empty) for name in given_names]
    parameters += [keyword("step", "int | list[int]")]
    # A function takes no schedule.
    parameters += [keyword(p.name, "float" if p.name == "lr" else _text(p.annotation), p.default) for p in named]
    parameters += [keyword("grad_scale", "float", 1.0)]
    # An array that only some hyper-parameters need comes behind those that all need.
    parameters[2 : 2 + len(given_names)] = sorted(parameters[2 : 2 + len(given_names)], key=lambda p: p.default is None)
    function.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = rule
    lists = "one for all" if description["shared_scalars"] else "one, or a list of them"
    function.__doc__ = (
        f"One step of `fusedstep.{optimizer.__name__}` in place; the equations and hyper-parameters are there.\n\n"
        f"Args:\n    param: Array to update, or a list of them.\n    grad: Its gradient.\n"
        + "".join(
            f"    {name}: State, {_STARTS.get(name, 'zeros')} before the first step; updated.\n" for name in states
        )
        + "".join(
            f"    {name}: float64 array of one element ({lists}), {_STARTS.get(name, '0')} at first; updated.\n"
            for name in scalars
        )
        + "    step: Number of this step, from 1.\n    grad_scale: What the gradient is divided by first.\n"
    )
    return function


def _text(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def stub() -> str:
    """The text of `functional.pyi`, which type checkers read: `python -m fusedstep.functional`."""
    lines = ['"""Made by `python -m fusedstep.functional`; see functional.py."""', "", "from typing import Any", ""]
    lines += ["from numpy.typing import NDArray", "", "Array = NDArray[Any]", "", "def stub() -> str: ..."]
    for name in __all__:
        lines.append(f"def {name}(")
        star = False
        for p in inspect.signature(globals()[name]).parameters.values():
            if p.kind is p.KEYWORD_ONLY and not star:
                lines.append("    *,")
                star = True
            optional = " | None" if p.default is None and "None" not in p.annotation else ""
            default = "" if p.default is p.empty else " = ..."
            lines.append(f"    {p.name}: {p.annotation}{optional}{default},")
        lines.append(") -> None: ...")
    return "\n".join(lines) + "\n"


globals().update({name: _make(optimizer) for name, optimizer in REGISTRY.items()})

if __name__ == "__main__":
    print(stub(), end="")
