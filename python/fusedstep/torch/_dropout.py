"""Dropout between autograd and the kernel: a seed is kept, no mask."""

from typing import Any

import torch
from torch import Tensor

import fusedstep as fs
from fusedstep.torch._calls import Operator

# Typed for NumPy arrays, it takes tensors as well.
_kernel: Any = fs.dropout


def new_seed() -> Tensor:
    """From torch's generator, so that `torch.manual_seed` repeats what is dropped."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device="cpu")


def dropped(x: Tensor, seed: Tensor, p: float, out: Tensor | None = None) -> Tensor:
    """x / (1 − p) where the seed keeps an element, else 0: C-contiguous, or in `out`."""
    y = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    _kernel(x, p, seed=int(seed), out=y)
    return y


class AtOnce(torch.autograd.Function):
    """Forward and backward without the dispatcher. The backward pass is dropout itself, and so has derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float, inplace: bool) -> Tensor:
        ctx.seed, ctx.p = seed, p
        if inplace:
            ctx.mark_dirty(x)
        return dropped(x, seed, p, x if inplace else None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return AtOnce.apply(grads[0], ctx.seed, ctx.p, False), None, None, None  # type: ignore[no-untyped-call]


def _dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return dropped(x, seed, p)


def _fake_dropped(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.p = inputs[2]


def _backward(ctx: Any, dy: Tensor) -> Any:
    return DROPOUT(dy, ctx.saved_tensors[0], ctx.p), None, None


DROPOUT = Operator("dropout", _dropped, _fake_dropped, _keep, _backward)


def seen_dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """Dropout, where somebody looks on."""
    y: Tensor = DROPOUT(x, seed, p)
    return y
