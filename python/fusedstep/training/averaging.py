"""Averages of the weights of a run: exponential (EMA), and with equal weights (SWA)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arguments import flag, number, whole
from fusedstep.normalization import BatchNorm
from fusedstep.reference.codec import narrowed, widened
from fusedstep.training.weights import FLOATS, Array, Exchangeable, Structure, Weights, check_keys, kept


class EMA(Exchangeable):
    r"""An exponential moving average of weights, outside of an optimizer.

    .. code-block:: text

        ema ← ema + (1 − d) · (p − ema)  =  d · ema + (1 − d) · p
        d = decay,  or with warmup  min(decay, (1 + n) / (10 + n))  in update n = 1, 2, …

    It starts from the values of the arrays at construction. For float32 and float64 arrays its bits are those of the
    optimizers' option `ema_decay` (and `ema_warmup`), which costs less: it averages while the step has the weights in
    the cache. The average of float16 and bfloat16 arrays is float32; it averages the rounded weights, the option
    averages them before rounding.

    Args:
        params: The arrays: float32, float64, float16 or bfloat16.
        decay: In [0, 1).
        warmup: Whether the first updates weigh more, so that the start is soon forgotten.

    Attributes:
        updates: The number of updates so far.

    Raises:
        TypeError: Another dtype; something that is no array.
        ValueError: decay is out of range; an array that cannot be written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> params = {"w": np.zeros(2, np.float32)}
        >>> ema = fs.averaging.EMA(params, 0.5)
        >>> params["w"] += 1
        >>> ema.update()
        >>> with ema.swap():
        ...     print(params["w"])
        [0.5 0.5]
        >>> print(params["w"], ema.params)
        [1. 1.] {'w': array([0.5, 0.5], dtype=float32)}

    Reference:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(self, params: Structure, decay: float, *, warmup: bool = False) -> None:
        self.decay = number(decay, "decay", least=0, below=1)
        self.warmup = flag(warmup, "warmup")
        self.updates = 0
        super().__init__(Weights(params, FLOATS))
        self._averages = [np.array(widened(array), order="K") for array in self._weights.arrays]

    def update(self) -> None:
        """Moves the average towards the weights; after every step.

        Raises:
            RuntimeError: Within `swap`.
        """
        self._require_own_weights("update")
        updates = whole(self.updates + 1, "updates")
        decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay
        moved = []
        with np.errstate(all="ignore"):
            for average, array in zip(self._averages, self._weights.arrays, strict=True):
                move = np.asarray(widened(array) - average)
                move *= average.dtype.type(1.0 - decay)
                moved.append(np.add(move, average, out=move))
        _core.write(self._averages, moved)
        self.updates = updates

    @property
    def params(self) -> Structure:
        """The averages, structured as the weights: the arrays themselves, not copies."""
        return self._weights.built(self._averages)

    def swap(self) -> AbstractContextManager[None]:
        """Holds the averages in the weights' arrays during a `with` block, and then restores the weights bit for bit.

        The weights come back after an exception too. Anything written into the weights meanwhile is lost.
        """
        return self._exchanged([_rounded(a, b) for a, b in zip(self._averages, self._weights.arrays, strict=True)])

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """A state for `load_state_dict`, and for the metadata of `save_checkpoint`.

        Args:
            copy: False returns its own arrays, which the next update changes: to write them out at once.
        """
        params = self._weights.built(kept(self._averages, copy))
        return {"decay": self.decay, "warmup": self.warmup, "updates": self.updates, "params": params}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies a state.

        Raises:
            KeyError: A missing or unknown name.
            TypeError: Another dtype or structure.
            ValueError: Another shape; a number out of range. Nothing has changed then.
        """
        check_keys(state, ("decay", "warmup", "updates", "params"))
        decay = number(state["decay"], "state['decay']", least=0, below=1)
        warmup, updates = flag(state["warmup"], "state['warmup']"), whole(state["updates"], "state['updates']")
        averages = self._weights.read(state["params"], "state['params']", self._averages)
        self.decay, self.warmup, self.updates, self._averages = decay, warmup, updates, averages


class SWA(Exchangeable):
    r"""The mean of weights, each update with the same weight (stochastic weight averaging).

    .. code-block:: text

        mean ← mean + (p − mean) / n     in update n = 1, 2, …

    The mean is float64 for weights of any dtype, so that its error stays far below half a unit of theirs. It is rounded
    when you read it (for float16 and bfloat16 to float32 first, as PyTorch rounds float64 to them). Batch norm's
    running statistics do not belong to averaged weights: see `recompute_batch_norm`.

    Args:
        params: The arrays: float32, float64, float16 or bfloat16.

    Attributes:
        updates: The number of updates so far.

    Raises:
        TypeError: Another dtype; something that is no array.
        ValueError: An array that cannot be written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> p = np.zeros(2, np.float32)
        >>> swa = fs.averaging.SWA(p)
        >>> for value in (1, 2, 6):
        ...     p[...] = value
        ...     swa.update()
        >>> print(swa.params, p)
        [3. 3.] [6. 6.]

    Reference:
        Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima and Better
        Generalization", 2018.
    """

    def __init__(self, params: Structure) -> None:
        self.updates = 0
        super().__init__(Weights(params, FLOATS))
        self._means = [np.zeros_like(array, np.float64) for array in self._weights.arrays]

    def update(self) -> None:
        """Adds the present weights to the mean; commonly once an epoch, late in the run.

        Raises:
            RuntimeError: Within `swap`.
        """
        self._require_own_weights("update")
        updates = whole(self.updates + 1, "updates")
        moved = []
        with np.errstate(all="ignore"):
            for mean, array in zip(self._means, self._weights.arrays, strict=True):
                values = widened(array).astype(np.float64, order="K", copy=False)
                moved.append(np.asarray(values if updates == 1 else mean + (values - mean) / updates))
        _core.write(self._means, moved)
        self.updates = updates

    @property
    def params(self) -> Structure:
        """The means in the weights' dtypes, structured as the weights; new arrays.

        Raises:
            RuntimeError: There was no update yet.
        """
        return self._weights.built(self._rounded("params"))

    def swap(self) -> AbstractContextManager[None]:
        """Holds the means in the weights' arrays during a `with` block, and then restores the weights bit for bit.

        The weights come back after an exception too. Anything written into the weights meanwhile is lost.

        Raises:
            RuntimeError: There was no update yet.
        """
        return self._exchanged(self._rounded("swap"))

    def _rounded(self, what: str) -> list[Array]:
        if self.updates == 0:
            raise RuntimeError(f"{what}: no update yet, and so no mean")
        return [_rounded(mean, array) for mean, array in zip(self._means, self._weights.arrays, strict=True)]

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """A state for `load_state_dict`, and for the metadata of `save_checkpoint`.

        Args:
            copy: False returns its own arrays, which the next update changes: to write them out at once.
        """
        return {"updates": self.updates, "means": self._weights.built(kept(self._means, copy))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies a state.

        Raises:
            KeyError: A missing or unknown name.
            TypeError: Another dtype or structure.
            ValueError: Another shape; a number out of range. Nothing has changed then.
        """
        check_keys(state, ("updates", "means"))
        updates = whole(state["updates"], "state['updates']")
        means = self._weights.read(state["means"], "state['means']", self._means)
        self.updates, self._means = updates, means


def recompute_batch_norm(norms: Sequence[BatchNorm], batches: Iterable[Any], forward: Callable[[Any], object]) -> int:
    r"""Recomputes the running statistics of batch norm, for weights that they do not belong to.

    .. code-block:: text

        running = mean over the batches of (batch mean, batch variance)

    Every batch counts the same, however many rows it has (as in `torch.optim.swa_utils.update_bn`).

    Args:
        norms: The layers.
        batches: The arguments of `forward`, one after the other.
        forward: Runs the model in training mode on a batch. The weights to be used are in place: call within `swap`.

    Returns:
        The number of batches.

    Raises:
        TypeError: Something that is no `BatchNorm`.
        ValueError: A layer without running statistics; no batch; a layer that no batch went through in training mode.
            After any error, also one in `forward`, the layers are unchanged.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> norm = fs.BatchNorm(1)
        >>> batches = [np.array([[1.0], [3.0]], np.float32), np.array([[5.0], [7.0]], np.float32)]
        >>> fs.averaging.recompute_batch_norm([norm], batches, lambda x: norm.forward(x, training=True))
        2
        >>> print(norm.running_mean, norm.running_var, norm.momentum)
        [4.] [2.] 0.1
    """
    if not isinstance(norms, Sequence):
        raise TypeError(f"norms: expected a list of BatchNorm, got {type(norms).__name__}")
    before = []
    for k, norm in enumerate(norms):
        if not isinstance(norm, BatchNorm):
            raise TypeError(f"norms[{k}]: expected a BatchNorm, got {type(norm).__name__}")
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"norms[{k}]: has no running statistics")
        statistics = norm.running_mean, norm.running_var
        before.append((norm, norm.momentum, norm.num_batches_tracked, [(a, a.copy()) for a in statistics]))
    count = 0
    try:
        for norm, _, _, ((mean, _), (var, _)) in before:
            mean[...], var[...] = 0.0, 1.0
            norm.momentum, norm.num_batches_tracked = None, 0
        for batch in batches:
            forward(batch)
            count += 1
        if count == 0:
            raise ValueError("batches: expected at least one, got none")
        for k, norm in enumerate(norms):
            if norm.num_batches_tracked == 0:
                raise ValueError(f"norms[{k}]: no batch went through it in training mode")
    except BaseException:
        for norm, _, tracked, arrays in before:
            norm.num_batches_tracked = tracked
            for array, values in arrays:
                array[...] = values
        raise
    finally:
        for norm, momentum, _, _ in before:
            norm.momentum = momentum
    return count


def _rounded(values: Array, like: Array) -> Array:
    """The values in the dtype of an array, to the nearest; the same array if it has that dtype."""
    if values.dtype == like.dtype:
        return values
    with np.errstate(over="ignore"):
        singles = values.astype(np.float32, order="K", copy=False)
    return narrowed(singles, like.dtype)
