"""Mixtures of examples, and labels as probabilities."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fusedstep._common.arguments import flag, number, whole
from fusedstep._common.arrays import dtype_name
from fusedstep.data.images import Array, generator, plain_array, result, typed
from fusedstep.reference.codec import narrowed


def mixup(
    x: Array,
    targets: Array,
    alpha: float,
    *,
    rng: np.random.Generator,
    per_sample: bool = False,
    out: Array | None = None,
) -> tuple[Array, Array]:
    r"""Mixes each example of a batch and its target with another example of the batch.

    .. code-block:: text

        x̃ = λ x + (1 − λ) x[order],   t̃ = λ t + (1 − λ) t[order],   λ ~ Beta(α, α)

    Args:
        x: The batch, (N, …), of any shape; float32 or float64; not modified.
        targets: (N, …): probabilities (`one_hot` makes them of labels), in the dtype of the logits if
            `softmax_cross_entropy` is to take them, or targets of a regression; float32 or float64.
        alpha: > 0. Small values hardly mix, 1 makes all proportions equally likely; the paper takes 0.1 to 0.4 for
            ImageNet, 1 for CIFAR.
        rng: Gives λ = `rng.beta(α, α)`, or `rng.beta(α, α, N)` per sample; then order = `rng.permutation(N)`.
        per_sample: Whether every example has its own λ; otherwise the batch has one, as in the paper's code.
        out: Where x̃ goes: an array like x, or x itself; by default a new one.

    Returns:
        x̃ and t̃, like x and targets. λ and 1 − λ are rounded to the dtype.

    Raises:
        TypeError: A wrong dtype (integers cannot hold mixtures) or kind of argument.
        ValueError: No examples, or not as many targets; alpha ≤ 0; `out` overlaps x or the targets. Nothing has been
            written or drawn.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x, labels = np.array([[0.0], [1.0]], np.float32), np.array([0, 1])
        >>> mixed, targets = fs.data.mixup(x, fs.data.one_hot(labels, 2), 1.0, rng=np.random.default_rng(1))
        >>> bool((mixed == targets[:, 1:]).all())
        True

    Reference:
        Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018.
    """
    x = typed(x, "x", ("float32", "float64"))
    targets = typed(targets, "targets", ("float32", "float64"))
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x: expected at least one example, got shape {x.shape}")
    if targets.ndim == 0 or len(targets) != len(x):
        raise ValueError(f"targets: expected {len(x)} rows as x has, got shape {targets.shape}")
    alpha = number(alpha, "alpha", above=0, below=1e300)
    per_sample = flag(per_sample, "per_sample")
    generator(rng)
    mixed = result(out, x, x.shape)
    if np.may_share_memory(mixed, targets):
        raise ValueError("out: overlaps targets")
    lam = np.asarray(rng.beta(alpha, alpha, len(x) if per_sample else None))
    order = rng.permutation(len(x))
    return _mixed(x, lam, order, mixed), _mixed(targets, lam, order, np.empty_like(targets))


def _mixed(values: Array, lam: Array, order: Array, out: Array) -> Array:
    shape = (-1, *[1] * (values.ndim - 1)) if lam.ndim else ()
    others = values[order]
    others *= (1.0 - lam).astype(values.dtype).reshape(shape)
    np.multiply(values, lam.astype(values.dtype).reshape(shape), out=out)
    out += others
    return out


def one_hot(labels: Array, classes: int, dtype: DTypeLike = np.float32) -> Array:
    """Labels as probabilities: 1 at the label's place, else 0.

    Args:
        labels: (…) integers in [0, classes).
        classes: How many there are, ≥ 1.
        dtype: Of the result: any floating dtype, bfloat16 included.

    Returns:
        (…, classes).

    Raises:
        TypeError: Labels that are no integers; a dtype that is not floating.
        ValueError: A label out of range.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.data.one_hot(np.array([2, 0]), 3)
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    labels = plain_array(labels, "labels")
    if labels.dtype.kind not in "iu" or dtype_name(labels.dtype) == "bfloat16":
        raise TypeError(f"labels: expected integers, got {dtype_name(labels.dtype)}")
    classes = whole(classes, "classes", least=1)
    if dtype is None:
        raise TypeError("dtype: expected a floating dtype, got None")
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind != "f" and dtype_name(kind) != "bfloat16":
        raise TypeError(f"dtype: expected a floating dtype, got {dtype_name(kind)}")
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        raise ValueError(f"labels: expected classes in [0, {classes}), got {labels[bad].flat[0]}")
    rows = np.zeros((labels.size, classes), kind)
    rows[np.arange(labels.size), labels.ravel().astype(np.intp)] = (
        narrowed(np.ones(1, np.float32), kind) if dtype_name(kind) == "bfloat16" else 1
    )
    return rows.reshape(*labels.shape, classes)
