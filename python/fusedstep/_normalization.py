"""Where pickles made before `fusedstep.normalization` look for its classes."""

from fusedstep.normalization import BatchGradSums, BatchNorm, BatchStats

__all__ = ["BatchGradSums", "BatchNorm", "BatchStats"]
