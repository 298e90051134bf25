"""The way out of a saddle."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep._common.arguments import function, whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.plain import plain
from fusedstep._common.structure import listed
from fusedstep.curvature.critical import CriticalPoint, classify
from fusedstep.curvature.probe import Probe
from fusedstep.curvature.products import Operator
from fusedstep.curvature.progress import Show
from fusedstep.curvature.space import Gradient, Product, Space, Vector, positive, scalar


class NoNegativeCurvatureError(ValueError):
    """The loss curves down in no direction, as far as can be measured, and falls in none without curvature."""


@dataclass(frozen=True, slots=True)
class Escape:
    """A step along the most negative curvature, or where a term of higher order leads down.

    Attributes:
        params: The parameters after the step: new arrays, in the structure that was given.
        loss_before: The loss at the parameters given.
        loss_after: The loss after the step; lower.
        direction: The direction of the step, of length 1, in the same structure.
        eigenvalue: The curvature along it: negative, or about zero where a term of higher order leads down.
        step_length: How far.
        trials: The lengths tried, negative on the other side, each with the loss there.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    params: Any
    loss_before: float
    loss_after: float
    direction: Any
    eigenvalue: float
    step_length: float
    trials: tuple[tuple[float, float], ...]
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the parameters and the direction."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name not in ("params", "direction")}


def escape(
    loss: Callable[[Any], float],
    grad: Gradient,
    params: Any,
    *,
    point: CriticalPoint | None = None,
    hvp: Product | None = None,
    length: float | None = None,
    max_trials: int = 30,
    seed: int = 0,
    step: float | None = None,
    max_dense: int = 256,
    max_products: int | None = None,
    progress: Show = False,
) -> Escape:
    r"""Moves along the eigenvector of the most negative eigenvalue, to the side where the loss falls farther.

    .. code-block:: text

        L(θ ± t·u) ≤ L(θ) − ¼|λ|t²      half of the fall that the curvature predicts

    On each side a first length is halved until this holds, or else doubled as long as the loss falls.

    Where the most negative eigenvalue is zero within the tolerance, second derivatives do not decide. Then the loss is
    evaluated on spheres of up to 64 first lengths: along the directions without curvature and mixtures of them, and
    from the lowest places down along the sphere. A lower place counts if the loss is nowhere higher on the way to it.
    So it leaves a monkey saddle, −x⁴, or x² − y⁴.

    Args:
        loss: `loss(params) -> number`, of which `grad` is the gradient.
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        point: The result of `classify` for these parameters, if you have it.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        length: The first length, > 0; None: a hundredth of max(1, ‖θ‖).
        max_trials: The most losses computed on each side.
        seed: Of the random vectors.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        max_dense: The most parameters whose whole Hessian is computed.
        max_products: Products where it is not.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `Escape`.

    Raises:
        NoNegativeCurvatureError: No eigenvalue was found below −tolerance, and no way down where it is zero within it.
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        TypeError: A wrong dtype or kind of argument.
        ValueError: The loss at the parameters is not finite, or does not fall where `grad` says that it must; another
            structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> def loss(w):
        ...     return (1 - w[0] * w[1]) ** 2
        >>> def grad(w):
        ...     return -2 * (1 - w[0] * w[1]) * w[::-1]
        >>> out = fs.curvature.escape(loss, grad, np.zeros(2))
        >>> print(out.loss_before, out.loss_after < 0.5, np.abs(out.direction).round(4))
        1.0 True [0.7071 0.7071]

    Reference:
        Goldfarb, "Curvilinear path steplength algorithms for minimization which use directions of negative curvature",
        Mathematical Programming 18, 1980: there along a curve; here along a line, because at a critical point the
        gradient does not bend it.
    """
    function(loss, "loss")
    most = whole(max_trials, "max_trials", least=1, most=None)
    first = None if length is None else positive(length, "length")
    params = listed(params)  # an iterator gives them once
    space = Space(params)
    scale = max(1.0, float(np.linalg.norm(space.origin)))
    search = _Search(loss, space, scale / 100 if first is None else first, most)
    if point is None:
        point = classify(
            grad,
            params,
            hvp=hvp,
            seed=seed,
            step=step,
            max_dense=max_dense,
            max_products=max_products,
            progress=progress,
        )
    elif not isinstance(point, CriticalPoint):
        raise TypeError(f"point: expected a CriticalPoint, got {type(point).__qualname__}")
    value = float(point.eigenvalues[0])
    gradients = point.gradients
    if value < -point.tolerance:
        direction = space.flat(point.directions[0], "point.directions[0]")
        moved, after = search.run(direction, value)
    else:
        operator = Operator(grad, params)
        vectors = [space.flat(given, f"point.directions[{k}]") for k, given in enumerate(point.directions)]
        move, lower = _lower_place(search, operator, point, vectors, seed)
        length = float(np.linalg.norm(move))
        direction, gradients = move / length, gradients + operator.gradients
        moved, after = search.on(direction, length, lower)
        value = float(sum(known * (u @ direction) ** 2 for u, known in zip(vectors, point.eigenvalues, strict=True)))
    return Escape(
        params=space.pack(space.origin + moved * direction),
        loss_before=search.before,
        loss_after=after,
        direction=space.pack(np.copysign(1.0, moved) * direction),
        eigenvalue=value,
        step_length=abs(moved),
        trials=tuple(search.trials),
        products=point.products,
        gradients=gradients,
    )


def _lower_place(
    search: "_Search", operator: Operator, point: CriticalPoint, vectors: list[Vector], seed: int
) -> tuple[Vector, float]:
    """A move to a lower loss along directions without curvature, and that loss."""
    flat = [u for u, known in zip(vectors, point.eigenvalues, strict=True) if abs(known) <= point.tolerance]
    probed = bool(flat) and point.kind != "not critical"
    found = None
    if probed:
        found = Probe(search.at, operator, search.before).run(flat, search.first, np.random.default_rng(seed))
    if found is None:
        raise NoNegativeCurvatureError(
            f"params: no negative curvature: the most negative eigenvalue found is {float(point.eigenvalues[0]):.3g}, "
            f"and less than {point.tolerance:.3g} counts as zero ({point.kind}); {point.reason}"
            + ("; nor does the loss fall where there is none" if probed else "")
        )
    return found


class _Search:
    """The line search, on both sides."""

    def __init__(self, loss: Callable[[Any], float], space: Space, first: float, most: int) -> None:
        self._loss, self._space, self.first, self._most = loss, space, first, most
        self.trials: list[tuple[float, float]] = []
        self.before = scalar(loss(space.pack(space.origin)), "loss(params)")
        if not np.isfinite(self.before):
            raise ValueError(f"loss(params): expected a finite number, got {self.before}")

    def run(self, direction: Vector, value: float) -> tuple[float, float]:
        """The signed length with the lowest loss of both sides, and that loss."""
        best = (0.0, self.before)
        for sign in (1.0, -1.0):
            found = self._side(sign, direction, value)
            if found is not None and found[1] < best[1]:
                best = found
        if best[0] == 0.0:
            raise ValueError(
                f"loss: falls on neither side along a direction in which grad says that it curves by {value:.3g}; is "
                "grad its gradient?"
            )
        return best

    def _side(self, sign: float, direction: Vector, value: float) -> tuple[float, float] | None:
        length, best = self.first, None
        for _ in range(self._most):
            loss = self._at(sign * length, direction)
            if best is not None:
                if not loss < best[1]:
                    break
                best = (sign * length, loss)
                length *= 2
            elif loss < self.before and loss <= self.before + value * length * length / 4:
                best = (sign * length, loss)
                if length < self.first:
                    break
                length *= 2
            else:
                length /= 2
        return best

    def on(self, direction: Vector, length: float, loss: float) -> tuple[float, float]:
        """From a lower place on, doubles the length as long as the loss falls."""
        best = (length, loss)
        self.trials.append(best)
        for _ in range(self._most - 1):
            loss = self._at(2 * best[0], direction)
            if not loss < best[1]:
                break
            best = (2 * best[0], loss)
        return best

    def _at(self, signed: float, direction: Vector) -> float:
        loss = self.at(signed * direction)
        self.trials.append((signed, loss))
        return loss

    def at(self, move: Vector) -> float:
        """The loss at a distance from the parameters; NaN is higher than anything."""
        loss = scalar(self._loss(self._space.pack(self._space.origin + move)), "loss(params)")
        if loss == -math.inf:
            raise ValueError(f"loss: expected a number, got -inf at a distance of {np.linalg.norm(move):.3g}")
        return loss if loss == loss else math.inf
