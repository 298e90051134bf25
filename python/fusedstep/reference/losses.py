"""Softmax, and losses with their gradients, which are written into the arrays that the caller gives."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep.reference.codec import store, widened
from fusedstep.reference.explog import exponential, log_1p, log_of, logarithm
from fusedstep.reference.sums import CHUNK, lane_sum, term_sum

Array = NDArray[Any]
LABELS, SMOOTH_LABELS, TARGETS = range(3)


def total(losses: NDArray[np.float64]) -> float:
    """The sum of the losses of rows."""
    with np.errstate(all="ignore"):
        return float(lane_sum(losses))


def row_exponentials(z: Array) -> tuple[Array, Array, Array, Array, Array]:
    """d = z − max z and e^d of rows; how many terms of Σ e^d are 1, the sum of the others, and log Σ e^d.

    Both parts are kept, so that a row whose largest probability is nearly 1 keeps the digits of the others.
    """
    top = np.fmax.reduce(z, axis=-1, keepdims=True, initial=-np.inf)
    d = z - top
    e = exponential(d)
    zero = d == 0
    ties = np.count_nonzero(zero, axis=-1).astype(np.float64)
    rest = term_sum(np.where(zero, z.dtype.type(0), e))
    total = ties + rest
    sure = (ties == 1.0) & (rest < 0.41)
    log = np.where(sure, log_of(np.where(sure, rest, 0.0), np.zeros_like(rest)), logarithm(total))
    # The largest logit adds 1. A total that is not at least 1 is NaN, and so is its logarithm.
    return d, e, ties, rest, np.where(total >= 1.0, log, total)


def softmax(logits: Array, out: Array, log: bool) -> None:
    """softmax, or its logarithm, of the last axis."""
    with np.errstate(all="ignore"):
        z = widened(logits)
        real = z.dtype.type
        d, e, ties, rest, log_total = row_exponentials(z)
        store(out, d - log_total.astype(real)[..., None] if log else e * (1.0 / (ties + rest)).astype(real)[..., None])


def mean_divisor(labels: NDArray[np.int64], ignore: int, weight: Array | None) -> float:
    """The divisor of the mean: the weights of the labels that are not ignored, or their number."""
    counted = labels[labels != ignore]
    if weight is None:
        return float(len(counted))
    divisor = 0.0
    for label_weight in weight[counted].astype(np.float64).tolist():
        divisor += label_weight
    return divisor


def cross_entropy(
    logits: Array,
    labels: NDArray[np.int64] | None,
    ignore: int,
    targets: Array | None,
    weight: Array | None,
    smoothing: float,
    scale: float,
    losses: Array | None,
    dlogits: Array,
) -> float:
    """The sum of the losses of rows, or every one in `losses`; and the gradient, times `scale`, in `dlogits`."""
    classes = logits.shape[-1]
    rows = logits.reshape(-1, classes)
    wanted = None if targets is None else targets.reshape(-1, classes)
    row_losses, gradient = row_cross_entropies(rows, labels, ignore, wanted, weight, smoothing, scale)
    whole = total(row_losses)
    if losses is not None:
        with np.errstate(all="ignore"):
            losses[...] = row_losses.astype(losses.dtype).reshape(losses.shape)
    store(dlogits, gradient.reshape(dlogits.shape))
    return whole


def row_cross_entropies(
    logits: Array,
    labels: NDArray[np.int64] | None,
    ignore: int,
    targets: Array | None,
    weight: Array | None,
    smoothing: float,
    scale: float,
) -> tuple[NDArray[np.float64], Array]:
    """The losses Σ q_j (log Σ e^(z_k) − z_j) of rows, and their gradient (softmax(z) Σ q_j − q) · scale.

    q_j is what is wanted of class j: 1 − smoothing at the label, or times a target, and smoothing / classes
    everywhere; all of it times the weight of the class.
    """
    with np.errstate(all="ignore"):
        z = widened(logits)
        real = z.dtype.type
        rows, classes = z.shape
        peak, rest = 1.0 - smoothing, smoothing / classes
        goal = goal_of(labels, weight, smoothing)
        every = np.arange(rows)
        counts = np.ones(rows, bool) if labels is None else labels != ignore
        label = np.zeros(rows, np.int64) if labels is None else np.where(counts, labels, 0)
        peaks = np.zeros(rows) if labels is None else np.full(rows, peak)
        if labels is not None and weight is not None:
            peaks = peak * weight[label].astype(np.float64)
        d, e, ties, others, log_total = row_exponentials(z)
        total = ties + others
        top = np.fmax.reduce(z, axis=-1, initial=-np.inf).astype(np.float64)
        label_logit = z[every, label].astype(np.float64) - top
        whole, wanted = peaks.copy(), np.where(peaks == 0.0, 0.0, peaks * label_logit)
        q = np.full_like(z, rest) if targets is None else widened(targets) * real(peak) + real(rest)
        if weight is not None:
            q = q * weight
        if goal == SMOOTH_LABELS:
            whole += rest * classes
            wanted += rest * term_sum(d)
        if goal == TARGETS:
            whole += term_sum(q)
            # A class with the logit −inf adds nothing where its target is 0.
            wanted += term_sum(np.where(q == 0, q, q * d))
        losses = whole * log_total - wanted

        factor = (scale * whole / total).astype(real)
        gradient = e * factor[:, None]
        label_gradient = gradient[every, label]
        if goal == LABELS:
            # p_y − 1, without cancellation where the label has the largest logit.
            share = np.where(label_logit == 0, (1.0 - ties) - others, e[every, label].astype(np.float64) - total)
            label_gradient = share.astype(real) * factor
        elif goal == SMOOTH_LABELS:
            gradient -= real(scale * rest)
            label_gradient = (label_gradient - real(scale * rest)) - (scale * peaks).astype(real)
        else:
            gradient -= q * real(scale)
            label_gradient = (label_gradient - q[every, label] * real(scale)) - (scale * peaks).astype(real)
    if labels is not None:
        gradient[every, label] = label_gradient
    gradient[~counts] = 0
    return np.where(counts, losses, 0.0), gradient


def goal_of(labels: Array | None, weight: Array | None, smoothing: float) -> int:
    """Which classes are wanted: one, by labels; one, and a little of all; any."""
    if labels is None:
        return TARGETS
    if smoothing == 0.0:
        return LABELS
    return SMOOTH_LABELS if weight is None else TARGETS


def binary_cross_entropy(
    x: Array, targets: Array, weight: float, scale: float, losses: Array | None, dx: Array
) -> float:
    """(1 − t) softplus(x) + weight · t softplus(−x), and its gradient (1 − t) σ(x) − weight · t σ(−x)."""
    with np.errstate(all="ignore"):
        z, t = widened(x), widened(targets)
        real = z.dtype.type
        negative, size = z < 0, np.abs(z)
        e = exponential(-size)
        near = real(1.0) / (real(1.0) + e)
        far = e * near
        log = log_1p(e)
        no, yes = real(1.0) - t, t * real(weight)
        # A term without weight is 0, even where the logit is infinite.
        loss = np.where(no == 0, real(0), no * np.where(negative, log, size + log))
        loss = loss + np.where(yes == 0, real(0), yes * np.where(negative, size + log, log))
        gradient = no * np.where(negative, far, near) - yes * np.where(negative, near, far)
        return _sum_and_store(loss, losses, gradient * real(scale), dx)


def squared_error(x: Array, targets: Array, weight: float, scale: float, losses: Array | None, dx: Array) -> float:
    """(x − t)², and its gradient 2 (x − t)."""
    with np.errstate(all="ignore"):
        z = widened(x)
        d = z - widened(targets)
        return _sum_and_store(d * d, losses, (d + d) * z.dtype.type(scale), dx)


def _sum_and_store(loss: Array, losses: Array | None, gradient: Array, dx: Array) -> float:
    """The sum of the losses, chunk after chunk, or every one; and their gradient."""
    flat = loss.reshape(-1)
    chunks = [float(lane_sum(flat[start : start + CHUNK])) for start in range(0, flat.size, CHUNK)]
    whole = float(lane_sum(np.array(chunks)))
    if losses is not None:
        losses[...] = loss
    store(dx, gradient)
    return whole
