"""L-BFGS: a quasi-Newton method for smooth losses whose gradient is exact."""

import importlib
import itertools
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import flag, shown
from fusedstep._common.arrays import as_array, unmasked
from fusedstep._common.structure import Nested, listed, parse, refuse_orphans
from fusedstep.optimizers._base import LearningRate
from fusedstep.optimizers._groups import Array, arrays_of, described, structure_of
from fusedstep.optimizers._hypers import same_hyper, warn_of_replaced
from fusedstep.optimizers._reading import hyper_parameter, parts_of, whole_number
from fusedstep.optimizers.sgd import SGD
from fusedstep.schedules.saving import Handover

#: Gives the loss and the gradients at the parameters as they are.
Closure = Callable[[], tuple[float, Any]]
#: Which limit ended a step.
Reason = Literal["tolerance_grad", "tolerance_change", "max_iter", "max_eval", "line_search"]

#: The Wolfe conditions' sufficient decrease and curvature: PyTorch's, and those that Nocedal and Wright advise.
C1, C2 = 1e-4, 0.9
#: The search doubles the step at most so often: beyond, the loss has no minimum on the line.
_DOUBLINGS = 25


@dataclass(frozen=True, slots=True)
class LBFGSReport:
    """What a step of `LBFGS` did.

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


class LBFGS:
    r"""L-BFGS: the direction is −H·g, with H an inverse Hessian that fits the last moves.

    .. code-block:: text

        s = p − p₋₁,  y = g − g₋₁,  ρ = 1 / yᵀs          the last history_size pairs with yᵀs > 1e-10
        d = −g
        newest to oldest:  α = ρ · sᵀd,  d ← d − α · y
        d ← (yᵀs / yᵀy) · d                              of the newest pair
        oldest to newest:  d ← d + (α − ρ · yᵀd) · s
        p ← p + t · d,    t = lr                         of the very first move: min(1, 1 / Σ|g|) · lr

    A step makes several such moves and asks its closure for the loss and the gradients after each. With
    `line_search_fn` that t is only the first try, and the one that is used satisfies the strong Wolfe conditions:

    .. code-block:: text

        loss(p + t · d) ≤ loss(p) + 1e-4 · t · gᵀd,    |g(p + t · d)ᵀd| ≤ 0.9 · |gᵀd|

    Where the search ends without such a t (`max_eval`, or a loss that falls without end), the lowest loss that it saw
    is taken. Where none is lower, down to moves of `tolerance_change`, nothing moves, the pairs are forgotten, and d is
    −g again.

    Args:
        params: An array, a list of them, a dict `{name: array}`, or a list of one group, see `Optimizer`; all float32,
            or all float64.
        lr: Length of a move in units of d, or a schedule `steps taken -> lr`; finite, >= 0.
        max_iter: Moves per step; a whole number >= 1.
        max_eval: The most evaluations of a step; a whole number >= 1. Where a line search has seen no lower loss by
            then, nothing moves, and the next step starts with shorter moves; a move that none are left for, as with 1,
            is made unseen. None: `max_iter * 5 // 4`.
        tolerance_grad: The step ends where max |g| is at most this; finite, >= 0.
        tolerance_change: The step ends where a move's max |t · d| is at most this, or it changes the loss by less, or
            the slope gᵀd is above its negative; finite, >= 0.
        history_size: Pairs that are kept, two vectors as large as all parameters each; a whole number >= 1.
        line_search_fn: None, for moves of a fixed t, or "strong_wolfe", for SciPy's line search
            (`pip install 'fusedstep[lbfgs]'`).

    Raises:
        TypeError: A parameter that is no float32 or float64 array, or not of the others' dtype; a hyper-parameter that
            is no number.
        ValueError: A hyper-parameter out of range; parameters that overlap, are read-only or not dense; several groups.
        ModuleNotFoundError: A line search without SciPy.

    Examples:
        The valley of Rosenbrock, whose floor is at (1, 1).

        >>> import numpy as np
        >>> from fusedstep.optimizers.lbfgs import LBFGS
        >>> p = np.array([-1.2, 1.0])
        >>> def closure():
        ...     x, y = p
        ...     gradient = np.array([-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)])
        ...     return 100 * (y - x * x) ** 2 + (1 - x) ** 2, gradient
        >>> opt = LBFGS(p, max_iter=100, line_search_fn="strong_wolfe")
        >>> report = opt.step(closure)
        >>> print(p.round(4), report.converged, report.reason)
        [1. 1.] True tolerance_change

    Reference:
        Nocedal, "Updating quasi-Newton matrices with limited storage", Mathematics of Computation 35, 1980; Nocedal and
        Wright, "Numerical Optimization", algorithms 7.4, 7.5, 3.5 and 3.6. Names, defaults, state and, without a line
        search, every decision are those of `torch.optim.LBFGS`, but for four: `max_eval` is never exceeded; a loss or
        gradient that is not finite is an error here (a point to back off from, in a line search); a group that sets
        `max_iter` alone has the `max_eval` that follows; and sums are taken in double, so that float32 parameters
        differ in rounding.
    """

    def __init__(
        self,
        params: Any,
        lr: LearningRate = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        self.defaults: dict[str, Any] = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        params = listed(params)
        self._form: str = structure_of(params).name
        given = params if self._form == "groups" else [{"params": params}]
        if len(given) != 1:
            raise ValueError(f"params: LBFGS takes all parameters in one group, got {len(given)} groups")
        for key in given[0]:
            if key not in self.defaults and key not in ("params", "param_names"):
                raise ValueError(f"{key}: not a hyper-parameter of LBFGS")
        if "params" not in given[0]:
            raise ValueError("params: a group has no 'params'")
        parsed = parse(given[0]["params"])
        names = {} if parsed.names is None else {"param_names": parsed.names}
        group = {**self.defaults, **given[0], "params": parsed.objects, **names}
        _check_params(group)
        self._given = parsed.copied()
        self._shapes = [array.shape for _, array in arrays_of([group])]
        if group["max_eval"] is None:
            group["max_eval"] = _count(group["max_iter"], "max_iter") * 5 // 4
        _Settings.of(group)
        self._param_groups = [group]
        self._state: dict[int, dict[str, Any]] = {}
        self._taken = 0
        self._busy = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """A list of the one group; a hyper-parameter changed here holds from the next step on."""
        return self._param_groups

    @property
    def state(self) -> dict[int, dict[str, Any]]:
        """At 0, from the first step on, what PyTorch keeps there, as vectors of all parameters and as numbers.

        `func_evals` counts evaluations, and `n_iter` directions (since the last one down the gradient); `old_dirs` are
        the y, `old_stps` the s, `ro` the ρ of the pairs; `H_diag` is yᵀs / yᵀy; `d`, `t`, `prev_flat_grad` and
        `prev_loss` are the last move's.
        """
        return self._state

    def step(self, closure: Closure) -> LBFGSReport:
        """Makes up to `max_iter` moves.

        Args:
            closure: A function without arguments that returns `(loss, grads)` at the parameters as they are when it is
                called: a number, and the gradients in the same structure as `params` (with a group: a list, or the
                group's structure in a list), None for one that is zero. Same shape and dtype as the parameter. What
                it changes in the parameters itself (clamps them, say) stands, but for the trials of a line search.

        Returns:
            The `LBFGSReport` of this step.

        Raises:
            TypeError: No function; it returned no pair, no number, or gradients of a wrong dtype or kind.
            ValueError: Gradients of a wrong shape or number; a hyper-parameter; parameters that overlap; a loss or
                gradient that is not finite: at the start of the step, or after a fixed move.
            RuntimeError: The closure called `step`.

        Whatever is raised, by the closure too, and `KeyboardInterrupt`: the parameters are where the last complete move
        left them, and the state is that move's. The next step goes on from there as if nothing had been.
        """
        if not callable(closure):
            raise TypeError(f"closure: expected a function that returns (loss, grads), got {_kind(closure)}")
        with self._turn():
            return self._step(closure)

    def _step(self, closure: Closure) -> LBFGSReport:
        group = self._group()
        settings = _Settings.of(group, self._taken)
        problem = _Problem(group, self._form, self._given.container, closure)
        before = problem.progress(self._state.get(0, {}), "state[0]")
        for count, most, label in (
            (self._taken, 1, "step"),
            (before.func_evals, settings.max_eval, "state[0]['func_evals']"),
            (before.n_iter, settings.max_iter, "state[0]['n_iter']"),
        ):
            # What comes out of the step must be a count that can be loaded again.
            if count + min(most, 2**52) + 2 >= 2**53:
                raise ValueError(f"{label}: expected a count that a step leaves below 2**53, got {count}")
        initial = point = problem.evaluate_finite()
        evaluations, iterations = 1, 0
        reason: Reason | None = "tolerance_grad" if point.grad_max <= settings.tolerance_grad else None
        # A place and the state that belongs to it, replaced together: an interrupt may come between any two lines.
        accepted = problem.read(), before._replace(func_evals=before.func_evals + 1)
        try:
            while reason is None:
                x, progress = accepted
                iterations += 1
                move = _next_move(progress, point, settings)
                reached = progress._replace(n_iter=progress.n_iter + 1, move=move, first=None)
                slope = _core.dot(point.grad, move.d)
                if not math.isfinite(slope):
                    raise ValueError(f"grads: too large for a direction in {x.dtype}, max |g| is {point.grad_max:g}")
                if slope > -settings.tolerance_change:
                    reason = "tolerance_change"
                elif settings.line_search is None or evaluations >= settings.max_eval:
                    x = _moved(x, move)
                    problem.write(x)
                    evaluated = iterations < settings.max_iter and evaluations < settings.max_eval
                    if evaluated:
                        point = problem.evaluate_finite(
                            f" after a move of t = {move.t:g} (a line search would back off)"
                        )
                        x = problem.read()
                        evaluations += 1
                    reason = settings.reason(move, point if evaluated else None, evaluations, iterations)
                else:
                    line = _Line(problem, x, move, point, slope, settings.max_eval - evaluations)
                    t, found = line.search(settings.line_search, settings.tolerance_change)
                    evaluations += line.evaluations
                    move = move._replace(t=t)
                    x = _moved(x, move)
                    problem.write(x)
                    if found is not point:
                        point, reached = found, reached._replace(move=move)
                        reason = settings.reason(move, point, evaluations, iterations)
                    else:
                        # Forgets the pairs: down the gradient once more, at once if the limits allow it. Where they
                        # ended the search, the next one starts from shorter moves than it has tried.
                        shorter = line.shortest() / 2 if line.spent and progress.move is None else None
                        reached = reached._replace(n_iter=0, move=None, first=shorter)
                        limit = iterations >= settings.max_iter or evaluations >= settings.max_eval
                        reason = "line_search" if limit or progress.move is None else None
                        reason = "max_eval" if line.spent else reason
                accepted = x, reached._replace(func_evals=before.func_evals + evaluations)
            taken = self._taken + 1
            report = LBFGSReport(taken, point.loss, initial.loss, point.grad_max, evaluations, iterations, reason)
            _core.commit([], [(self._state, 0, accepted[1].entry()), (self.__dict__, "_taken", taken)])
            return report
        except BaseException:
            pairs = problem.pairs(accepted[0])
            _core.commit(pairs, [(self._state, 0, accepted[1].entry())])
            raise

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """The state, laid out as PyTorch lays out its own: `state` by position and `param_groups` with positions.

        `rule` and `step` (steps taken) stand beside PyTorch's keys.

        Args:
            copy: False for the optimizer's own arrays, which it replaces but never writes to.
        """
        state = {k: dict(entry) for k, entry in self._state.items()}
        return {
            "state": deepcopy(state) if flag(copy, "copy") else state,
            "param_groups": [{**group, "params": list(range(len(group["params"])))} for group in self._param_groups],
            "rule": "lbfgs",
            "step": self._taken,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, hypers: bool = True) -> None:
        """Takes over a state that `state_dict` gave, or PyTorch's, copying its arrays.

        Args:
            state_dict: The state.
            hypers: Whether the hyper-parameters become those of the state; a warning says which did change. False for
                one's own.

        Warns:
            UserWarning: Hyper-parameters were replaced by others.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: An array of another dtype; a number that is none.
        """
        with self._turn():
            saved_groups, entries = parts_of(state_dict, "lbfgs")
            group = self._group()
            counts = [len(group["params"])]
            saved_counts = [len(saved["params"]) for saved in saved_groups]
            if counts != saved_counts:
                raise ValueError(f"state_dict: expected groups of {counts} parameters, got {saved_counts}")
            saved = saved_groups[0]
            handover, before = Handover(), dict(group)
            taken_over = [name for name in self.defaults if name in saved] if flag(hypers, "hypers") else []
            loaded = {
                name: hyper_parameter(saved[name], f"state_dict['param_groups'][0][{name!r}]") for name in taken_over
            }
            group.update({name: handover.adopt(group.get(name), value) for name, value in loaded.items()})
            _Settings.of(group)
            layout = _Layout(group, self._form, self._given.container)
            state: dict[int, dict[str, Any]] = {}
            for position, entry in entries.items():
                if position != 0:
                    raise ValueError(f"state_dict: expected the state at position 0, got one at {position}")
                state[0] = deepcopy(layout.progress(entry, "state_dict['state'][0]").entry())
            taken = whole_number(state_dict.get("step", 0), "state_dict['step']")
            pairs = {name: (before[name], value) for name, value in loaded.items()}
            warn_of_replaced({name: pair for name, pair in pairs.items() if not same_hyper(*pair)})
            handover.finish()
            self._param_groups, self._state, self._taken = [group], state, taken

    def _group(self) -> dict[str, Any]:
        """A copy of the group, which is a plain object: what a user made of it since is seen here."""
        if len(self._param_groups) != 1:
            raise ValueError(f"param_groups: expected one group, got {len(self._param_groups)}")
        group = self._param_groups[0]
        if not isinstance(group, dict):
            raise TypeError(f"param_groups[0]: expected a dict, got {_kind(group)}")
        _check_params(group)
        refuse_orphans(self._given)
        for old, param, shape, (label, array) in zip(
            self._given.objects, group["params"], self._shapes, arrays_of([group]), strict=False
        ):
            if old is param and array.shape != shape:
                raise ValueError(f"{label}: is of shape {array.shape}, and was of {shape} when it was given")
        return dict(group)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._busy:
            raise RuntimeError("step: this optimizer is in the middle of a step")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_busy": False}

    def __repr__(self) -> str:
        lines = ["LBFGS("]
        for group in self._param_groups:
            hypers = ", ".join(f"{name}={group[name]!r}" for name in self.defaults)
            lines.append(f"    {described(group)}: {hypers}")
        return "\n".join([*lines, ")"])


class _Settings(NamedTuple):
    """The hyper-parameters of a step, checked."""

    lr: float
    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search: Callable[..., Any] | None

    @classmethod
    def of(cls, group: Mapping[str, Any], taken: int | None = None) -> "_Settings":
        """Those of a group; a schedule is asked if `taken` is given."""
        for name in ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"):
            if name not in group:
                raise ValueError(f"{name}: missing")
        lr = group["lr"]
        if callable(lr):
            lr = 0.0 if taken is None else lr(taken)
        return cls(
            _not_negative(lr, "lr"),
            _count(group["max_iter"], "max_iter"),
            _count(group["max_eval"], "max_eval"),
            _not_negative(group["tolerance_grad"], "tolerance_grad"),
            _not_negative(group["tolerance_change"], "tolerance_change"),
            _count(group["history_size"], "history_size"),
            _line_search(group.get("line_search_fn")),
        )

    def reason(self, move: "_Move", point: "_Point | None", evaluations: int, iterations: int) -> Reason | None:
        """Why to stop after a move to `point` (None: not evaluated); None to go on."""
        if point is not None and point.grad_max <= self.tolerance_grad:
            return "tolerance_grad"
        if _largest(move.d) * move.t <= self.tolerance_change:
            return "tolerance_change"
        if point is not None and abs(point.loss - move.prev_loss) < self.tolerance_change:
            return "tolerance_change"
        if iterations >= self.max_iter:
            return "max_iter"
        return "max_eval" if evaluations >= self.max_eval else None


class _Point(NamedTuple):
    """What the closure said of one place."""

    loss: float
    grad: Array
    grad_max: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_max)


class _Move(NamedTuple):
    """A move and the pairs that its direction came from, under PyTorch's names. No array is ever written to again."""

    d: Array
    t: float
    old_dirs: list[Array]
    old_stps: list[Array]
    ro: list[float]
    H_diag: float
    prev_flat_grad: Array
    prev_loss: float


class _Progress(NamedTuple):
    """All that a step leaves for the next."""

    func_evals: int
    n_iter: int
    move: _Move | None
    first: float | None = None  # what the next move tries first, if less than otherwise

    def entry(self) -> dict[str, Any]:
        """As the optimizer's state shows it."""
        move = {} if self.move is None else self.move._asdict()
        if self.move is None and self.first is not None:
            move = {"t": self.first}
        return {"func_evals": self.func_evals, "n_iter": self.n_iter, **move}


class _Layout:
    """The parameters as one vector, in the order in which they are given and of their axes."""

    def __init__(self, group: Mapping[str, Any], form: str, container: Any) -> None:
        self.group, self.form, self.container = group, form, container
        self.names: list[Any] | None = group.get("param_names")
        params = self.params
        ends = list(itertools.accumulate(param.size for param in params))
        self.spans = [slice(end - param.size, end) for end, param in zip(ends, params, strict=True)]
        self.size, self.dtype = ends[-1], params[0].dtype

    @property
    def params(self) -> list[Array]:
        """The parameters as they are now: a closure may move their memory."""
        return [array for _, array in arrays_of([dict(self.group)])]

    def parts(self, vector: Array) -> list[Array]:
        """Views of a vector's parts, in the shapes of the parameters."""
        return [vector[span].reshape(param.shape) for span, param in zip(self.spans, self.params, strict=True)]

    def read(self) -> Array:
        """A copy of the parameters."""
        vector = np.empty(self.size, self.dtype)
        for part, param in zip(self.parts(vector), self.params, strict=True):
            part[...] = param
        return vector

    def write(self, vector: Array) -> None:
        """Sets the parameters, all of them or, whatever is raised, none."""
        _core.commit(self.pairs(vector))
        _core.wrote(self.group["params"])

    def pairs(self, vector: Array) -> list[tuple[Array, Array]]:
        """The parameters, and what a vector holds for them."""
        return list(zip(self.params, self.parts(vector), strict=True))

    def gradient(self, grads: Any) -> Array:
        """The gradients, structured as `LBFGS.step` says, as a vector."""
        vector = np.zeros(self.size, self.dtype)
        named = zip(self._flattened(grads), self.parts(vector), self.params, strict=True)
        for k, (grad, part, param) in enumerate(named):
            if grad is None:
                continue
            key = f"[{k if self.names is None else self.names[k]!r}]"
            array = as_array(grad, f"grads{key}")
            if hasattr(array, "mask"):
                raise TypeError(f"grads{key}: expected a plain NumPy array, got {_kind(array)}")
            if array.dtype != param.dtype:
                raise TypeError(f"grads{key}: expected dtype {param.dtype} as params{key} has, got {array.dtype}")
            if array.shape != param.shape:
                raise ValueError(f"grads{key}: expected shape {param.shape} as params{key} has, got {array.shape}")
            part[...] = array
        return vector

    def _flattened(self, grads: Any) -> list[Any]:
        """One gradient per parameter."""
        if self.form == "array":
            return [grads]
        if isinstance(self.container, Nested):
            unwrapped = self.form == "groups" and isinstance(grads, list | tuple) and len(grads) == 1
            return self.container.grads(grads[0] if unwrapped else grads)
        if isinstance(grads, Iterator):
            grads = list(grads)
        nested = self.form == "groups" and isinstance(grads, (list, tuple)) and len(grads) == 1
        if nested and isinstance(grads[0], (list, tuple, Mapping)):
            grads = grads[0]
        if self.names is not None and (self.form == "dict" or isinstance(grads, Mapping)):
            if not isinstance(grads, Mapping):
                raise TypeError(f"grads: expected a dict with the parameters' names, got {_kind(grads)}")
            for name in self.names:
                if name not in grads:
                    raise ValueError(f"grads: no gradient for {name!r} (give None to leave it out)")
            for name in grads:
                if name not in self.names:
                    raise ValueError(f"grads: {name!r} is not the name of a parameter")
            return [grads[name] for name in self.names]
        count = len(self.params)
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"grads: expected a list of {count} arrays, got {_kind(grads)}")
        if len(grads) != count:
            message = f"expected {count} arrays (one per parameter, None to leave one out), got {len(grads)}"
            raise ValueError(f"grads: {message}")
        return list(grads)

    def progress(self, entry: Any, label: str) -> _Progress:
        """The state that `_Progress.entry` gave, or PyTorch, or that a user has changed."""
        if not isinstance(entry, Mapping):
            raise TypeError(f"{label}: expected a dict, got {_kind(entry)}")
        # "al" is scratch, which PyTorch keeps with its state.
        for name in entry:
            if name not in ("func_evals", "n_iter", "al", *_Move._fields):
                raise ValueError(f"{label}[{name!r}]: not a state of 'lbfgs'")
        func_evals = whole_number(entry.get("func_evals", 0), f"{label}['func_evals']")
        n_iter = whole_number(entry.get("n_iter", 0), f"{label}['n_iter']")
        if n_iter == 0:
            first = entry.get("t")
            return _Progress(func_evals, 0, None, None if first is None else _finite(first, f"{label}['t']"))
        values: dict[str, Any] = {}
        for name in _Move._fields:
            value, what = entry.get(name), f"{label}[{name!r}]"
            if value is None:
                raise ValueError(f"{what}: missing after {n_iter} iterations")
            if name in ("old_dirs", "old_stps", "ro"):
                if not isinstance(value, (list, tuple)):
                    raise TypeError(f"{what}: expected a list, got {_kind(value)}")
                read = _finite if name == "ro" else self._vector
                values[name] = [read(item, f"{what}[{k}]") for k, item in enumerate(value)]
                if len(value) != len(values["old_dirs"]):
                    raise ValueError(f"{what}: expected {len(values['old_dirs'])} as 'old_dirs' has, got {len(value)}")
            else:
                values[name] = (self._vector if name in ("d", "prev_flat_grad") else _finite)(value, what)
        return _Progress(func_evals, n_iter, _Move(**values))

    def _vector(self, value: object, label: str) -> Array:
        array = unmasked(value, label)
        if array.dtype != self.dtype:
            raise TypeError(f"{label}: expected dtype {self.dtype}, got {array.dtype}")
        if array.shape != (self.size,):
            raise ValueError(f"{label}: expected shape {(self.size,)}, got {array.shape}")
        return np.ascontiguousarray(array)


class _Problem(_Layout):
    """The parameters, and the loss as a function of them."""

    def __init__(self, group: Mapping[str, Any], form: str, container: Any, closure: Closure) -> None:
        super().__init__(group, form, container)
        self.closure = closure

    def evaluate(self) -> _Point:
        """Calls the closure."""
        returned: object = self.closure()
        if not isinstance(returned, (tuple, list)):
            raise TypeError(f"closure: expected it to return (loss, grads), got {_kind(returned)}")
        if len(returned) != 2:
            raise TypeError(f"closure: expected it to return (loss, grads), got {len(returned)} values")
        loss, grad = _number(returned[0], "loss"), self.gradient(returned[1])
        return _Point(loss, grad, _largest(grad))

    def evaluate_finite(self, note: str = "") -> _Point:
        """The same, for where there is no other place to try."""
        point = self.evaluate()
        for name, value in (("loss", point.loss), ("grads", point.grad_max)):
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected finite numbers, got {value}{note}")
        return point


class _Exhausted(Exception):  # noqa: N818
    """A line search is over."""


class _Line:
    """The loss from `x` along `move.d`, each place evaluated once."""

    def __init__(self, problem: _Problem, x: Array, move: _Move, start: _Point, slope: float, budget: int) -> None:
        self.problem, self.x, self.move, self.start, self.budget = problem, x, move, start, budget
        self.evaluations = 0
        self.spent = False
        self.known = {0.0: (start.loss, slope)}
        self.last = self.best = 0.0, start

    def at(self, t: float) -> tuple[float, float]:
        """The loss and its slope along d after a move of t; an infinite loss where something is not finite."""
        if t not in self.known:
            place = _moved(self.x, self.move._replace(t=t))
            self.spent = self.evaluations >= self.budget
            if self.spent or np.array_equal(place, self.x):
                raise _Exhausted
            self.problem.write(place)
            point = self.problem.evaluate()
            self.evaluations += 1
            self.last = t, point
            self.known[t] = (point.loss, _core.dot(point.grad, self.move.d)) if point.finite else (math.inf, 0.0)
            if self.known[t][0] < self.best[1].loss:
                self.best = self.last
        return self.known[t]

    def shortest(self) -> float:
        """The shortest move that was tried."""
        return min(filter(None, self.known))

    def search(self, line_search: Callable[..., Any], tolerance_change: float) -> tuple[float, _Point]:
        """The t that satisfies the Wolfe conditions; failing that, the one with the lowest loss; 0 if none is lower."""
        first, slope = self.move.t, self.known[0.0][1]
        try:
            with warnings.catch_warnings():
                # That it found none is seen from what it returns.
                warnings.filterwarnings("ignore", "The line search|Rounding errors prevent", RuntimeWarning)
                # In units of the first try, which is how SciPy is told of it.
                alpha, _, _, _, _, found = line_search(
                    lambda a: self.at(float(a[0]) * first)[0],
                    lambda a: np.array([self.at(float(a[0]) * first)[1] * first]),
                    np.zeros(1),
                    np.ones(1),
                    np.array([slope * first]),
                    self.start.loss,
                    c1=C1,
                    c2=C2,
                    maxiter=_DOUBLINGS,
                )
            if found is not None and float(alpha) * first == self.last[0]:
                self.best = self.last
            # Down to where a move changes nothing.
            t, size = min(filter(None, self.known), default=0.0), _largest(self.move.d)
            while self.best[1] is self.start and t * size > tolerance_change:
                t /= 2
                self.at(t)
        except _Exhausted:
            pass
        return self.best


def _next_move(progress: _Progress, point: _Point, settings: _Settings) -> _Move:
    """The direction, and the first try of how far."""
    last = progress.move
    if last is None:
        t = min(1.0, 1.0 / _core.dot(np.sign(point.grad), point.grad)) * settings.lr
        t = t if progress.first is None else min(t, progress.first)
        return _Move(-point.grad, t, [], [], [], 1.0, point.grad, point.loss)
    old_dirs, old_stps, ro, diagonal = last.old_dirs, last.old_stps, last.ro, last.H_diag
    # What overflows is seen in the slope.
    with np.errstate(over="ignore", invalid="ignore"):
        y, s = point.grad - last.prev_flat_grad, last.d * last.t
        ys, yy = _core.dot(y, s), _core.dot(y, y)
        if ys > 1e-10 and yy > 0.0:
            old_dirs, old_stps, ro, diagonal = [*old_dirs, y], [*old_stps, s], [*ro, 1.0 / ys], ys / yy
        kept = slice(-settings.history_size, None)
        old_dirs, old_stps, ro = old_dirs[kept], old_stps[kept], ro[kept]
        pairs = list(zip(old_dirs, old_stps, ro, strict=True))
        d, alphas = -point.grad, []
        for y, s, rho in reversed(pairs):
            alphas.append(rho * _core.dot(s, d))
            _core.axpy(-alphas[-1], y, d)
        d *= diagonal
        for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            _core.axpy(alpha - rho * _core.dot(y, d), s, d)
    return _Move(d, settings.lr, old_dirs, old_stps, ro, diagonal, point.grad, point.loss)


def _moved(x: Array, move: _Move) -> Array:
    place = x.copy()
    _core.axpy(move.t, move.d, place)
    return place


def _largest(vector: Array) -> float:
    """max |v|; NaN where there is one."""
    return float(np.abs(vector).max(initial=0.0))


def _check_params(group: Mapping[str, Any]) -> None:
    """Refuses what no optimizer takes, and other dtypes or several."""
    SGD([{key: group[key] for key in ("params", "param_names") if key in group}])
    arrays = arrays_of([dict(group)])
    if not arrays:
        raise ValueError("params: expected at least one array, got none")
    for label, array in arrays:
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{label}: expected float32 or float64, got dtype {array.dtype}")
        if array.dtype != arrays[0][1].dtype:
            raise TypeError(f"{label}: expected dtype {arrays[0][1].dtype} as {arrays[0][0]} has, got {array.dtype}")


def _line_search(name: Any) -> Callable[..., Any] | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"line_search_fn: expected None or 'strong_wolfe', got {_kind(name)}")
    if name != "strong_wolfe":
        raise ValueError(f"line_search_fn: expected None or 'strong_wolfe', got {name!r}")
    try:
        optimize: Any = importlib.import_module("scipy.optimize")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("line_search_fn needs SciPy: pip install 'fusedstep[lbfgs]'") from error
    line_search: Callable[..., Any] = optimize.line_search
    return line_search


def _number(value: Any, label: str) -> float:
    """Anything that is one number: of Python, NumPy, PyTorch."""
    array = isinstance(value, np.ndarray) and value.ndim > 0
    if isinstance(value, (bool, np.bool_, str, bytes, bytearray)) or array:
        raise TypeError(f"{label}: expected a number, got {_kind(value)}")
    try:
        # PyTorch warns of a number that has a gradient.
        return float(value.detach() if hasattr(value, "detach") else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{label}: expected a number, got {_kind(value)}") from error


def _finite(value: Any, label: str) -> float:
    number = _number(value, label)
    if not math.isfinite(number):
        raise ValueError(f"{label}: expected a finite number, got {shown(value)}")
    return number


def _not_negative(value: Any, name: str) -> float:
    number = _number(value, name)
    if not (math.isfinite(number) and number >= 0.0):
        raise ValueError(f"{name}: expected a finite number >= 0, got {shown(value)}")
    return number


def _count(value: Any, name: str) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a whole number, got {_kind(value)}")
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected a whole number, got {_kind(value)}") from error
    if not 1 <= number < 2**53:
        raise ValueError(f"{name}: expected a whole number >= 1, got {shown(value)}")
    return number


def _kind(value: object) -> str:
    return type(value).__qualname__
