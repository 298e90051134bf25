"""PyTorch with these kernels: layers, losses and optimizers with torch's names, arguments and state dicts.

Needs the extra `torch`; importing `fusedstep` does not import it.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError("fusedstep.torch needs torch: pip install 'fusedstep[torch]'", name="torch") from error

from fusedstep.torch.convert import Conversion, convert_batch_norm, convert_sync_batch_norm, revert
from fusedstep.torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, CrossEntropyLoss, Dropout, SyncBatchNorm
from fusedstep.torch.offload import HostOffload

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conversion",
    "CrossEntropyLoss",
    "Dropout",
    "HostOffload",
    "SyncBatchNorm",
    "convert_batch_norm",
    "convert_sync_batch_norm",
    "revert",
]
