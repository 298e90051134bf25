"""The trace and the density of the spectrum, from random vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.extras import require
from fusedstep._common.plain import plain
from fusedstep.curvature.plots import saved_axes
from fusedstep.curvature.products import CHECKS, Operator
from fusedstep.curvature.progress import Progress, Show
from fusedstep.curvature.space import Array, Gradient, Product, Vector, positive, size_of


@dataclass(frozen=True, slots=True)
class Trace:
    """The sum of a Hessian's eigenvalues, estimated.

    Attributes:
        value: The estimate.
        standard_error: Its standard deviation, estimated from the samples.
        samples: The terms; `value` is their mean.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    value: float
    standard_error: float
    samples: Array
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """How a Hessian's eigenvalues are spread.

    Attributes:
        grid: Values λ, ascending.
        density: The density there; its integral is 1.
        nodes: (probes, steps) The quadrature's nodes, ascending along each row; NaN beyond the end of a run that found
            all that there is.
        weights: (probes, steps) Their weights; each row adds up to 1.
        width: The standard deviation of the normal curve that is drawn for each node.
        size: The number of parameters.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    grid: Array
    density: Array
    nodes: Array
    weights: Array
    width: float
    size: int
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; None for NaN."""
        content = {name: plain(getattr(self, name)) for name in self.__slots__}
        content["nodes"] = [[None if node != node else node for node in row] for row in content["nodes"]]
        return content

    def plot(self, path: str) -> None:
        """Draws the density into a file, on a logarithmic axis: outliers are one eigenvalue in thousands."""
        with saved_axes(path) as axes:
            axes.fill_between(self.grid, self.density, 1e-12, color="#56B4E9", alpha=0.5, lw=0)
            axes.plot(self.grid, self.density, color="#0072B2")
            axes.axvline(0.0, color="0.5", lw=0.8, ls=":")
            top = float(self.density.max())
            # An eigenvalue alone is a curve of area 1/n: what is far below it is the tails of the curves.
            axes.set(yscale="log", ylim=(min(0.02 / (self.size * self.width), top / 100), 2 * top))
            axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", title=f"{self.size:,} eigenvalues")


def trace(
    grad: Gradient,
    params: Any,
    samples: int = 30,
    *,
    hvp: Product | None = None,
    seed: int = 0,
    step: float | None = None,
    progress: Show = False,
) -> Trace:
    r"""The trace of the Hessian by Hutchinson's estimate: the mean of zᵀHz over vectors z of random signs.

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        samples: Vectors, >= 2; the standard error falls with the root of their number.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        seed: Of the random vectors.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `Trace`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        TypeError: A wrong dtype or kind of argument.
        ValueError: Another structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> found = fs.curvature.trace(lambda w: np.array([1.0, 2.0, 3.0]) * w, np.ones(3))
        >>> print(round(found.value, 6))
        6.0

    Reference:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix", Comm. in Statistics 19, 1990.
    """
    count, first = whole(samples, "samples", least=2, most=None), whole(seed, "seed", least=0, most=None)
    operator = Operator(grad, params, hvp, step)
    with Progress(progress, count + CHECKS, "trace") as shown:
        operator.watch(shown)
        rng = np.random.default_rng(first)
        operator.check(rng)
        terms = np.empty(count)
        for k in range(count):
            z = rng.choice([-1.0, 1.0], operator.space.size)
            terms[k] = z @ operator.product(z)
    error = float(terms.std(ddof=1) / np.sqrt(count))
    return Trace(float(terms.mean()), error, terms, operator.products, operator.gradients)


def spectral_density(
    grad: Gradient,
    params: Any,
    *,
    probes: int = 4,
    steps: int = 40,
    points: int = 1000,
    width: float | None = None,
    hvp: Product | None = None,
    seed: int = 0,
    step: float | None = None,
    progress: Show = False,
) -> SpectralDensity:
    r"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    .. code-block:: text

        from a random unit vector v, m steps of Lanczos:  T = Σ θᵢ yᵢyᵢᵀ
        density(λ) ≈ mean over probes of  Σᵢ (yᵢ)₁² · N(λ; θᵢ, width²)

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        probes: Random vectors, >= 1.
        steps: Lanczos steps of each, a product and a stored vector of doubles each; cut to the number of parameters.
        points: Points of the grid, >= 2.
        width: The curve's standard deviation, > 0; None: a hundredth of the range of the nodes.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        seed: Of the random vectors.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `SpectralDensity`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        ModuleNotFoundError: The extra `fusedstep[curvature]` is not installed.
        TypeError: A wrong dtype or kind of argument.
        ValueError: Another structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> curvatures = np.r_[np.zeros(900), np.full(100, 5.0)]
        >>> found = fs.curvature.spectral_density(lambda w: curvatures * w, np.zeros(1000))
        >>> above = found.grid > 2.5
        >>> print(round(np.trapezoid(found.density[above], found.grid[above]), 1))
        0.1

    Reference:
        Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian eigenvalue density",
        ICML 2019; Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix
        Analysis 38, 2017.
    """
    runs, length = whole(probes, "probes", least=1, most=None), whole(steps, "steps", least=1, most=None)
    grid_points, first = whole(points, "points", least=2, most=None), whole(seed, "seed", least=0, most=None)
    given = None if width is None else positive(width, "width")
    solve = require("scipy.linalg", "curvature").eigh_tridiagonal
    operator = Operator(grad, params, hvp, step)
    length = min(length, operator.space.size)
    nodes, weights = np.full((runs, length), np.nan), np.zeros((runs, length))
    with Progress(progress, runs * length + CHECKS, "spectral density") as shown:
        operator.watch(shown)
        rng = np.random.default_rng(first)
        operator.check(rng)
        for run in range(runs):
            diagonal, beside = _lanczos(operator, rng.standard_normal(operator.space.size), length)
            values, vectors = solve(diagonal, beside)
            nodes[run, : len(values)], weights[run, : len(values)] = values, vectors[0] ** 2
    low, high = float(np.nanmin(nodes)), float(np.nanmax(nodes))
    spread = given if given is not None else (high - low) / 100 or max(abs(high), 1.0) / 100
    grid = np.linspace(low - 5 * spread, high + 5 * spread, grid_points)
    density = np.zeros(grid_points)
    for node, weight in zip(nodes.ravel(), weights.ravel(), strict=True):
        if weight > 0:
            density += weight * np.exp(-0.5 * ((grid - node) / spread) ** 2)
    density /= runs * spread * np.sqrt(2 * np.pi)
    return SpectralDensity(
        grid, density, nodes, weights, spread, operator.space.size, operator.products, operator.gradients
    )


def _lanczos(operator: Operator, start: Vector, steps: int) -> tuple[Vector, Vector]:
    """Diagonal and off-diagonal of T; shorter where the Krylov space is exhausted."""
    basis = np.empty((steps, len(start)))
    diagonal: list[float] = []
    beside: list[float] = []
    basis[0] = start / np.linalg.norm(start)
    for k in range(steps):
        w = operator.product(basis[k])
        diagonal.append(float(w @ basis[k]))
        # Against all before, twice: else a converged eigenvalue comes back as a copy of itself.
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        norm = size_of(w)
        size = max(np.abs(diagonal).max(), max(beside, default=0.0))
        if k + 1 == steps or norm <= operator.accuracy * size:
            break
        beside.append(norm)
        basis[k + 1] = w / norm
    return np.array(diagonal), np.array(beside)
