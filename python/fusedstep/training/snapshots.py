"""Snapshots of a run, and the mean of their predictions."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedstep._common.arguments import whole
from fusedstep._common.arrays import dtype_name
from fusedstep.reference.codec import narrowed, widened
from fusedstep.schedules.base import Schedule
from fusedstep.schedules.combinators import ends_cycle, has_cycles
from fusedstep.training.weights import FLOATS, Array, Exchangeable, Structure, Weights, check_keys, kept


class SnapshotEnsemble(Exchangeable):
    """Copies of the weights at the end of each cycle of a schedule, where they are near a minimum.

    Args:
        params: The arrays, of any dtype; running statistics of batch norm belong in here too.
        schedule: One with cycles (`schedules.cosine_warm_restarts`, `schedules.cyclic`, or `warmup`, `scale` or `join`
            of these), which says when to take one; None if you call `take`.
        max_snapshots: How many snapshots are kept, the latest ones; >= 1.

    Raises:
        TypeError: Something that is no array; a schedule without cycles.
        ValueError: An array that cannot be written; `max_snapshots` is out of range.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.zeros(1, np.float32)
        >>> schedule = fs.schedules.cosine_warm_restarts(0.5, period=3)
        >>> opt = fs.SGD(p, lr=schedule)
        >>> ensemble = fs.averaging.SnapshotEnsemble(p, schedule)
        >>> print([ensemble.observe(opt.step(p - 1).step) for _ in range(6)])
        [False, False, True, False, False, True]
        >>> with ensemble.use(0):
        ...     print(len(ensemble), p)
        2 [0.7265625]

    Reference:
        Huang, Li, Pleiss, Liu, Hopcroft and Weinberger, "Snapshot Ensembles: Train 1, Get M for Free", 2017.
    """

    def __init__(self, params: Structure, schedule: Schedule | None = None, *, max_snapshots: int = 5) -> None:
        if schedule is not None and not has_cycles(schedule):
            raise TypeError(f"schedule: expected one with cycles, got {schedule!r}")
        self.schedule = schedule
        self.max_snapshots = whole(max_snapshots, "max_snapshots", least=1)
        super().__init__(Weights(params))
        self._members: list[list[Array]] = []
        self._last_end = 0

    def observe(self, step: int) -> bool:
        """Takes a snapshot if a cycle has just ended; after every step.

        Args:
            step: Steps taken so far, this one included: `StepReport.step`.

        Returns:
            Whether it took one. It takes one only once for the same step: a step that was left out (`skip_nonfinite`)
            reports the step before it.

        Raises:
            RuntimeError: There is no schedule; within `use`.
            TypeError: `step` is no whole number.
            ValueError: It is out of range.
        """
        if self.schedule is None:
            raise RuntimeError("observe: there is no schedule, which would say where a cycle ends; see take")
        step = whole(step, "step")
        if step == self._last_end or not ends_cycle(self.schedule, step):
            return False
        self.take()
        self._last_end = step
        return True

    def take(self) -> None:
        """Takes a snapshot.

        Raises:
            RuntimeError: Within `use`.
        """
        self._require_own_weights("take")
        self._members = [*self._members, self._weights.copies()][-self.max_snapshots :]

    def members(self) -> list[Structure]:
        """The snapshots, the oldest first, structured as the weights: the arrays themselves, not copies."""
        return [self._weights.built(member) for member in self._members]

    def use(self, k: int) -> AbstractContextManager[None]:
        """Holds snapshot k in the weights' arrays during a `with` block, and then restores the weights bit for bit.

        The weights come back after an exception too. Anything written into the weights meanwhile is lost.

        Raises:
            TypeError: k is no whole number.
            ValueError: There is no snapshot k.
        """
        if whole(k, "k") >= len(self._members):
            raise ValueError(f"k: expected one of {len(self._members)} snapshots, got {k}")
        return self._exchanged(self._members[k])

    def __len__(self) -> int:
        return len(self._members)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """A state for `load_state_dict`, and for the metadata of `save_checkpoint`.

        Args:
            copy: False returns its own arrays: to write them out at once.
        """
        members = [self._weights.built(kept(member, copy)) for member in self._members]
        return {"members": members, "last_end": self._last_end}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies a state.

        Raises:
            KeyError: A missing or unknown name.
            TypeError: Another dtype or structure.
            ValueError: Another shape; more than `max_snapshots`. Nothing has changed then.
        """
        check_keys(state, ("members", "last_end"))
        given = state["members"]
        if not isinstance(given, list | tuple):
            raise TypeError(f"state['members']: expected a list, got {type(given).__name__}")
        if len(given) > self.max_snapshots:
            raise ValueError(f"state['members']: expected at most {self.max_snapshots}, got {len(given)}")
        last_end = whole(state["last_end"], "state['last_end']")
        arrays = self._weights.arrays
        members = [self._weights.read(member, f"state['members'][{k}]", arrays) for k, member in enumerate(given)]
        self._members, self._last_end = members, last_end


def ensemble_predict(predict: Callable[[], Array], ensemble: SnapshotEnsemble) -> Array:
    r"""The mean of the predictions of all snapshots.

    .. code-block:: text

        p(class | x) = mean over the snapshots θ of p(class | x, θ)

    Args:
        predict: Gives probabilities (not logits) with the weights that are in place, always of the same shape: (N, C),
            or (N,) for two classes.
        ensemble: The snapshots.

    Returns:
        Their mean, summed in float64, in the dtype that `predict` gives.

    Raises:
        TypeError: `predict` returns something other than an array of floats.
        ValueError: Something that is no probability; a shape that changes between snapshots; an ensemble without
            snapshots.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.zeros(1, np.float32)
        >>> ensemble = fs.averaging.SnapshotEnsemble(p)
        >>> for value in (0.25, 0.75):
        ...     p[...] = value
        ...     ensemble.take()
        >>> print(fs.averaging.ensemble_predict(lambda: np.array([[p[0], 1 - p[0]]]), ensemble))
        [[0.5 0.5]]
    """
    if not isinstance(ensemble, SnapshotEnsemble):
        raise TypeError(f"ensemble: expected a SnapshotEnsemble, got {type(ensemble).__name__}")
    if len(ensemble) == 0:
        raise ValueError("ensemble: expected at least one snapshot, got none")
    total, given = None, None
    for k in range(len(ensemble)):
        with ensemble.use(k):
            given = predict()
            if not isinstance(given, np.ndarray) or dtype_name(given.dtype) not in FLOATS:
                kind = getattr(given, "dtype", type(given).__name__)
                raise TypeError(f"predict: expected an array of floats, got {kind}")
            if isinstance(given, np.ma.MaskedArray):
                raise TypeError("predict: expected an array, got a masked one")
            values = widened(given)
            if not ((values >= 0) & (values <= 1 + 1e-2)).all():
                raise ValueError(f"predict: expected probabilities in [0, 1], got {values.min()} to {values.max()}")
            if total is not None and values.shape != total.shape:
                raise ValueError(f"predict: expected shape {total.shape}, got {values.shape}")
            total = values.astype(np.float64) if total is None else total + values
    assert total is not None
    assert given is not None
    total /= len(ensemble)
    if given.dtype in (np.float32, np.float64):
        return total.astype(given.dtype)
    return narrowed(total.astype(np.float32), given.dtype)
