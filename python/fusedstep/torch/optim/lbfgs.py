"""L-BFGS with PyTorch's arguments, closures and state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import lbfgs as _torchs

from fusedstep import _core
from fusedstep.optimizers.lbfgs.numbers import count, finite, kind, not_negative
from fusedstep.torch.optim import zero
from fusedstep.torch.optim.optimizer import observed

_step: Any = torch.optim.LBFGS.step
if getattr(_step, "hooked", False):
    # An earlier torch.optim.LBFGS has wrapped step with hooks, which would run twice.
    _step = _step.__wrapped__


class LBFGS(torch.optim.LBFGS):
    """L-BFGS: the direction is −H·g, with an estimate H of the inverse Hessian from the last moves.

    Equations, limits and state are PyTorch's; `fusedstep.LBFGS` documents the equations. For float32 and float64
    parameters on the CPU the kernels of this library compute the direction, and sum its products in float64. For other
    parameters PyTorch's code computes it. A copy or a pickle continues from the same state.

    Args:
        params: Parameters, or pairs of `named_parameters()`, in one group.
        lr: Length of a move along the direction, or the first length that `line_search_fn` tries; finite, >= 0.
        max_iter: Largest number of moves per step; a whole number >= 1.
        max_eval: Largest number of evaluations per step; a whole number >= 1, or None for `max_iter * 5 // 4`.
        tolerance_grad: A step ends when no element of |g| is larger than this; a finite number.
        tolerance_change: A step ends when the loss changes by less than this, or no parameter by more; a finite number.
        history_size: How many pairs of a move and a change of the gradient are kept; a whole number >= 1.
        line_search_fn: None, or "strong_wolfe".

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument out of range; a parameter given twice; several groups.

    Examples:
        >>> import torch
        >>> from fusedstep.torch import optim
        >>> p = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> opt = optim.LBFGS([p], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(3):
        ...     loss = opt.step(closure)
        >>> print(p.detach().numpy().round(3))
        [1. 1.]

    Reference:
        Nocedal and Wright, "Numerical Optimization", 2nd edition, 2006, chapters 3 and 7.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        if zero.is_being_made():
            zero.refuse(type(self).__name__)
        _refuse(
            lr, max_iter, max_iter if max_eval is None else max_eval, tolerance_grad, tolerance_change, history_size
        )
        _refuse_search(line_search_fn)
        super().__init__(params, lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one group that the constructor makes.

        Raises:
            ValueError: There is a group already; a parameter is given twice.
        """
        if self.param_groups:
            raise ValueError("params: expected one group, because a step moves all parameters along one direction")
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), Tensor | set):
            param_group["params"] = list(param_group["params"])
            _refuse_twice(param_group["params"])
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Makes up to `max_iter` moves.

        Args:
            closure: Clears the gradients, evaluates the model, computes the gradients, and returns the loss.

        Returns:
            What the closure returned first.

        Raises:
            TypeError: The closure is no function; a hyper-parameter of the wrong type. Nothing has been written.
            ValueError: A hyper-parameter out of range. Nothing has been written.
        """
        if not callable(closure):
            raise TypeError(f"closure: expected a function, got {kind(closure)}")
        (group,) = self.param_groups
        _refuse(**{name: group[name] for name in _NUMBERS})
        _refuse_search(group["line_search_fn"])
        return _moves(self, closure) if _is_plain(self._params) else _step(self, closure)

    step = observed(step)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None


#: What `_refuse` looks at.
_NUMBERS = ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size")


def _refuse(
    lr: Any, max_iter: Any, max_eval: Any, tolerance_grad: Any, tolerance_change: Any, history_size: Any
) -> None:
    """TypeError or ValueError for hyper-parameters that no step can use."""
    not_negative(lr, "lr")
    for name, whole in (("max_iter", max_iter), ("max_eval", max_eval), ("history_size", history_size)):
        count(whole, name)
    finite(tolerance_grad, "tolerance_grad")
    finite(tolerance_change, "tolerance_change")


def _refuse_search(line_search_fn: Any) -> None:
    if line_search_fn not in (None, "strong_wolfe"):
        raise ValueError(f"line_search_fn: expected None or 'strong_wolfe', got {line_search_fn!r}")


def _is_plain(params: list[Tensor]) -> bool:
    """Whether the kernels can compute the direction: one dtype, float32 or float64, on the CPU."""
    return params[0].dtype in (torch.float32, torch.float64) and all(
        param.dtype == params[0].dtype and param.device.type == "cpu" and type(param) in (Tensor, torch.nn.Parameter)
        for param in params
    )


@torch.no_grad()
def _moves(optimizer: Any, closure: Callable[[], Any]) -> Any:
    """A step, in the order of `torch.optim.LBFGS.step`."""
    (group,), entry = optimizer.param_groups, optimizer.state[optimizer._params[0]]
    tolerance = group["tolerance_change"]
    entry.setdefault("func_evals", 0)
    entry.setdefault("n_iter", 0)
    evaluate = torch.enable_grad()(closure)
    first = evaluate()
    loss, grad, evaluations = float(first), optimizer._gather_flat_grad(), 1
    entry["func_evals"] += 1
    if _is_small(grad, group):
        return first
    move = {name: entry.get(name) for name in _MOVE}
    for iteration in range(1, group["max_iter"] + 1):
        entry["n_iter"] += 1
        # Not by the count: a closure that raised an exception has left a count and no move.
        is_first = move["d"] is None
        _turn(move, entry, grad, group)
        move["prev_flat_grad"], move["prev_loss"], before = grad, loss, loss
        move["t"] = _first_length(grad, group) if is_first else group["lr"]
        slope = _dot(grad, move["d"])
        if slope > -tolerance:
            break
        if group["line_search_fn"] is not None:
            loss, grad, move["t"], count = _searched(optimizer, evaluate, move, slope, group["max_eval"] - evaluations)
        else:
            optimizer._add_grad(float(move["t"]), move["d"])
            count = int(iteration < group["max_iter"])
            if count:
                loss, grad = float(evaluate()), optimizer._gather_flat_grad()
        evaluations += count
        entry["func_evals"] += count
        length = float(move["d"].abs().max()) * abs(float(move["t"]))
        if evaluations >= group["max_eval"] or _is_small(grad, group) or length <= tolerance:
            break
        if abs(loss - before) < tolerance:
            break
    entry.update(move)
    return first


#: The state that a step keeps of its last move.
_MOVE = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")


def _is_small(grad: Tensor, group: dict[str, Any]) -> bool:
    return bool(grad.abs().max() <= group["tolerance_grad"])


def _first_length(grad: Tensor, group: dict[str, Any]) -> Any:
    return min(1.0, 1.0 / grad.abs().sum()) * group["lr"]


def _dot(a: Tensor, b: Tensor) -> float:
    return _core.dot(a.numpy(), b.numpy())


def _turn(move: dict[str, Any], entry: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> None:
    """Stores the pair of the last move, and computes the next direction."""
    if move["d"] is None:
        move |= {"d": grad.neg(), "old_dirs": [], "old_stps": [], "ro": [], "H_diag": 1}
        return
    y, s = grad.sub(move["prev_flat_grad"]), move["d"].mul(move["t"])
    dirs, steps, ro = move["old_dirs"], move["old_stps"], move["ro"]
    ys = _dot(y, s)
    if ys > 1e-10:
        if len(dirs) == group["history_size"]:
            for kept in (dirs, steps, ro):
                kept.pop(0)
        dirs.append(y)
        steps.append(s)
        ro.append(grad.new_tensor(1.0 / ys))
        move["H_diag"] = grad.new_tensor(ys / _dot(y, y))
    entry.setdefault("al", [None] * group["history_size"])
    move["d"] = grad.neg()
    d, alphas = move["d"].numpy(), []
    pairs = [(y.numpy(), s.numpy(), float(rho)) for y, s, rho in zip(dirs, steps, ro, strict=True)]
    for y, s, rho in reversed(pairs):
        alphas.append(rho * _core.dot(s, d))
        _core.axpy(-alphas[-1], y, d)
    d *= float(move["H_diag"])
    for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        _core.axpy(alpha - rho * _core.dot(y, d), s, d)


def _searched(
    optimizer: Any, evaluate: Callable[[], Any], move: dict[str, Any], slope: float, most: int
) -> tuple[float, Tensor, Any, int]:
    """Loss, gradient and t that PyTorch's line search finds, and the number of its evaluations."""
    at = partial(optimizer._directional_evaluate, evaluate)
    start, grad, loss = optimizer._clone_param(), move["prev_flat_grad"], move["prev_loss"]
    loss, grad, t, count = _torchs._strong_wolfe(  # type: ignore[no-untyped-call]
        at, start, move["t"], move["d"], loss, grad, grad.new_tensor(slope), max_ls=most
    )
    optimizer._add_grad(float(t), move["d"])
    return loss, grad, t, count


def _refuse_twice(params: list[Any]) -> None:
    seen: dict[int, Any] = {}
    for place, given in enumerate(params):
        name, param = given if isinstance(given, tuple) and len(given) == 2 else (place, given)
        if id(param) in seen:
            raise ValueError(f"params[{name!r}]: comes twice, and as params[{seen[id(param)]!r}]")
        seen[id(param)] = name
