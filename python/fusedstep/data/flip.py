"""Mirror images."""

from typing import Literal

import numpy as np

from fusedstep._common.arguments import choice, share
from fusedstep.data.images import Array, Layout, channels_last, generator, images, result


def random_flip(
    x: Array,
    p: float = 0.5,
    axis: Literal["horizontal", "vertical"] = "horizontal",
    *,
    rng: np.random.Generator,
    layout: Layout,
    out: Array | None = None,
) -> Array:
    r"""Mirrors each image with probability p.

    .. code-block:: text

        y[h, w] = x[h, W − 1 − w]      where uₙ < p, horizontal
        y[h, w] = x[H − 1 − h, w]      where uₙ < p, vertical;  else x

    Args:
        x: Images (N, H, W, C) or (N, C, H, W) of any dtype but objects; not modified.
        p: The probability to mirror, in [0, 1].
        axis: "horizontal" swaps left and right, "vertical" top and bottom.
        rng: Gives u = `rng.random(N)`.
        layout: "NHWC" or "NCHW".
        out: Where y goes: an array like x, or x itself; by default a new one.

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; p out of range; an unknown axis or layout; `out` overlaps x. Nothing has been written
            or drawn.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.array([1, 2, 3], np.float32).reshape(1, 1, 1, 3)
        >>> fs.data.random_flip(x, 1.0, rng=np.random.default_rng(0), layout="NCHW").ravel()
        array([3., 2., 1.], dtype=float32)
    """
    x = images(x, layout)
    p = share(p, "p", closed=True)
    choice(axis, "axis", ("horizontal", "vertical"))
    generator(rng)
    y = result(out, x, x.shape)
    chosen = rng.random(len(x)) < p
    source, target = channels_last(x, layout), channels_last(y, layout)
    mirrored = source[chosen]
    if y is not x:
        np.copyto(y, x)
    target[chosen] = mirrored[:, :, ::-1] if axis == "horizontal" else mirrored[:, ::-1]
    return y
