"""What the rules look at: medians over windows of a run."""

import numpy as np

from fusedstep.doctor.run import Doubles, Run
from fusedstep.doctor.thresholds import Thresholds


class Windows:
    """A run with its first, last but one, and last window.

    .. code-block:: text

        w = window · steps, within [min_window, max_window]
        first, before, last = median loss of steps [0, w), [n − 2w, n − w), [n − w, n)
        highest, lowest = of the median losses of ⌊n / w⌋ windows of equal length that cover the run
        reference = chance_loss, or the first loss, which no step has changed yet

    Args:
        run: At least `thresholds.min_steps` steps.
        thresholds: The doctor's.
    """

    def __init__(self, run: Run, thresholds: Thresholds) -> None:
        self.run, self.thresholds = run, thresholds
        self.losses = np.asarray(run.losses, np.float64)
        self.count = len(self.losses)
        self.width = min(max(round(thresholds.window * self.count), thresholds.min_window), thresholds.max_window)
        known = self.losses[np.isfinite(self.losses)]
        # As NumPy's doubles, so that dividing by a loss of 0 gives infinity and no error.
        self.initial = np.float64(known[0] if known.size else np.nan)
        self.reference = self.initial if run.chance_loss is None else np.float64(run.chance_loss)
        w = self.width
        self.first = median(self.losses[:w])
        self.before = median(self.losses[-2 * w : -w])
        self.last = median(self.losses[-w:])
        pieces = np.array_split(self.losses, max(1, self.count // w))
        self.medians = np.array([median(piece) for piece in pieces])
        known = self.medians[np.isfinite(self.medians)]
        self.highest = np.float64(known.max() if known.size else np.nan)
        self.lowest = np.float64(known.min() if known.size else np.nan)

    @property
    def stuck(self) -> bool:
        """Whether the loss is not low: last > solved · reference, or no number at all."""
        return not self.last <= self.thresholds.solved * self.reference

    @property
    def flat(self) -> bool:
        """Whether the loss stays where it is: |before − last| <= flat · before."""
        return bool(abs(self.before - self.last) <= self.thresholds.flat * abs(self.before))

    @property
    def never_moved(self) -> bool:
        """Whether no window's median is further than flat · first from that of the first one.

        If the start, the median of the first 5 losses, is 4 flat · first above it, that is a fall too.
        """
        start = median(self.losses[:5])
        if start > (1 + 4 * self.thresholds.flat) * self.first:
            return False
        return bool((np.abs(self.medians - self.first) <= self.thresholds.flat * abs(self.first)).all())

    @property
    def warming(self) -> bool:
        """Whether the learning rate is at its peak and has risen over the last window: a judgement would be early."""
        lr = self.run.steps("lr")
        return lr is not None and bool(lr[-1] == np.nanmax(lr) and lr[-1] > lr[-self.width])

    @property
    def long(self) -> bool:
        """Whether a loss that stays says anything: at least 5 · min_window steps, and not warming."""
        return self.count >= 5 * self.thresholds.min_window and not self.warming

    def first_of(self, name: str) -> np.float64:
        """The median of a list of the telemetry over the first window; NaN where there is none."""
        values = self.run.steps(name)
        return np.float64(np.nan) if values is None else median(values[: self.width])

    def last_of(self, name: str) -> np.float64:
        """The median of a list of the telemetry over the last window; NaN where there is none."""
        values = self.run.steps(name)
        return np.float64(np.nan) if values is None else median(values[-self.width :])


def median(values: Doubles) -> np.float64:
    """The median of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return np.float64(np.median(known) if known.size else np.nan)
