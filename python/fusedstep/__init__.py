"""Optimizer steps and batch normalization on the CPU, as fast as the memory allows.

Every kernel computes the same bits as its NumPy reference (`fusedstep.reference`), on every processor and with any
number of threads.
"""

from fusedstep import (
    _moved,
    averaging,
    checkpoint,
    curvature,
    data,
    doctor,
    functional,
    losses,
    mpi,
    normalization,
    regularization,
    runtime,
    schedules,
)
from fusedstep._common.arrays import bfloat16
from fusedstep._core import BatchNormSaved, StepReport, TensorReport
from fusedstep._core import version as __version__
from fusedstep.checkpoint import *  # noqa: F403
from fusedstep.curvature import lr_range_test
from fusedstep.losses import *  # noqa: F403
from fusedstep.normalization import *  # noqa: F403
from fusedstep.optimizers import NAMES as _OPTIMIZERS
from fusedstep.optimizers import Optimizer, Options
from fusedstep.optimizers.exports import *  # noqa: F403
from fusedstep.regularization import *  # noqa: F403
from fusedstep.sparse import RowSparse
from fusedstep.training import EarlyStopping

_moved.install()

__all__ = ["Optimizer", "Options", "RowSparse", "StepReport", "TensorReport"]
__all__ += ["BatchNormSaved", "EarlyStopping", "__version__", "bfloat16", "lr_range_test"]
__all__ += ["averaging", "curvature", "data", "doctor", "functional", "mpi", "runtime", "schedules"]
__all__ += _OPTIMIZERS
__all__ += checkpoint.__all__
__all__ += losses.__all__
__all__ += normalization.__all__
__all__ += regularization.__all__
