"""Squares that are left out."""

from collections.abc import Sequence

import numpy as np

from fusedstep._common.arguments import number, whole
from fusedstep.data.images import Array, Layout, channels_last, generator, images, result


def cutout(
    x: Array,
    size: int,
    fill: float | Sequence[float] = 0,
    *,
    rng: np.random.Generator,
    layout: Layout,
    out: Array | None = None,
) -> Array:
    r"""Overwrites a square of each image, whose centre is any pixel and whose parts beyond the border are cut off.

    .. code-block:: text

        y[h, w] = fill   where  topₙ ≤ h < topₙ + size  and  leftₙ ≤ w < leftₙ + size;  else x
        topₙ = rowₙ − ⌊size / 2⌋,  leftₙ = columnₙ − ⌊size / 2⌋

    Args:
        x: Images (N, H, W, C) or (N, C, H, W); float32, float64 or uint8; not modified.
        size: The side of the square in pixels, ≥ 1.
        fill: What the square holds: a number, or one for each channel. For images that are not centred on 0, their mean
            keeps the statistics. A whole number in [0, 255] for uint8.
        rng: Gives row = `rng.integers(0, H, N)`, then column = `rng.integers(0, W, N)`.
        layout: "NHWC" or "NCHW".
        out: Where y goes: an array like x, or x itself; by default a new one.

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; a size or fill out of range, or not one for each channel; an unknown layout; `out`
            overlaps x. Nothing has been written or drawn.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.ones((1, 3, 4, 1), np.uint8)
        >>> fs.data.cutout(x, 2, rng=np.random.default_rng(0), layout="NHWC")[0, :, :, 0]
        array([[1, 1, 1, 1],
               [1, 0, 0, 1],
               [1, 0, 0, 1]], dtype=uint8)

    Reference:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017. Their code
        rounds an odd size down to an even one; here the side is `size`.
    """
    x = images(x, layout, ("float32", "float64", "uint8"))
    size = whole(size, "size", least=1)
    source = channels_last(x, layout)
    count, rows, columns, channels = source.shape
    values = _fill(fill, channels, x.dtype)
    generator(rng)
    y = result(out, x, x.shape)
    top = rng.integers(0, rows, count).reshape(-1, 1) - size // 2
    left = rng.integers(0, columns, count).reshape(-1, 1) - size // 2
    h, w = np.arange(rows), np.arange(columns)
    covered = ((top <= h) & (h < top + size))[:, :, None] & ((left <= w) & (w < left + size))[:, None, :]
    if y is not x:
        np.copyto(y, x)
    np.copyto(channels_last(y, layout), values, where=covered[..., None])
    return y


def _fill(fill: float | Sequence[float], channels: int, dtype: np.dtype[np.generic]) -> Array:
    if isinstance(fill, Sequence) or (isinstance(fill, np.ndarray) and fill.ndim > 0):
        if isinstance(fill, str) or len(fill) != channels:
            raise ValueError(f"fill: expected a number, or one for each of {channels} channels, got {fill!r}")
        values = [number(value, f"fill[{k}]") for k, value in enumerate(fill)]
    else:
        values = [number(fill, "fill")]
    for value in values:
        if dtype == np.uint8 and not (0 <= value <= 255 and value == int(value)):
            raise ValueError(f"fill: expected whole numbers in [0, 255] for uint8, got {value:g}")
        if dtype != np.uint8 and abs(value) > float(np.finfo(dtype.name).max):
            raise ValueError(f"fill: expected a number within {dtype}, got {value:g}")
    return np.array(values).astype(dtype)
