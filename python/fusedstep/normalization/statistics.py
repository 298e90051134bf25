"""Statistics of a batch, of several together, and the running ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import shown
from fusedstep._common.arrays import viewed, wrote
from fusedstep.normalization.arguments import Array, Channels, Doubles, channels, listed
from fusedstep.reference.batch_norm import merge_all


@dataclass(frozen=True, eq=False, slots=True)
class BatchStats:
    """Statistics of some values of every channel; those of several workers merge into those of all.

    Args:
        count: Values per channel, in [0, 2**53).
        mean: (C,) float64.
        m2: (C,) float64, the sum of squared deviations from the mean.
        mean_low: The rounding error of `mean`, so that merging loses nothing. None for 0.
        m2_low: The rounding error of `m2`, likewise.

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
                object.__setattr__(self, name, channels(getattr(self, name), name, self.mean))
        if (self.m2 < 0).any():
            raise ValueError(f"m2: expected numbers >= 0, got {self.m2.min()}")

    @property
    def var(self) -> Doubles:
        """The biased variance, m2 / count."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m2 / self.count


def batch_norm_stats(x: Array, *, channel_axis: int = 1) -> BatchStats:
    r"""Count, mean and sum of squared deviations of every channel, the mean to the last bit of a double.

    .. code-block:: text

        mean = Σ x / count,   m2 = Σ (x − mean)²

    Args:
        x: As in `batch_norm`; it may be empty: a worker without samples has a count of 0.
        channel_axis: Which axis of x the channels are.

    Returns:
        The statistics, float64; their low parts too, so that `merge_stats` loses nothing. m2 is right to a bit or two
        of a double, unless the first 16 values of a channel are its outliers: see the documentation.

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
    r"""The statistics of the whole from those of its parts, for any split.

    .. code-block:: text

        δ = mean_b − mean_a
        mean = mean_a + δ · n_b / n
        m2 = m2_a + m2_b + δ² · n_a · n_b / n

    Args:
        stats: One for each part; counts may differ and may be 0.

    Returns:
        The statistics of all parts together, of count 0 if all are empty.

    Raises:
        TypeError: `stats` is not a sequence of `BatchStats`.
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
    parts = listed(stats, "stats")
    for index, part in enumerate(parts):
        if not isinstance(part, BatchStats):
            raise TypeError(f"stats[{index}]: expected BatchStats, got {type(part).__name__}")
        if part.mean.shape != parts[0].mean.shape:
            raise ValueError(
                f"stats[{index}]: expected {len(parts[0].mean)} channels as stats[0] has, got {len(part.mean)}"
            )
    zeros = np.zeros(len(parts[0].mean))
    moments = []
    for part in parts:
        mean_low, m2_low = (zeros if low is None else low for low in (part.mean_low, part.m2_low))
        moments.append((int(part.count), (part.mean, mean_low), (part.m2, m2_low)))
    count, mean, m2 = merge_all(moments, len(zeros))
    return BatchStats(count, mean[0].copy(), m2[0].copy(), mean[1].copy(), m2[1].copy())


def update_running_stats(
    running_mean: Channels,
    running_var: Channels,
    stats: BatchStats,
    *,
    momentum: float = 0.1,
    unbiased: bool = True,
    skip_nonfinite: bool = False,
) -> bool:
    """Updates running statistics with those of a batch, in place, as `batch_norm` does in training.

    Args:
        running_mean: (C,) float32 or float64.
        running_var: (C,) likewise.
        stats: Statistics of the batch, of at least two values per channel.
        momentum: The weight of the batch, in [0, 1].
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
