"""SciPy's line search; each place is evaluated once."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep.optimizers.base.groups import Array
from fusedstep.optimizers.lbfgs.direction import moved
from fusedstep.optimizers.lbfgs.problem import Problem
from fusedstep.optimizers.lbfgs.state import Move, Point, largest

#: The Wolfe conditions' sufficient decrease and curvature: PyTorch's, and those that Nocedal and Wright advise.
C1, C2 = 1e-4, 0.9
#: How often the search doubles the step at most: beyond, the loss has no minimum on the line.
_DOUBLINGS = 25


class Exhausted(Exception):  # noqa: N818
    """The line search has no evaluation left, or moves too short to change a parameter."""


class Line:
    """The loss from `x` along `move.d`, each place evaluated once."""

    def __init__(self, problem: Problem, x: Array, move: Move, start: Point, slope: float, budget: int) -> None:
        self.problem, self.x, self.move, self.start, self.budget = problem, x, move, start, budget
        self.evaluations = 0
        self.spent = False
        self.known = {0.0: (start.loss, slope)}
        self.last = self.best = 0.0, start

    def at(self, t: float) -> tuple[float, float]:
        """The loss and its slope along d after a move of t; an infinite loss where something is not finite."""
        if t not in self.known:
            place = moved(self.x, self.move._replace(t=t))
            self.spent = self.evaluations >= self.budget
            if self.spent or np.array_equal(place, self.x):
                raise Exhausted
            self.problem.write(place)
            point = self.problem.evaluate()
            self.evaluations += 1
            self.last = t, point
            self.known[t] = (point.loss, _core.dot(point.grad, self.move.d)) if point.finite else (math.inf, 0.0)
            if self.known[t][0] < self.best[1].loss:
                self.best = self.last
        return self.known[t]

    def shortest(self) -> float:
        """The shortest move that was tried."""
        return min(filter(None, self.known))

    def search(self, line_search: Callable[..., Any], tolerance_change: float) -> tuple[float, Point]:
        """The t that satisfies the Wolfe conditions; failing that, the one with the lowest loss; 0 if none is lower."""
        first, slope = self.move.t, self.known[0.0][1]
        try:
            with warnings.catch_warnings():
                # SciPy warns where it found no t; what it returns says so too.
                warnings.filterwarnings("ignore", "The line search|Rounding errors prevent", RuntimeWarning)
                # SciPy tries 1 first, so that its unit is our first try.
                alpha, _, _, _, _, found = line_search(
                    lambda a: self.at(float(a[0]) * first)[0],
                    lambda a: np.array([self.at(float(a[0]) * first)[1] * first]),
                    np.zeros(1),
                    np.ones(1),
                    np.array([slope * first]),
                    self.start.loss,
                    c1=C1,
                    c2=C2,
                    maxiter=_DOUBLINGS,
                )
            if found is not None and float(alpha) * first == self.last[0]:
                self.best = self.last
            # If none was lower: ever shorter moves, down to `tolerance_change`.
            t, size = min(filter(None, self.known), default=0.0), largest(self.move.d)
            while self.best[1] is self.start and t * size > tolerance_change:
                t /= 2
                self.at(t)
        except Exhausted:
            pass
        return self.best
