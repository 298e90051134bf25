"""Batch norm, cross-entropy and dropout as functions of torch tensors, as in `torch.nn.functional`."""

from collections.abc import Callable

import torch
from torch import Tensor

from fusedstep.torch import _batch_norm
from fusedstep.torch._calls import check_input, ordered_as, watched, without_gaps

__all__ = ["batch_norm"]


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
    relu = activation is not None
    if residual is not None and not _fits(residual, input):
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
    if not watched(*tensors):
        apply: Callable[..., Tensor] = _batch_norm.AtOnce.apply
        return apply(x, weight, bias, added, running_mean, running_var, *rest)
    y, running = _batch_norm.traced(*tensors, *rest)
    if training and running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.copy_(running[0])
            running_var.copy_(running[1])
    return y


def _fits(residual: Tensor, input: Tensor) -> bool:
    return isinstance(residual, Tensor) and residual.shape == input.shape and residual.dtype == input.dtype
