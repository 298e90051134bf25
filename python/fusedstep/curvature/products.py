"""Hessian-vector products by differences of the gradient, and their accuracy."""

import itertools
import math
from typing import Any

import numpy as np

from fusedstep._common.arguments import function
from fusedstep.curvature.progress import Progress
from fusedstep.curvature.space import Gradient, Product, Space, Vector, positive, size_of

#: How far the middle one of three gradients is from the mean of the others, relative to their difference, where a unit
#: switches between θ − h·v and θ + h·v.
_BEND = 3e-6
#: How many random products are compared with each other at the start.
CHECKS = 3
#: How much two calls at the same place may differ, because a parallel sum may change its order.
_REPEAT = 100.0


class GradientError(ValueError):
    """The gradient function is not one function's gradient, or gives something else at every call."""


class Operator:
    """The Hessian at `params` as a map of vectors; counts what it costs.

    Attributes:
        products: Products so far.
        gradients: Calls of `grad` so far.
        noise: The largest measured error of a product with a unit vector, a norm.
        vanishes: Whether all products of the check were 0.
        asymmetry: How far random products are from those of a symmetric matrix, relative to their length.
        step: The length of the moves ±h·v of the next product.
    """

    def __init__(
        self,
        grad: Gradient,
        params: Any,
        hvp: Product | None = None,
        step: float | None = None,
    ) -> None:
        function(grad, "grad")
        if hvp is not None:
            function(hvp, "hvp")
        self.space = Space(params)
        self._grad, self._hvp = grad, hvp
        self._progress: Progress | None = None
        self.products = self.gradients = 0
        self.noise = self.asymmetry = 0.0
        self.vanishes = False
        #: ‖H·u‖ of random unit vectors.
        self.typical = 0.0
        # Moves are measured by the parameters' own length, but by no less than 1, the length at the origin.
        self.scale = max(1.0, size_of(self.space.origin))
        self._guarded = step is None and self.space.eps < 1e-10
        self.step = self.space.eps ** (1 / 3) * self.scale if step is None else positive(step, "step")
        self._largest = self._explained = 0.0
        self._center: Vector | None = None

    def watch(self, progress: Progress) -> None:
        """Shows products from now on."""
        self._progress = progress

    def gradient(self, at: Vector) -> Vector:
        """The gradient at a place, as a new vector."""
        self.gradients += 1
        away = size_of(at - self.space.origin)
        where = f" (at a distance of {away:.3g} from params)" if away else ""
        return self.space.flat(self._grad(self.space.pack(at)), "grad(params)", where)

    @property
    def center(self) -> Vector:
        """The gradient at the parameters."""
        if self._center is None:
            self._center = self.gradient(self.space.origin)
        return self._center

    @property
    def accuracy(self) -> float:
        """The error to expect of a product, relative to the largest |eigenvalue|: ten times the error of rounding."""
        if self._hvp is not None:
            return 10 * self.space.eps * math.sqrt(self.space.size)
        relative = self.step / self.scale
        # A step that was given may be so long that the third derivative counts instead.
        return 10 * max(self.space.eps / relative, min(relative, 1.0) ** 2)

    def product(self, v: Vector) -> Vector:
        """H·v."""
        self.products += 1
        if self._progress is not None:
            self._progress.advance()
        if self._hvp is not None:
            given = self._hvp(self.space.pack(self.space.origin), self.space.pack(v))
            return self.space.flat(given, "hvp(params, v)")
        length = size_of(v)
        if length == 0.0:
            return np.zeros_like(v)
        return length * self._quotient(v / length)

    def _quotient(self, unit: Vector) -> Vector:
        """H·unit, by a step at which the gradient is smooth, as far as there is one."""
        shortest = 2.0**-18 * self.space.eps ** (1 / 3) * self.scale
        step = self.step
        while True:
            value, bend, noise = self._difference(unit, step)
            if not self._guarded:
                return value
            size = size_of(value)
            if bend <= _BEND * max(size, self._largest) + noise:
                break
            if step / 16 < shortest:
                # The gradient jumps at the parameters themselves, or is noise: a shorter step does not help.
                self._guarded = False
                break
            step /= 16
        self._largest = max(self._largest, size)
        # Where a unit switched within the last step, others do within as long a one; but no shorter than this for good.
        self.step = min(self.step, max(step, math.sqrt(self.space.eps) * self.scale))
        return value

    def _difference(self, unit: Vector, step: float) -> tuple[Vector, float, float]:
        """The central quotient; how far the middle gradient is from the outer ones' mean; rounding's part of that."""
        there = self._rounded(self.space.origin + step * unit)
        back = self._rounded(self.space.origin - step * unit)
        # Rounding moves both places, so the step is measured between them, along v.
        moved = float(unit @ (there - back))
        if not moved > 0:
            raise ValueError(f"step: {step:.3g} is lost in the rounding of params, whose norm is {self.scale:.3g}")
        ahead, behind = self.gradient(there), self.gradient(back)
        value = (ahead - behind) / moved
        if not self._guarded:
            return value, 0.0, 0.0
        bend = size_of(ahead - 2 * self.center + behind) / moved
        size = size_of(ahead) + size_of(behind) + 2 * size_of(self.center)
        return value, bend, 8 * self.space.eps * size / moved

    def jump(self, unit: Vector) -> tuple[float, float]:
        """The change of the gradient across the point, if shorter moves do not reduce it, and the shorter move.

        Zeros if the change shrinks with the move, as for a smooth gradient, or may be rounding.
        """
        short = self.step * (2.0**-16 if self.space.eps < 1e-10 else 2.0**-4)
        changes = []
        for length in (self.step, short):
            there, back = (self._rounded(self.space.origin + sign * length * unit) for sign in (1.0, -1.0))
            ahead, behind = self.gradient(there), self.gradient(back)
            size = float(np.linalg.norm(ahead) + np.linalg.norm(behind) + 2 * np.linalg.norm(self.center))
            changes.append(float(np.linalg.norm(ahead - behind)))
            if changes[-1] <= 1e3 * self.space.eps * size or changes[-1] < changes[0] / 2:
                return 0.0, 0.0
        return changes[-1], short

    def _rounded(self, at: Vector) -> Vector:
        return self.space.flat(self.space.pack(at), "params") if self.space.eps > 1e-10 else at

    def check_repeatable(self) -> None:
        """Asks for the gradient twice; one that changes is measured and refused."""
        again = self.gradient(self.space.origin)
        center, where = self.center, "params"
        if not center.any():
            # A factor of the gradient, such as dropout's, cannot be seen where the gradient is 0.
            where = "places near them"
            near = self.space.origin + self.step * np.random.default_rng(0).standard_normal(self.space.size)
            near = self._rounded(near)
            center, again = self.gradient(near), self.gradient(near)
        size = float(np.abs(center).max())
        change = float(np.abs(center - again).max())
        if change > _REPEAT * self.space.eps * size:
            self._measure(np.random.default_rng(0))
            raise GradientError(
                f"grad: expected the same gradient at the same {where}, got one that changed by {change:.3g} where "
                f"max |g| is {size:.3g}: it is not deterministic (another batch? dropout?); "
                f"the measured asymmetry of H is {self.asymmetry:.3g} of its size"
            )

    def check(self, rng: np.random.Generator) -> None:
        """Asks twice for the gradient and compares three products; raises what they reveal."""
        self.check_repeatable()
        self._measure(rng)
        self.refuse_asymmetry(self.asymmetry, self._explained)

    def _measure(self, rng: np.random.Generator) -> None:
        units = rng.standard_normal((CHECKS, self.space.size))
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        products = [self.product(unit) for unit in units]
        self.typical = max(size_of(product) for product in products)
        self.vanishes = self.typical == 0.0
        self.measure_noise(units[0])
        for (u, hu), (v, hv) in itertools.combinations(zip(units, products, strict=True), 2):
            size = size_of(hu) + size_of(hv) + self.floor
            if size > 0:
                # uᵀHv of random units is √n smaller than the lengths of Hu and Hv, of any H.
                difference = math.sqrt(self.space.size) * abs(float(u @ hv - v @ hu))
                self.asymmetry = max(self.asymmetry, difference / size)
                self._explained = max(self._explained, 10 * self.noise / size)

    def measure_noise(self, unit: Vector) -> None:
        """Takes one product at two steps: rounding differs wholly, and the third derivative's part is a quarter."""
        if self._hvp is None:
            whole, half = (self._difference(unit, step)[0] for step in (self.step, self.step / 2))
            self.noise = max(self.noise, size_of(whole - half))

    @property
    def floor(self) -> float:
        """Lengths of products that rounding of the gradient alone can make."""
        if self._hvp is not None:
            return 0.0
        return 100 * self.space.eps * size_of(self.center) / self.step

    def refuse_asymmetry(self, asymmetry: float, explained: float) -> None:
        """GradientError where H is less symmetric than rounding and the measured noise explain."""
        limit = max(0.05 if self.space.eps > 1e-10 else 0.01, explained)
        if asymmetry > limit:
            source = "grad" if self._hvp is None else "hvp"
            raise GradientError(
                f"{source}: expected the derivatives of one function, got an H whose measured asymmetry is "
                f"{asymmetry:.3g} of its size ({limit:.2g} would be rounding); is it not deterministic, or wrong?"
            )


def hvp(grad: Gradient, params: Any, v: Any, *, step: float | None = None) -> Any:
    r"""The Hessian times a vector, from a few gradients.

    .. code-block:: text

        H·v ≈ ‖v‖ · (g(θ + h·u) − g(θ − h·u)) / (2h),    u = v / ‖v‖

    Rounding causes an error of about ε/h, the third derivative one of h²; h = ∛ε · max(1, ‖θ‖) balances both: 6e-6 of
    the norm in float64, which leaves ten digits, and 5e-3 in float32, which leaves four (θ ± h·u is rounded to float32,
    and the quotient divides by the actual move; everything else is in double).

    A network with ReLU has a gradient that jumps where a unit switches, and h must not reach there. In float64 a third
    gradient, g(θ), shows it: if it is not midway between the other two, h is made 16 times shorter, up to four times.
    In float32 there are not enough digits for that: H is then that of the loss averaged over ±h·u.

    Args:
        grad: `grad(params) -> grads`, in the structure, shapes and dtypes of `params`. It is always called with new
            arrays, never with yours, so it must use its argument; and it must be deterministic.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        v: The vector, in the same structure, shapes and dtypes.
        step: h, the length of the two moves, > 0; None: as above.

    Returns:
        H·v in the structure and the dtypes of `params`.

    Raises:
        TypeError: A dtype or a kind that is not as said.
        ValueError: Another structure or shape; numbers that are not finite, of `grad` too.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> def grad(w):  # of (1 − w₁·w₂)²
        ...     return -2 * (1 - w[0] * w[1]) * w[::-1]
        >>> print(fs.curvature.hvp(grad, np.zeros(2), np.array([1.0, 0.0])) + 0)
        [ 0. -2.]

    Reference:
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994, whose exact products
        `from_torch` gives.
    """
    operator = Operator(grad, params, step=step)
    return operator.space.pack(operator.product(operator.space.flat(v, "v")))
