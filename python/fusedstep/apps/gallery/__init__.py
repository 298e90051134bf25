"""The pictures: one file each, that computes with this library, draws, and says what to see.

A figure is a module with

- `TITLE`, a few words;
- `compute(seed=0, quick=False)`, a dict of numbers and arrays. The claims of the picture are in `data["claims"]`, as
  numbers; `quick` takes smaller computations;
- `draw(data)`, a matplotlib figure;
- `caption(data)`, a few short sentences that say what to see, with the numbers that were measured;
- perhaps `animate(data, path)`, which writes a GIF.
"""

from fusedstep.apps.gallery import (
    averaging,
    batch_norm,
    batches,
    critical,
    doctor,
    losses,
    optimizers,
    ravine,
    regularization,
    schedules,
    spectrum,
)
from fusedstep.apps.gallery.drawing import Drawable, write
from fusedstep.apps.gallery.page import write_index

__all__ = ["FIGURES", "Drawable", "write", "write_index"]

#: In the order in which the story is told.
FIGURES: dict[str, Drawable] = {
    "critical": critical,
    "batches": batches,
    "optimizers": optimizers,
    "ravine": ravine,
    "schedules": schedules,
    "losses": losses,
    "batch-norm": batch_norm,
    "regularization": regularization,
    "averaging": averaging,
    "spectrum": spectrum,
    "doctor": doctor,
}
