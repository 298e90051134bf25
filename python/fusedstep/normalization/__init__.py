"""Batch normalization: functions, the parts of them that workers exchange, and a layer."""

from fusedstep.normalization.functions import batch_norm, batch_norm_backward
from fusedstep.normalization.layer import BatchNorm
from fusedstep.normalization.parts import (
    BatchGradSums,
    batch_norm_apply,
    batch_norm_backward_apply,
    batch_norm_backward_sums,
    merge_grad_sums,
)
from fusedstep.normalization.statistics import BatchStats, batch_norm_stats, merge_stats, update_running_stats

__all__ = [
    "BatchGradSums",
    "BatchNorm",
    "BatchStats",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_sums",
    "batch_norm_stats",
    "merge_grad_sums",
    "merge_stats",
    "update_running_stats",
]
