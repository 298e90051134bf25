"""Optimizer steps and batch normalization on the CPU, as fast as the memory allows.

Every kernel computes the same bits as its NumPy reference (`fusedstep.reference`), on every processor and with any
number of threads.
"""

from fusedstep import _moved, averaging, curvature, data, doctor, functional, runtime, schedules
from fusedstep._common.arrays import bfloat16
from fusedstep._core import BatchNormSaved, StepReport, TensorReport
from fusedstep._core import version as __version__
from fusedstep.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from fusedstep.curvature import lr_range_test
from fusedstep.losses import (
    log_softmax,
    mean_squared_error,
    sigmoid_binary_cross_entropy,
    softmax,
    softmax_cross_entropy,
)
from fusedstep.normalization import (
    BatchGradSums,
    BatchNorm,
    BatchStats,
    batch_norm,
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_backward_apply,
    batch_norm_backward_sums,
    batch_norm_stats,
    merge_grad_sums,
    merge_stats,
    update_running_stats,
)
from fusedstep.optimizers import NAMES as _OPTIMIZERS
from fusedstep.optimizers import Optimizer, Options
from fusedstep.optimizers.exports import *  # noqa: F403
from fusedstep.regularization import drop_connect, dropout, dropout_backward, stochastic_depth
from fusedstep.sparse import RowSparse
from fusedstep.training import EarlyStopping

_moved.install()

__all__ = [
    "BatchGradSums",
    "BatchNorm",
    "BatchNormSaved",
    "BatchStats",
    "Checkpoint",
    "CheckpointError",
    "EarlyStopping",
    "Optimizer",
    "Options",
    "RowSparse",
    "StepReport",
    "TensorReport",
    "__version__",
    "averaging",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_sums",
    "batch_norm_stats",
    "bfloat16",
    "curvature",
    "data",
    "doctor",
    "drop_connect",
    "dropout",
    "dropout_backward",
    "functional",
    "load_checkpoint",
    "log_softmax",
    "lr_range_test",
    "mean_squared_error",
    "merge_grad_sums",
    "merge_stats",
    "runtime",
    "save_checkpoint",
    "schedules",
    "sigmoid_binary_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "stochastic_depth",
    "update_running_stats",
]
__all__ += _OPTIMIZERS
