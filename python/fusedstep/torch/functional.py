"""Batch norm, cross-entropy and dropout as functions of torch tensors, as in `torch.nn.functional`."""

from collections.abc import Callable

import torch
from torch import Tensor

from fusedstep.torch import _batch_norm, _cross_entropy, _dropout
from fusedstep.torch._calls import (
    check_added,
    check_beside,
    check_input,
    fits,
    needs_operator,
    ordered_as,
    without_gaps,
)

__all__ = ["batch_norm", "cross_entropy", "dropout"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    r"""`torch.nn.functional.batch_norm`, with what follows it in the same pass.

    .. code-block:: text

        y = activation(weight · (x − mean) / √(var + eps) + bias + residual)

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), in any memory order, which the output keeps; float32,
            float64, bfloat16 or float16 (of 16 bits the arithmetic is float32). A tensor with gaps is copied.
        running_mean: (C,), updated in training.
        running_var: (C,), likewise, with the unbiased variance.
        weight: (C,), in the dtype of input or float32; None for 1.
        bias: Likewise; None for 0.
        training: Whether to normalize with the batch's statistics.
        momentum: What the batch gets in the running statistics, in [0, 1].
        eps: Added to the variance, > 0.
        activation: "relu", or None.
        residual: Added before the activation. Of another shape or dtype than input it is added as torch does, in a pass
            of its own.
        num_batches_tracked: A count of batches: the running statistics become the average of all batches, and it is
            not changed; in place of `momentum`.

    Returns:
        y. Its gradient has no derivative.

    Raises:
        TypeError: Another dtype, layout or device.
        ValueError: A wrong shape; one value per channel in training; an option out of range. Nothing has been written.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import functional as F
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> F.batch_norm(x, None, None, training=True, activation="relu").round(decimals=3)
        tensor([[0.],
                [1.]])
    """
    check_input(input, "input")
    if activation is not None and activation != "relu":
        raise ValueError(f"activation: expected 'relu' or None, got {activation!r}")
    if input.ndim < 2:
        raise ValueError(f"input: expected two axes or more, (N, C, …), got shape {tuple(input.shape)}")
    relu = activation is not None
    if residual is not None and not fits(residual, input):
        check_added(residual, input)
        y = batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps,
            num_batches_tracked=num_batches_tracked,
        )  # fmt: skip
        y = y + residual
        return torch.relu(y) if relu else y
    if input.numel() == 0:
        # There is nothing to compute: torch knows the shapes.
        y = torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, 0.0, eps)
        return y if residual is None else y + residual
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"input: expected more than 1 value per channel when training, got shape {tuple(input.shape)}")
    x = without_gaps(input)
    added = None if residual is None else ordered_as(residual, x)
    tensors = (x, weight, bias, running_mean, running_var, added)
    rest = (num_batches_tracked, training, momentum, eps, relu)
    if not needs_operator(*tensors):
        apply: Callable[..., Tensor] = _batch_norm.AtOnce.apply
        return apply(x, weight, bias, added, (running_mean, running_var), rest)
    check_beside(
        x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var, residual=residual
    )  # fmt: skip
    y, running = _batch_norm.seen_normalize(*tensors, *rest)
    if training and running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.copy_(running[0])
            running_var.copy_(running[1])
    return y


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""`torch.nn.functional.cross_entropy`: the loss, with its gradient in the same pass.

    Args:
        input: Logits, (C,), (N, C) or (N, C, d₁, …); float32, float64, bfloat16 or float16.
        target: Class numbers, () or (N) or (N, d₁, …), of any integer dtype; or probabilities in the shape and dtype of
            input. Where these require a gradient, torch's own function computes.
        weight: (C,), what the classes weigh, >= 0.
        size_average: Torch's older name of a reduction.
        ignore_index: A class number whose rows do not count.
        reduce: Torch's older name of a reduction.
        reduction: "mean", "sum" or "none".
        label_smoothing: In [0, 1].

    Returns:
        The loss, in the dtype of input; float32 where autocast is on. Where no row counts, the mean is 0: torch's is
        NaN. Its gradient has no derivative.

    Raises:
        TypeError: Another dtype, layout or device.
        ValueError: A wrong shape, a class number out of range, an option out of range.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import functional as F
        >>> logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
        >>> F.cross_entropy(logits, torch.tensor([1])).backward()
        >>> logits.grad
        tensor([[ 0.5000, -0.5000]])
    """
    check_input(input, "input")
    if not isinstance(target, Tensor):
        raise TypeError(f"target: expected a tensor, got {type(target).__qualname__}")
    if weight is not None and getattr(weight, "requires_grad", False):
        raise ValueError("weight: expected numbers that require no gradient, for there is none of them")
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    if target.requires_grad:
        # The kernel knows the gradient of the logits alone.
        return torch.nn.functional.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    if input.ndim == 0:
        raise ValueError("input: expected (C,), (N, C) or (N, C, d1, …), got a number")
    single = input.ndim == 1
    logits, wanted = (input.unsqueeze(0), target.unsqueeze(0)) if single else (input, target)
    if logits.ndim > 2:
        logits = logits.movedim(1, -1)
        wanted = wanted.movedim(1, -1) if wanted.ndim == logits.ndim else wanted
    if input.numel() == 0 and wanted.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"target: expected shape {tuple(logits.shape[:-1])} as input has rows, got {tuple(target.shape)}"
        )
    if input.numel() == 0 and input.shape[1] > 0 and reduction in ("mean", "sum", "none"):
        loss = logits.sum(-1)  # of no rows
        return loss if reduction == "none" else loss.sum()
    arguments = (logits.resolve_neg(), wanted.resolve_neg(), weight, ignore_index, label_smoothing, reduction)
    if needs_operator(logits, wanted, weight):
        check_beside(input, target=target, weight=weight)
        loss = _cross_entropy.seen_loss(*arguments)
    else:
        apply: Callable[..., Tensor] = _cross_entropy.AtOnce.apply
        loss = apply(*arguments)
    if single and reduction == "none":
        loss = loss.squeeze(0)
    return loss if loss.dtype == input.dtype or torch.is_autocast_enabled("cpu") else loss.to(input.dtype)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout`, without a mask: what is dropped follows from a seed of torch's generator.

    Args:
        input: Any shape; float32, float64, bfloat16 or float16.
        p: The probability to drop, in [0, 1].
        training: Whether to drop at all.
        inplace: Whether to write into input.

    Returns:
        input / (1 − p) where it is kept, else 0. `torch.manual_seed` repeats it; it is not what torch drops.

    Raises:
        TypeError: Another dtype, layout or device.
        ValueError: p out of range.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import functional as F
        >>> _ = torch.manual_seed(0)
        >>> sorted(set(F.dropout(torch.ones(20), 0.5).tolist()))
        [0.0, 2.0]
    """
    check_input(input, "input")
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0.0 <= p <= 1.0:
        raise ValueError(f"p: expected a number in [0, 1], got {p!r}")
    if not training or p == 0.0 or input.numel() == 0:
        return input
    if p == 1.0:
        return input.mul_(0.0) if inplace else input * 0.0
    p, seed = float(p), _dropout.new_seed()
    # Elements are counted in the order of memory, which the output keeps.
    last = input.ndim in (4, 5) and input.stride(1) == 1 and input.movedim(1, -1).is_contiguous()
    x = input.movedim(1, -1) if last else input
    x = x if inplace else x.resolve_neg()
    if needs_operator(input):
        y = _dropout.seen_dropout(x, seed, p)
        y = y.movedim(-1, 1) if last else y
        return input.copy_(y) if inplace else y
    apply: Callable[..., Tensor] = _dropout.AtOnce.apply
    if inplace:
        return apply(input, seed, p, True) if input.is_contiguous() else input.copy_(apply(input, seed, p, False))
    y = apply(x, seed, p, False)
    return y.movedim(-1, 1) if last else y
