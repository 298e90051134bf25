"""One class per optimizer of the library, made from its signature and that of PyTorch's of the same name."""

from inspect import Parameter, Signature, cleandoc, signature
from typing import Any

import torch

from fusedstep.optimizers import Optimizer
from fusedstep.torch.optim.optimizer import WAYS, FusedOptimizer

_CONSTANTS: dict[str, dict[str, Any]] = {"adamw": {"decoupled_weight_decay": True}}


def made(kind: type[Optimizer], module: str) -> type[FusedOptimizer]:
    """The optimizer of tensors for one of arrays."""
    rule, name = kind.rule, kind.__name__
    return type(
        name,
        (FusedOptimizer,),
        {
            "__module__": module,
            "__doc__": _documentation(kind),
            "__signature__": signature_of(kind),
            "rule": rule,
            "arguments": signature_of(kind),
            "constants": _CONSTANTS.get(rule, {}),
        },
    )


def signature_of(kind: type[Optimizer]) -> Signature:
    """PyTorch's arguments where it has the optimizer, in its order; behind them those that only this library has."""
    own = [p for p in signature(kind.__init__).parameters.values() if p.name not in ("self", "params", "options")]
    theirs = getattr(torch.optim, kind.__name__, None)
    if theirs is None:
        taken = own + [_named(name, default) for name, default in ({"maximize": False} | WAYS).items()]
    else:
        taken = [p for p in signature(theirs.__init__).parameters.values() if p.name not in ("self", "params")]
    present = {p.name for p in taken}
    added = [_named(p.name, p.default) for p in own if p.name not in present]
    added += [_named(name, default) for name, default in kind.options().items() if name not in present]
    added.append(_named("in_backward", False))
    plain = [p.replace(annotation=Parameter.empty) for p in taken]
    return Signature([Parameter("params", Parameter.POSITIONAL_OR_KEYWORD), *plain, *added])


def _named(name: str, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default)


def _documentation(kind: type[Optimizer]) -> str:
    """That of the arrays', without its example."""
    text = cleandoc(kind.__doc__ or "")
    before, _, rest = text.partition("Examples:\n")
    reference = rest[rest.index("Reference:") :] if "Reference:" in rest else ""
    note = "PyTorch's arguments, groups and state; see `fusedstep.torch.optim`.\n\n"
    first, _, body = before.partition("\n\n")
    return f"{first}\n\n{note}{body.rstrip()}\n\n{reference}"
