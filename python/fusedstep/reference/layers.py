"""Softmax cross-entropy. Results are written into the arrays that the caller gives."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.explog import exponential, logarithm
from fusedstep.reference.sums import lane_sum

Array = NDArray[Any]


def cross_entropy(logits: Array, labels: Array, dlogits: Array) -> float:
    """The mean of −log softmax(logits)[label]; dlogits receives (softmax − onehot) / rows."""
    logits = np.asarray(logits)
    rows = np.arange(len(labels))
    with np.errstate(all="ignore"):
        top = np.fmax.reduce(logits, axis=1, initial=-np.inf)[:, None]
        label_logit = logits[rows, labels].astype(np.float64) - top[:, 0]
        e = exponential(logits - top)
        total = lane_sum(e)
        # The largest logit adds 1; less is NaN.
        losses = np.where(total >= 1.0, logarithm(total) - label_logit, total)
        scale = 1.0 / len(labels)
        dlogits[...] = e * (scale / total).astype(np.float32)[:, None]
        dlogits[rows, labels] -= np.float32(scale)
        return float(lane_sum(losses) / len(labels))
