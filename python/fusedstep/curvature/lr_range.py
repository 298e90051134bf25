"""Which learning rates a model can train with: a short run with a rising rate."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from fusedstep._common.arguments import function, number, share, whole
from fusedstep._common.arrays import unmasked
from fusedstep._common.brief import brief_repr
from fusedstep._common.plain import plain
from fusedstep._common.structure import Parameters
from fusedstep.curvature.plots import saved_axes
from fusedstep.curvature.space import Array, Vector, positive, scalar
from fusedstep.curvature.torch_training import Gradients, is_module, module_step
from fusedstep.schedules.saving import plateaus as _plateaus


@dataclass(frozen=True, slots=True)
class LRRangeTest:
    """Losses under a rising learning rate.

    Attributes:
        lrs: The rates that were tried, ascending.
        losses: The loss that `step` returned at each; the last may be infinite or NaN.
        smoothed: Their running average, as long as it is finite.
        steepest: The rate at which the average falls fastest per factor of the rate; None where it never falls.
        lowest: The rate at which it is lowest.
        tenth: A tenth of that: a rate to begin with.
        stopped: "end" of the rates, "diverged", or "not finite".
    """

    lrs: Array
    losses: Array
    smoothed: Array
    steepest: float | None
    lowest: float | None
    tenth: float | None
    stopped: Literal["end", "diverged", "not finite"]

    __repr__ = brief_repr

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; None for a loss that is not finite."""
        content = {name: plain(getattr(self, name)) for name in self.__slots__}
        content["losses"] = [loss if math.isfinite(loss) else None for loss in content["losses"]]
        return content

    def plot(self, path: str) -> None:
        """Draws the losses, their average and the suggestions into a file."""
        with saved_axes(path) as axes:
            shown = np.isfinite(self.losses)
            axes.plot(self.lrs[shown], self.losses[shown], color="0.75", lw=0.8, label="loss of a step")
            axes.plot(self.lrs[: len(self.smoothed)], self.smoothed, color="#0072B2", label="average")
            marks = ((self.steepest, "#009E73", "--", "steepest"), (self.tenth, "#D55E00", ":", "lowest / 10"))
            for lr, colour, style, name in marks:
                if lr is not None:
                    axes.axvline(lr, color=colour, ls=style, label=f"{name}: {lr:.2g}")
            if len(self.smoothed):
                low, high = float(self.smoothed.min()), float(self.smoothed[: max(1, len(self.smoothed) // 2)].max())
                margin = 0.3 * (high - low) or 1.0
                # A diverging loss would press the rest of the curve flat.
                axes.set_ylim(low - margin, high + 2 * margin)
            axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="Learning rate range test")
            axes.legend(frameon=False)


def lr_range_test(
    step: Callable[[float], float] | Any,
    lrs: tuple[float, float, int] | Sequence[float] | Array = (1e-7, 10.0, 100),
    *,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    params: Any = None,
    optimizer: Any = None,
    loss: Callable[[], Any] | None = None,
) -> LRRangeTest:
    r"""Trains with a learning rate that rises exponentially, until the loss diverges, and suggests rates.

    .. code-block:: text

        average ← s · average + (1 − s) · loss, divided by 1 − sᵗ
        stops where  average > lowest + max((divergence − 1) · |lowest|, noise)
        noise = 5 · (1 + 10 / t) · 1.48 · median of |loss − average before it|

    Noise is the scatter of the losses so far: near a loss of 0 it exceeds any multiple of the lowest average. 1.48
    medians of normal deviations are a standard deviation; a few deviations tell little.

    Args:
        step: `step(lr) -> loss`: trains one batch with this rate and gives the loss before the update. Or a
            `torch.nn.Module` with its `optimizer` and its `loss`: it is put back with its gradients.
        lrs: A tuple `(lowest, highest, steps)`, or a list or array of ascending rates; all > 0.
        smoothing: s, in [0, 1).
        divergence: > 1.
        params: What training changes: an array, a layer or module with a state dict (`BatchNorm`, PyTorch's; their
            count of batches comes back with the rest), or these in any structure that an optimizer takes. They are put
            back as they were, bit for bit, also after an error or Ctrl-C. None: you put them back yourself.
        optimizer: Its state and the hyper-parameters in its groups are put back likewise, through `state_dict` and
            `load_state_dict`. For a module it is a `torch.optim.Optimizer`, all of whose groups take the rate.
        loss: For a module: `loss() -> tensor`, the loss of the next batch, called in every step.

    Returns:
        The `LRRangeTest`.

    Raises:
        TypeError: A kind that is not as said; a `step` that gives no number.
        ValueError: A rate or option out of range; rates that do not rise; params that are read-only.

    Examples:
        Gradient descent on w² diverges beyond a rate of 1.

        >>> import numpy as np, fusedstep as fs
        >>> w = np.ones(1)
        >>> opt = fs.SGD(w)
        >>> def step(lr):
        ...     opt.param_groups[0]["lr"] = lr
        ...     loss = float(w @ w)
        ...     opt.step(2 * w)
        ...     return loss
        >>> found = fs.lr_range_test(step, (1e-4, 10.0, 200), params=w, optimizer=opt)
        >>> print(found.stopped, 0.01 < found.steepest < 1, w)
        diverged True [1.]

        A torch model:

        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> opt = torch.optim.SGD(model.parameters())
        >>> def loss():
        ...     return (model(torch.eye(2)) - 3.0).square().mean()
        >>> found = fs.lr_range_test(model, (1e-3, 100.0, 200), optimizer=opt, loss=loss)
        >>> print(0.01 < found.steepest < 0.1, model.weight.tolist())
        True [[0.0, 0.0]]

    Reference:
        Smith, "Cyclical learning rates for training neural networks", WACV 2017.
    """
    if is_module(step):
        if params is not None:
            raise ValueError("params: expected None beside a module, which is put back as a whole")
        step, params = module_step(step, optimizer, loss), {"module": step, "grads": Gradients(step)}
    elif loss is not None:
        raise ValueError("loss: expected None beside a step function, which gives the loss itself")
    function(step, "step")
    rates = _rates(lrs)
    kept = share(scalar(smoothing, "smoothing"), "smoothing")
    factor = number(scalar(divergence, "divergence"), "divergence", above=1)
    losses: list[float] = []
    smoothed: list[float] = []
    scatter: list[float] = []
    stopped: Literal["end", "diverged", "not finite"] = "end"
    average, lowest = 0.0, math.inf
    with _restored(params, optimizer):
        for k, lr in enumerate(rates):
            seen = scalar(step(float(lr)), "step(lr)")
            losses.append(seen)
            average = kept * average + (1 - kept) * seen
            if not math.isfinite(average):
                stopped = "not finite"
                break
            if smoothed:
                scatter.append(abs(seen - smoothed[-1]))
            smoothed.append(average / (1 - kept ** (k + 1)))
            lowest = min(lowest, smoothed[-1])
            if smoothed[-1] > lowest + max((factor - 1) * abs(lowest), _noise(scatter)):
                stopped = "diverged"
                break
    steepest, best = _suggestions(rates, np.array(smoothed))
    return LRRangeTest(
        lrs=rates[: len(losses)],
        losses=np.array(losses),
        smoothed=np.array(smoothed),
        steepest=steepest,
        lowest=best,
        tenth=None if best is None else best / 10,
        stopped=stopped,
    )


def _noise(scatter: list[float]) -> float:
    """How far an average may rise by chance, from the distances of the losses to the average before them."""
    if not scatter:
        return 0.0
    # The lower median: if half of all losses have diverged, it is one of the others.
    middle = float(np.partition(scatter, (len(scatter) - 1) // 2)[(len(scatter) - 1) // 2])
    return 5 * (1 + 10 / len(scatter)) * 1.4826 * middle


def _rates(lrs: Any) -> Vector:
    if isinstance(lrs, tuple):
        if len(lrs) != 3:
            raise ValueError(f"lrs: expected (lowest, highest, steps), got {len(lrs)} entries; rates go in a list")
        low, high, count = (
            positive(lrs[0], "lrs[0]"),
            positive(lrs[1], "lrs[1]"),
            whole(lrs[2], "lrs[2]", least=2, most=None),
        )
        if high <= low:
            raise ValueError(f"lrs: expected lowest < highest, got {lrs[0]!r} and {lrs[1]!r}")
        return np.geomspace(low, high, count)
    if not isinstance(lrs, (list, np.ndarray)):
        raise TypeError(f"lrs: expected a tuple, a list or an array, got {type(lrs).__qualname__}")
    rates = np.array([positive(lr, f"lrs[{k}]") for k, lr in enumerate(lrs)])
    if len(rates) == 0 or not (np.diff(rates) > 0).all():
        raise ValueError("lrs: expected at least one rate, each above the one before")
    return rates


def _suggestions(rates: Vector, smoothed: Vector) -> tuple[float | None, float | None]:
    """Where the average falls fastest per factor of the rate, before it is lowest; and where that is."""
    # A loss that does not move falls nowhere.
    if len(smoothed) == 0 or np.ptp(smoothed) <= 1e-12 * np.abs(smoothed).max():
        return None, None
    least = int(smoothed.argmin())
    best = float(rates[least])
    if least == 0:
        return None, best
    slopes = np.gradient(smoothed[: least + 1], np.log(rates[: least + 1]))
    return float(rates[int(slopes.argmin())]), best


@contextmanager
def _restored(params: Any, optimizer: Any) -> Iterator[None]:
    """Puts everything back at the end; after an interrupt the rest is still put back."""
    back = _Back()
    if params is not None:
        back.keep(params, "params")
    if optimizer is not None:
        if not (hasattr(optimizer, "load_state_dict") and hasattr(optimizer, "state_dict")):
            raise TypeError(f"optimizer: expected one with a state dict, got {type(optimizer).__qualname__}")
        back.keep_optimizer(optimizer)
    try:
        yield
    finally:
        back.run()


class _Back:
    """Calls that put former values back; each may be repeated."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []
        self._raised: list[BaseException] = []
        self._failed: Callable[[], Any] | None = None

    def run(self) -> None:
        """Makes all calls; one that is interrupted is made once more. Then raises what came first."""
        while self._calls:
            try:
                while self._calls:
                    self._calls[0]()
                    del self._calls[0]
            except BaseException as error:
                self._raised.append(error)
                if self._calls and self._failed is self._calls[0]:
                    del self._calls[0]
                self._failed = self._calls[0] if self._calls else None
        if self._raised:
            raise self._raised[0]

    def keep(self, given: Any, name: str) -> None:
        """Parameters in any structure, with layers that have a state dict among them; and what holds them."""
        if hasattr(given, "load_state_dict"):
            self._keep_one(given, name)
            return
        params = Parameters(given, name)
        for label, value in zip(params.labels(name), params.objects, strict=True):
            self._keep_one(value, label)
        self._keep_entries(given)

    def _keep_entries(self, holder: Any) -> None:
        """The entries of dicts and lists, because `step` may put other arrays in their place."""
        if isinstance(holder, Mapping):
            entries: list[tuple[Any, Any]] = list(holder.items())
        elif isinstance(holder, list | tuple):
            entries = list(enumerate(holder))
        else:
            return
        for _, entry in entries:
            self._keep_entries(entry)
        if isinstance(holder, MutableMapping | list):
            self._calls.append(partial(_put_entries, holder, entries))

    def _keep_one(self, given: Any, name: str) -> None:
        if hasattr(given, "load_state_dict"):
            state = {key: _copied(value) for key, value in given.state_dict().items()}
            self._calls.append(partial(given.load_state_dict, state))
            return
        array = unmasked(given, name)
        if not array.flags.writeable:
            raise ValueError(f"{name}: expected an array that can be put back, got a read-only one")
        value = array.copy()
        self._calls.append(partial(np.copyto, array, value))

    def keep_optimizer(self, optimizer: Any) -> None:
        """Its state, and the hyper-parameters in its groups: the same objects, as they were."""
        state = optimizer.state_dict()
        groups = getattr(optimizer, "param_groups", None) or []
        kept = [{key: _kept(value) for key, value in group.items()} for group in groups]
        plateaus = {id(part): part for group in groups for part in _plateaus(group.get("lr"))}
        for plateau in plateaus.values():
            self._calls.append(partial(plateau.load_state_dict, plateau.state_dict()))
        saved = {
            key: [{name: _kept(entry) for name, entry in group.items()} for group in value]
            if key == "param_groups"
            else copy.deepcopy(value)
            for key, value in state.items()
        }

        def hypers() -> None:
            for group, was in zip(optimizer.param_groups, kept, strict=False):
                group.clear()
                group.update({key: _kept(value) for key, value in was.items()})

        # Hyper-parameters first: then the state replaces none.
        self._calls += [hypers, partial(optimizer.load_state_dict, saved)]


def _kept(value: Any) -> Any:
    """A hyper-parameter: a tensor's value now; a schedule, parameters and names as they are."""
    return value.detach().clone() if hasattr(value, "detach") else value


def _copied(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else copy.deepcopy(value)


def _put_entries(container: Any, entries: list[tuple[Any, Any]]) -> None:
    """The same objects in the same places, where `step` has put others."""
    if len(container) != len(entries) or any(
        (key not in container if isinstance(container, Mapping) else False) or container[key] is not entry
        for key, entry in entries
    ):
        container.clear()
        if isinstance(container, list):
            container.extend(entry for _, entry in entries)
        else:
            container.update(entries)
