"""How many threads a step takes where several processes share a machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fusedstep import _core
from fusedstep.runtime import num_threads, set_num_threads


def budget() -> int | None:
    """The threads of a step; None where nothing but `fusedstep.runtime` decides.

    With `LOCAL_WORLD_SIZE`, which torchrun sets, it is the usable processors by the processes of this machine, and at
    least 1; of a process that its launcher has bound to fewer processors than it has itself, all of these. torchrun
    also sets `OMP_NUM_THREADS=1`, which is not followed then. What somebody has chosen by `FUSEDSTEP_NUM_THREADS`, by
    a larger `OMP_NUM_THREADS` or by `fusedstep.runtime.set_num_threads` is.
    """
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not given.isdigit() or int(given) < 1 or os.environ.get("FUSEDSTEP_NUM_THREADS"):
        return None
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    usable = _core.usable_processors()
    if openmp not in ("", "1") or num_threads() != (int(openmp) if openmp else usable):
        return None
    return usable if _is_bound() else max(1, usable // int(given))


def _is_bound() -> bool:
    mine = os.sched_getaffinity(0)
    try:
        return mine < os.sched_getaffinity(os.getppid())
    except OSError:
        return False


@contextmanager
def budgeted() -> Iterator[None]:
    """Computes on `budget` threads inside a `with` block."""
    before, threads = num_threads(), budget()
    # A forked process has one thread, and keeps it.
    with suppress(RuntimeError):
        if threads is not None:
            set_num_threads(threads)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            if threads is not None:
                set_num_threads(before)
