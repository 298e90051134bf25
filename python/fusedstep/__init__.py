"""Optimizer steps and batch normalization on the CPU, as fast as the memory allows.

Every kernel computes the same bits as its NumPy reference (`fusedstep.reference`), on every processor and with any
number of threads.
"""

from fusedstep import functional, runtime
from fusedstep._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fusedstep._core import StepReport
from fusedstep._core import version as __version__
from fusedstep._losses import softmax_cross_entropy
from fusedstep._normalization import BatchNorm, BatchNormSaved, batch_norm, batch_norm_backward
from fusedstep.optimizers import SGD, Adam, AdamW, Optimizer, Options, RMSprop

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BatchNorm",
    "BatchNormSaved",
    "Checkpoint",
    "Optimizer",
    "Options",
    "RMSprop",
    "StepReport",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "functional",
    "load_checkpoint",
    "runtime",
    "save_checkpoint",
    "softmax_cross_entropy",
]
