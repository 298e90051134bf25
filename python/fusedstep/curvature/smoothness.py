"""How far a gradient predicts the loss, and how a layer's inputs move as the layers below it learn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedstep._common.arguments import function
from fusedstep._common.arrays import unmasked
from fusedstep._common.brief import brief_repr
from fusedstep._common.plain import plain
from fusedstep.curvature.products import Operator
from fusedstep.curvature.space import Array, Gradient, are_numbers, positive, scalar, size_of


@dataclass(frozen=True, slots=True)
class Smoothness:
    """The loss and the gradient along the gradient's own direction.

    Attributes:
        lrs: The lengths η of the moves θ − η·g, in units of the gradient.
        losses: L(θ − η·g).
        loss_before: L(θ).
        grad_norm: ‖g(θ)‖.
        gradient_changes: ‖g(θ − η·g) − g(θ)‖: small where the gradient predicts well.
        betas: `gradient_changes` divided by the length ‖η·g‖ of the move.
        cosines: The cosine of the angle between the two gradients; NaN if one of them is 0.
    """

    lrs: Array
    losses: Array
    loss_before: float
    grad_norm: float
    gradient_changes: Array
    betas: Array
    cosines: Array

    __repr__ = brief_repr

    @property
    def beta(self) -> float:
        """The largest of `betas`: the effective smoothness along the gradient."""
        return float(self.betas.max())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; None for NaN."""
        content = {name: plain(getattr(self, name)) for name in self.__slots__}
        content["cosines"] = [None if value != value else value for value in content["cosines"]]
        return {**content, "beta": self.beta}


def measure_smoothness(loss: Callable[[Any], float], grad: Gradient, params: Any, lrs: Any) -> Smoothness:
    r"""How the loss and the gradient change along the gradient, over a range of lengths.

    .. code-block:: text

        θ' = θ − η·g(θ),    β(η) = ‖g(θ') − g(θ)‖ / ‖θ' − θ‖

    Args:
        loss: `loss(params) -> number`.
        grad: `grad(params) -> grads`, its gradient; see `hvp`. With batch norm in training, both are of one batch.
        params: In any structure that an optimizer takes, float32 or float64; only read.
        lrs: A list or array of the lengths η, > 0.

    Returns:
        The `Smoothness`, its arrays as long as `lrs`.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A gradient that is 0; another structure or shape; gradients that are not finite.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> found = fs.curvature.measure_smoothness(lambda w: float(w @ w), lambda w: 2 * w, np.ones(3), [0.1, 0.5])
        >>> print(found.betas.round(6), found.losses.round(6))
        [2. 2.] [1.92 0.  ]

    Reference:
        Santurkar, Tsipras, Ilyas and Madry, "How does batch normalization help optimization?", NeurIPS 2018, figure 4.
    """
    function(loss, "loss")
    if not isinstance(lrs, (list, tuple, np.ndarray)) or len(lrs) == 0:
        raise TypeError(f"lrs: expected a list or array of at least one number, got {lrs!r}")
    rates = np.array([positive(lr, f"lrs[{k}]") for k, lr in enumerate(lrs)])
    operator = Operator(grad, params)
    space, g = operator.space, operator.center
    norm = size_of(g)
    if norm == 0.0:
        raise ValueError("params: the gradient is 0 and has no direction")
    losses, changes, betas, cosines = (np.empty(len(rates)) for _ in range(4))
    for k, lr in enumerate(rates):
        at = space.origin - lr * g
        other = operator.gradient(at)
        size = size_of(other)
        losses[k] = scalar(loss(space.pack(at)), "loss(params)")
        changes[k] = size_of(other - g)
        betas[k] = changes[k] / (lr * norm)
        cosines[k] = other @ g / (size * norm) if size > 0 else np.nan
    return Smoothness(
        rates, losses, scalar(loss(space.pack(space.origin)), "loss(params)"), norm, changes, betas, cosines
    )


@dataclass(frozen=True, slots=True)
class Shift:
    """How the distribution of a layer's inputs moved, per feature, in units of the spread before.

    Attributes:
        means: (C,) How far each mean moved.
        deviations: (C,) How much each standard deviation grew.
        distances: (C,) The root of the sum of their squares: the Wasserstein distance of normal distributions.
        spread: The unit: the root of the mean variance before.
    """

    means: Array
    deviations: Array
    distances: Array
    spread: float

    __repr__ = brief_repr

    @property
    def distance(self) -> float:
        """The root of the mean square of `distances`."""
        return float(np.sqrt((self.distances**2).mean()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**{name: plain(getattr(self, name)) for name in self.__slots__}, "distance": self.distance}


def measure_shift(before: Any, after: Any, *, channel_axis: int = 1) -> Shift:
    r"""Internal covariate shift: how far a layer's inputs on the same data moved between two states of the network.

    .. code-block:: text

        distance² = ((m' − m)² + (σ' − σ)²) / mean σ²,    per feature

    Args:
        before: The layer's inputs, (N, C, …) of floats, at least two values a feature.
        after: The same after the layers below have learned, of the same number of features.
        channel_axis: The axis of the features.

    Returns:
        The `Shift`.

    Raises:
        TypeError: Arrays that are not of floats.
        ValueError: Other numbers of features; no such axis; numbers that are not finite; inputs that are all constant.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> before = np.array([[-1.0], [1.0]])
        >>> print(fs.curvature.measure_shift(before, 2 * before + 3).distances)
        [3.16227766]

    Reference:
        Ioffe and Szegedy, "Batch normalization", ICML 2015, section 2.
    """
    m0, s0 = _moments(before, "before", channel_axis)
    m1, s1 = _moments(after, "after", channel_axis)
    if m0.shape != m1.shape:
        raise ValueError(f"after: expected {len(m0)} features as before has, got {len(m1)}")
    spread = float(np.sqrt((s0**2).mean()))
    if spread == 0.0:
        raise ValueError("before: every feature is constant: there is no spread to measure by")
    means, deviations = (m1 - m0) / spread, (s1 - s0) / spread
    return Shift(means, deviations, np.hypot(means, deviations), spread)


def _moments(value: Any, name: str, channel_axis: int) -> tuple[Array, Array]:
    array = np.asarray(value, np.float64) if are_numbers(value) else unmasked(value, name)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected floats, got {array.dtype}")
    if not -array.ndim <= channel_axis < array.ndim:
        raise ValueError(f"channel_axis: expected an axis of {name}, which has {array.ndim}, got {channel_axis}")
    rows = np.moveaxis(array, channel_axis, 0).reshape(array.shape[channel_axis], -1).astype(np.float64)
    if rows.shape[0] == 0 or rows.shape[1] < 2:
        raise ValueError(f"{name}: expected at least two values a feature, got shape {array.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{name}: expected finite numbers")
    return rows.mean(axis=1), rows.std(axis=1)
