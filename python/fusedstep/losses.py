"""Losses, each with its gradient, and softmax."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import flag
from fusedstep._common.arrays import bfloat16_dtype, dtype_name, viewed, wrote
from fusedstep.reference.codec import narrowed, widened

__all__ = ["log_softmax", "mean_squared_error", "sigmoid_binary_cross_entropy", "softmax", "softmax_cross_entropy"]

#: An array of NumPy or another library. One that is only read may have any strides, or be a list of numbers.
Array = NDArray[Any]


def softmax_cross_entropy(
    logits: Array,
    labels: Array,
    *,
    weight: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
    check_targets: bool = True,
) -> tuple[Any, Array]:
    r"""Softmax cross-entropy and its gradient, in one read and one write of the logits.

    .. code-block:: text

        qⱼ = wⱼ ((1 − s) tⱼ + s / C)     t = onehot(label), or the probabilities; s = label_smoothing
        loss of a row = Σⱼ qⱼ (log Σₖ exp(zₖ) − zⱼ)
        dlogits = (softmax(z) Σⱼ qⱼ − q) / D
        D = Σ over the rows that count of w_label (their number, without weights)     "mean", labels
            rows                                                                      "mean", probabilities
            1                                                                         "sum" and "none"

    Args:
        logits: (…, C), two axes or more, rows of C classes, of any strides (copied where they are not C-contiguous);
            float32, float64, float16 or bfloat16 (16-bit numbers are computed in float32, and rounded once). A list of
            numbers is float64.
        labels: (…) integers in [0, C) or `ignore_index`; or (…, C) probabilities, in the dtype of the logits. A list of
            numbers takes that dtype.
        weight: (C,) weights of the classes, finite and ≥ 0; float32, float64 for float64 logits.
        ignore_index: Rows of this label do not count: loss 0, gradient 0. Where no row counts, or none has weight, the
            mean is 0 and so is the gradient.
        label_smoothing: The part of each target that is spread evenly over all classes, in [0, 1].
        reduction: "mean", "sum", or "none".
        out: Where the gradient goes: a C-contiguous array like logits, or logits itself; by default a new one.
        check_targets: Whether to check that probabilities are in [0, 1], and that each row sums to 1 within the
            rounding of its dtype. False takes any numbers.

    Returns:
        The loss in nats, and the gradient with respect to the logits, in their shape and dtype. With "none" the loss is
        an array (…), float32 (float64 for float64 logits), and the gradient that of its sum.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape, no rows or no classes; a label, probability, weight or other number out of range;
            probabilities of a row that do not sum to 1; arrays that overlap. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> logits = np.log(np.array([[0.1, 0.8, 0.1]], np.float32))
        >>> loss, dlogits = fs.softmax_cross_entropy(logits, np.array([1]))
        >>> print(round(loss, 4), dlogits.round(2))
        0.2231 [[ 0.1 -0.2  0.1]]
        >>> fs.softmax_cross_entropy(logits, np.array([-100]))[0]
        0.0

    Reference:
        Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception architecture", 2016 (label smoothing).
        Weights, `ignore_index` and smoothing are those of `torch.nn.functional.cross_entropy`, with these differences:
        ignored rows count nowhere, a mean over nothing is 0 and not NaN, and the classes are the last axis.
    """
    z, given, weights = _read(logits, "logits"), viewed(labels, "labels"), viewed(weight, "weight")
    if isinstance(given, list | tuple):
        given = _listed(given, "labels")
        if given.dtype.kind == "f":
            given = _rounded(given, "labels", _dtype_beside(z))
    if isinstance(weights, list | tuple):
        weights = _read(weights, "weight", np.float64 if _dtype_beside(z) == np.float64 else np.float32)
    check = _check_rows if flag(check_targets, "check_targets") else None
    result: tuple[Any, Array] = _core.softmax_cross_entropy(
        z, given, weights, ignore_index, label_smoothing, reduction, viewed(out, "out"), check
    )
    wrote(out)
    return result


def sigmoid_binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    pos_weight: float = 1.0,
    reduction: str = "mean",
    out: Array | None = None,
    check_targets: bool = True,
) -> tuple[Any, Array]:
    r"""Binary cross-entropy of sigmoid(logits), and its gradient.

    .. code-block:: text

        loss of an element = (1 − t) log(1 + exp(z)) + pos_weight · t log(1 + exp(−z))
        dlogits = ((1 − t) σ(z) − pos_weight · t σ(−z)) / D     D = elements for "mean", else 1

    Neither overflows, nor loses digits where the sigmoid is near 0 or 1; an infinite logit of the right sign costs 0.

    Args:
        logits: Any shape and strides; float32, float64, float16 or bfloat16. A list of numbers takes the dtype of the
            targets, float64 where they are a list too.
        targets: The same shape and dtype, or a list of numbers; probabilities, usually 0 and 1.
        pos_weight: The weight of positive targets; ≥ 0, finite in the dtype of the arithmetic.
        reduction: "mean", "sum", or "none".
        out: Where the gradient goes: a C-contiguous array like logits, or logits itself; by default a new one.
        check_targets: Whether to check that the targets are in [0, 1]. False takes any numbers.

    Returns:
        The loss in nats and the gradient, as `softmax_cross_entropy`.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape, no elements; a target or other number out of range; arrays that overlap. Nothing has
            been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> loss, dlogits = fs.sigmoid_binary_cross_entropy(np.zeros(2, np.float32), np.array([0, 1], np.float32))
        >>> print(round(loss, 4), dlogits)
        0.6931 [ 0.25 -0.25]
    """
    z, t = _read_pair(logits, "logits", targets)
    check = _check_unit_interval if flag(check_targets, "check_targets") else None
    result: tuple[Any, Array] = _core.sigmoid_binary_cross_entropy(
        z, t, pos_weight, reduction, viewed(out, "out"), check
    )
    wrote(out)
    return result


def _check_rows(targets: Array) -> None:
    """Raises ValueError for a row that is not a distribution over the classes."""
    probabilities = _within(targets, "labels", "probabilities")
    with np.errstate(all="ignore"):
        sums = probabilities.sum(axis=-1, dtype=np.float64)
    # The roundings of all numbers add up to at most half a unit in the last place of 1. As much is allowed for each
    # of the few operations that made them, and for the errors of the sum, which grow with the root of its length.
    unit = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}.get(dtype_name(targets.dtype), 2.0**-52)
    wrong = ~(np.abs(sums - 1.0) <= unit / 2 * (4 + math.sqrt(targets.shape[-1])))
    if wrong.any():
        where = _place(wrong)
        raise ValueError(
            f"labels{where}: expected probabilities that sum to 1, got the sum {sums[wrong].flat[0]:.6g} "
            "(check_targets=False takes it)"
        )


def _check_unit_interval(targets: Array) -> None:
    """Raises ValueError for a target that is not a probability."""
    _within(targets, "targets", "a probability")


def _within(targets: Array, name: str, what: str) -> Array:
    numbers = widened(np.asarray(targets))
    wrong = ~((numbers >= 0) & (numbers <= 1))
    if wrong.any():
        got = numbers[wrong].flat[0]
        raise ValueError(
            f"{name}{_place(wrong)}: expected {what} in [0, 1], got {got:.6g} (check_targets=False takes it)"
        )
    return numbers


def _place(wrong: NDArray[np.bool_]) -> str:
    """The first place that is wrong, as an index."""
    place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    return f"[{', '.join(str(int(index)) for index in place)}]" if place else ""


def mean_squared_error(
    predictions: Array, targets: Array, *, reduction: str = "mean", out: Array | None = None
) -> tuple[Any, Array]:
    r"""The mean of (prediction − target)², and its gradient 2 (prediction − target) / elements.

    Args:
        predictions: Any shape and strides; float32, float64, float16 or bfloat16. A list of numbers takes the dtype of
            the targets, float64 where they are a list too.
        targets: The same shape and dtype, or a list of numbers.
        reduction: "mean", "sum", or "none" (which do not divide).
        out: Where the gradient goes: a C-contiguous array like predictions, or predictions itself; by default a new
            one.

    Returns:
        The loss and the gradient, as `softmax_cross_entropy`.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape, no elements; a wrong reduction; arrays that overlap. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.mean_squared_error(np.array([1, 3], np.float32), np.zeros(2, np.float32))
        (5.0, array([1., 3.], dtype=float32))
    """
    x, t = _read_pair(predictions, "predictions", targets)
    result: tuple[Any, Array] = _core.mean_squared_error(x, t, reduction, viewed(out, "out"))
    wrote(out)
    return result


def softmax(logits: Array, *, out: Array | None = None) -> Array:
    r"""exp(zⱼ) / Σₖ exp(zₖ) over the last axis.

    Args:
        logits: (…, C), of any strides; float32, float64, float16 or bfloat16; or a list of numbers, which is float64.
        out: Where the result goes: a C-contiguous array like logits, or logits itself; by default a new one.

    Returns:
        Probabilities, in the shape and dtype of logits.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; arrays that overlap.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.softmax(np.array([0, 0, -np.inf], np.float32))
        array([0.5, 0.5, 0. ], dtype=float32)
    """
    result: Array = _core.softmax(_read(logits, "logits"), viewed(out, "out"), False)
    wrote(out)
    return result


def log_softmax(logits: Array, *, out: Array | None = None) -> Array:
    r"""zⱼ − log Σₖ exp(zₖ) over the last axis.

    Args:
        logits: (…, C), of any strides; float32, float64, float16 or bfloat16; or a list of numbers, which is float64.
        out: Where the result goes: a C-contiguous array like logits, or logits itself; by default a new one.

    Returns:
        Logarithms of probabilities, in the shape and dtype of logits.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; arrays that overlap.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.log_softmax(np.array([0, -1000], np.float32))
        array([    0., -1000.], dtype=float32)
    """
    result: Array = _core.softmax(_read(logits, "logits"), viewed(out, "out"), True)
    wrote(out)
    return result


def _read(value: Any, name: str, dtype: Any = np.float64) -> Any:
    """An array as it is; a list of numbers as an array of the dtype."""
    if not isinstance(value, list | tuple):
        return viewed(value, name)
    array = _listed(value, name)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected a list of numbers, got one of {dtype_name(array.dtype)}")
    return _rounded(array, name, dtype)


def _read_pair(x: Any, name: str, targets: Any) -> tuple[Any, Any]:
    """Predictions and targets. A list of numbers takes the dtype of the other argument."""
    z, t = viewed(x, name), viewed(targets, "targets")
    if isinstance(z, list | tuple):
        z = _read(z, name, _dtype_beside(t))
    return z, _read(t, "targets", _dtype_beside(z)) if isinstance(t, list | tuple) else t


def _dtype_beside(array: Any) -> Any:
    """The dtype of a list of numbers beside an array: the array's, if that is one of narrow floats; else float64."""
    dtype = np.asarray(array).dtype if isinstance(array, np.ndarray) else np.dtype(np.float64)
    return dtype if dtype_name(dtype) in ("float16", "float32", "bfloat16") else np.float64


def _listed(value: Any, name: str) -> NDArray[Any]:
    """A list of numbers as NumPy takes it."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected numbers, as many in every row") from error
    if array.dtype == object and all(isinstance(entry, int | float) for entry in array.flat):
        raise ValueError(f"{name}: expected numbers in the range of doubles")
    return array


def _rounded(array: NDArray[Any], name: str, dtype: Any) -> NDArray[Any]:
    """Rounds numbers to a float dtype. Raises ValueError where one leaves its range."""
    with np.errstate(all="ignore"):
        if dtype_name(np.dtype(dtype)) == "bfloat16":
            rounded = narrowed(array.astype(np.float32), bfloat16_dtype())
        else:
            rounded = array.astype(dtype)
        lost = np.isfinite(array) & ~np.isfinite(widened(rounded))
    if lost.any():
        raise ValueError(f"{name}: expected numbers in the range of {dtype_name(rounded.dtype)}")
    return rounded
