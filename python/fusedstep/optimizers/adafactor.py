"""Adafactor: the second moment of a matrix as a row and a column."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Adafactor(Optimizer):
    r"""Adafactor: the second moment of a matrix as a row and a column.

    .. code-block:: text

        ρ = min(lr, 1/√t),    α = max(eps[1], RMS(p)) · ρ,    w = 1 − t^beta2_decay
        p ← (1 − lr · weight_decay) · p
        matrix:  R ← w · R + (1 − w) · row means of g²,    C ← w · C + (1 − w) · column means of g²
                 v = R C / max(mean(R), eps[0])
        vector:  v ← w · v + (1 − w) · g²
        u = g / √max(v, eps[0]²)
        p ← p − α · u / max(1, RMS(u) / d)

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        beta2_decay: The averages take w = 1 − t^beta2_decay; <= 0.
        eps: (ε1, ε2): smallest root of v (None: the resolution of the dtype), and smallest scale of p; finite, >= 0.
        d: Largest root mean square of u, to which u is scaled down; finite, > 0.
        weight_decay: Decoupled: what the parameter shrinks by per step and unit of lr; finite, >= 0.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.ones((200, 300), np.float32)
        >>> opt = fs.Adafactor(p)
        >>> report = opt.step(p.copy())
        >>> print(p[0, 0].round(4), opt.state[0]["row_var"].shape, opt.state[0]["col_var"].shape)
        0.99 (200, 1) (1, 300)

    Reference:
        Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, algorithms 4 and
        5, in PyTorch's form. Its means are NumPy's, in double and rounded once, on every instruction set. If the square
        of eps[0] vanishes in the dtype, the step divides by 0 where the gradient always was 0, as in PyTorch.
    """

    rule = "adafactor"
    lr: LearningRate = 1e-2
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0
    weight_decay: float = 0.0
