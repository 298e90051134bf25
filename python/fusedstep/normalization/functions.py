"""Batch norm and its gradient."""

from fusedstep import _core
from fusedstep._common.arrays import viewed, wrote
from fusedstep._core import BatchNormSaved
from fusedstep.normalization.arguments import Activation, Array, Channels, require_saved


def batch_norm(
    x: Array,
    weight: Channels | None,
    bias: Channels | None,
    running_mean: Channels | None,
    running_var: Channels | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    unbiased: bool = True,
    skip_nonfinite: bool = False,
    out: Array | None = None,
) -> tuple[Array, BatchNormSaved]:
    r"""Normalizes every channel over the batch.

    .. code-block:: text

        z = weight · (x − mean) / √(var + eps) + bias
        y = activation(z + residual)
        running ← (1 − momentum) · running + momentum · batch      (training)

    In training mean and var are the batch's (var biased); in evaluation they are `running_mean` and `running_var`, and
    z is folded into one multiplication and one addition.

    Args:
        x: An array with a channel axis of length C: (N, C), (N, C, L), (N, C, H, W), (N, C, D, H, W), or any other
            order of axes, dense in memory. float32, float64, float16 or ml_dtypes.bfloat16; the arithmetic on the
            narrow ones is float32.
        weight: γ, (C,) float32; None for 1. Beside a float64 x, parameters and running statistics may be float64.
        bias: β, (C,) float32; None for 0.
        running_mean: (C,) float32, updated in training; None, with `running_var`, to keep none.
        running_var: (C,) float32, likewise. It overflows for deviations beyond 1e19; y does not.
        training: Whether to normalize with the batch's statistics.
        momentum: The weight of the batch in the running statistics, in [0, 1]. (Some texts give the weight p of the
            old statistics: p = 1 − momentum.)
        eps: Added to the variance, > 0; at least 3.5e-77 where the arithmetic is float32, 9e-308 in float64.
        channel_axis: Which axis of x the channels are; -1 for channels-last arrays.
        activation: "relu", or None. With "relu", one bit a value is kept for the backward pass.
        residual: Added before the activation; like x, in the same memory order.
        unbiased: Whether the running variance gets the unbiased variance, as in PyTorch.
        skip_nonfinite: Whether a batch with NaN or infinity leaves the running statistics as they are.
        out: Where to write y, like x and in the same memory order; a fresh array otherwise. In evaluation it may be x
            itself; there is no backward pass then.

    Returns:
        y, in the memory order of x, and what `batch_norm_backward` needs.

    Raises:
        TypeError: A dtype other than those above.
        ValueError: A wrong shape or memory order; x is not dense; one value per channel in training; an empty batch; no
            running statistics in evaluation, or a negative variance; only one of the two; momentum or eps out of range;
            what is written overlaps another argument. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.array([[1.0], [3.0]], np.float32)
        >>> mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
        >>> y, saved = fs.batch_norm(x, None, None, mean, var, training=True)
        >>> print(y.ravel().round(3), mean.round(3), var.round(3))
        [-1.  1.] [0.2] [1.1]

    Reference:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """
    y, saved, taken = _core.batch_norm(
        x,
        viewed(weight, "weight"),
        viewed(bias, "bias"),
        viewed(running_mean, "running_mean"),
        viewed(running_var, "running_var"),
        training,
        momentum,
        eps,
        channel_axis,
        activation,
        viewed(residual, "residual"),
        unbiased,
        skip_nonfinite,
        viewed(out, "out"),
    )
    wrote(out, *((running_mean, running_var) if taken else ()))
    return y, saved


def batch_norm_backward(
    dy: Array, saved: BatchNormSaved, *, out: Array | None = None, residual_out: Array | None = None
) -> tuple[Array, ...]:
    r"""The gradient of `batch_norm`.

    .. code-block:: text

        g = dy where the activation passed its input, else 0
        dbias = Σ g
        dweight = Σ g · x̂,   x̂ = (x − mean) / √(var + eps)
        dx = weight / √(var + eps) · (g − mean(g) − x̂ · mean(g · x̂))      (training)
        dx = weight / √(var + eps) · g                                       (evaluation)
        dresidual = g

    Args:
        dy: Gradient of y, like x and in the same memory order.
        saved: What `batch_norm` returned. It holds x itself, and checks it again: its shape, strides and some of its
            values must be unchanged.
        out: Where to write dx, like x; a fresh array otherwise.
        residual_out: Where to write dresidual, if there was a residual and an activation.

    Returns:
        dx; dweight and dbias in the dtype of `weight`; and dresidual if there was a residual (dy itself without an
        activation).

    Raises:
        TypeError: A dtype other than that of x.
        ValueError: A shape or memory order other than that of x; what is written overlaps another array; x has been
            overwritten, resized or reshaped since. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.array([[1.0], [3.0]], np.float32)
        >>> y, saved = fs.batch_norm(x, None, None, None, None, training=True)
        >>> dx, dweight, dbias = fs.batch_norm_backward(np.array([[1.0], [0.0]], np.float32), saved)
        >>> print(dweight.round(3), dbias)
        [-1.] [1.]

    Reference:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3.
    """
    gradients = _core.batch_norm_backward(
        viewed(dy, "dy"),
        require_saved(saved),
        viewed(out, "out"),
        viewed(residual_out, "residual_out"),
    )
    wrote(out, residual_out)
    return gradients
