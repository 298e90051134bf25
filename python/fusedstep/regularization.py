"""Dropout, DropConnect and stochastic depth. Random words decide, one for each element: no mask is stored."""

from typing import Any

from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arrays import viewed, wrote

__all__ = ["drop_connect", "dropout", "dropout_backward", "stochastic_depth"]

Array = NDArray[Any]


def dropout(
    x: Array, p: float, *, seed: int, offset: int = 0, residual: Array | None = None, out: Array | None = None
) -> Array:
    r"""Inverted dropout, added to a residual where there is one.

    .. code-block:: text

        yᵢ = residualᵢ + (xᵢ / (1 − p)  with probability 1 − p, else 0)

    Element i of x in C order is kept where word offset + i of Philox 4×32-10 with the key `seed` is at least p · 2³².
    So the result depends on the arguments alone, and the backward pass makes the same choice from the same `p`, `seed`
    and `offset`; nothing is stored. Two calls are independent if their seeds differ, or their ranges [offset, offset +
    elements) do not overlap.

    Args:
        x: Any shape and strides; float32, float64, float16 or bfloat16.
        p: The probability to drop, in [0, 1), rounded to a multiple of 2⁻³².
        seed: In [0, 2⁶⁴).
        offset: The number of the first element, in [0, 2⁶⁴); offset + elements likewise.
        residual: What is added, like x.
        out: Where y goes: a C-contiguous array like x, or x or the residual itself; by default a new one.

    Returns:
        y, in the shape and dtype of x. At test time dropout is left out: y is x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; a number out of range; arrays that overlap. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.ones(8, np.float32)
        >>> y = fs.dropout(x, 0.5, seed=3)
        >>> sorted(set(y.tolist()))
        [0.0, 2.0]
        >>> bool((fs.dropout_backward(x, 0.5, seed=3) == y).all())
        True

    Reference:
        Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", 2014. Salmon, Moraes, Dror and Shaw,
        "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    return _dropout(x, p, seed, offset, residual, out, "x")


def dropout_backward(dy: Array, p: float, *, seed: int, offset: int = 0, out: Array | None = None) -> Array:
    r"""The gradient of `dropout`: dx = dy / (1 − p) where x was kept, else 0; dresidual = dy.

    Args:
        dy: The gradient of y, of any strides; float32, float64, float16 or bfloat16.
        p: As in the forward pass; so are the following.
        seed: See `dropout`.
        offset: See `dropout`.
        out: Where dx goes: a C-contiguous array like dy, or dy itself; by default a new one.

    Returns:
        dx, in the shape and dtype of dy.

    Raises:
        TypeError: See `dropout`.
        ValueError: See `dropout`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.dropout_backward(np.ones(3, np.float32), 0.0, seed=0)
        array([1., 1., 1.], dtype=float32)
    """
    return _dropout(dy, p, seed, offset, None, out, "dy")


def drop_connect(weight: Array, p: float, *, seed: int, offset: int = 0, out: Array | None = None) -> Array:
    r"""DropConnect: `dropout` of the weights of a layer instead of its inputs.

    The layer computes with the result; the gradient of `weight` is `dropout_backward` of the gradient of the result.

    Args:
        weight: The weights, of any strides; float32, float64, float16 or bfloat16.
        p: The probability to drop, in [0, 1).
        seed: See `dropout`.
        offset: See `dropout`.
        out: See `dropout`.

    Returns:
        The weights that are left, divided by 1 − p.

    Raises:
        TypeError: See `dropout`.
        ValueError: See `dropout`.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> fs.drop_connect(np.ones((2, 4), np.float32), 0.25, seed=1).shape
        (2, 4)

    Reference:
        Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect", 2013.
    """
    return _dropout(weight, p, seed, offset, None, out, "weight")


def stochastic_depth(
    x: Array, p: float, *, seed: int, offset: int = 0, residual: Array | None = None, out: Array | None = None
) -> Array:
    r"""Stochastic depth: drops whole samples of a residual branch.

    .. code-block:: text

        y[n] = residual[n] + (x[n] / (1 − p)  with probability 1 − p, else 0)

    Word offset + n decides about sample n, see `dropout`. The gradient of x is the same function of the gradient of y,
    without the residual; the gradient of the residual is dy.

    Args:
        x: (N, …), what the branch gives, of any strides; float32, float64, float16 or bfloat16.
        p: The probability to drop a sample, in [0, 1).
        seed: See `dropout`.
        offset: See `dropout`; N words are used.
        residual: What is added, like x.
        out: Where y goes: a C-contiguous array like x, or x or the residual itself; by default a new one.

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; a number out of range; arrays that overlap. Nothing has been written.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> y = fs.stochastic_depth(np.ones((6, 3), np.float32), 0.5, seed=5)
        >>> bool((y.min(axis=1) == y.max(axis=1)).all())
        True

    Reference:
        Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", 2016.
    """
    return _dropout(x, p, seed, offset, residual, out, "x", samples=True)


def _dropout(
    x: Any, p: float, seed: int, offset: int, residual: Any, out: Any, name: str, *, samples: bool = False
) -> Array:
    y: Array = _core.dropout(
        viewed(x, name), p, seed, offset, viewed(residual, "residual"), viewed(out, "out"), name, samples
    )
    wrote(out)
    return y
