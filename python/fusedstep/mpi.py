"""Data-parallel training with MPI: gradients summed over ranks, and batch norm over the whole batch.

Every function and layer takes a communicator of mpi4py (extra `mpi`) and is collective: all ranks call it, in the same
order. If the arguments of ranks differ, all ranks raise an error before anything is written. Run programs with
`mpiexec -n 3 python -m mpi4py program.py`: then an exception on one rank ends all ranks. Without `-m mpi4py` the other
ranks wait for it.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import flag, shown
from fusedstep._common.arrays import dtype_name, unmasked, viewed, wrote
from fusedstep._common.extras import require
from fusedstep._common.structure import flat
from fusedstep.normalization import BatchNorm as _BatchNorm
from fusedstep.normalization import shared
from fusedstep.normalization.arguments import Activation, Array
from fusedstep.reference.codec import narrowed, widened

__all__ = ["BatchNorm", "reduce_gradients"]

_DTYPES = ("float32", "float64", "bfloat16")


def _name(rank: int) -> str:
    return f"rank {rank}"


def _check_comm(comm: Any) -> None:
    kind = require("mpi4py.MPI", "mpi", "fusedstep.mpi needs mpi4py").Intracomm
    if not isinstance(comm, kind):
        raise TypeError(f"comm: expected a communicator of mpi4py, got {type(comm).__qualname__}")


def reduce_gradients(grads: Any, comm: Any, *, average: bool = True, bucket_bytes: int = 2**24) -> None:
    """Averages the gradients of all ranks, in place; with `average=False`, sums them.

    Gradients are added in the order of ranks, in float64, and rounded once. A sum of bfloat16 gradients is rounded to
    float32, then to bfloat16. So all ranks get the same bits, in every run and with any MPI library.

    Args:
        grads: An array, a list, or nested dicts and lists, as optimizers take them; float32, float64 or bfloat16. None
            for a parameter that has no gradient on any rank.
        comm: A communicator of mpi4py.
        average: Whether to divide by the number of ranks.
        bucket_bytes: How many bytes of gradients, as float32 or float64, are sent at once. Up to four times as many
            bytes are allocated.

    Raises:
        MissingExtraError: mpi4py is not installed.
        TypeError: An array of another dtype; a value that is no array; `comm` is no communicator.
        ValueError: Structures, shapes, dtypes or options of ranks differ (on all ranks); an array is read-only or
            overlaps another; `bucket_bytes` is out of range. Nothing has been written.

    Examples:
        .. code-block:: python

            from mpi4py import MPI

            fs.mpi.reduce_gradients(grads, MPI.COMM_WORLD)
            opt.step(grads)
    """
    _check_comm(comm)
    error: Exception | None = None
    arrays: list[tuple[str, NDArray[Any]]] = []
    try:
        leaves = flat(grads, "grads")
        flag(average, "average")
        whole = isinstance(bucket_bytes, int | np.integer) and not isinstance(bucket_bytes, bool)
        if not whole or not 8 <= bucket_bytes < 2**31:
            raise ValueError(f"bucket_bytes: expected a whole number >= 8 and < 2**31, got {shown(bucket_bytes)}")
        arrays = [(label, _writable(value, label)) for label, value in leaves if value is not None]
        _refuse_overlaps(arrays)
        held = dict(arrays)
        lines = [f"bucket_bytes: {bucket_bytes}", f"average: {bool(average)}"]
        lines += [f"{label}: {_described(held.get(label))}" for label, _ in leaves]
    except (TypeError, ValueError) as raised:
        error, lines = raised, [shared.refused(raised).rstrip(b"\0").decode()]
    _require_alike(lines, comm, error)
    if comm.Get_size() == 1:
        return
    for kind in (np.float32, np.float64):
        chosen = [array for _, array in arrays if (array.dtype == np.float64) == (kind is np.float64)]
        _reduce(chosen, comm, average, np.dtype(kind), int(bucket_bytes))
    wrote(*(value for _, value in leaves))


def _writable(value: Any, label: str) -> NDArray[Any]:
    array = unmasked(value, label)
    if dtype_name(array.dtype) not in _DTYPES:
        raise TypeError(f"{label}: expected float32, float64 or bfloat16, got {dtype_name(array.dtype)}")
    if not array.flags.writeable:
        raise ValueError(f"{label}: expected a writable array, got a read-only one")
    return array


def _described(array: NDArray[Any] | None) -> str:
    return "none" if array is None else f"{dtype_name(array.dtype)} {array.shape}"


def _refuse_overlaps(arrays: list[tuple[str, NDArray[Any]]]) -> None:
    """ValueError for arrays that overlap in memory: the shared numbers would be added twice."""
    bounds = sorted(
        (*np.lib.array_utils.byte_bounds(array), place) for place, (_, array) in enumerate(arrays) if array.size
    )
    end, last = 0, 0
    for low, high, place in bounds:
        if low < end and np.may_share_memory(arrays[last][1], arrays[place][1]):
            raise ValueError(f"{arrays[place][0]}: overlaps {arrays[last][0]} in memory")
        if high > end:
            end, last = high, place


def _require_alike(lines: list[str], comm: Any, error: Exception | None) -> None:
    """Raises an error on all ranks unless all have the same lines. Ranks exchange digests of the lines first."""
    digest = np.frombuffer(hashlib.sha256("\n".join(lines).encode()).digest(), np.uint8)
    digests = np.empty((comm.Get_size(), len(digest)), np.uint8)
    comm.Allgather(digest, digests)
    if error is not None or (digests != digests[0]).any():
        everyone = comm.allgather(lines)
        if error is not None:
            raise error
        shared.require_alike(everyone, _name)
        raise shared.DisagreementError("grads: expected the same order on all ranks")


def _reduce(arrays: list[NDArray[Any]], comm: Any, average: bool, kind: np.dtype[Any], bucket_bytes: int) -> None:
    """Sums arrays over ranks, one bucket at a time."""
    room = bucket_bytes // kind.itemsize
    spans: list[tuple[NDArray[Any], int, int]] = []
    taken = 0
    copies = []
    for array in arrays:
        flat_array = array.reshape(-1) if array.flags.c_contiguous else np.array(array, order="C").reshape(-1)
        if not array.flags.c_contiguous:
            copies.append((array, flat_array))
        begin = 0
        while begin < array.size:
            end = min(array.size, begin + room - taken)
            spans.append((flat_array, begin, end))
            taken += end - begin
            begin = end
            if taken == room:
                _reduce_bucket(spans, taken, comm, average, kind)
                spans, taken = [], 0
    if taken:
        _reduce_bucket(spans, taken, comm, average, kind)
    for array, flat_array in copies:
        array[...] = flat_array.reshape(array.shape)


def _reduce_bucket(
    spans: list[tuple[NDArray[Any], int, int]], count: int, comm: Any, average: bool, kind: np.dtype[Any]
) -> None:
    """Each rank sums one segment over all ranks, in their order; then all ranks gather all segments."""
    size = comm.Get_size()
    segment = -(-count // size)
    bucket, received = np.zeros(size * segment, kind), np.empty((size, segment), kind)
    place = 0
    for array, begin, end in spans:
        bucket[place : place + end - begin] = widened(array[begin:end])
        place += end - begin
    comm.Alltoall(bucket, received)
    with np.errstate(all="ignore"):
        total = received[0].astype(np.float64)
        for row in received[1:]:
            total += row
        if average:
            total /= size
        mine = total.astype(kind)
    comm.Allgather(mine, bucket)
    place = 0
    for array, begin, end in spans:
        with np.errstate(all="ignore"):
            array[begin:end] = narrowed(bucket[place : place + end - begin], array.dtype)
        place += end - begin


class BatchNorm(_BatchNorm):
    """`fusedstep.BatchNorm` with the statistics of all ranks: one collective in each forward and backward pass.

    Output, gradient of x and running statistics equal those of one process with the whole batch, up to rounding. The
    running statistics have the same bits on all ranks. A rank may have any number of samples, also none. Evaluation
    needs no collective. The constructor is collective.

    Args:
        num_features: Number of channels C.
        comm: A communicator of mpi4py.
        eps: See `fusedstep.BatchNorm`.
        momentum: See `fusedstep.BatchNorm`.
        affine: See `fusedstep.BatchNorm`.
        track_running_stats: See `fusedstep.BatchNorm`.
        channel_axis: See `fusedstep.BatchNorm`.
        activation: See `fusedstep.BatchNorm`.
        unbiased: See `fusedstep.BatchNorm`.
        skip_nonfinite: See `fusedstep.BatchNorm`.
        dtype: See `fusedstep.BatchNorm`.

    Attributes:
        dweight: The gradient of weight from this rank's samples, after `backward`; give it to `reduce_gradients`.
        dbias: The gradient of bias, likewise.

    Raises:
        MissingExtraError: mpi4py is not installed.
        TypeError: `comm` is no communicator; see also `fusedstep.BatchNorm`.
        ValueError: Arguments of ranks differ (on all ranks); see also `fusedstep.BatchNorm`.

    Examples:
        .. code-block:: python

            from mpi4py import MPI

            bn = fs.mpi.BatchNorm(64, MPI.COMM_WORLD, activation="relu")
            y = bn.forward(x, training=True)
    """

    #: The number of the last layer that was made in this process.
    _made = 0

    def __init__(
        self,
        num_features: int,
        comm: Any,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        channel_axis: int = 1,
        activation: Activation = None,
        unbiased: bool = True,
        skip_nonfinite: bool = False,
        dtype: Any = np.float32,
    ) -> None:
        _check_comm(comm)
        self.comm = comm
        self._number = 0
        error: Exception | None = None
        try:
            super().__init__(
                num_features, eps, momentum, affine, track_running_stats, channel_axis=channel_axis,
                activation=activation, unbiased=unbiased, skip_nonfinite=skip_nonfinite, dtype=dtype,
            )  # fmt: skip
            lines = self._terms(momentum=momentum, affine=affine, track_running_stats=track_running_stats)
        except (TypeError, ValueError) as raised:
            error, lines = raised, [shared.refused(raised).rstrip(b"\0").decode()]
        answers = comm.allgather((BatchNorm._made, lines))
        if error is not None:
            raise error
        shared.require_alike([lines for _, lines in answers], _name)
        self._number = BatchNorm._made = max(made for made, _ in answers) + 1

    def _terms(self, **more: Any) -> list[str]:
        """What must be equal on all ranks."""
        weight, mean = self.weight, self.running_mean
        terms = {
            "layer": self._number,
            "num_features": self._features,
            "eps": self.eps,
            "activation": self.activation,
            "unbiased": self.unbiased,
            "skip_nonfinite": self.skip_nonfinite,
            "weight": None if weight is None else weight.dtype,
            "running_mean": None if mean is None else mean.dtype,
            **more,
        }
        return [f"{name}: {value}" for name, value in terms.items()]

    def _exchanged(self, message: NDArray[np.float64]) -> NDArray[np.float64]:
        """The collective: the messages of all ranks, one per row."""
        table = np.empty((self.comm.Get_size(), len(message)))
        self.comm.Allgather(message, table)
        return table

    def forward(self, x: Array, *, training: bool, residual: Array | None = None, out: Array | None = None) -> Array:
        """`batch_norm` of x with the statistics of all ranks; keeps what `backward` needs.

        Raises:
            TypeError: See `batch_norm`.
            ValueError: See `batch_norm`; if one rank refuses its input, all ranks raise an error. Fewer than two values
                per channel on all ranks together.
        """
        if training is not True or self.comm.Get_size() == 1:
            return super().forward(x, training=training, residual=residual, out=out)
        self._saved = None
        try:
            momentum = self._checked(x)
            statistics = _core.batch_norm_stats(x, self.channel_axis)
            kind = dtype_name(np.asarray(viewed(x, "x")).dtype)
            for name, like in (("residual", residual), ("out", out)):
                _check_like(viewed(like, name), name, viewed(x, "x"))
        except (TypeError, ValueError) as error:
            self._exchanged(shared.forward_message(self._features, shared.refused(error), None))
            raise
        text = shared.padded("; ".join(self._terms(momentum=momentum, dtype=kind)))
        table = self._exchanged(shared.forward_message(self._features, text, statistics))
        count, mean, m2 = shared.read_forward(table, _name)
        if count < 2:
            raise ValueError(f"x: expected more than one value per channel of all ranks in training, got {count}")
        y, saved = _core.batch_norm_apply(
            x, count, mean, m2, viewed(self.weight, "weight"), viewed(self.bias, "bias"), self.eps, self.channel_axis,
            self.activation, viewed(residual, "residual"), viewed(out, "out"),
        )  # fmt: skip
        wrote(out)
        running = (self.running_mean, self.running_var)
        if running[0] is not None and _core.batch_norm_update(
            viewed(running[0], "running_mean"), viewed(running[1], "running_var"), count, mean, m2, momentum,
            self.unbiased, self.skip_nonfinite,
        ):  # fmt: skip
            wrote(*running)
            self.num_batches_tracked += 1
        self._saved = saved
        return y

    def backward(
        self, dy: Array, *, out: Array | None = None, residual_out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """The gradient dx of the sum of all ranks' losses, and dresidual if the last `forward` had a residual.

        `dweight` and `dbias` get the gradients of the parameters from this rank's samples.

        Raises:
            RuntimeError: No `forward` since the last `backward`.
        """
        saved = self._saved
        if saved is None or not saved.training or self.comm.Get_size() == 1:
            return super().backward(dy, out=out, residual_out=residual_out)
        try:
            sums = _core.batch_norm_backward_sums(viewed(dy, "dy"), saved)
            for name, like in (("out", out), ("residual_out", residual_out)):
                _check_like(viewed(like, name), name, viewed(saved.x, "x"))
        except (TypeError, ValueError) as error:
            self._exchanged(shared.backward_message(self._features, shared.refused(error), None))
            raise
        text = shared.described(layer=self._number, direction="backward")
        table = self._exchanged(shared.backward_message(self._features, text, sums))
        total = shared.read_backward(table, _name)
        dx, _, _, *dresidual = _core.batch_norm_backward_apply(
            viewed(dy, "dy"), saved, *total, viewed(out, "out"), viewed(residual_out, "residual_out")
        )
        wrote(out, residual_out)
        if self.weight is not None:
            with np.errstate(all="ignore"):
                self.dweight = (saved.inv_std * sums[1]).astype(self.weight.dtype)
                self.dbias = sums[0].astype(self.weight.dtype)
        self._saved = None
        return (dx, dresidual[0]) if dresidual else dx


def _check_like(array: Any, name: str, x: Any) -> None:
    """TypeError or ValueError for an array that is not like x, before this rank sends its message."""
    if array is None:
        return
    if not isinstance(array, np.ndarray) or array.dtype != x.dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected {dtype_name(x.dtype)} as x has, got {got}")
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape} as x has, got {array.shape}")
