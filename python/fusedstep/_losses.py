"""Losses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core


def softmax_cross_entropy(
    logits: NDArray[np.float32], labels: NDArray[np.integer[Any]]
) -> tuple[float, NDArray[np.float32]]:
    r"""Softmax cross-entropy and its gradient, in one read and one write of the logits.

    .. code-block:: text

        loss = mean over rows of  log Σⱼ exp(zⱼ) − z_label
        dlogits = (softmax(z) − onehot(label)) / N

    Args:
        logits: (N, C) float32, C-contiguous.
        labels: (N,) integers in [0, C).

    Returns:
        The mean loss in nats, and its gradient with respect to the logits, (N, C) float32.

    Raises:
        TypeError: Logits that are not float32; labels that are not integers.
        ValueError: A wrong shape; a label out of range.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> loss, dlogits = fs.softmax_cross_entropy(np.log(np.array([[0.1, 0.8, 0.1]], np.float32)), np.array([1]))
        >>> print(round(loss, 4), dlogits.round(2))
        0.2231 [[ 0.1 -0.2  0.1]]
    """
    return _core.softmax_cross_entropy(logits, labels)
