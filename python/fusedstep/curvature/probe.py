"""Ways down that second derivatives do not show: the loss on small spheres around a point."""

from collections.abc import Callable, Iterable

import numpy as np

from fusedstep.curvature.products import Operator
from fusedstep.curvature.space import Vector

#: The radii, in units of the first length: a term of third or fourth order is small near the point.
RADII = (1.0, 4.0, 16.0, 64.0)
#: The most directions to try. As many random ones come on top, and the opposite of each.
DIRECTIONS = 8
#: Steps down along a sphere.
_STEPS = 12


class Probe:
    """Looks for lower places that can be reached from the point without going up.

    Args:
        at: The loss at a distance from the point, a vector.
        operator: Gives the gradient.
        before: The loss at the point.
    """

    def __init__(self, at: Callable[[Vector], float], operator: Operator, before: float) -> None:
        self._at, self._operator, self._before = at, operator, before
        self._slope = float(np.linalg.norm(operator.center))

    def run(self, flat: list[Vector], first: float, rng: np.random.Generator) -> tuple[Vector, float] | None:
        """The nearest lower place that was found, with the loss there; None if none was found.

        Args:
            flat: Directions of length 1 along which the curvature is zero.
            first: The smallest radius.
            rng: For mixtures of the directions.
        """
        starts = _starts(flat, rng)
        for radius in RADII:
            reached = sorted(
                ((self._at(radius * first * start), k) for k, start in enumerate(starts)), key=lambda pair: pair[0]
            )
            # From the lowest place: after some steps down it is lower than the others would become.
            for k, (loss, place) in enumerate(reached):
                if k >= 2 and not self._lower(loss, radius * first):
                    break
                found = self._downhill(radius * first * starts[place], loss, enough=True)
                if self._lower(found[1], radius * first) and self._is_reached(found[0]):
                    return found
        return None

    def _lower(self, loss: float, radius: float) -> bool:
        """Whether it is lower than rounding and the rest of the gradient explain."""
        noise = 64 * self._operator.space.eps * max(abs(self._before), abs(loss))
        return bool(loss < self._before - noise - self._slope * radius)

    def _is_reached(self, place: Vector) -> bool:
        """Whether the loss is no higher on the way, so that it is no other valley behind a ridge."""
        for part in (0.5, 0.25, 0.125):
            loss = self._at(part * place)
            noise = 64 * self._operator.space.eps * max(abs(self._before), abs(loss))
            if loss > self._before + noise:
                loss = self._downhill(part * place, loss, enough=False)[1]
            if not loss <= self._before + noise:
                return False
        return True

    def _downhill(self, place: Vector, loss: float, *, enough: bool) -> tuple[Vector, float]:
        """Some steps down along the sphere of a place; with `enough`, until it is lower than the point."""
        radius = float(np.linalg.norm(place))
        angle = 0.5
        for _ in range(_STEPS):
            if enough and self._lower(loss, radius):
                break
            gradient = self._operator.gradient(self._operator.space.origin + place)
            along = gradient - (gradient @ place) * place / radius**2
            size = float(np.linalg.norm(along))
            if not size > 0:
                break
            while angle > 1e-4:
                moved = place - angle * radius * along / size
                moved *= radius / np.linalg.norm(moved)
                lower = self._at(moved)
                if lower < loss:
                    place, loss, angle = moved, lower, min(2 * angle, 0.5)
                    break
                angle /= 2
            else:
                break
        return place, loss


def _starts(flat: list[Vector], rng: np.random.Generator) -> list[Vector]:
    """Directions, mixtures of them, and the opposites of all."""
    chosen: Iterable[Vector] = flat[:DIRECTIONS]
    starts = list(chosen)
    if len(flat) > 1:
        mixed = rng.standard_normal((DIRECTIONS, len(flat))) @ np.array(flat)
        starts += list(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
    return [sign * start for start in starts for sign in (1.0, -1.0)]
