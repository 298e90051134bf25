"""Optimizer steps and batch normalization on the CPU, as fast as the memory allows.

Every kernel computes the same bits as its NumPy reference (`fusedstep.reference`), on every processor and with any
number of threads.
"""

from fusedstep import functional, runtime
from fusedstep._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fusedstep._core import StepReport, TensorReport
from fusedstep._core import version as __version__
from fusedstep._losses import softmax_cross_entropy
from fusedstep._normalization import BatchNorm, BatchNormSaved, batch_norm, batch_norm_backward
from fusedstep._sparse import RowSparse
from fusedstep.optimizers import (
    ADOPT,
    ASGD,
    LAMB,
    LARS,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    LBFGSReport,
    Lion,
    Momentum,
    Muon,
    NAdam,
    Optimizer,
    Options,
    Prodigy,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    SparseAdam,
)

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "BatchNorm",
    "BatchNormSaved",
    "Checkpoint",
    "LBFGSReport",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "Optimizer",
    "Options",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "RowSparse",
    "Rprop",
    "ScheduleFreeAdamW",
    "SparseAdam",
    "StepReport",
    "TensorReport",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "functional",
    "load_checkpoint",
    "runtime",
    "save_checkpoint",
    "softmax_cross_entropy",
]
