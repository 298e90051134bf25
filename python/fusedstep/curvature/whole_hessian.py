"""The whole Hessian of a small problem."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.plain import plain
from fusedstep.curvature.products import CHECKS, Operator
from fusedstep.curvature.progress import Progress, Show
from fusedstep.curvature.space import Array, Gradient, Product, Vector, size_of


@dataclass(frozen=True, slots=True)
class Hessian:
    """A Hessian, and how well it is known.

    Attributes:
        matrix: (n, n) float64, symmetric; rows and columns in the order of the parameters, each array in C order.
        asymmetry: ‖A − Aᵀ‖ / (2‖A‖) of the matrix A before it was made symmetric, in Frobenius norms.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    matrix: Array
    asymmetry: float
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "matrix": plain(self.matrix),
            "asymmetry": self.asymmetry,
            "products": self.products,
            "gradients": self.gradients,
        }


def hessian(
    grad: Gradient,
    params: Any,
    *,
    hvp: Product | None = None,
    step: float | None = None,
    max_size: int = 2000,
    progress: Show = False,
) -> Hessian:
    """The Hessian as a matrix, by a product for each parameter.

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        step: The length of the moves of these differences; None: see `fusedstep.curvature.hvp`.
        max_size: The most parameters: n of them take n² · 8 bytes and 2n gradients.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `Hessian`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        TypeError: A wrong dtype or kind of argument.
        ValueError: More parameters than `max_size`; another structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> def grad(w):  # of (1 − w₁·w₂)²
        ...     return -2 * (1 - w[0] * w[1]) * w[::-1]
        >>> print(fs.curvature.hessian(grad, np.ones(2)).matrix.round(6))
        [[2. 2.]
         [2. 2.]]
    """
    most = whole(max_size, "max_size", least=1, most=None)
    operator = Operator(grad, params, hvp, step)
    n = operator.space.size
    if n > most:
        raise ValueError(
            f"params: expected at most max_size = {most} numbers, got {n}, whose Hessian takes {8 * n * n:.3g} bytes; "
            "use spectrum"
        )
    with Progress(progress, n + CHECKS, "Hessian") as shown:
        operator.watch(shown)
        operator.check(np.random.default_rng(0))
        raw = dense(operator)
    return Hessian((raw + raw.T) / 2, operator.asymmetry, operator.products, operator.gradients)


def dense(operator: Operator) -> Vector:
    """All columns, as they come; its asymmetry is noted in the operator, and refused where it is too large."""
    n = operator.space.size
    raw = np.empty((n, n))
    for k in range(n):
        unit = np.zeros(n)
        unit[k] = 1.0
        raw[:, k] = operator.product(unit)
    size = size_of(raw)
    operator.asymmetry = size_of(raw - raw.T) / (2 * size) if size > 0 else 0.0
    if size > operator.floor:
        operator.refuse_asymmetry(operator.asymmetry, 10 * operator.noise * n**0.5 / size)
    return raw
