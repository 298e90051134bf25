"""What a step reports."""

from dataclasses import dataclass
from typing import Literal

#: Which limit ended a step.
Reason = Literal["tolerance_grad", "tolerance_change", "max_iter", "max_eval", "line_search"]


@dataclass(frozen=True, slots=True)
class LBFGSReport:
    """The report of a step of `LBFGS`.

    Attributes:
        step: Steps taken, this one included.
        loss: The loss at the parameters; where `max_iter` ended moves of a fixed t, the one before the last of them,
            which is not evaluated (as in PyTorch).
        initial_loss: The loss before the step.
        grad_max: max |g| at the same place: what `tolerance_grad` is compared with.
        evaluations: Calls of the closure.
        iterations: Directions computed: one per move, and those that were too flat for one or led nowhere.
        reason: What ended the step: a hyper-parameter's name, or `"line_search"`, where no lower loss was found along
            the direction nor, if the limits left a try, down the gradient: at a minimum whose last digits are rounding,
            or with a gradient that is not the loss's.
    """

    step: int
    loss: float
    initial_loss: float
    grad_max: float
    evaluations: int
    iterations: int
    reason: Reason

    @property
    def converged(self) -> bool:
        """Whether a tolerance ended the step, not a limit."""
        return self.reason in ("tolerance_grad", "tolerance_change")
