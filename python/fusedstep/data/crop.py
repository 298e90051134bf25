"""Cuts from padded images."""

from typing import Literal

import numpy as np

from fusedstep._common.arguments import choice
from fusedstep.data.images import Array, Layout, channels_last, generator, images, outer_shape, pair, result


def random_crop(
    x: Array,
    size: int | tuple[int, int],
    padding: int | tuple[int, int] = 0,
    mode: Literal["zeros", "reflect"] = "zeros",
    *,
    rng: np.random.Generator,
    layout: Layout,
    out: Array | None = None,
) -> Array:
    r"""Cuts a window of one size out of each image, padded on all sides, at a random place.

    .. code-block:: text

        y[h, w] = padded(x)[h + topₙ, w + leftₙ]
        topₙ in {0, …, H + 2 pad − height},  leftₙ in {0, …, W + 2 pad − width},  all equally probable

    Args:
        x: Images (N, H, W, C) or (N, C, H, W) of any dtype but objects; not modified.
        size: (height, width) in pixels, or one number for both; at most those of the padded images.
        padding: Pixels added above and below, and left and right: (vertical, horizontal), or one number for both.
        mode: The content of the padding: "zeros", or "reflect" for the image mirrored in its outermost pixels, which
            are not repeated (padding < H and W then).
        rng: Gives top = `rng.integers(0, H + 2 pad − height + 1, N)`, then left likewise.
        layout: "NHWC" or "NCHW".
        out: Where y goes: an array of its shape, or x itself where that is the same; by default a new one.

    Returns:
        y, (N, height, width, C) or (N, C, height, width), in the dtype of x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; a window larger than the padded image; a reflection of more pixels than there are;
            an unknown mode or layout; `out` overlaps x. Nothing has been written or drawn.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
        >>> fs.data.random_crop(x, 2, padding=1, rng=np.random.default_rng(0), layout="NHWC")[0, :, :, 0]
        array([[3, 4],
               [0, 0]], dtype=uint8)
    """
    x = images(x, layout)
    height, width = pair(size, "size", least=1)
    vertical, horizontal = pair(padding, "padding", least=0)
    choice(mode, "mode", ("zeros", "reflect"))
    generator(rng)
    source = channels_last(x, layout)
    count, rows, columns, _ = source.shape
    if mode == "reflect" and (vertical >= rows or horizontal >= columns):
        raise ValueError(f"padding: expected less than the {rows}x{columns} pixels to reflect, got {padding}")
    spare = rows + 2 * vertical - height, columns + 2 * horizontal - width
    if min(spare) < 0:
        padded = f"{rows + 2 * vertical}x{columns + 2 * horizontal}"
        raise ValueError(f"size: expected at most the {padded} pixels of the padded images, got {size}")
    y = result(out, x, outer_shape(x, layout, height, width))
    top, left = (rng.integers(0, most + 1, count) for most in spare)
    h = top[:, None] + np.arange(height) - vertical
    w = left[:, None] + np.arange(width) - horizontal
    outside = ((h < 0) | (h >= rows))[:, :, None] | ((w < 0) | (w >= columns))[:, None, :]
    h, w = _reflected(h, rows), _reflected(w, columns)
    window = source[np.arange(count)[:, None, None], h[:, :, None], w[:, None, :]]
    if mode == "zeros":
        window[outside] = np.zeros((), x.dtype)
    np.copyto(channels_last(y, layout), window)
    return y


def _reflected(places: Array, length: int) -> Array:
    """Places outside of [0, length), mirrored into it; places too far outside become the first or the last."""
    places = np.abs(places)
    mirrored = np.minimum(places, 2 * (length - 1) - places)
    inside: Array = np.clip(mirrored, 0, length - 1)
    return inside
