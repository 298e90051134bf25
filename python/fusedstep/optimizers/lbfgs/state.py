"""What a step knows of a place, a move, and the moves before."""

import math
from typing import Any, NamedTuple

import numpy as np

from fusedstep.optimizers.base.groups import Array


class Point(NamedTuple):
    """What the closure said of one place."""

    loss: float
    grad: Array
    grad_max: float

    @property
    def finite(self) -> bool:
        """Whether the loss and all of the gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_max)


class Move(NamedTuple):
    """A move and the pairs that its direction came from, under PyTorch's names. No array is ever written to again."""

    d: Array
    t: float
    old_dirs: list[Array]
    old_stps: list[Array]
    ro: list[float]
    H_diag: float
    prev_flat_grad: Array
    prev_loss: float


class Progress(NamedTuple):
    """What a step leaves for the next one."""

    func_evals: int
    n_iter: int
    move: Move | None
    first: float | None = None  # what the next move tries first, if less than otherwise

    def entry(self) -> dict[str, Any]:
        """As the optimizer's state shows it."""
        move = {} if self.move is None else self.move._asdict()
        if self.move is None and self.first is not None:
            move = {"t": self.first}
        return {"func_evals": self.func_evals, "n_iter": self.n_iter, **move}


def largest(vector: Array) -> float:
    """max |v|; NaN where there is one."""
    return float(np.abs(vector).max(initial=0.0))
