"""Newton's step, for small problems."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.brief import brief_repr
from fusedstep._common.extras import require
from fusedstep._common.plain import plain
from fusedstep.curvature.products import CHECKS, Operator
from fusedstep.curvature.progress import Progress, Show
from fusedstep.curvature.space import Gradient, Product, positive, size_of
from fusedstep.curvature.whole_hessian import dense


@dataclass(frozen=True, slots=True)
class NewtonStep:
    """A step to where the quadratic model is lowest.

    Attributes:
        params: The parameters after the step: new arrays, in the structure that was given.
        move: What was added to them, in the same structure.
        predicted_decrease: By how much the loss falls if it is quadratic, >= 0.
        damping: μ.
        grad_norm: ‖g‖ before the step.
        eigenvalue: The smallest eigenvalue of H, without damping.
        products: Hessian-vector products that it took.
        gradients: Calls of `grad` that it took.
    """

    params: Any
    move: Any
    predicted_decrease: float
    damping: float
    grad_norm: float
    eigenvalue: float
    products: int
    gradients: int

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the parameters and the move."""
        return {name: plain(getattr(self, name)) for name in self.__slots__ if name not in ("params", "move")}


def newton_step(
    grad: Gradient,
    params: Any,
    *,
    damping: float | None = None,
    hvp: Product | None = None,
    step: float | None = None,
    max_size: int = 2000,
    progress: Show = False,
) -> NewtonStep:
    r"""Newton's step, regularised so that it leads down.

    .. code-block:: text

        (H + μI)·s = −g,    θ' = θ + s,    predicted decrease = −gᵀs − ½ sᵀHs

    Without damping the step leads to the critical point of the quadratic model, of any kind: to a saddle, too.

    Args:
        grad: `grad(params) -> grads`, deterministic; see `hvp`.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        damping: μ >= 0; None: 0 where the smallest eigenvalue of H is above 1e-6 (float32: 1e-3) of the largest
            |eigenvalue|, otherwise the damping that lifts it there.
        hvp: `hvp(params, v) -> H·v`, where you have exact products; None: differences of `grad`.
        step: The length of the moves of the differences; None: see `fusedstep.curvature.hvp`.
        max_size: The most parameters: n of them take n² · 8 bytes, 2n gradients and n³/3 multiplications.
        progress: True for a bar on a terminal, or a function of the products done and planned.

    Returns:
        The `NewtonStep`.

    Raises:
        GradientError: `grad` is not deterministic, or not the gradient of one function.
        ModuleNotFoundError: The extra `fusedstep[curvature]` is not installed.
        TypeError: A wrong dtype or kind of argument.
        ValueError: A damping with which H + μI is not positive definite; an H that is zero; more parameters than
            `max_size`; another structure or shape; numbers that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> curvatures = np.array([1.0, 100.0])
        >>> taken = fs.curvature.newton_step(lambda w: curvatures * w, np.array([3.0, 4.0]))
        >>> print(np.abs(taken.params).max() < 1e-6, taken.damping, round(taken.predicted_decrease, 4))
        True 0.0 804.5

    Reference:
        Nocedal and Wright, "Numerical Optimization", section 3.4.
    """
    given = None if damping is None else positive(damping, "damping", zero=True)
    most = whole(max_size, "max_size", least=1, most=None)
    linalg = require("scipy.linalg", "curvature")
    operator = Operator(grad, params, hvp, step)
    n = operator.space.size
    if n > most:
        raise ValueError(f"params: expected at most max_size = {most} numbers, got {n}; LBFGS takes any number")
    with Progress(progress, n + CHECKS, "Hessian") as shown:
        operator.watch(shown)
        operator.check(np.random.default_rng(0))
        raw = dense(operator)
    matrix, gradient = (raw + raw.T) / 2, operator.center
    values = linalg.eigvalsh(matrix)
    lowest, largest = float(values[0]), float(np.abs(values).max())
    if largest == 0.0:
        raise ValueError("params: the Hessian is zero: Newton's step has no length")
    margin = (1e-3 if operator.space.eps > 1e-10 else 1e-6) * largest
    mu = max(0.0, margin - lowest) if given is None else given
    if lowest + mu <= operator.space.eps * largest:
        raise ValueError(
            f"damping: expected more than {max(0.0, -lowest):.3g}, for the smallest eigenvalue of H is {lowest:.3g}, "
            f"got {mu:.3g}"
        )
    move = linalg.solve(matrix + mu * np.eye(n), -gradient, assume_a="pos")
    return NewtonStep(
        params=operator.space.pack(operator.space.origin + move),
        move=operator.space.pack(move),
        predicted_decrease=float(-(gradient @ move) - move @ matrix @ move / 2),
        damping=mu,
        grad_norm=size_of(gradient),
        eigenvalue=lowest,
        products=operator.products,
        gradients=operator.gradients,
    )
