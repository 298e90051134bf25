"""The numbers that the rules compare a run with."""

import math
from dataclasses import dataclass, fields

from fusedstep._common.arguments import is_number, is_whole


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers in the doctor's rules; `docs/doctor.md` says where they come from.

    Args:
        window: Part of the steps that a window is, in [1e-6, 0.5].
        min_window: Steps of the shortest window, >= 1; a diagnosis needs two windows.
        max_window: Steps of the longest window, >= min_window.
        solved: A loss of at most this multiple of the reference is low: nothing is stuck; > 0.
        flat: A loss that changes by less than this part of itself is flat; > 0.
        critical: The largest relative change of the loss that the gradient promises at a critical point; > 0.
        bounce_cosine: Successive gradients turn around if their cosine is at most this, in [-1, 0].
        bounce_gradient: A gradient of at least this part of the first ones is large; > 0.
        crawl_ratio: Updates of less than this part of the parameters crawl; > 0.
        explode_loss: A loss of at least this multiple of the first one, or of the lowest, has exploded; > 1.
        explode_ratio: Updates of at least this part of the parameters have exploded; > 0.
        blow_up_gradient: A gradient of at least this multiple of the σ that divides it meets a tiny σ; > 1.
        blow_up_update: An update of at least this multiple of those before it is a jump; > 1.
        blow_up_loss: A loss of at least this multiple of the one before the jump was thrown off; > 1.
        decay: A learning rate below this part of its peak has been decayed, in (0, 1).
        decay_fall: A loss that fell by this part of itself before the decay was still falling; > 0.
        decay_slow: The largest ratio of its fall after the decay to that before; in (0, 1).
        dead: The part of a layer's units that gives 0 for every row; in [1e-6, 1].
        start: A first loss of at least this multiple of the best constant's comes from bad weights; > 1.
        small_batch: Batch norm on fewer rows is too noisy; >= 1.
        batch_gap: Losses in training and in evaluation that differ by this part of the smaller; > 0.
        overfit_rise: The validation loss has risen by this part of the reference from its lowest; > 0.
        overfit_gap: The validation loss is above the training loss by this part of the reference; > 0.
        min_evaluations: The fewest evaluations for `overfitting`; >= 2.
        poor: A loss that stays above this part of the reference is poor; > 0.
        plateau: A loss that fell by at most this part of itself over half of the run stays; > 0.

    Raises:
        TypeError: A threshold is not a number, or not a whole one where it counts.
        ValueError: A threshold out of range.

    Examples:
        >>> import fusedstep as fs
        >>> fs.doctor.Thresholds(crawl_ratio=1e-6).crawl_ratio
        1e-06
    """

    window: float = 0.1
    min_window: int = 10
    max_window: int = 200
    solved: float = 0.1
    flat: float = 0.05
    critical: float = 0.02
    bounce_cosine: float = -0.4
    bounce_gradient: float = 0.3
    crawl_ratio: float = 1e-5
    explode_loss: float = 3.0
    explode_ratio: float = 0.5
    blow_up_gradient: float = 10.0
    blow_up_update: float = 5.0
    blow_up_loss: float = 3.0
    decay: float = 0.2
    decay_fall: float = 0.05
    decay_slow: float = 0.1
    dead: float = 0.7
    start: float = 5.0
    small_batch: int = 8
    batch_gap: float = 0.5
    overfit_rise: float = 0.05
    overfit_gap: float = 0.25
    min_evaluations: int = 5
    poor: float = 0.25
    plateau: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, low, high = getattr(self, field.name), *_RANGES.get(field.name, (0.0, math.inf))
            whole = isinstance(field.default, int)
            if not (is_whole(value) if whole else is_number(value)):
                kind = "a whole number" if whole else "a number"
                raise TypeError(f"{field.name}: expected {kind}, got {value!r}")
            inside = low <= value <= high if whole or field.name in _CLOSED else low < value <= high
            if not inside or not math.isfinite(value):
                raise ValueError(f"{field.name}: expected a finite number in its range, see Thresholds, got {value!r}")
        if self.max_window < self.min_window:
            raise ValueError(f"max_window: expected at least min_window = {self.min_window}, got {self.max_window}")

    @property
    def min_steps(self) -> int:
        """The fewest steps for any verdict but `nonfinite`."""
        return 2 * self.min_window


_CLOSED = {"window", "bounce_cosine", "dead"}
_RANGES: dict[str, tuple[float, float]] = {
    "window": (1e-6, 0.5),
    "min_window": (1, math.inf),
    "max_window": (1, math.inf),
    "small_batch": (1, math.inf),
    "min_evaluations": (2, math.inf),
    "bounce_cosine": (-1.0, 0.0),
    "explode_loss": (1.0, math.inf),
    "blow_up_gradient": (1.0, math.inf),
    "blow_up_update": (1.0, math.inf),
    "blow_up_loss": (1.0, math.inf),
    "start": (1.0, math.inf),
    "decay": (0.0, 1.0),
    "decay_slow": (0.0, 1.0),
    "dead": (1e-6, 1.0),
}
