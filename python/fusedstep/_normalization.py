"""Batch normalization: what is called."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import shown
from fusedstep._common.arrays import as_array, viewed, wrote
from fusedstep._core import BatchNormSaved
from fusedstep.reference import batch_norm as exact

#: float32, float64, float16 or ml_dtypes.bfloat16.
Array = NDArray[Any]
#: (C,) float32; float64 too where x is float64.
Channels = NDArray[Any]
Doubles = NDArray[np.float64]
Activation = Literal["relu"] | None


@dataclass(frozen=True, eq=False, slots=True)
class BatchStats:
    """Statistics of some values of every channel; those of several workers merge into those of all.

    Args:
        count: Values per channel, in [0, 2**53).
        mean: (C,) float64.
        m2: (C,) float64, the sum of squared deviations from the mean.
        mean_low: What is left of the mean below its last bit: with it, merging loses nothing. None for 0.
        m2_low: Likewise.

    Raises:
        TypeError: An array is not float64.
        ValueError: A negative count or m2; arrays that are not (C,).

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.BatchStats(4, np.array([2.0]), np.array([8.0])).var
        array([2.])
    """

    count: int
    mean: Doubles
    m2: Doubles
    mean_low: Doubles | None = None
    m2_low: Doubles | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int | np.integer) or self.count < 0:
            raise ValueError(f"count: expected a whole number >= 0, got {shown(self.count)}")
        if self.count >= 2**53:
            raise ValueError(f"count: expected less than 2**53, got {shown(self.count)}")
        for name in ("mean", "m2", "mean_low", "m2_low"):
            if getattr(self, name) is not None or not name.endswith("low"):
                object.__setattr__(self, name, _channels(getattr(self, name), name, self.mean))
        if (self.m2 < 0).any():
            raise ValueError(f"m2: expected numbers >= 0, got {self.m2.min()}")

    @property
    def var(self) -> Doubles:
        """The biased variance, m2 / count."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m2 / self.count


@dataclass(frozen=True, eq=False, slots=True)
class BatchGradSums:
    """What the backward pass sums over some values of every channel; those of several workers add up.

    Args:
        dy: (C,) float64, Σ dy; dβ.
        dy_d: (C,) float64, Σ dy · (x − mean).

    Raises:
        TypeError: An array is not float64.
        ValueError: Arrays that are not (C,).

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> sums = [fs.BatchGradSums(np.array([1.0]), np.array([2.0]))] * 2
        >>> print(fs.merge_grad_sums(sums).dy)
        [2.]
    """

    dy: Doubles
    dy_d: Doubles

    def __post_init__(self) -> None:
        object.__setattr__(self, "dy", _channels(self.dy, "dy", self.dy))
        object.__setattr__(self, "dy_d", _channels(self.dy_d, "dy_d", self.dy))


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
        momentum: What the batch gets in the running statistics, in [0, 1]. (Some texts name the part p that is kept:
            p = 1 − momentum.)
        eps: Added to the variance, > 0; at least 3.5e-77 where the arithmetic is float32, 9e-308 in float64.
        channel_axis: Which axis of x the channels are; -1 for channels-last arrays.
        activation: "relu", or None. Of relu one bit a value is kept for the backward pass.
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

        g = dy where the activation let pass, else 0
        dbias = Σ g
        dweight = Σ g · x̂,   x̂ = (x − mean) / √(var + eps)
        dx = weight / √(var + eps) · (g − mean(g) − x̂ · mean(g · x̂))      (training)
        dx = weight / √(var + eps) · g                                       (evaluation)
        dresidual = g

    Args:
        dy: Gradient of y, like x and in the same memory order.
        saved: What `batch_norm` gave. It holds x itself, which is looked at anew: its shape, strides and some of its
            values must be what they were.
        out: Where to write dx, like x; a fresh array otherwise.
        residual_out: Where to write dresidual, if there was a residual and an activation.

    Returns:
        dx, dweight and dbias, as `weight` is in dtype; and dresidual if there was a residual: dy itself without an
        activation.

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
        viewed(dy, "dy"), _saved(saved), viewed(out, "out"), viewed(residual_out, "residual_out")
    )
    wrote(out, residual_out)
    return gradients


def batch_norm_stats(x: Array, *, channel_axis: int = 1) -> BatchStats:
    r"""Count, mean and sum of squared deviations of every channel, the mean to the last bit of a double.

    .. code-block:: text

        mean = Σ x / count,   m2 = Σ (x − mean)²

    Args:
        x: As in `batch_norm`; it may be empty: a worker without samples has a count of 0.
        channel_axis: Which axis of x the channels are.

    Returns:
        The statistics, float64; their low parts too, so that `merge_stats` loses nothing. m2 is right to a bit or two
        of a double, but where the first 16 values of a channel are its outliers: see the documentation.

    Raises:
        TypeError: As in `batch_norm`.
        ValueError: As in `batch_norm`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> stats = fs.batch_norm_stats(np.array([[1.0], [3.0]], np.float32))
        >>> print(stats.count, stats.mean, stats.m2)
        2 [2.] [2.]

    Reference:
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician 37, 1983.
    """
    return BatchStats(*_core.batch_norm_stats(x, channel_axis))


def merge_stats(stats: Sequence[BatchStats]) -> BatchStats:
    r"""The statistics of all from those of parts, whatever the split.

    .. code-block:: text

        δ = mean_b − mean_a
        mean = mean_a + δ · n_b / n
        m2 = m2_a + m2_b + δ² · n_a · n_b / n

    Args:
        stats: One for each part; counts may differ and may be 0.

    Returns:
        The statistics of all parts together, of count 0 if all are empty.

    Raises:
        TypeError: Something else than a sequence of `BatchStats`.
        ValueError: An empty sequence; parts with different numbers of channels.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.arange(10, dtype=np.float32).reshape(5, 2)
        >>> parts = [fs.batch_norm_stats(part) for part in (x[:1], x[1:1], x[1:])]
        >>> print(fs.merge_stats(parts).mean, fs.batch_norm_stats(x).mean)
        [4. 5.] [4. 5.]

    Reference:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    parts = _listed(stats, "stats")
    for index, part in enumerate(parts):
        if not isinstance(part, BatchStats):
            raise TypeError(f"stats[{index}]: expected BatchStats, got {type(part).__name__}")
        if part.mean.shape != parts[0].mean.shape:
            raise ValueError(
                f"stats[{index}]: expected {len(parts[0].mean)} channels as stats[0] has, got {len(part.mean)}"
            )
    count = 0
    zeros = np.zeros(len(parts[0].mean))
    mean, m2 = (zeros, zeros), (zeros, zeros)
    for part in parts:
        if part.count:
            given = [zeros if low is None else low for low in (part.mean_low, part.m2_low)]
            mean, m2 = exact.merge((count, mean, m2), (int(part.count), (part.mean, given[0]), (part.m2, given[1])))
            count += int(part.count)
    return BatchStats(count, mean[0].copy(), m2[0].copy(), mean[1].copy(), m2[1].copy())


def batch_norm_apply(
    x: Array,
    stats: BatchStats,
    weight: Channels | None,
    bias: Channels | None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, BatchNormSaved]:
    """`batch_norm` in training with given statistics: those of all workers.

    Args:
        x: This worker's values, as in `batch_norm`; they may be none.
        stats: Statistics of all workers, of at least two values per channel.
        weight: As in `batch_norm`.
        bias: As in `batch_norm`.
        eps: As in `batch_norm`.
        channel_axis: As in `batch_norm`.
        activation: As in `batch_norm`.
        residual: As in `batch_norm`.
        out: As in `batch_norm`.

    Returns:
        y, and what `batch_norm_backward_sums` and `batch_norm_backward_apply` need.

    Raises:
        TypeError: As in `batch_norm`; `stats` is something else.
        ValueError: As in `batch_norm`; `stats` has another number of channels, or less than two values per channel.

    Examples:
        A synchronised pass over two shards of different lengths:

        >>> import numpy as np, fusedstep as fs
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> dy = np.sin(x)
        >>> stats = fs.merge_stats([fs.batch_norm_stats(part) for part in (x[:2], x[2:])])
        >>> passes = [fs.batch_norm_apply(part, stats, None, None) for part in (x[:2], x[2:])]
        >>> sums = fs.merge_grad_sums(
        ...     [fs.batch_norm_backward_sums(part, p[1]) for part, p in zip((dy[:2], dy[2:]), passes)]
        ... )
        >>> dx = [fs.batch_norm_backward_apply(part, p[1], sums)[0] for part, p in zip((dy[:2], dy[2:]), passes)]
        >>> y, saved = fs.batch_norm(x, None, None, None, None, training=True)
        >>> print(np.allclose(np.concatenate(dx), fs.batch_norm_backward(dy, saved)[0]))
        True
    """
    if not isinstance(stats, BatchStats):
        raise TypeError(f"stats: expected BatchStats, got {type(stats).__name__}")
    y, saved = _core.batch_norm_apply(
        x,
        stats.count,
        stats.mean,
        stats.m2,
        viewed(weight, "weight"),
        viewed(bias, "bias"),
        eps,
        channel_axis,
        activation,
        viewed(residual, "residual"),
        viewed(out, "out"),
    )
    wrote(out)
    return y, saved


def update_running_stats(
    running_mean: Channels,
    running_var: Channels,
    stats: BatchStats,
    *,
    momentum: float = 0.1,
    unbiased: bool = True,
    skip_nonfinite: bool = False,
) -> bool:
    """Takes the statistics of a batch into the running ones, in place, as `batch_norm` does in training.

    Args:
        running_mean: (C,) float32 or float64.
        running_var: (C,) likewise.
        stats: Statistics of the batch, of at least two values per channel.
        momentum: What the batch gets, in [0, 1].
        unbiased: Whether to take the unbiased variance.
        skip_nonfinite: Whether to leave out a batch whose statistics are not finite.

    Returns:
        False if the batch was left out.

    Raises:
        TypeError: A dtype other than those above.
        ValueError: A wrong shape; less than two values per channel; momentum out of range; arrays that overlap. Nothing
            has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
        >>> fs.update_running_stats(mean, var, fs.batch_norm_stats(np.array([[1.0], [3.0]], np.float32)))
        True
        >>> print(mean.round(3), var.round(3))
        [0.2] [1.1]
    """
    if not isinstance(stats, BatchStats):
        raise TypeError(f"stats: expected BatchStats, got {type(stats).__name__}")
    taken = _core.batch_norm_update(
        viewed(running_mean, "running_mean"),
        viewed(running_var, "running_var"),
        stats.count,
        stats.mean,
        stats.m2,
        momentum,
        unbiased,
        skip_nonfinite,
    )
    if taken:
        wrote(running_mean, running_var)
    return taken


def batch_norm_backward_sums(dy: Array, saved: BatchNormSaved) -> BatchGradSums:
    """The sums over this worker's values that the gradient needs of all workers.

    Args:
        dy: Gradient of y, like x and in the same memory order.
        saved: What `batch_norm_apply` gave.

    Returns:
        Σ dy and Σ dy · (x − mean), float64.

    Raises:
        TypeError: As in `batch_norm_backward`.
        ValueError: As in `batch_norm_backward`.

    Examples:
        See `batch_norm_apply`.
    """
    return BatchGradSums(*_core.batch_norm_backward_sums(viewed(dy, "dy"), _saved(saved)))


def merge_grad_sums(sums: Sequence[BatchGradSums]) -> BatchGradSums:
    """The sums over all values from those over parts.

    Args:
        sums: One for each part.

    Returns:
        Their sums, one after the other.

    Raises:
        TypeError: Something else than a sequence of `BatchGradSums`.
        ValueError: An empty sequence; parts with different numbers of channels.

    Examples:
        See `batch_norm_apply`.
    """
    parts = _listed(sums, "sums")
    for index, part in enumerate(parts):
        if not isinstance(part, BatchGradSums):
            raise TypeError(f"sums[{index}]: expected BatchGradSums, got {type(part).__name__}")
        if part.dy.shape != parts[0].dy.shape:
            raise ValueError(f"sums[{index}]: expected shape {parts[0].dy.shape}, got {part.dy.shape}")
    dy, dy_d = parts[0].dy.copy(), parts[0].dy_d.copy()
    for part in parts[1:]:
        dy += part.dy
        dy_d += part.dy_d
    return BatchGradSums(dy, dy_d)


def batch_norm_backward_apply(
    dy: Array,
    saved: BatchNormSaved,
    sums: BatchGradSums,
    *,
    out: Array | None = None,
    residual_out: Array | None = None,
) -> tuple[Array, ...]:
    """`batch_norm_backward` with given sums: those of all workers.

    Args:
        dy: Gradient of y, like x and in the same memory order.
        saved: What `batch_norm_apply` gave.
        sums: Those of all workers.
        out: As in `batch_norm_backward`.
        residual_out: As in `batch_norm_backward`.

    Returns:
        As `batch_norm_backward`. dweight and dbias are those of `sums`: of all workers, not to be added up again.

    Raises:
        TypeError: As in `batch_norm_backward`; `sums` is something else.
        ValueError: As in `batch_norm_backward`; `sums` has another number of channels.

    Examples:
        See `batch_norm_apply`.
    """
    if not isinstance(sums, BatchGradSums):
        raise TypeError(f"sums: expected BatchGradSums, got {type(sums).__name__}")
    gradients = _core.batch_norm_backward_apply(
        viewed(dy, "dy"), _saved(saved), sums.dy, sums.dy_d, viewed(out, "out"), viewed(residual_out, "residual_out")
    )
    wrote(out, residual_out)
    return gradients


class BatchNorm:
    """Batch normalization with its parameters and running statistics.

    Args:
        num_features: Number of channels C.
        eps: Added to the variance, > 0; at least 3.5e-77 where the arithmetic is float32, 9e-308 in float64.
        momentum: What the batch gets in the running statistics, in [0, 1] (the part that is kept, p in some texts, is
            1 − momentum); None for the average of all batches so far.
        affine: Whether there are a weight and a bias.
        track_running_stats: Whether running statistics are kept. Without them evaluation takes the batch's, as
            PyTorch's.
        channel_axis: Which axis of x the channels are; -1 for channels-last arrays.
        activation: "relu", or None.
        unbiased: Whether the running variance gets the unbiased variance, as in PyTorch.
        skip_nonfinite: Whether a batch with NaN or infinity leaves the running statistics as they are.
        dtype: Of parameters and running statistics: float32, or float64 for arrays of float64.

    Attributes:
        weight: γ, (C,), ones at the start; give it to an optimizer. None without `affine`.
        bias: β, (C,), zeros at the start; likewise.
        running_mean: (C,); None without `track_running_stats`.
        running_var: (C,); likewise.
        num_batches_tracked: Batches that the running statistics have taken.
        dweight: Gradient of weight, from the last `backward`.
        dbias: Gradient of bias, likewise.

    Raises:
        TypeError: A dtype that is neither float32 nor float64.
        ValueError: `num_features` is less than 1; eps or momentum out of range; another activation.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> bn = fs.BatchNorm(2)
        >>> y = bn.forward(np.array([[1, 5], [3, 9]], np.float32), training=True)
        >>> dx = bn.backward(np.ones((2, 2), np.float32))
        >>> print(y.round(3).tolist(), bn.dbias)
        [[-1.0, -1.0], [1.0, 1.0]] [2. 2.]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        activation: Activation = None,
        unbiased: bool = True,
        skip_nonfinite: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        if not _is_integer(num_features) or num_features < 1:
            raise ValueError(f"num_features: expected a whole number >= 1, got {shown(num_features)}")
        if num_features >= 2**53:
            raise ValueError(f"num_features: expected less than 2**53, got {shown(num_features)}")
        if not _is_number(eps) or not 0 < eps <= sys.float_info.max:
            raise ValueError(f"eps: expected a finite number > 0, got {shown(eps)}")
        if momentum is not None and not (_is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum: expected a number in [0, 1] or None, got {shown(momentum)}")
        if not _is_integer(channel_axis):
            raise TypeError(f"channel_axis: expected an integer, got {type(channel_axis).__name__}")
        if activation is not None and not (isinstance(activation, str) and activation == "relu"):
            raise ValueError(f"activation: expected 'relu' or None, got {shown(activation)}")
        for name, flag in (
            ("affine", affine),
            ("track_running_stats", track_running_stats),
            ("unbiased", unbiased),
            ("skip_nonfinite", skip_nonfinite),
        ):
            _check_flag(flag, name)
        if _dtype_name(dtype) not in ("float32", "float64"):
            raise TypeError(f"dtype: expected float32 or float64, got {_dtype_name(dtype)}")
        self.eps = eps
        self.momentum = momentum
        self.channel_axis = channel_axis
        self.activation = activation
        self.unbiased = unbiased
        self.skip_nonfinite = skip_nonfinite
        self._features = num_features
        self.weight: Channels | None = np.ones(num_features, dtype) if affine else None
        self.bias: Channels | None = np.zeros(num_features, dtype) if affine else None
        self.running_mean: Channels | None = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var: Channels | None = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = 0
        self.dweight: Channels | None = None
        self.dbias: Channels | None = None
        self._saved: BatchNormSaved | None = None

    def forward(self, x: Array, *, training: bool, residual: Array | None = None, out: Array | None = None) -> Array:
        """`batch_norm` of x; keeps what `backward` needs.

        Raises:
            TypeError: See `batch_norm`.
            ValueError: See `batch_norm`; x has another number of channels.
        """
        _check_flag(training, "training")
        shape, axis = _shape(x), self.channel_axis
        if _is_integer(axis) and -len(shape) <= axis < len(shape) and shape[axis] != self._features:
            raise ValueError(f"x: expected {self._features} channels in axis {axis}, got shape {shape}")
        momentum = self.momentum
        if not _is_integer(self.num_batches_tracked) or not 0 <= self.num_batches_tracked < 2**53 - 1:
            tracked = shown(self.num_batches_tracked)
            raise ValueError(f"num_batches_tracked: expected a whole number >= 0 and < 2**53 - 1, got {tracked}")
        y, self._saved, taken = _core.batch_norm(
            x,
            viewed(self.weight, "weight"),
            viewed(self.bias, "bias"),
            viewed(self.running_mean, "running_mean"),
            viewed(self.running_var, "running_var"),
            training if self.running_mean is not None else True,
            1.0 / (self.num_batches_tracked + 1) if momentum is None else momentum,
            self.eps,
            self.channel_axis,
            self.activation,
            viewed(residual, "residual"),
            self.unbiased,
            self.skip_nonfinite,
            viewed(out, "out"),
        )
        wrote(out)
        if taken and self.running_mean is not None:
            wrote(self.running_mean, self.running_var)
            self.num_batches_tracked += 1
        return y

    def backward(
        self, dy: Array, *, out: Array | None = None, residual_out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """Dx of the last `forward`, and dresidual if it had a residual.

        The parameters' gradients are left in `dweight` and `dbias`.

        Raises:
            RuntimeError: There was no `forward` since the last `backward`.
        """
        if self._saved is None:
            raise RuntimeError("backward: no forward since the last backward")
        dx, dweight, dbias, *dresidual = batch_norm_backward(dy, self._saved, out=out, residual_out=residual_out)
        if self.weight is not None:
            self.dweight, self.dbias = dweight, dbias
        self._saved = None
        return (dx, dresidual[0]) if dresidual else dx

    def state_dict(self) -> dict[str, Any]:
        """Copies of the parameters and running statistics, under PyTorch's names."""
        state = {name: array.copy() for name, array in self._arrays().items()}
        if self.running_mean is not None:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copies a state into the layer's own arrays; PyTorch's tensors are taken too.

        Raises:
            KeyError: A name that is missing, or not the layer's.
            TypeError: Another dtype.
            ValueError: Another shape; a negative variance; no whole number of batches. Nothing has been written.
        """
        mine = self._arrays()
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a dict, got {type(state).__name__}")
        names = {*mine, *(["num_batches_tracked"] if self.running_mean is not None else [])}
        if set(state) != names:
            raise KeyError(f"state: expected {sorted(names)}, got {list(state)}")
        given = {name: as_array(state[name], f"state[{name!r}]").copy() for name in mine}
        for name, array in given.items():
            if array.dtype != mine[name].dtype or isinstance(array, np.ma.MaskedArray):
                kind = "a masked array" if isinstance(array, np.ma.MaskedArray) else f"dtype {array.dtype}"
                raise TypeError(f"state[{name!r}]: expected {mine[name].dtype}, got {kind}")
            if array.shape != mine[name].shape:
                raise ValueError(f"state[{name!r}]: expected shape {mine[name].shape}, got {array.shape}")
        if "running_var" in given and (given["running_var"] < 0).any():
            raise ValueError(f"state['running_var']: expected numbers >= 0, got {given['running_var'].min()}")
        tracked = _tracked(state.get("num_batches_tracked", 0))
        for name, array in given.items():
            mine[name][...] = array
        self.num_batches_tracked = tracked

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own arrays, and no forward pass to go back through.
        return {**self.__dict__, "_saved": None}

    def _arrays(self) -> dict[str, Channels]:
        arrays = {
            "weight": self.weight,
            "bias": self.bias,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
        }
        return {name: array for name, array in arrays.items() if array is not None}


def _tracked(value: Any) -> int:
    """A number of batches, which PyTorch keeps in a tensor."""
    name = "state['num_batches_tracked']"
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        array = as_array(value, name)
        if array.shape != () or array.dtype.kind not in "iu":
            raise ValueError(f"{name}: expected a whole number >= 0, got {shown(value)}")
        value = array.item()
    if not _is_integer(value) or not 0 <= value < 2**53:
        raise ValueError(f"{name}: expected a whole number >= 0 and < 2**53, got {shown(value)}")
    return int(value)


def _shape(x: Any) -> tuple[int, ...]:
    """Of an array; () for what is none."""
    seen = viewed(x, "x")
    return np.asarray(seen).shape if isinstance(seen, np.ndarray) else ()


def _channels(given: Any, name: str, like: Any) -> Doubles:
    """An array of a number a channel, without its subclass: that may have arithmetic of its own."""
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a float64 array, got {type(given).__name__}")
    array = np.asarray(given) if isinstance(given, np.ndarray) else None
    if array is None or array.dtype != np.float64:
        got = type(given).__name__ if array is None else array.dtype
        raise TypeError(f"{name}: expected a float64 array, got {got}")
    if array.ndim != 1 or array.shape != np.asarray(like).shape:
        raise ValueError(f"{name}: expected shape (C,), got {array.shape}")
    return array


def _check_flag(value: Any, name: str) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _dtype_name(dtype: Any) -> str:
    """NumPy's name of it; what it is where it is none."""
    try:
        return str(dtype) if dtype is None else np.dtype(dtype).name
    except (TypeError, ValueError):
        return shown(dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _listed(parts: Any, name: str) -> list[Any]:
    if not isinstance(parts, Sequence):
        raise TypeError(f"{name}: expected a list, got {type(parts).__name__}")
    if not parts:
        raise ValueError(f"{name}: expected at least one, got none")
    return list(parts)


def _saved(saved: BatchNormSaved) -> BatchNormSaved:
    if not isinstance(saved, BatchNormSaved):
        raise TypeError(f"saved: expected what batch_norm gave, got {type(saved).__name__}")
    return saved
