"""Brightness, contrast, saturation and hue, changed at random."""

from collections.abc import Callable

import numpy as np

from fusedstep.data.images import Array, Layout, channels_last, generator, images, interval, result

#: A factor, or the interval that it comes from.
Range = float | tuple[float, float]


def color_jitter(
    x: Array,
    brightness: Range = 0.0,
    contrast: Range = 0.0,
    saturation: Range = 0.0,
    hue: Range = 0.0,
    *,
    rng: np.random.Generator,
    layout: Layout,
    out: Array | None = None,
) -> Array:
    r"""Changes brightness, contrast, saturation and hue of each image, by random factors and in random order.

    .. code-block:: text

        brightness:  y = clamp(f x)
        contrast:    y = clamp(f x + (1 − f) m)       m = mean of gray over the image
        saturation:  y = clamp(f x + (1 − f) gray)    gray = 0.2989 R + 0.587 G + 0.114 B
        hue:         (H, S, V) → ((H + f) mod 1, S, V), H in turns
        clamp(v) = min(max(v, 0), 1)

    Args:
        x: Images (N, H, W, 3) or (N, 3, H, W): float32 or float64 in [0, 1] (normalize afterwards), or uint8; not
            modified. With saturation and hue 0, one channel is enough; it is its own gray.
        brightness: f is uniform in [max(0, 1 − brightness), 1 + brightness], or in the interval (low, high), ≥ 0.
        contrast: Likewise.
        saturation: Likewise.
        hue: f is uniform in [−hue, hue], hue ≤ 0.5, or in the interval (low, high) within [−0.5, 0.5].
        rng: Gives the factors, four times `rng.uniform(low, high, N)` in the order of the arguments; then the orders,
            `rng.permuted(numpy.tile(numpy.arange(4), (N, 1)), axis=1)`: the numbers of the changes, first to last.
            Changes of 0 are drawn too, and do nothing.
        layout: "NHWC" or "NCHW".
        out: Where y goes: an array like x, or x itself; by default a new one.

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: A wrong dtype or kind of argument.
        ValueError: A wrong shape; floating values outside of [0, 1]; a factor out of range; an unknown layout; `out`
            overlaps x. Nothing has been written or drawn.

    Examples:
        >>> import numpy as np, fusedstep as fs
        >>> x = np.full((1, 1, 1, 3), 100, np.uint8)
        >>> fs.data.color_jitter(x, brightness=(1.5, 1.5), rng=np.random.default_rng(0), layout="NHWC").ravel()
        array([150, 150, 150], dtype=uint8)

    Reference:
        `torchvision.transforms.ColorJitter`. Here a batch of uint8 is computed in float32 and rounded once, to the
        nearest; torchvision cuts fractions off after every change.
    """
    x = images(x, layout, ("float32", "float64", "uint8"))
    ranges = [
        interval(value, name, centre=1, least=0, most=np.inf)
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation))
    ]
    ranges.append(interval(hue, "hue", centre=0, least=-0.5, most=0.5))
    neutral = 1, 1, 1, 0
    active = [(low, high) != (same, same) for (low, high), same in zip(ranges, neutral, strict=True)]
    source = channels_last(x, layout)
    channels = source.shape[-1]
    if channels != 3 and not (channels == 1 and not any(active[2:])):
        raise ValueError(f"x: expected 3 channels (or 1, for brightness and contrast), got {channels}")
    if x.dtype.kind == "f":
        low, high = x.min(), x.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"x: expected values in [0, 1] (normalize afterwards), got {low:g} to {high:g}")
    generator(rng)
    y = result(out, x, x.shape)
    count = len(x)
    factors = [rng.uniform(low, high, count) for low, high in ranges]
    order = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)

    values: Array = np.array(source, np.float64 if x.dtype == np.float64 else np.float32, order="C")
    if x.dtype == np.uint8:
        np.divide(values, 255, out=values)
    for place in range(4):
        for k, change in enumerate(CHANGES):
            which = np.flatnonzero(order[:, place] == k)
            if active[k] and len(which):
                values[which] = change(values[which], factors[k][which].astype(values.dtype).reshape(-1, 1, 1, 1))
    np.copyto(channels_last(y, layout), np.rint(values * 255) if x.dtype == np.uint8 else values, casting="unsafe")
    return y


def _gray(x: Array) -> Array:
    if x.shape[-1] == 1:
        return x
    weights = np.array([0.2989, 0.587, 0.114], x.dtype)
    # Written as products and sums, because the order of a matrix product depends on its library.
    r, g, b = (x[..., k : k + 1] * weights[k] for k in range(3))
    gray: Array = r + g + b
    return gray


def _blend(x: Array, other: Array, factor: Array) -> Array:
    blended: Array = np.clip(factor * x + (1 - factor) * other, 0, 1)
    return blended


def _brightness(x: Array, factor: Array) -> Array:
    scaled: Array = np.clip(factor * x, 0, 1)
    return scaled


def _contrast(x: Array, factor: Array) -> Array:
    mean = _gray(x).mean(axis=(1, 2, 3), dtype=np.float64).astype(x.dtype)
    return _blend(x, mean.reshape(-1, 1, 1, 1), factor)


def _saturation(x: Array, factor: Array) -> Array:
    return _blend(x, _gray(x), factor)


def _hue(x: Array, factor: Array) -> Array:
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    value = x.max(axis=-1)
    chroma = value - x.min(axis=-1)
    divisor = np.where(chroma == 0, 1, chroma)
    # In sixths of a turn, from red; without chroma every term is 0.
    sixths = np.where(value == r, (g - b) / divisor, np.where(value == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor))
    sixths = (sixths + 6 * factor[..., 0]) % 6
    shifted = np.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = (offset + sixths) % 6
        shifted[..., channel] = value - chroma * np.clip(np.minimum(k, 4 - k), 0, 1)
    return shifted


#: In the order of the arguments, by which the drawn orders number them.
CHANGES: tuple[Callable[[Array, Array], Array], ...] = (_brightness, _contrast, _saturation, _hue)
