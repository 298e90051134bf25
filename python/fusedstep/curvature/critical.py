"""What kind of point the parameters are at."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.plain import plain
from fusedstep.curvature.eigenpairs import all_pairs, end_pairs, product_limit
from fusedstep.curvature.products import CHECKS, Operator
from fusedstep.curvature.progress import Progress, Show
from fusedstep.curvature.space import Array, Gradient, Product, positive, size_of

Kind = Literal["minimum", "maximum", "saddle", "degenerate", "not critical"]


@dataclass(frozen=True, slots=True)
class CriticalPoint:
    """A point, its kind, and what decided it.

    Attributes:
        kind: "minimum", "maximum", "saddle" (both signs, whatever else there is), "degenerate" (an eigenvalue that is
            zero within the tolerance, or not known well enough, and no two signs), or "not critical".
        eigenvalues: float64, ascending; all of them where `complete`, else those at the two ends.
        residuals: ‖H·v − λ·v‖ of each.
        grad_norm: ‖g‖.
        directions: The eigenvector of each eigenvalue, of length 1, in the structure and dtypes of the parameters.
            Along the direction of a negative eigenvalue λ, a move of t to either side lowers the loss by ½|λ|t².
        tolerance: An eigenvalue of at most this size counts as zero.
        grad_tolerance: The point is critical where ‖g‖ is at most this.
        zeros: How many of the eigenvalues count as zero.
        complete: Whether these are all eigenvalues.
        reason: The decision in a sentence, with its figures; it names a kink, where the gradient jumps at the point.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    kind: Kind
    eigenvalues: Array
    residuals: Array
    grad_norm: float
    directions: tuple[Any, ...]
    tolerance: float
    grad_tolerance: float
    zeros: int
    complete: bool
    reason: str
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the directions, which are as large as the parameters."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name != "directions"}


#: The most eigenvectors of eigenvalues that count as zero along which a jump of the gradient is sought.
_JUMPS = 8
#: The residual of the outermost eigenvalue, relative to it, up to which it bounds all that were not found.
_SETTLED = 1e-2


def classify(
    grad: Gradient,
    params: Any,
    k: int = 1,
    *,
    hvp: Product | None = None,
    grad_tol: float | None = None,
    seed: int = 0,
    step: float | None = None,
    max_dense: int = 256,
    max_products: int | None = None,
    progress: Show = False,
) -> CriticalPoint:
    r"""Whether the parameters are at a minimum, a maximum, a saddle or a degenerate point, or not at a critical one.

    .. code-block:: text

        zero       |λ| ≤ tolerance = max(accuracy · max |λ|, 4 · noise, 4 · ‖A − Aᵀ‖ / 2)
        critical   ‖g‖ ≤ grad_tol = √ε · max |λ| · max(1, ‖θ‖)

    `accuracy` is what rounding allows: ten times ε · max(1, ‖θ‖) / h for differences of step h (4e-10 to 4e-7 in
    float64, the latter where the gradient bends or jumps; 2e-4 in float32), 10 · ε · √n for exact products. `noise`
    is the measured difference of products at two steps, with a random vector and with the eigenvectors at the ends and
    next to zero. A is the Hessian as it was computed, if all of it was.

    Up to `max_dense` parameters the whole Hessian is computed and all its eigenvalues are known. Beyond that, k at each
    end are computed. A saddle is then certain, because the loss was seen to curve both ways. A minimum or a maximum
    also needs an eigenvalue nearest to zero that is farther from zero than its residual, and that no eigenvalue lies
    beyond it, which a random start makes almost certain. Otherwise the kind is degenerate, and `reason` says why.

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        k: Eigenvalues from each end, where not all are computed.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        grad_tol: The largest ‖g‖ of a critical point, >= 0; None: as above, a gradient that a change in the second half
            of the digits of θ explains. A network in training rarely comes so close: give the norm that counts as small
            for you.
        seed: Of the random vectors.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        max_dense: The most parameters whose whole Hessian is computed.
        max_products: Products where it is not; None: 60, or 6 for each eigenvalue.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `CriticalPoint`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        ModuleNotFoundError: More than `max_dense` parameters without the extra `fusedstep[curvature]`.
        TypeError: A wrong dtype or kind of argument.
        ValueError: k too large; another structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> def grad(w):  # of (1 − w₁·w₂)²
        ...     return -2 * (1 - w[0] * w[1]) * w[::-1]
        >>> point = fs.curvature.classify(grad, np.zeros(2))
        >>> print(point.kind, point.eigenvalues.round(6))
        saddle [-2.  2.]
        >>> print(fs.curvature.classify(grad, np.array([1.0, 0.0])).kind)
        not critical

    Reference:
        Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional non-convex
        optimization", NeurIPS 2014.
    """
    count, first = whole(k, "k", least=1, most=None), whole(seed, "seed", least=0, most=None)
    most = whole(max_dense, "max_dense", least=1, most=None)
    given = None if grad_tol is None else positive(grad_tol, "grad_tol", zero=True)
    operator = Operator(grad, params, hvp, step)
    n = operator.space.size
    if count > n:
        raise ValueError(f"k: expected at most the number of parameters, {n}, got {count}")
    limit = product_limit(max_products, 2 * count)
    complete = n <= most or n + CHECKS <= limit
    with Progress(progress, n + CHECKS if complete else limit, "Hessian-vector products") as shown:
        operator.watch(shown)
        rng = np.random.default_rng(first)
        operator.check(rng)
        values, vectors, residuals = (
            all_pairs(operator) if complete else end_pairs(operator, 2 * count, "both", limit, rng)
        )
        values = values + 0.0  # a zero without a sign, which prints as 0
        tolerance = _measured_tolerance(operator, values, vectors)
    if complete:
        tolerance = max(tolerance, 4 * operator.asymmetry * size_of(values))
    norm, largest = size_of(operator.center), float(np.abs(values).max())
    allowed = operator.space.eps**0.5 * largest * operator.scale if given is None else given
    zeros = int(np.count_nonzero(np.abs(values) <= tolerance))
    kind, reason = _decide(values, residuals, tolerance, zeros, complete)
    if kind == "degenerate":
        jump, length = _jump(operator, values, vectors, tolerance, rng)
        if jump > 0:
            reason = (
                f"a kink: the gradient jumps by {jump:.3g} within {2 * length:.3g} of the point, and there are no "
                f"second derivatives; differences of the gradient gave {reason}"
            )
    if norm > allowed:
        kind, reason = "not critical", f"the gradient's norm {norm:.3g} is above {allowed:.3g}; {reason}"
    return CriticalPoint(
        kind=kind,
        eigenvalues=values,
        residuals=residuals,
        grad_norm=norm,
        directions=tuple(operator.space.pack(vector) for vector in vectors.T),
        tolerance=tolerance,
        grad_tolerance=allowed,
        zeros=zeros,
        complete=complete,
        reason=reason,
        products=operator.products,
        gradients=operator.gradients,
    )


def _measured_tolerance(operator: Operator, values: Array, vectors: Array) -> float:
    """The largest |eigenvalue| that counts as zero, from rounding and from the errors measured along eigenvectors."""
    largest = float(np.abs(values).max())

    def tolerance() -> float:
        return max(operator.accuracy * largest, 4 * operator.noise)

    # The error along one axis may be larger than along a random vector, which averages over all axes.
    for place in {0, int(np.abs(values).argmin()), len(values) - 1}:
        operator.measure_noise(vectors[:, place])
    # The error differs between eigenvectors: it is measured along all whose sign the tolerance decides.
    for near in np.flatnonzero(np.abs(values) <= 100 * tolerance()).tolist():
        operator.measure_noise(vectors[:, near])
    return tolerance()


def _jump(
    operator: Operator, values: Array, vectors: Array, tolerance: float, rng: np.random.Generator
) -> tuple[float, float]:
    """How far the gradient jumps at the point along some direction, and over what length; zeros where it does not."""
    unit = rng.standard_normal(operator.space.size)
    directions = [unit / np.linalg.norm(unit)]
    places = {0, len(values) - 1, *np.flatnonzero(np.abs(values) <= tolerance).tolist()[:_JUMPS]}
    directions += [vectors[:, place] for place in sorted(places)]
    found = (0.0, 0.0)
    for direction in directions:
        jump, length = operator.jump(direction)
        if jump > found[0]:
            found = jump, length
    return found


def _decide(values: Array, residuals: Array, tolerance: float, zeros: int, complete: bool) -> tuple[Kind, str]:
    negative, positive_ = bool(values[0] < -tolerance), bool(values[-1] > tolerance)
    seen = f"eigenvalues {'' if complete else 'found '}from {values[0]:.3g} to {values[-1]:.3g}"
    if negative and positive_:
        return "saddle", f"{seen}: both signs beyond {tolerance:.3g}"
    if zeros:
        of = f"of {len(values)} eigenvalues" if complete else f"of the {len(values)} eigenvalues found"
        verb = "is" if zeros == 1 else "are"
        return "degenerate", f"{zeros} {of} {verb} zero within {tolerance:.3g}; {seen}"
    nearest = 0 if positive_ else -1
    # Found eigenvalues say nothing of those beyond them, unless Lanczos has converged to the outermost.
    settled = complete or residuals[nearest] <= _SETTLED * abs(values[nearest])
    if not settled or abs(values[nearest]) - residuals[nearest] <= tolerance:
        return "degenerate", (
            f"{seen}, but that nearest to zero is known to {residuals[nearest]:.3g} only: more products would tell"
        )
    if positive_:
        return "minimum", f"{seen}: all positive beyond {tolerance:.3g}"
    return "maximum", f"{seen}: all negative beyond {tolerance:.3g}"
