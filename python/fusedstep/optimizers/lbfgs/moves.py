"""The moves of one step."""

import math

from fusedstep import _core
from fusedstep.optimizers.base.groups import Array
from fusedstep.optimizers.lbfgs.direction import moved, next_move
from fusedstep.optimizers.lbfgs.line_search import Line
from fusedstep.optimizers.lbfgs.problem import Problem
from fusedstep.optimizers.lbfgs.report import LBFGSReport, Reason
from fusedstep.optimizers.lbfgs.settings import Settings
from fusedstep.optimizers.lbfgs.state import Move, Progress


class Moves:
    """Moves one after the other, until there is a reason to stop.

    Attributes:
        reason: The reason, None until there is one.
        accepted: A place and the state that belongs to it. They are replaced together: an interrupt may come between
            any two lines.
    """

    def __init__(self, problem: Problem, settings: Settings, before: Progress) -> None:
        self.problem, self.settings = problem, settings
        self.evaluated_before = before.func_evals
        self.initial = self.point = problem.evaluate_finite()
        self.evaluations, self.iterations = 1, 0
        small = self.point.grad_max <= settings.tolerance_grad
        self.reason: Reason | None = "tolerance_grad" if small else None
        self.accepted = problem.read(), before._replace(func_evals=before.func_evals + 1)

    def advance(self) -> None:
        """Makes one move, unless the direction is too flat for one."""
        x, progress = self.accepted
        self.iterations += 1
        move = next_move(progress, self.point, self.settings)
        reached = progress._replace(n_iter=progress.n_iter + 1, move=move, first=None)
        slope = _core.dot(self.point.grad, move.d)
        if not math.isfinite(slope):
            largest = self.point.grad_max
            raise ValueError(f"grads: too large for a direction in {x.dtype}, max |g| is {largest:g}")
        if slope > -self.settings.tolerance_change:
            self.reason = "tolerance_change"
        elif self.settings.line_search is None or self.evaluations >= self.settings.max_eval:
            x = self._fixed(x, move)
        else:
            x, reached = self._searched(x, move, slope, progress, reached)
        self.accepted = x, reached._replace(func_evals=self.evaluated_before + self.evaluations)

    def _fixed(self, x: Array, move: Move) -> Array:
        """A move of t as it is; evaluates where it leads, if the limits leave another move."""
        settings = self.settings
        x = moved(x, move)
        self.problem.write(x)
        evaluated = self.iterations < settings.max_iter and self.evaluations < settings.max_eval
        if evaluated:
            note = f" after a move of t = {move.t:g} (a line search would back off)"
            self.point = self.problem.evaluate_finite(note)
            x = self.problem.read()
            self.evaluations += 1
        point = self.point if evaluated else None
        self.reason = settings.reason(move, point, self.evaluations, self.iterations)
        return x

    def _searched(
        self, x: Array, move: Move, slope: float, progress: Progress, reached: Progress
    ) -> tuple[Array, Progress]:
        """A move of the t that the line search finds, and the state after it."""
        settings = self.settings
        assert settings.line_search is not None
        line = Line(self.problem, x, move, self.point, slope, settings.max_eval - self.evaluations)
        t, found = line.search(settings.line_search, settings.tolerance_change)
        self.evaluations += line.evaluations
        move = move._replace(t=t)
        x = moved(x, move)
        self.problem.write(x)
        if found is not self.point:
            self.point = found
            self.reason = settings.reason(move, found, self.evaluations, self.iterations)
            return x, reached._replace(move=move)
        # No lower loss was found: the pairs are forgotten, and the next move goes down the gradient, in this step if
        # the limits allow it. Where they ended a search down the gradient, the next search starts below all its tries.
        shorter = line.shortest() / 2 if line.spent and progress.move is None else None
        limit = self.iterations >= settings.max_iter or self.evaluations >= settings.max_eval
        if line.spent:
            self.reason = "max_eval"
        elif limit or progress.move is None:
            self.reason = "line_search"
        return x, reached._replace(n_iter=0, move=None, first=shorter)

    def report(self, taken: int, reason: Reason) -> LBFGSReport:
        """What the step did, which was the `taken`-th."""
        point = self.point
        return LBFGSReport(
            taken, point.loss, self.initial.loss, point.grad_max, self.evaluations, self.iterations, reason
        )
