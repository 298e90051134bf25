"""Steps on the host of parameters that are somewhere else."""

from fusedstep.torch.offload.optimizer import HostOffload

__all__ = ["HostOffload"]
