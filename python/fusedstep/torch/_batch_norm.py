"""Batch norm between autograd and the kernels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.torch._calls import Operator, keep_nothing, ordered_as, refusal, renamed, wide

_NAMES = {"x": "input", "dy": "the gradient of the output"}


def view(tensor: Tensor | None, name: str) -> Any:
    """What a kernel sees of a tensor."""
    return None if tensor is None else _core.view(tensor, name)


def running_written(running: tuple[Tensor | None, Tensor | None], wider: tuple[Tensor | None, Tensor | None]) -> None:
    """Running statistics have been updated, those of 16 bits in `wider` ones."""
    for kept, new in zip(running, wider, strict=True):
        if kept is not new and kept is not None and new is not None:
            kept.copy_(new)
    _core.wrote(list(running))


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    batches: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The output, and what the backward pass needs beside x; running statistics are updated in place."""
    y = torch.empty_like(x)
    mean, var = wide(running_mean), wide(running_var)
    try:
        # The core itself: of a small layer, what `fs.batch_norm` does around it for arrays of any kind is a tenth.
        _, saved, _ = _core.batch_norm(
            view(x, "input"),
            view(wide(weight), "weight"),
            view(wide(bias), "bias"),
            view(mean, "running_mean"),
            view(var, "running_var"),
            training,
            momentum if batches is None else 1.0 / (int(batches) + 1),
            eps,
            1,
            "relu" if relu else None,
            view(residual, "residual"),
            True,
            False,
            view(y, "out"),
        )
    except (TypeError, ValueError) as error:
        raise renamed(error, _NAMES) from error
    if training and running_mean is not None and running_var is not None:
        running_written((running_mean, running_var), (mean, var))
    statistics, mask = _core.batch_norm_parts(saved)
    return y, torch.from_numpy(statistics), None if mask is None else torch.from_numpy(mask.view(np.int16))


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    training: bool,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dx, dweight, dbias; and dresidual where there is a residual."""
    dy = ordered_as(dy, x)
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if residual and mask is not None else None
    saved = _core.batch_norm_saved(
        view(x, "input"),
        1,
        view(wide(weight), "weight"),
        statistics.numpy(),
        None if mask is None else mask.numpy().view(np.uint16),
        training,
        residual,
    )
    try:
        _, dweight, dbias, *_ = _core.batch_norm_backward(
            view(dy, "dy"), saved, view(dx, "out"), view(dresidual, "residual_out")
        )
    except (TypeError, ValueError) as error:
        raise renamed(error, _NAMES) from error
    if residual and dresidual is None:
        dresidual = dy
    return dx, torch.from_numpy(dweight), torch.from_numpy(dbias), dresidual


class AtOnce(torch.autograd.Function):
    """Forward and backward without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        options: Any,
    ) -> Tensor:
        y, statistics, mask = normalize(x, weight, bias, *running, residual, *options)
        ctx.save_for_backward(x, weight, statistics, mask)
        ctx.training, ctx.residual = options[1], residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,) = grads
        x, weight, statistics, mask = ctx.saved_tensors
        call = seen_gradients if torch.is_grad_enabled() else gradients
        dx, dweight, dbias, dresidual = call(dy, x, weight, statistics, mask, ctx.training, ctx.residual)
        needed = ctx.needs_input_grad
        return dx, dweight if needed[1] else None, dbias if needed[2] else None, dresidual, None, None


# As operators. They give tensors only: of what there is not, one of no elements.


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    batches: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, var = running_mean, running_var
    if training and mean is not None and var is not None:
        mean, var = mean.clone(), var.clone()
    y, statistics, mask = normalize(x, weight, bias, mean, var, residual, batches, training, momentum, eps, relu)
    running = torch.stack((mean, var)) if training and mean is not None and var is not None else x.new_empty(0)
    return y, statistics, x.new_empty(0, dtype=torch.int16) if mask is None else mask, running


def _fake_normalize(x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any, residual: Any, batches: Any,
                    training: bool, momentum: float, eps: float, relu: bool) -> Any:  # fmt: skip
    channels = x.shape[1]
    return (
        torch.empty_like(x),
        x.new_empty((2, channels), dtype=torch.float64),
        x.new_empty(_mask_words(x) if relu else 0, dtype=torch.int16),
        running_mean.new_empty((2, channels)) if training and running_mean is not None else x.new_empty(0),
    )


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, _, _, residual, _, training = inputs[:8]
    _, statistics, mask, running = output
    ctx.mark_non_differentiable(statistics, mask, running)
    ctx.save_for_backward(x, weight, statistics, mask)
    ctx.training, ctx.residual = training, residual is not None


def _backward(ctx: Any, dy: Tensor, *_: Any) -> Any:
    x, weight, statistics, mask = ctx.saved_tensors
    dx, dweight, dbias, dresidual = seen_gradients(dy, x, weight, statistics, mask, ctx.training, ctx.residual)
    needed = ctx.needs_input_grad
    return dx, dweight if needed[1] else None, dbias if needed[2] else None, None, None, dresidual, *[None] * 5


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, mask: Tensor, training: bool, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bits = mask if mask.numel() else None
    dx, dweight, dbias, dresidual = gradients(dy, x, weight, statistics, bits, training, residual)
    return dx, dweight, dbias, x.new_empty(0) if dresidual is None or bits is None else dresidual


def _fake_gradients(dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, mask: Tensor, training: bool,
                    residual: bool) -> Any:  # fmt: skip
    given = x if weight is None else weight
    channels = x.new_empty(x.shape[1], dtype=torch.float64 if given.dtype == torch.float64 else torch.float32)
    masked = residual and mask.shape[0] > 0
    return torch.empty_like(x), channels, torch.empty_like(channels), torch.empty_like(x) if masked else x.new_empty(0)


NORMALIZE = Operator("batch_norm", _normalize, _fake_normalize, _keep, _backward)
GRADIENTS = Operator("batch_norm_backward", _gradients, _fake_gradients, keep_nothing, refusal("Batch norm"))


def seen_normalize(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`normalize` where somebody looks on: the output, and the new running statistics, (2, C), to be copied."""
    y, _, _, running = NORMALIZE(*arguments)
    return y, running


def seen_gradients(dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Tensor, mask: Tensor | None,
                   training: bool, residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """`gradients` where somebody looks on, or may differentiate them."""
    bits = x.new_empty(0, dtype=torch.int16) if mask is None else mask
    dx, dweight, dbias, dresidual = GRADIENTS(dy, x, weight, statistics, bits, training, residual)
    if not residual:
        return dx, dweight, dbias, None
    return dx, dweight, dbias, dresidual if bits.shape[0] > 0 else dy


def _mask_words(x: Tensor) -> Any:
    """Words of 16 bits of the mask: of every run of values of a channel, of all values where channels are rows."""
    run, rest = 1, 1
    for axis, length in enumerate(x.shape):
        if axis != 1:
            inner = x.shape[1] != 1 and x.stride(axis) <= x.stride(1)
            run, rest = (run * length, rest) if inner or x.shape[1] == 1 else (run, rest * length)
    if run == 1 and x.shape[1] > 1:
        return (rest * x.shape[1] + 15) // 16 + 1
    return rest * x.shape[1] * ((run + 15) // 16) + 1
