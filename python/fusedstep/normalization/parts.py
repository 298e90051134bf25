"""The parts of both passes between which workers exchange statistics and sums."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusedstep import _core
from fusedstep._common.arrays import viewed, wrote
from fusedstep._core import BatchNormSaved
from fusedstep.normalization.arguments import Activation, Array, Channels, Doubles, channels, listed, require_saved
from fusedstep.normalization.statistics import BatchStats
from fusedstep.reference.batch_norm import merge_gradient_sums


@dataclass(frozen=True, eq=False, slots=True)
class BatchGradSums:
    """The sums of the backward pass over some values of every channel; those of several workers are added.

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
        object.__setattr__(self, "dy", channels(self.dy, "dy", self.dy))
        object.__setattr__(self, "dy_d", channels(self.dy_d, "dy_d", self.dy))


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
        TypeError: As in `batch_norm`; `stats` is not a `BatchStats`.
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
    return BatchGradSums(*_core.batch_norm_backward_sums(viewed(dy, "dy"), require_saved(saved)))


def merge_grad_sums(sums: Sequence[BatchGradSums]) -> BatchGradSums:
    """The sums over all values from those over parts.

    Args:
        sums: One for each part.

    Returns:
        Their sums, one after the other.

    Raises:
        TypeError: `sums` is not a sequence of `BatchGradSums`.
        ValueError: An empty sequence; parts with different numbers of channels.

    Examples:
        See `batch_norm_apply`.
    """
    parts = listed(sums, "sums")
    for index, part in enumerate(parts):
        if not isinstance(part, BatchGradSums):
            raise TypeError(f"sums[{index}]: expected BatchGradSums, got {type(part).__name__}")
        if part.dy.shape != parts[0].dy.shape:
            raise ValueError(f"sums[{index}]: expected shape {parts[0].dy.shape}, got {part.dy.shape}")
    return BatchGradSums(*merge_gradient_sums((part.dy, part.dy_d) for part in parts))


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
        As `batch_norm_backward`. dweight and dbias come from `sums`: they are of all workers, and must not be added
        again.

    Raises:
        TypeError: As in `batch_norm_backward`; `sums` is not a `BatchGradSums`.
        ValueError: As in `batch_norm_backward`; `sums` has another number of channels.

    Examples:
        See `batch_norm_apply`.
    """
    if not isinstance(sums, BatchGradSums):
        raise TypeError(f"sums: expected BatchGradSums, got {type(sums).__name__}")
    gradients = _core.batch_norm_backward_apply(
        viewed(dy, "dy"),
        require_saved(saved),
        sums.dy,
        sums.dy_d,
        viewed(out, "out"),
        viewed(residual_out, "residual_out"),
    )
    wrote(out, residual_out)
    return gradients
