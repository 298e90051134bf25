"""Which instruction set computes, and on how many threads. Neither changes a bit of any result.

Examples:
    >>> import fusedstep as fs
    >>> with fs.runtime.use_isa("numpy"), fs.runtime.threads(1):
    ...     print(fs.runtime.isa(), fs.runtime.num_threads())
    numpy 1
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import index

from fusedstep import _core
from fusedstep._common.arguments import shown

__all__ = ["available_isas", "isa", "num_threads", "set_isa", "set_num_threads", "threads", "use_isa"]


def isa() -> str:
    """The instruction set in use.

    At first use it is the one that the environment variable `FUSEDSTEP_ISA` names, else the widest of this processor.

    Raises:
        ValueError: `FUSEDSTEP_ISA` names a set that is unknown or that this processor lacks.
    """
    return _core.isa()


def available_isas() -> list[str]:
    """The instruction sets of this processor, widest last; `"numpy"`, the reference, is always the first."""
    return _core.available_isas()


def set_isa(name: str) -> None:
    """Computes with the instruction set `name` from now on, in the whole process.

    Raises:
        TypeError: The name is no string.
        ValueError: The name is unknown, or this processor lacks the set; the message lists the valid ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"isa: expected a name, got {type(name).__name__}")
    _core.set_isa(name.encode("ascii", "backslashreplace").decode())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Computes with the instruction set `name` inside a `with` block, in the whole process."""
    before = isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


def num_threads() -> int:
    """The number of threads that large work is shared out over.

    At first use it is `FUSEDSTEP_NUM_THREADS`, else `OMP_NUM_THREADS`, else the processors that this process may use:
    those of its affinity, and no more than the CPU quota of its control groups (a container's limit), rounded up. If
    the system refuses to start that many threads, the first work that needs them gives a `RuntimeWarning`, and the
    number is smaller from then on.

    In a process forked from one that had loaded fusedstep it is 1: OpenMP's threads do not survive a fork.

    Raises:
        ValueError: `FUSEDSTEP_NUM_THREADS` is not a positive number.
    """
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Sets the number of threads, in the whole process.

    Raises:
        TypeError: `threads` is not a whole number.
        ValueError: `threads` is less than 1 or more than 4,096.
        RuntimeError: More than one, in a forked process.
    """
    try:
        number = index(threads)
    except TypeError:
        raise TypeError(f"num_threads: expected a whole number, got {threads!r}") from None
    if abs(number) >= 2**63:
        raise ValueError(f"num_threads: expected 1 to 4096, got {shown(threads)}")
    _core.set_num_threads(number)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Computes on `number` threads inside a `with` block, in the whole process."""
    before = num_threads()
    set_num_threads(number)
    try:
        yield
    finally:
        # A child that was forked meanwhile has one thread, and keeps it.
        with suppress(RuntimeError):
            set_num_threads(before)
