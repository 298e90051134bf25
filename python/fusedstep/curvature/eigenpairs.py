"""The ends of the Hessian's spectrum."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.extras import require
from fusedstep._common.plain import plain
from fusedstep.curvature.products import CHECKS, Operator
from fusedstep.curvature.progress import Progress, Show
from fusedstep.curvature.space import Array, Gradient, Product, Vector, positive
from fusedstep.curvature.whole_hessian import dense

Which = Literal["both", "largest", "smallest"]
#: What ARPACK calls them.
_ENDS = {"both": "BE", "largest": "LA", "smallest": "SA"}


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues from the ends of a Hessian's spectrum.

    Attributes:
        eigenvalues: float64, ascending.
        eigenvectors: One for each, of length 1, in the structure and the dtypes of the parameters.
        residuals: ‖H·v − λ·v‖ of each, from separate products: an eigenvalue lies within this distance of λ.
        converged: Whether the residual is at most `tol` times the largest |eigenvalue| that was found.
        which: Which ends.
        size: The number of parameters.
        noise: The measured error of a product with a random unit vector.
        accuracy: The error of products to expect from rounding, relative to the largest |eigenvalue|.
        asymmetry: The measured asymmetry of H, relative to its size.
        products: Hessian-vector products, those of the checks and residuals included.
        gradients: Calls of `grad`.
    """

    eigenvalues: Array
    eigenvectors: tuple[Any, ...]
    residuals: Array
    converged: Array
    which: Which
    size: int
    noise: float
    accuracy: float
    asymmetry: float
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the eigenvectors, which are as large as the parameters."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name != "eigenvectors"}


def spectrum(
    grad: Gradient,
    params: Any,
    k: int = 1,
    *,
    hvp: Product | None = None,
    which: Which = "both",
    tol: float = 1e-3,
    seed: int = 0,
    step: float | None = None,
    max_products: int | None = None,
    progress: Show = False,
) -> Spectrum:
    r"""The k eigenvalues at each end of the Hessian's spectrum, by one Lanczos run.

    One run of `max_products` products without restarts, which for that many products comes nearest to both ends at
    once (SciPy's ARPACK). An end that stands apart from the rest by a part γ of the spectrum's width is found with an
    error that falls as exp(−4m√γ) with m products: sixty find one that stands apart by 1 %. Where eigenvalues are
    evenly dense up to the end, no method of m products comes nearer than about 3/m² of the half width, 8e-4 with
    sixty, and the residual says so: `converged` is False. More products bring it nearer.

    A problem whose whole Hessian costs no more than `max_products` has that computed instead.

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        k: How many from each end; 1 to the number of parameters. Where the ends meet, all eigenvalues are given.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`, two or three
            gradients a product.
        which: "both" ends, the "largest" or the "smallest" (most negative).
        tol: The residual, relative to the largest |eigenvalue|, up to which `converged` is True; > 0. The error of an
            eigenvalue is at most its residual, and commonly near the square of it.
        seed: Of the vector to start from.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        max_products: Products, those of the checks and residuals included; None: 60, or 6 for each eigenvalue. ARPACK
            begins anew where a Hessian of low rank has been exhausted, and takes a product more each time.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `Spectrum`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        ModuleNotFoundError: The extra `fusedstep[curvature]` is not installed.
        TypeError: A wrong dtype or kind of argument.
        ValueError: k too large, for the parameters or for `max_products`; another structure or shape; numbers that are
            not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> curvatures = np.r_[-3.0, np.linspace(0, 1, 10_000), 20.0]
        >>> found = fs.curvature.spectrum(lambda w: curvatures * w, np.zeros(10_002))
        >>> print(found.eigenvalues.round(4), found.products <= 60)
        [-3. 20.] True

    Reference:
        Lehoucq, Sorensen and Yang, "ARPACK Users' Guide", 1998; Saad, "On the rates of convergence of the Lanczos and
        the block-Lanczos methods", SIAM J. Numerical Analysis 17, 1980.
    """
    count = whole(k, "k", least=1, most=None)
    if which not in _ENDS:
        raise ValueError(f"which: expected one of {', '.join(map(repr, _ENDS))}, got {which!r}")
    relative = positive(tol, "tol")
    first = whole(seed, "seed", least=0, most=None)
    require("scipy.sparse.linalg", "curvature")
    operator = Operator(grad, params, hvp, step)
    n = operator.space.size
    if count > n:
        raise ValueError(f"k: expected at most the number of parameters, {n}, got {count}")
    wanted = 2 * count if which == "both" else count
    limit = product_limit(max_products, wanted)
    with Progress(progress, min(n + CHECKS, limit), "Hessian-vector products") as shown:
        operator.watch(shown)
        rng = np.random.default_rng(first)
        operator.check(rng)
        if n + CHECKS <= limit:
            values, vectors, residuals = all_pairs(operator)
        else:
            values, vectors, residuals = end_pairs(operator, wanted, which, limit, rng)
    kept = _kept(len(values), count, which)
    values, vectors, residuals = values[kept], vectors[:, kept], residuals[kept]
    return Spectrum(
        eigenvalues=values,
        eigenvectors=tuple(operator.space.pack(vector) for vector in vectors.T),
        residuals=residuals,
        converged=residuals <= relative * np.abs(values).max(),
        which=which,
        size=n,
        noise=operator.noise,
        accuracy=operator.accuracy,
        asymmetry=operator.asymmetry,
        products=operator.products,
        gradients=operator.gradients,
    )


def product_limit(max_products: int | None, wanted: int) -> int:
    """The most products that may be taken."""
    return max(60, 6 * wanted) if max_products is None else whole(max_products, "max_products", least=1, most=None)


def _kept(found: int, count: int, which: Which) -> Any:
    """The places, in ascending order, of the eigenvalues that were asked for."""
    if which == "largest":
        return np.arange(max(0, found - count), found)
    if which == "smallest":
        return np.arange(min(count, found))
    return np.unique(np.r_[np.arange(min(count, found)), np.arange(max(0, found - count), found)])


def all_pairs(operator: Operator) -> tuple[Vector, Vector, Vector]:
    """All eigenvalues, ascending, with eigenvectors in columns and residuals."""
    raw = dense(operator)
    values, vectors = np.linalg.eigh((raw + raw.T) / 2)
    return values, vectors, np.linalg.norm(raw @ vectors - vectors * values, axis=0)


def end_pairs(
    operator: Operator, wanted: int, which: Which, limit: int, rng: np.random.Generator
) -> tuple[Vector, Vector, Vector]:
    """`wanted` eigenvalues from the ends, by one Lanczos run."""
    linalg = require("scipy.sparse.linalg", "curvature")
    n = operator.space.size
    # ARPACK takes one product more than it keeps vectors.
    basis = limit - CHECKS - wanted - 1
    if basis < wanted + 2:
        raise ValueError(
            f"max_products: expected at least {2 * wanted + 2 + CHECKS + 1} for {wanted} eigenvalues, got {limit}; "
            "or a smaller k"
        )
    if operator.vanishes:
        vectors = np.eye(n, wanted)
        return np.zeros(wanted), vectors, np.zeros(wanted)
    # ARPACK multiplies its start vector by H, which would remove the eigenvectors of eigenvalue 0 from it.
    shift = operator.typical
    linear = linalg.LinearOperator(
        (n, n), matvec=lambda v: operator.product(v.ravel()) + shift * v.ravel(), dtype=np.float64
    )
    # Any result passes this tolerance: the basis is as large as the limit allows, and the residuals tell the accuracy.
    values, vectors = linalg.eigsh(
        linear,
        k=wanted,
        which=_ENDS[which],
        ncv=basis,
        v0=rng.standard_normal(n),
        maxiter=1,
        tol=1e100,
    )
    order = np.argsort(values)
    values, vectors = values[order] - shift, vectors[:, order]
    residuals = [
        np.linalg.norm(operator.product(vector) - value * vector)
        for value, vector in zip(values, vectors.T, strict=True)
    ]
    return values, vectors, np.array(residuals)
