"""L-BFGS: a quasi-Newton method for smooth losses whose gradient is exact."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._common.structure import listed, parse, refuse_orphans
from fusedstep.optimizers.base import LearningRate
from fusedstep.optimizers.base.groups import arrays_of, described, structure_of
from fusedstep.optimizers.base.hypers import same_hyper, warn_of_replaced
from fusedstep.optimizers.base.reading import hyper_parameter, parts_of, whole_number
from fusedstep.optimizers.lbfgs.moves import Moves
from fusedstep.optimizers.lbfgs.numbers import count, kind
from fusedstep.optimizers.lbfgs.problem import Closure, Layout, Problem, check_params
from fusedstep.optimizers.lbfgs.report import LBFGSReport
from fusedstep.optimizers.lbfgs.settings import Settings
from fusedstep.schedules.saving import ScheduleLoader


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

    If the search ends without such a t (`max_eval`, or a loss that falls without end), it takes the place with the
    lowest loss that it saw. If no loss is lower, down to moves of `tolerance_change`, nothing moves, the pairs are
    forgotten, and d is −g again.

    Args:
        params: An array, a list of them, a dict `{name: array}`, or a list of one group, see `Optimizer`; all float32,
            or all float64.
        lr: Length of a move in units of d, or a schedule `steps taken -> lr`; finite, >= 0.
        max_iter: Moves per step; a whole number >= 1.
        max_eval: The most evaluations of a step; a whole number >= 1. If a line search has seen no lower loss by then,
            nothing moves, and the next step starts with shorter moves. If no evaluation is left for a move, as with 1,
            the move is made without one. None: `max_iter * 5 // 4`.
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
        check_params(group)
        self._given = parsed.copied()
        self._shapes = [array.shape for _, array in arrays_of([group])]
        if group["max_eval"] is None:
            group["max_eval"] = count(group["max_iter"], "max_iter") * 5 // 4
        Settings.of(group)
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
        """PyTorch's state, at position 0 from the first step on: numbers, and vectors of all parameters.

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
                it does to the parameters itself (it may clamp them) is kept, but not in the trials of a line search.

        Returns:
            The `LBFGSReport` of this step.

        Raises:
            TypeError: No function; it returned no pair, no number, or gradients of a wrong dtype or kind.
            ValueError: Gradients of a wrong shape or number; a hyper-parameter; parameters that overlap; a loss or
                gradient that is not finite: at the start of the step, or after a fixed move.
            RuntimeError: The closure called `step`.

        Whatever is raised, by the closure too, and after `KeyboardInterrupt`, parameters and state are those after the
        last complete move. The next step goes on from there.
        """
        if not callable(closure):
            raise TypeError(f"closure: expected a function that returns (loss, grads), got {kind(closure)}")
        with self._turn():
            return self._step(closure)

    def _step(self, closure: Closure) -> LBFGSReport:
        group = self._group()
        settings = Settings.of(group, self._taken)
        problem = Problem(group, self._form, self._given.container, closure)
        before = problem.progress(self._state.get(0, {}), "state[0]")
        for done, most, label in (
            (self._taken, 1, "step"),
            (before.func_evals, settings.max_eval, "state[0]['func_evals']"),
            (before.n_iter, settings.max_iter, "state[0]['n_iter']"),
        ):
            # The count after the step must be one that `load_state_dict` takes.
            if done + min(most, 2**52) + 2 >= 2**53:
                raise ValueError(f"{label}: expected a count that a step leaves below 2**53, got {done}")
        moves = Moves(problem, settings, before)
        try:
            while moves.reason is None:
                moves.advance()
            taken = self._taken + 1
            report = moves.report(taken, moves.reason)
            _core.commit([], [(self._state, 0, moves.accepted[1].entry()), (self.__dict__, "_taken", taken)])
            return report
        except BaseException:
            x, progress = moves.accepted
            _core.commit(problem.pairs(x), [(self._state, 0, progress.entry())])
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
            hypers: Whether to load the hyper-parameters too; a warning names those that change. False keeps the
                optimizer's own.

        Warns:
            UserWarning: Hyper-parameters were replaced by others.

        Raises:
            ValueError: It is another optimizer's, or for other parameters. Nothing has changed then.
            TypeError: An array of another dtype; something that is no number.
        """
        with self._turn():
            saved_groups, entries = parts_of(state_dict, "lbfgs")
            group = self._group()
            counts = [len(group["params"])]
            saved_counts = [len(saved["params"]) for saved in saved_groups]
            if counts != saved_counts:
                raise ValueError(f"state_dict: expected groups of {counts} parameters, got {saved_counts}")
            saved = saved_groups[0]
            loader, before = ScheduleLoader(), dict(group)
            taken_over = [name for name in self.defaults if name in saved] if flag(hypers, "hypers") else []
            loaded = {
                name: hyper_parameter(saved[name], f"state_dict['param_groups'][0][{name!r}]") for name in taken_over
            }
            group.update({name: loader.adopt(group.get(name), value) for name, value in loaded.items()})
            Settings.of(group)
            layout = Layout(group, self._form, self._given.container)
            state: dict[int, dict[str, Any]] = {}
            for position, entry in entries.items():
                if position != 0:
                    raise ValueError(f"state_dict: expected the state at position 0, got one at {position}")
                state[0] = deepcopy(layout.progress(entry, "state_dict['state'][0]").entry())
            taken = whole_number(state_dict.get("step", 0), "state_dict['step']")
            pairs = {name: (before[name], value) for name, value in loaded.items()}
            warn_of_replaced({name: pair for name, pair in pairs.items() if not same_hyper(*pair)})
            loader.finish()
            self._param_groups, self._state, self._taken = [group], state, taken

    def _group(self) -> dict[str, Any]:
        """A checked copy of the group, which is a plain dict that users may change."""
        if len(self._param_groups) != 1:
            raise ValueError(f"param_groups: expected one group, got {len(self._param_groups)}")
        group = self._param_groups[0]
        if not isinstance(group, dict):
            raise TypeError(f"param_groups[0]: expected a dict, got {kind(group)}")
        check_params(group)
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
