"""The direction: two loops over the pairs of the last moves."""

import numpy as np

from fusedstep import _core
from fusedstep.optimizers.base.groups import Array
from fusedstep.optimizers.lbfgs.settings import Settings
from fusedstep.optimizers.lbfgs.state import Move, Point, Progress


def next_move(progress: Progress, point: Point, settings: Settings) -> Move:
    """The next direction, and the first t to try."""
    last = progress.move
    if last is None:
        t = min(1.0, 1.0 / _core.dot(np.sign(point.grad), point.grad)) * settings.lr
        t = t if progress.first is None else min(t, progress.first)
        return Move(-point.grad, t, [], [], [], 1.0, point.grad, point.loss)
    old_dirs, old_stps, ro, diagonal = last.old_dirs, last.old_stps, last.ro, last.H_diag
    # After an overflow the slope is not finite, and `Moves` says so.
    with np.errstate(over="ignore", invalid="ignore"):
        y, s = point.grad - last.prev_flat_grad, last.d * last.t
        ys, yy = _core.dot(y, s), _core.dot(y, y)
        if ys > 1e-10 and yy > 0.0:
            old_dirs, old_stps, ro, diagonal = [*old_dirs, y], [*old_stps, s], [*ro, 1.0 / ys], ys / yy
        kept = slice(-settings.history_size, None)
        old_dirs, old_stps, ro = old_dirs[kept], old_stps[kept], ro[kept]
        pairs = list(zip(old_dirs, old_stps, ro, strict=True))
        d, alphas = -point.grad, []
        for y, s, rho in reversed(pairs):
            alphas.append(rho * _core.dot(s, d))
            _core.axpy(-alphas[-1], y, d)
        d *= diagonal
        for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            _core.axpy(alpha - rho * _core.dot(y, d), s, d)
    return Move(d, settings.lr, old_dirs, old_stps, ro, diagonal, point.grad, point.loss)


def moved(x: Array, move: Move) -> Array:
    """Where a move leads from x."""
    place = x.copy()
    _core.axpy(move.t, move.d, place)
    return place
