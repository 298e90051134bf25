"""Which learning rates a model bears: a short run with one that rises."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusedstep._arrays import unmasked
from fusedstep.curvature._plots import saved_axes
from fusedstep.curvature._space import Array, Vector, check_callable, plain, positive, real, whole


@dataclass(frozen=True, slots=True)
class LRRangeTest:
    """Losses under a rising learning rate.

    Attributes:
        lrs: The rates that were tried, ascending.
        losses: What `step` gave at each; the last may be infinite or NaN.
        smoothed: Their running average, as long as it is finite.
        steepest: The rate at which the average falls fastest per factor of the rate; None where it never falls.
        lowest: The rate at which it is lowest.
        tenth: A tenth of that: a rate to begin with.
        stopped: "end" of the rates, "diverged", or "not finite".
    """

    lrs: Array
    losses: Array
    smoothed: Array
    steepest: float | None
    lowest: float | None
    tenth: float | None
    stopped: Literal["end", "diverged", "not finite"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; None for a loss that is not finite."""
        content = {name: plain(getattr(self, name)) for name in self.__slots__}
        content["losses"] = [loss if math.isfinite(loss) else None for loss in content["losses"]]
        return content

    def plot(self, path: str) -> None:
        """Draws the losses, their average and the suggestions into a file."""
        with saved_axes(path) as axes:
            shown = np.isfinite(self.losses)
            axes.plot(self.lrs[shown], self.losses[shown], color="0.75", lw=0.8, label="loss of a step")
            axes.plot(self.lrs[: len(self.smoothed)], self.smoothed, color="#0072B2", label="average")
            marks = ((self.steepest, "#009E73", "--", "steepest"), (self.tenth, "#D55E00", ":", "lowest / 10"))
            for lr, colour, style, name in marks:
                if lr is not None:
                    axes.axvline(lr, color=colour, ls=style, label=f"{name}: {lr:.2g}")
            if len(self.smoothed):
                low, high = float(self.smoothed.min()), float(self.smoothed[: max(1, len(self.smoothed) // 2)].max())
                margin = 0.3 * (high - low) or 1.0
                # A diverging loss would press the rest of the curve flat.
                axes.set_ylim(low - margin, high + 2 * margin)
            axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="Learning rate range test")
            axes.legend(frameon=False)


def lr_range_test(
    step: Callable[[float], float],
    lrs: tuple[float, float, int] | Sequence[float] | Array = (1e-7, 10.0, 100),
    *,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    params: Any = None,
    optimizer: Any = None,
) -> LRRangeTest:
    r"""Trains with a learning rate that rises exponentially, until the loss diverges, and suggests rates.

    .. code-block:: text

        average ← s · average + (1 − s) · loss, divided by 1 − sᵗ
        stops where  average > lowest + (divergence − 1) · |lowest|

    Args:
        step: `step(lr) -> loss`: trains one batch with this rate and gives the loss before the update.
        lrs: A tuple `(lowest, highest, steps)`, or a list or array of ascending rates; all > 0.
        smoothing: s, in [0, 1).
        divergence: > 1.
        params: Arrays that training changes (parameters, running statistics): an array, a list or a dict of them. They
            are put back as they were, bit for bit, also after an error. None: that is yours to do.
        optimizer: Its state, hyper-parameters included, is put back likewise, through `state_dict` and
            `load_state_dict`.

    Returns:
        The `LRRangeTest`.

    Raises:
        TypeError: A kind that is not as said; a `step` that gives no number.
        ValueError: A rate or option out of range; rates that do not rise; params that are read-only.

    Examples:
        Gradient descent on w² diverges beyond a rate of 1.

        >>> import numpy as np, fusedstep as fs
        >>> w = np.ones(1)
        >>> opt = fs.SGD(w)
        >>> def step(lr):
        ...     opt.param_groups[0]["lr"] = lr
        ...     loss = float(w @ w)
        ...     opt.step(2 * w)
        ...     return loss
        >>> found = fs.lr_range_test(step, (1e-4, 10.0, 200), params=w, optimizer=opt)
        >>> print(found.stopped, 0.01 < found.steepest < 1, w)
        diverged True [1.]

    Reference:
        Smith, "Cyclical learning rates for training neural networks", WACV 2017.
    """
    check_callable(step, "step")
    rates = _rates(lrs)
    kept = positive(smoothing, "smoothing", zero=True)
    if kept >= 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing!r}")
    factor = positive(divergence, "divergence")
    if factor <= 1:
        raise ValueError(f"divergence: expected a finite number > 1, got {divergence!r}")
    losses: list[float] = []
    smoothed: list[float] = []
    stopped: Literal["end", "diverged", "not finite"] = "end"
    average, lowest = 0.0, math.inf
    with _restored(params, optimizer):
        for k, lr in enumerate(rates):
            loss = real(step(float(lr)), "step(lr)")
            losses.append(loss)
            average = kept * average + (1 - kept) * loss
            if not math.isfinite(average):
                stopped = "not finite"
                break
            smoothed.append(average / (1 - kept ** (k + 1)))
            lowest = min(lowest, smoothed[-1])
            if smoothed[-1] > lowest + (factor - 1) * abs(lowest):
                stopped = "diverged"
                break
    steepest, best = _suggestions(rates, np.array(smoothed))
    return LRRangeTest(
        lrs=rates[: len(losses)],
        losses=np.array(losses),
        smoothed=np.array(smoothed),
        steepest=steepest,
        lowest=best,
        tenth=None if best is None else best / 10,
        stopped=stopped,
    )


def _rates(lrs: Any) -> Vector:
    if isinstance(lrs, tuple):
        if len(lrs) != 3:
            raise ValueError(f"lrs: expected (lowest, highest, steps), got {len(lrs)} entries; rates go in a list")
        low, high, count = positive(lrs[0], "lrs[0]"), positive(lrs[1], "lrs[1]"), whole(lrs[2], "lrs[2]", 2)
        if high <= low:
            raise ValueError(f"lrs: expected lowest < highest, got {lrs[0]!r} and {lrs[1]!r}")
        return np.geomspace(low, high, count)
    if not isinstance(lrs, (list, np.ndarray)):
        raise TypeError(f"lrs: expected a tuple, a list or an array, got {type(lrs).__qualname__}")
    rates = np.array([positive(lr, f"lrs[{k}]") for k, lr in enumerate(lrs)])
    if len(rates) == 0 or not (np.diff(rates) > 0).all():
        raise ValueError("lrs: expected at least one rate, each above the one before")
    return rates


def _suggestions(rates: Vector, smoothed: Vector) -> tuple[float | None, float | None]:
    """Where the average falls fastest per factor of the rate, before it is lowest; and where that is."""
    # A loss that does not move falls nowhere.
    if len(smoothed) == 0 or np.ptp(smoothed) <= 1e-12 * np.abs(smoothed).max():
        return None, None
    least = int(smoothed.argmin())
    best = float(rates[least])
    if least == 0:
        return None, best
    slopes = np.gradient(smoothed[: least + 1], np.log(rates[: least + 1]))
    return float(rates[int(slopes.argmin())]), best


@contextmanager
def _restored(params: Any, optimizer: Any) -> Iterator[None]:
    if params is None:
        entries: list[Any] = []
    elif isinstance(params, Mapping):
        entries = list(params.values())
    else:
        entries = list(params) if isinstance(params, (list, tuple)) else [params]
    arrays = [unmasked(entry, f"params[{k}]") for k, entry in enumerate(entries)]
    for k, array in enumerate(arrays):
        if not array.flags.writeable:
            raise ValueError(f"params[{k}]: expected an array that can be put back, got a read-only one")
    if optimizer is not None and not hasattr(optimizer, "load_state_dict"):
        raise TypeError(f"optimizer: expected one with a state dict, got {type(optimizer).__qualname__}")
    before = [array.copy() for array in arrays]
    state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
    try:
        yield
    finally:
        for array, value in zip(arrays, before, strict=True):
            array[...] = value
        if state is not None:
            optimizer.load_state_dict(state)
