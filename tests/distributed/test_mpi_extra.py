"""Without mpi4py."""

import sys

import numpy as np
import pytest

import fusedstep as fs


def test_the_error_says_what_to_install(monkeypatch):
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.setitem(sys.modules, name, None)
    grads = np.ones(3)
    for call in (lambda: fs.mpi.reduce_gradients(grads, None), lambda: fs.mpi.BatchNorm(3, None)):
        with pytest.raises(ModuleNotFoundError, match=r"fusedstep\.mpi needs mpi4py: pip install 'fusedstep\[mpi\]'"):
            call()
    assert np.array_equal(grads, np.ones(3))
