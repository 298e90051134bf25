"""What a run needs beside the optimizer: averages of weights, snapshots, and when to stop."""

from fusedstep.training.averaging import EMA, SWA, recompute_batch_norm
from fusedstep.training.early_stopping import EarlyStopping
from fusedstep.training.snapshots import SnapshotEnsemble, ensemble_predict

__all__ = ["EMA", "SWA", "EarlyStopping", "SnapshotEnsemble", "ensemble_predict", "recompute_batch_norm"]
