"""What stands around the step, beside what it replaces."""

from collections.abc import Callable

import numpy as np

import fusedstep as fs
from fusedstep.bench.harness import Subject


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name; calling one allocates its arrays."""
    return {"batches-60000x784": batches}


def batches() -> Subject:
    """An epoch of shuffled batches of 256 rows, beside NumPy's indexing in the same order."""
    rows, size = 60_000, 256
    x = np.random.default_rng(0).standard_normal((rows, 784), np.float32)
    epoch = fs.data.batches(x, size, seed=0, epoch=0)

    def ours() -> None:
        for _ in epoch:
            pass

    def indexed() -> None:
        order = np.random.default_rng((0, 0)).permutation(rows)
        for start in range(0, rows, size):
            x[order[start : start + size]]

    def check() -> None:
        order = np.random.default_rng((0, 0)).permutation(rows)
        for k, batch in enumerate(epoch):
            np.testing.assert_array_equal(batch, x[order[k * size : (k + 1) * size]])

    return Subject("batches-60000x784", ours, {"x[index]": indexed}, check, {"x[index]": 1.5})
