"""Cross-entropy between autograd and the kernel, which gives the gradient with the loss."""

from typing import Any

import torch
from torch import Tensor

import fusedstep as fs
from fusedstep.torch._calls import Operator, keep_nothing, refusal, renamed, wide

_NAMES = {"logits": "input", "labels": "target"}
# Typed for NumPy arrays, it takes tensors as well.
_kernel: Any = fs.softmax_cross_entropy


def loss_and_gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float, reduction: str
) -> tuple[Tensor, Tensor]:
    """The loss, float32 or float64, of logits (…, C), and the gradient of its sum with respect to them."""
    dlogits = torch.empty(logits.shape, dtype=logits.dtype)
    try:
        loss, _ = _kernel(
            logits,
            target,
            weight=wide(weight),
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
            out=dlogits,
            check_targets=False,
        )
    except (TypeError, ValueError) as error:
        raise renamed(error, _NAMES) from error
    if reduction == "none":
        return torch.from_numpy(loss), dlogits
    return torch.tensor(loss, dtype=_maths(logits)), dlogits


def _maths(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _scaled(dloss: Tensor, dlogits: Tensor) -> Tensor:
    """The gradient with respect to logits, from that of a loss, or of the loss of every row."""
    return dlogits * (dloss if dloss.ndim == 0 else dloss.unsqueeze(-1)).to(dlogits.dtype)


class AtOnce(torch.autograd.Function):
    """Forward and backward without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float,
                reduction: str) -> Tensor:  # fmt: skip
        loss, dlogits = loss_and_gradient(logits, target, weight, ignore_index, smoothing, reduction)
        ctx.save_for_backward(dlogits, logits)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dloss,) = grads
        dlogits, logits = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = GRADIENT(dloss, dlogits, logits)
        elif dloss.ndim == 0 and dloss.item() == 1.0 and not logits.is_leaf:
            found = dlogits  # as at the end of most networks: no pass over it. A leaf would keep it as its own.
        else:
            found = _scaled(dloss, dlogits)
        return found, *[None] * 5


def _fake_loss(logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float,
               reduction: str) -> Any:  # fmt: skip
    shape = logits.shape[:-1] if reduction == "none" else ()
    return logits.new_empty(shape, dtype=_maths(logits)), logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], inputs[0])


def _backward(ctx: Any, dloss: Tensor, *_: Any) -> Any:
    return GRADIENT(dloss, *ctx.saved_tensors), *[None] * 5


def _gradient(dloss: Tensor, dlogits: Tensor, logits: Tensor) -> Tensor:
    # The logits are there only for autograd to see what depends on what.
    return _scaled(dloss, dlogits)


def _fake_gradient(dloss: Tensor, dlogits: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(dlogits)


LOSS = Operator("cross_entropy", loss_and_gradient, _fake_loss, _keep, _backward)
GRADIENT = Operator("cross_entropy_backward", _gradient, _fake_gradient, keep_nothing, refusal("Cross-entropy"))


def seen_loss(*arguments: Any) -> Tensor:
    """The loss, where somebody looks on."""
    loss: Tensor = LOSS(*arguments)[0]
    return loss
