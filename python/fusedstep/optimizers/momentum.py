"""Gradient descent with classical momentum, or Nesterov's: the learning rate is inside the velocity."""

from fusedstep.optimizers.base import LearningRate, Optimizer


class Momentum(Optimizer):
    r"""Gradient descent with classical momentum, or Nesterov's: the learning rate is inside the velocity.

    .. code-block:: text

        g ← g + weight_decay · p
        v' ← momentum · v − lr · g
        p ← p + v'                                      (Nesterov: p − momentum · v + (1 + momentum) · v')

    Args:
        params: What to update, see `Optimizer`.
        lr: Learning rate, or a schedule `steps taken -> lr`; finite, >= 0.
        momentum: Momentum factor: the decay rate of the velocity; finite, >= 0.
        weight_decay: Coupled L2: added to the gradient; finite, >= 0.
        nesterov: Nesterov's form, in terms of the point ahead at which the gradient is taken.
        **options: What every optimizer takes, see `Options`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.array([1.0, -2.0], np.float32)
        >>> opt = fs.Momentum(p, lr=0.1, momentum=0.9)
        >>> for _ in range(3):
        ...     report = opt.step(p.copy())
        >>> print(p.round(4), report.step)
        [ 0.486 -0.972] 3

    Reference:
        Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Bengio, Boulanger-Lewandowski
        and Pascanu, "Advances in optimizing recurrent networks", ICASSP 2013, for the form of Nesterov's. At a constant
        lr it takes the steps of `SGD`; when lr changes, the velocity here keeps the rates of its past.
    """

    rule = "momentum"
    lr: LearningRate = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
