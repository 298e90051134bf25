"""Every kernel test runs on every instruction set of the machine and on 1, 2 and 3 threads, through these fixtures."""

import builtins
import os
import signal

# OpenMP and OpenBLAS read these once, as they are loaded. By default, threads that wait spin: they take the processors
# from the other workers of pytest-xdist and from the processes that tests start. Training on small matrices by two
# threads of a busy machine took 15 times the processor's time that it takes on one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell that starts tests in the background has its programs ignore Ctrl-C; those that tests interrupt must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from hypothesis import settings

import fusedstep as fs
from fusedstep import _core
from fusedstep.optimizers import REGISTRY

if os.environ.get("FUSEDSTEP_WITHOUT_ML_DTYPES"):
    # For the library it is not installed, so that bfloat16 is words; tests make their numbers with it as ever.
    imported = builtins.__import__

    def without_ml_dtypes(name, scope=None, *arguments, **named):
        if name == "ml_dtypes" and (scope or {}).get("__name__", "").startswith("fusedstep"):
            raise ModuleNotFoundError("No module named 'ml_dtypes'", name="ml_dtypes")
        return imported(name, scope, *arguments, **named)

    builtins.__import__ = without_ml_dtypes

# No clock decides, and every run draws the same.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

NATIVE = [name for name in fs.runtime.available_isas() if name != "numpy"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """`-n auto`: a worker each processor that may be used, and no more than the memory of a large machine bears."""
    return min(fs.runtime.num_threads(), 8)


@pytest.fixture(params=NATIVE)
def native(request):
    """A native instruction set, active."""
    with fs.runtime.use_isa(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """So many threads, also for work too small to be worth it."""
    _core.testing.force_parallel(True)
    try:
        with fs.runtime.threads(request.param):
            yield request.param
    finally:
        _core.testing.force_parallel(False)


@pytest.fixture(params=sorted(REGISTRY))
def optimizer_class(request):
    """Every optimizer."""
    return REGISTRY[request.param]


@pytest.fixture(params=sorted(name for name in REGISTRY if name not in ("muon", "sparse_adam")))
def vector_optimizer(request):
    """Every optimizer that takes arrays of any shape and gradients of the same."""
    return REGISTRY[request.param]


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)
