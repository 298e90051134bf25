"""Batches of rows, gathered natively."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import flag, whole
from fusedstep.data.images import Array, plain_array


class Batches:
    """The batches of one epoch, which `batches` makes: `len` says how many are left, and every `iter` begins again.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> epoch = fs.data.batches(np.arange(10), 4, seed=0, epoch=0, start=1)
        >>> epoch, len(epoch)
        (<Batches 1 to 2 of 3: 10 rows by 4, seed 0, epoch 0, shuffled>, 2)
    """

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
        start: int = 0,
        reuse: bool = False,
    ) -> None:
        self._like = dict(arrays) if isinstance(arrays, Mapping) else arrays
        named = _named(arrays)
        self._sources = [_source(array, name) for name, array in named]
        self._rows = len(self._sources[0])
        for (name, _), source in zip(named, self._sources, strict=True):
            if len(source) != self._rows:
                raise ValueError(f"{name}: expected {self._rows} rows as {named[0][0]} has, got {len(source)}")
        if self._rows == 0:
            raise ValueError(f"{named[0][0]}: expected at least one row, got shape {self._sources[0].shape}")
        self._size = whole(batch_size, "batch_size", least=1)
        # NumPy splits seeds into words of 32 bits: a longer seed could give the order of another seed and epoch.
        self._seed, self._epoch = whole(seed, "seed", most=2**32 - 1), whole(epoch, "epoch", most=2**32 - 1)
        self._shuffle = flag(shuffle, "shuffle")
        drop_last = flag(drop_last, "drop_last")
        if drop_last and self._size > self._rows:
            raise ValueError(f"batch_size: expected at most the {self._rows} rows with drop_last, got {batch_size}")
        self._total = self._rows // self._size if drop_last else -(-self._rows // self._size)
        self._start = whole(start, "start")
        if self._start > self._total:
            raise ValueError(f"start: expected at most the {self._total} batches of an epoch, got {start}")
        self._reuse = flag(reuse, "reuse")

    def __len__(self) -> int:
        return self._total - self._start

    def __iter__(self) -> Iterator[Any]:
        order = self._order()
        buffers = self._empty(min(self._size, self._rows)) if self._reuse else None
        for k in range(self._start, self._total):
            rows = order[k * self._size : (k + 1) * self._size]
            batch = self._empty(len(rows)) if buffers is None else [buffer[: len(rows)] for buffer in buffers]
            for source, target in zip(self._sources, batch, strict=True):
                _core.gather_rows(source, rows, target)
            yield _built(self._like, batch)

    def __repr__(self) -> str:
        which = f"{self._start} to {self._total - 1} of" if len(self) else "none left of"
        how = "shuffled" if self._shuffle else "in order"
        return (
            f"<Batches {which} {self._total}: {self._rows} rows by {self._size}, seed {self._seed}, "
            f"epoch {self._epoch}, {how}>"
        )

    def _order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._rows, dtype=np.int64)
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._rows)
        return order.astype(np.int64, copy=False)

    def _empty(self, rows: int) -> list[Array]:
        return [np.empty((rows, *source.shape[1:]), source.dtype) for source in self._sources]


def batches(
    arrays: Any,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    start: int = 0,
    reuse: bool = False,
) -> Batches:
    r"""The batches of one epoch: rows in an order that depends on seed and epoch alone.

    .. code-block:: text

        order = numpy.random.default_rng((seed, epoch)).permutation(rows)      0, 1, 2, … without shuffle
        batch k = arrays[order[k · batch_size : (k + 1) · batch_size]]

    The rows are gathered by all threads. A batch is always a copy, also without shuffling: writing to it does not
    change `arrays`. With `reuse=True` all batches of an iteration share buffers, which stay in the caches. That is
    faster, and **a batch is then valid until the next one is drawn**.

    Args:
        arrays: An array, a tuple or list of arrays, or a dict of them, with rows along their first axes, as many in
            each. Of any dtype but objects, in C order; memory-mapped ones are read row by row.
        batch_size: Rows in a batch, ≥ 1.
        seed: In [0, 2³²).
        epoch: In [0, 2³²); every epoch has another order.
        shuffle: Whether the rows come in a random order.
        drop_last: Whether the last batch is left out where it would be shorter than the others.
        start: How many batches of this epoch have been taken already: the iteration goes on at batch `start`, as if
            it had never stopped. At most the number of batches in the epoch; then no batch is left.
        reuse: Whether the batches of an iteration share buffers; otherwise each is new, and can be kept.

    Returns:
        An iterable of the batches, each structured as `arrays`; `len` is their number.

    Raises:
        TypeError: Something that is no array, or of objects, or masked; a bool or a float where a whole number is
            expected.
        ValueError: No arrays; arrays without rows, with different numbers of rows, or not in C order (they would have
            to be copied); a number out of range; an epoch without a batch.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x, y = np.arange(10, dtype=np.float32).reshape(5, 2), np.arange(5)
        >>> for rows, labels in fs.data.batches((x, y), 2, seed=0, epoch=0):
        ...     print(rows.tolist(), labels)
        [[4.0, 5.0], [8.0, 9.0]] [2 4]
        [[6.0, 7.0], [0.0, 1.0]] [3 0]
        [[2.0, 3.0]] [1]
        >>> [batch.tolist() for batch in fs.data.batches(y, 2, seed=0, epoch=0, start=1)]
        [[3, 0], [1]]
    """
    return Batches(
        arrays, batch_size, seed=seed, epoch=epoch, shuffle=shuffle, drop_last=drop_last, start=start, reuse=reuse
    )


def _named(arrays: Any) -> list[tuple[str, Any]]:
    if isinstance(arrays, Mapping):
        named = [(f"arrays[{key!r}]", array) for key, array in arrays.items()]
    elif isinstance(arrays, tuple | list):
        named = [(f"arrays[{k}]", array) for k, array in enumerate(arrays)]
    else:
        named = [("arrays", arrays)]
    if not named:
        raise ValueError("arrays: expected at least one array, got none")
    return named


def _built(like: Any, batch: list[Array]) -> Any:
    if isinstance(like, Mapping):
        return dict(zip(like, batch, strict=True))
    if isinstance(like, tuple):
        return type(like)._make(batch) if hasattr(like, "_make") else tuple(batch)
    return batch if isinstance(like, list) else batch[0]


def _source(value: Any, name: str) -> Array:
    array = plain_array(value, name)
    if array.ndim == 0:
        raise ValueError(f"{name}: expected at least one axis, got a number")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected C order (numpy.ascontiguousarray copies into it), got {_memory(array)}")
    return array


def _memory(array: Array) -> str:
    return f"shape {array.shape} with strides {array.strides}"
