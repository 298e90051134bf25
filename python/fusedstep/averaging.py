"""Averages of the weights of a run, and ensembles of its snapshots.

All of them hold the arrays that are trained, in any structure that an optimizer takes, and update their averages from
them. The averages have the same structure; pairs of a name and an array become a dict, groups one flat list. Buffers,
such as batch norm's running statistics, may be among the arrays.
"""

from fusedstep.training.averaging import EMA, SWA, recompute_batch_norm
from fusedstep.training.snapshots import SnapshotEnsemble, ensemble_predict

__all__ = ["EMA", "SWA", "SnapshotEnsemble", "ensemble_predict", "recompute_batch_norm"]
