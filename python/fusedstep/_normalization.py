"""Batch normalization."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class BatchNormSaved:
    """What `batch_norm_backward` needs of the forward pass. `x` and `weight` are the caller's arrays, not copies."""

    x: FloatArray
    weight: FloatArray | None
    mean: NDArray[np.float64]
    inv_std: NDArray[np.float64]
    training: bool


def batch_norm(
    x: FloatArray,
    weight: FloatArray | None,
    bias: FloatArray | None,
    running_mean: FloatArray | None,
    running_var: FloatArray | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    unbiased: bool = True,
    out: FloatArray | None = None,
) -> tuple[FloatArray, BatchNormSaved]:
    r"""Normalizes every channel over the batch.

    .. code-block:: text

        y = weight · (x − mean) / √(var + eps) + bias
        running ← (1 − momentum) · running + momentum · batch      (training)

    In training mean and var are the batch's (var biased); in evaluation they are `running_mean` and `running_var`.

    Args:
        x: (N, C) or (N, C, H, W) float32, C-contiguous.
        weight: γ, (C,) float32; None for 1.
        bias: β, (C,) float32; None for 0.
        running_mean: (C,) float32, updated in training; None, with `running_var`, to keep none.
        running_var: (C,) float32, likewise.
        training: Whether to normalize with the batch's statistics.
        momentum: What the batch gets in the running statistics, in [0, 1]. (Some texts name the part p that is kept:
            p = 1 − momentum.)
        eps: Added to the variance, > 0.
        unbiased: Whether the running variance gets the unbiased variance, as in PyTorch.
        out: Where to write y, an array like x; a fresh one otherwise.

    Returns:
        y, and what `batch_norm_backward` needs.

    Raises:
        TypeError: A dtype other than float32.
        ValueError: A wrong shape; one value per channel in training; no running statistics in evaluation; only one of
            the two; momentum or eps out of range; what is written overlaps another argument. Nothing has been written.

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
    y, mean, inv_std = _core.batch_norm(
        x, weight, bias, running_mean, running_var, training, momentum, eps, unbiased, out
    )
    return y, BatchNormSaved(x, weight, mean, inv_std, training)


def batch_norm_backward(
    dy: FloatArray, saved: BatchNormSaved, *, out: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""The gradient of `batch_norm`.

    .. code-block:: text

        dbias = Σ dy,    dweight = Σ dy · x̂,    x̂ = (x − mean) / √(var + eps)
        dx = weight / √(var + eps) · (dy − mean(dy) − x̂ · mean(dy · x̂))    (evaluation: without the two means)

    Args:
        dy: Gradient of the output, like x.
        saved: What `batch_norm` gave; its x and weight must not have changed since.
        out: Where to write dx, an array like x; a fresh one otherwise.

    Returns:
        dx, dweight, dbias; the latter two (C,).

    Raises:
        TypeError: A dtype other than float32.
        ValueError: A wrong shape; `out` overlaps another argument. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.array([[1.0], [2.0], [4.0]], np.float32)
        >>> y, saved = fs.batch_norm(x, None, None, None, None, training=True)
        >>> dx, dweight, dbias = fs.batch_norm_backward(np.array([[1.0], [0.0], [0.0]], np.float32), saved)
        >>> print(dx.ravel().round(3), dweight.round(3), dbias)
        [ 0.229 -0.344  0.115] [-1.069] [1.]
    """
    if not isinstance(saved, BatchNormSaved):
        raise TypeError(f"saved: expected what batch_norm gave, got {type(saved).__name__}")
    return _core.batch_norm_backward(dy, saved.x, saved.weight, saved.mean, saved.inv_std, saved.training, out)


class BatchNorm:
    """Batch normalization with its parameters and running statistics.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance, > 0.
        momentum: What the batch gets in the running statistics, in [0, 1].

    Attributes:
        weight: γ, (C,) float32, ones at the start; give it to an optimizer.
        bias: β, (C,) float32, zeros at the start.
        running_mean: (C,) float32.
        running_var: (C,) float32.
        dweight: Gradient of weight, from the last `backward`.
        dbias: Gradient of bias, likewise.

    Raises:
        ValueError: `num_features` is less than 1; eps or momentum out of range.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> bn = fs.BatchNorm(2)
        >>> y = bn.forward(np.array([[1, 5], [3, 9]], np.float32), training=True)
        >>> dx = bn.backward(np.ones((2, 2), np.float32))
        >>> print(y.round(3).tolist(), bn.dbias)
        [[-1.0, -1.0], [1.0, 1.0]] [2. 2.]
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        if not isinstance(num_features, int) or num_features < 1:
            raise ValueError(f"num_features: expected a whole number >= 1, got {num_features!r}")
        if not (eps > 0 and np.isfinite(eps)):
            raise ValueError(f"eps: expected a finite number > 0, got {eps!r}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum!r}")
        self.eps = eps
        self.momentum = momentum
        self.weight = np.ones(num_features, np.float32)
        self.bias = np.zeros(num_features, np.float32)
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)
        self.dweight: FloatArray | None = None
        self.dbias: FloatArray | None = None
        self._saved: BatchNormSaved | None = None

    def forward(self, x: FloatArray, *, training: bool, out: FloatArray | None = None) -> FloatArray:
        """`batch_norm` of x; keeps what `backward` needs.

        Raises:
            TypeError: See `batch_norm`.
            ValueError: See `batch_norm`; x has another number of channels.
        """
        if np.ndim(x) >= 2 and np.shape(x)[1] != len(self.weight):
            raise ValueError(f"x: expected {len(self.weight)} channels, got shape {np.shape(x)}")
        y, self._saved = batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=training,
            momentum=self.momentum,
            eps=self.eps,
            out=out,
        )
        return y

    def backward(self, dy: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
        """Dx of the last `forward`; leaves the parameters' gradients in `dweight` and `dbias`.

        Raises:
            RuntimeError: There was no `forward` since the last `backward`.
        """
        if self._saved is None:
            raise RuntimeError("backward: no forward since the last backward")
        dx, self.dweight, self.dbias = batch_norm_backward(dy, self._saved, out=out)
        self._saved = None
        return dx
