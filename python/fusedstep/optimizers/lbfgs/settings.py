"""The hyper-parameters of a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fusedstep._common.extras import require
from fusedstep.optimizers.lbfgs.numbers import count, kind, not_negative
from fusedstep.optimizers.lbfgs.report import Reason
from fusedstep.optimizers.lbfgs.state import Move, Point, largest


class Settings(NamedTuple):
    """The hyper-parameters of a step, checked."""

    lr: float
    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search: Callable[..., Any] | None

    @classmethod
    def of(cls, group: Mapping[str, Any], taken: int | None = None) -> "Settings":
        """Those of a group. A schedule is asked for its rate where `taken`, the number of steps taken, is given."""
        for name in ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"):
            if name not in group:
                raise ValueError(f"{name}: missing")
        lr = group["lr"]
        if callable(lr):
            lr = 0.0 if taken is None else lr(taken)
        return cls(
            not_negative(lr, "lr"),
            count(group["max_iter"], "max_iter"),
            count(group["max_eval"], "max_eval"),
            not_negative(group["tolerance_grad"], "tolerance_grad"),
            not_negative(group["tolerance_change"], "tolerance_change"),
            count(group["history_size"], "history_size"),
            line_search_named(group.get("line_search_fn")),
        )

    def reason(self, move: Move, point: Point | None, evaluations: int, iterations: int) -> Reason | None:
        """Why to stop after a move to `point` (None: not evaluated); None to go on."""
        if point is not None and point.grad_max <= self.tolerance_grad:
            return "tolerance_grad"
        if largest(move.d) * move.t <= self.tolerance_change:
            return "tolerance_change"
        if point is not None and abs(point.loss - move.prev_loss) < self.tolerance_change:
            return "tolerance_change"
        if iterations >= self.max_iter:
            return "max_iter"
        return "max_eval" if evaluations >= self.max_eval else None


def line_search_named(name: Any) -> Callable[..., Any] | None:
    """SciPy's, which is imported here alone."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"line_search_fn: expected None or 'strong_wolfe', got {kind(name)}")
    if name != "strong_wolfe":
        raise ValueError(f"line_search_fn: expected None or 'strong_wolfe', got {name!r}")
    line_search: Callable[..., Any] = require("scipy.optimize", "lbfgs", "line_search_fn needs SciPy").line_search
    return line_search
