"""Momentum, orthogonalized: for the weight matrices of hidden layers."""

from inspect import signature
from typing import TYPE_CHECKING, Any

from fusedstep.optimizers.base import LearningRate, Optimizer
from fusedstep.optimizers.base.options import option
from fusedstep.optimizers.network import is_network

if TYPE_CHECKING:
    from fusedstep.optimizers.network.choice import Predicate


class Muon(Optimizer):
    r"""Momentum, orthogonalized: for the weight matrices of hidden layers.

    .. code-block:: text

        b ← b + (1 − momentum) · (g − b)
        X = b                                           (Nesterov: g + momentum · (b − g))
        X ← X / max(‖X‖, eps)
        ns_steps times:  A = X Xᵀ,  X ← a · X + (b · A + c · A²) X          with ns_coefficients (a, b, c)
        p ← (1 − lr · weight_decay) · p
        p ← p − lr · √max(1, rows / columns) · X        (match_rms_adamw: 0.2 · √max(rows, columns))

    Of a whole network Muon steps the hidden weights and `AdamW` the other parameters: where `params` is a dict of
    names (or pairs) that are not all matrices, and wherever one of these is given by name: `use_muon`, a predicate
    `use_muon(name, array) -> bool`; `adamw_lr`, `adamw_betas`, `adamw_eps` and `adamw_weight_decay`, by default those
    of `AdamW`. It is one optimizer, with one state dict, a group of each rule, and one norm for `max_grad_norm` and
    `skip_nonfinite`; there is no `telemetry`. Without a predicate a weight is hidden if it has 2 axes or more, if it is
    neither the first nor the last such parameter, and if its name has neither "embed" in it nor "head", "wte" or "wpe"
    as a word between dots and underscores. An array with more axes is a matrix of shape (out, -1) then.

    Args:
        params: The matrices to update, see `Optimizer`; or a whole network's parameters by name.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        momentum: Momentum factor: the decay rate of the buffer; in [0, 1).
        nesterov: Mixes the gradient into the buffer once more.
        ns_coefficients: (a, b, c) of the Newton–Schulz iteration.
        eps: Smallest norm that is divided by; finite, >= 0.
        ns_steps: Iterations; a whole number >= 0.
        adjust_lr_fn: "original" (None is the same) or "match_rms_adamw", see above.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.zeros((2, 3), np.float32)
        >>> opt = fs.Muon(p, lr=1.0)
        >>> report = opt.step(np.array([[3, 0, 0], [0, 0.5, 0]], np.float32))
        >>> print((abs(np.linalg.svd(p)[1] - 1) < 0.4).all())  # singular values near 1
        True
        >>> net = {name: np.ones((4, 4), np.float32) for name in ("stem", "body", "head")} | {"bias": np.zeros(4)}
        >>> opt = fs.Muon(net, lr=0.02, adamw_lr=1e-3)
        >>> print([group["param_names"] for group in opt.param_groups])
        [['body'], ['stem', 'head', 'bias']]

    Reference:
        Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in neural
        networks", 2024. Its matrix products are NumPy's, in the dtype of the parameter (PyTorch's in bfloat16), and so
        their last bits are those of its BLAS.
    """

    rule = "muon"
    lr: LearningRate = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None

    if TYPE_CHECKING:
        use_muon: Predicate | None = option(default=None, kw_only=True)
        adamw_lr: LearningRate | None = option(default=None, kw_only=True)
        adamw_betas: tuple[float, float] | None = option(default=None, kw_only=True)
        adamw_eps: float | None = option(default=None, kw_only=True)
        adamw_weight_decay: float | None = option(default=None, kw_only=True)
    else:

        def __new__(cls, params: Any = None, *arguments: Any, **named: Any) -> "Muon":
            """One of this class, or of a whole network's."""
            if cls is Muon and is_network(params, named):
                from fusedstep.optimizers.network.optimizer import MuonNetwork

                return object.__new__(MuonNetwork)
            return object.__new__(cls)


# That of the constructor, which `__new__` hides.
_constructor = signature(Muon.__init__)
Muon.__signature__ = _constructor.replace(parameters=list(_constructor.parameters.values())[1:])  # type: ignore[attr-defined]
