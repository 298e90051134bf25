"""Augmentation: against loops over single images, with the random numbers drawn a second time."""

import colorsys
import math

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.data import color_jitter, cutout, mixup, one_hot, random_crop, random_flip

LAYOUTS = ["NHWC", "NCHW"]
DTYPES = [np.float32, np.float64, np.uint8]
F = np.float32


def pictures(rng, shape=(12, 6, 7, 3), dtype=np.float32):
    """NHWC."""
    return rng.integers(0, 256, shape).astype(dtype) if dtype == np.uint8 else rng.random(shape).astype(dtype)


def in_layout(x, layout):
    return x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def as_nhwc(x, layout):
    return x if layout == "NHWC" else x.transpose(0, 2, 3, 1)


#: One of each that keeps the shape.
CHANGES = {
    "flip": lambda x, **rest: random_flip(x, 0.4, "vertical", **rest),
    "crop": lambda x, **rest: random_crop(x, (6, 7), 2, **rest),
    "cutout": lambda x, **rest: cutout(x, 3, [1, 0, 1], **rest),
    "color": lambda x, **rest: color_jitter(x, 0.4, 0.4, 0.4, 0.2, **rest),
}


def bound(draws, alarm):
    """How far a mean of so many draws in [0, 1] is from its expectation, but for a chance of `alarm` (Hoeffding)."""
    return math.sqrt(math.log(2 / alarm) / (2 * draws))


class TestAll:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", CHANGES)
    def test_layouts_agree_to_the_bit(self, rng, name, dtype):
        x = pictures(rng, (40, 6, 7, 3), dtype)
        y = CHANGES[name](x, rng=np.random.default_rng(5), layout="NHWC")
        other = CHANGES[name](in_layout(x, "NCHW"), rng=np.random.default_rng(5), layout="NCHW")
        assert y.dtype == other.dtype == x.dtype
        assert y.tobytes() == np.ascontiguousarray(as_nhwc(other, "NCHW")).tobytes()
        assert (y != x).any()

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("name", CHANGES)
    def test_x_stays_unless_it_is_out(self, rng, name, layout):
        x = in_layout(pictures(rng), layout)
        before = x.copy()
        new = CHANGES[name](x, rng=np.random.default_rng(5), layout=layout)
        np.testing.assert_array_equal(x, before)
        assert not np.may_share_memory(new, x)
        given = np.full_like(x, 7)
        assert CHANGES[name](x, rng=np.random.default_rng(5), layout=layout, out=given) is given
        np.testing.assert_array_equal(given, new)
        strided = np.full((2 * len(x), *x.shape[1:]), 7, x.dtype)[::2]
        np.testing.assert_array_equal(
            CHANGES[name](x[::-1][::-1], rng=np.random.default_rng(5), layout=layout, out=strided), new
        )
        assert CHANGES[name](x, rng=np.random.default_rng(5), layout=layout, out=x) is x
        np.testing.assert_array_equal(x, new)

    @pytest.mark.parametrize("name", CHANGES)
    def test_errors_before_anything_is_drawn(self, rng, name):
        x = pictures(rng)
        before = x.copy()
        state = rng.bit_generator.state
        good = {"rng": rng, "layout": "NHWC"}
        for array, changes, error, message in (
            (x, {"layout": "HWC"}, ValueError, "layout: expected one of 'NHWC', 'NCHW', got 'HWC'"),
            (x, {"rng": 3}, TypeError, "rng: expected a numpy.random.Generator, got int"),
            (x, {"rng": np.random.RandomState(0)}, TypeError, "rng: expected a numpy.random.Generator"),
            (x[0], {}, ValueError, "x: expected NHWC images"),
            (x[:0], {}, ValueError, "x: expected NHWC images"),
            (x.tolist(), {}, TypeError, "x: expected an array, got list"),
            (x.astype(object), {}, TypeError, "x: expected numbers, got dtype object"),
            (np.ma.array(x), {}, TypeError, "x: expected an array without a mask"),
            (x, {"out": x.astype(np.float64)}, TypeError, "out: expected float32 as x, got float64"),
            (x, {"out": x[1:].copy()}, ValueError, "out: expected shape"),
            (x, {"out": [1]}, TypeError, "out: expected an array, got list"),
            (x, {"out": np.broadcast_to(F(0), x.shape)}, ValueError, "out: is read-only"),
            (x[1:], {"out": x[:-1]}, ValueError, "out: overlaps x"),
        ):
            with pytest.raises(error, match=message):
                CHANGES[name](array, **{**good, **changes})
        if name in ("cutout", "color"):
            with pytest.raises(TypeError, match="x: expected float32 or float64 or uint8, got int64"):
                CHANGES[name](x.astype(np.int64), **good)
        assert rng.bit_generator.state == state
        np.testing.assert_array_equal(x, before)


class TestFlip:
    @pytest.mark.parametrize("axis", ["horizontal", "vertical"])
    @pytest.mark.parametrize("dtype", [*DTYPES, np.int64, np.bool_])
    def test_against_a_loop(self, rng, axis, dtype):
        x = pictures(rng).astype(dtype)
        y = random_flip(x, 0.3, axis, rng=np.random.default_rng(1), layout="NHWC")
        draws = np.random.default_rng(1).random(len(x))
        assert 0 < (draws < 0.3).sum() < len(x)
        for image, got, u in zip(x, y, draws, strict=True):
            mirrored = np.fliplr(image) if axis == "horizontal" else np.flipud(image)
            np.testing.assert_array_equal(got, mirrored if u < 0.3 else image)

    def test_how_often(self):
        x = np.tile(np.array([0, 1], np.uint8).reshape(1, 1, 2, 1), (100_000, 1, 1, 1))
        for p in (0.0, 0.2, 0.5, 1.0):
            rate = random_flip(x, p, rng=np.random.default_rng(3), layout="NHWC")[:, 0, 0, 0].mean()
            assert abs(rate - p) <= (bound(len(x), 1e-9) if 0 < p < 1 else 0)

    def test_errors(self, rng):
        x = pictures(rng)
        for arguments, error, message in (
            ((1.5,), ValueError, r"p: expected a number in \[0, 1\], got 1.5"),
            ((-0.1,), ValueError, r"p: expected a number in \[0, 1\]"),
            ((math.nan,), ValueError, "p: expected a finite number"),
            ((True,), TypeError, "p: expected a number, got bool"),
            ((0.5, "diagonal"), ValueError, "axis: expected one of 'horizontal', 'vertical', got 'diagonal'"),
        ):
            with pytest.raises(error, match=message):
                random_flip(x, *arguments, rng=rng, layout="NHWC")


class TestCrop:
    @pytest.mark.parametrize("mode", ["zeros", "reflect"])
    @pytest.mark.parametrize(
        ("size", "padding"), [(4, 0), ((6, 7), 0), ((6, 7), 3), ((9, 2), (2, 0)), ((10, 15), (2, 4)), (1, 5)]
    )
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_against_a_loop(self, rng, mode, size, padding, dtype):
        x = pictures(rng, dtype=dtype)
        height, width = size if isinstance(size, tuple) else (size, size)
        v, h = padding if isinstance(padding, tuple) else (padding, padding)
        y = random_crop(x, size, padding, mode, rng=np.random.default_rng(2), layout="NHWC")
        assert y.shape == (12, height, width, 3)
        replica = np.random.default_rng(2)
        tops = replica.integers(0, 6 + 2 * v - height + 1, 12)
        lefts = replica.integers(0, 7 + 2 * h - width + 1, 12)
        for image, got, top, left in zip(x, y, tops, lefts, strict=True):
            padded = np.pad(image, ((v, v), (h, h), (0, 0)), mode="constant" if mode == "zeros" else "reflect")
            np.testing.assert_array_equal(got, padded[top : top + height, left : left + width])

    def test_zeros_as_far_as_you_like(self):
        x = np.ones((64, 2, 2, 1), np.uint8)
        y = random_crop(x, 2, 50, rng=np.random.default_rng(0), layout="NHWC")
        replica = np.random.default_rng(0)
        tops, lefts = replica.integers(0, 101, 64), replica.integers(0, 101, 64)
        for got, top, left in zip(y, tops, lefts, strict=True):
            np.testing.assert_array_equal(
                got, np.pad(np.ones((2, 2, 1)), ((50, 50), (50, 50), (0, 0)))[top:][:2, left:][:, :2]
            )

    def test_every_place_alike(self):
        """Each of 25 counts, one in a billion false alarms for each."""
        n = 100_000
        x = np.zeros((n, 5, 5, 1), np.uint8)
        x[..., 0] = np.arange(25).reshape(5, 5)
        places = random_crop(x, 1, rng=np.random.default_rng(4), layout="NHWC").ravel()
        rates = np.bincount(places, minlength=25) / n
        assert np.abs(rates - 1 / 25).max() <= bound(n, 1e-9)

    def test_errors(self, rng):
        x = pictures(rng)
        for arguments, error, message in (
            ((0,), ValueError, "size: expected a whole number >= 1"),
            ((2.0,), TypeError, "size: expected a whole number, got float"),
            (((1, True),), TypeError, r"size\[1\]: expected a whole number, got bool"),
            (((1, 2, 3),), ValueError, r"size: expected a number or \(height, width\)"),
            ((7,), ValueError, "size: expected at most the 6x7 pixels of the padded images, got 7"),
            (((4, 10), 1), ValueError, "size: expected at most the 8x9 pixels"),
            ((4, -1), ValueError, "padding: expected a whole number >= 0"),
            ((4, 6, "reflect"), ValueError, "padding: expected less than the 6x7 pixels to reflect, got 6"),
            ((4, 1, "edge"), ValueError, "mode: expected one of 'zeros', 'reflect', got 'edge'"),
        ):
            with pytest.raises(error, match=message):
                random_crop(x, *arguments, rng=rng, layout="NHWC")


class TestCutout:
    @pytest.mark.parametrize("size", [1, 2, 3, 6, 50])
    @pytest.mark.parametrize("fill", [0, 1, [0, 1, 2]])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_against_a_loop(self, rng, size, fill, dtype):
        x = pictures(rng, dtype=dtype)
        y = cutout(x, size, fill, rng=np.random.default_rng(6), layout="NHWC")
        replica = np.random.default_rng(6)
        rows, columns = replica.integers(0, 6, 12), replica.integers(0, 7, 12)
        for image, got, row, column in zip(x, y, rows, columns, strict=True):
            expected = image.copy()
            top, left = row - size // 2, column - size // 2
            expected[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = fill
            np.testing.assert_array_equal(got, expected)

    def test_how_much_is_left_out(self):
        """A square of 2 within 4x4 covers (2 + 2 + 2 + 1) / 4 rows on average, and as many columns."""
        n = 100_000
        y = cutout(np.ones((n, 4, 4, 1), np.uint8), 2, rng=np.random.default_rng(0), layout="NHWC")
        covered = 1 - y.reshape(n, 16).mean(axis=1)
        assert abs(covered.mean() - (7 / 4) ** 2 / 16) <= bound(n, 1e-9)

    def test_errors(self, rng):
        x = pictures(rng, dtype=np.uint8)
        for arguments, error, message in (
            ((0,), ValueError, "size: expected a whole number >= 1"),
            ((True,), TypeError, "size: expected a whole number, got bool"),
            ((2, 0.5), ValueError, r"fill: expected whole numbers in \[0, 255\] for uint8, got 0.5"),
            ((2, 256), ValueError, r"fill: expected whole numbers in \[0, 255\]"),
            ((2, [0, 1]), ValueError, "fill: expected a number, or one for each of 3 channels"),
            ((2, "abc"), ValueError, "fill: expected a number, or one"),
            ((2, [0, 1, None]), TypeError, r"fill\[2\]: expected a number, got NoneType"),
        ):
            with pytest.raises(error, match=message):
                cutout(x, *arguments, rng=rng, layout="NHWC")


def jittered(image, factors, order):
    """One image of floats in [0, 1], in float64, pixel by pixel."""

    def gray(pixel):
        return 0.2989 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    def clamp(value):
        return min(max(value, 0.0), 1.0)

    pixels = [list(map(float, pixel)) for pixel in image.reshape(-1, 3)]
    for change in order:
        f = factors[change]
        mean = sum(gray(pixel) for pixel in pixels) / len(pixels)
        for k, pixel in enumerate(pixels):
            if change == 3:
                h, s, v = colorsys.rgb_to_hsv(*pixel)
                pixels[k] = list(colorsys.hsv_to_rgb((h + f) % 1.0, s, v))
            else:
                other = (0.0, mean, gray(pixel))[change]
                pixels[k] = [clamp(f * value + (1 - f) * other) for value in pixel]
    return np.array(pixels).reshape(image.shape)


class TestColor:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "ranges", [(0.5, 0, 0, 0), (0, 0.5, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 0.5), (0.8, (0.2, 3), 2, (-0.1, 0.4))]
    )
    def test_against_a_loop(self, rng, dtype, ranges):
        x = pictures(rng, dtype=dtype)
        x[0] = x[0, :, :, :1]  # gray: no hue
        x[1] = 0
        y = color_jitter(x, *ranges, rng=np.random.default_rng(8), layout="NHWC")
        replica = np.random.default_rng(8)
        intervals = [r if isinstance(r, tuple) else (max(0, 1 - r), 1 + r) for r in ranges[:3]]
        intervals.append(ranges[3] if isinstance(ranges[3], tuple) else (-ranges[3], ranges[3]))
        factors = np.array([replica.uniform(low, high, 12) for low, high in intervals])
        orders = replica.permuted(np.tile(np.arange(4), (12, 1)), axis=1)
        scale = 255 if dtype == np.uint8 else 1
        expected = np.array([jittered(x[n] / scale, factors[:, n], orders[n]) for n in range(12)]) * scale
        # A half of the 8-bit step for rounding to it; hue divides by small differences.
        atol = {np.uint8: 0.51, np.float32: 2e-6, np.float64: 1e-13}[dtype]
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=0, atol=atol)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_nothing_asked_nothing_changed(self, rng, dtype):
        x = pictures(rng, dtype=dtype)
        np.testing.assert_array_equal(color_jitter(x, rng=rng, layout="NHWC"), x)

    def test_of_one_channel(self, rng):
        x = pictures(rng, (3, 4, 4, 1), np.float64)
        y = color_jitter(x, 0, (0.5, 0.5), rng=rng, layout="NHWC")
        np.testing.assert_allclose(y, 0.5 * x + 0.5 * x.mean(axis=(1, 2, 3), keepdims=True), rtol=1e-14)
        with pytest.raises(ValueError, match="x: expected 3 channels"):
            color_jitter(x, saturation=0.1, rng=rng, layout="NHWC")

    def test_third_of_a_turn(self):
        x = np.array([1, 0, 0], F).reshape(1, 1, 1, 3)
        y = color_jitter(x, hue=(1 / 3, 1 / 3), rng=np.random.default_rng(0), layout="NHWC")
        np.testing.assert_allclose(y.ravel(), [0, 1, 0], atol=1e-6)

    def test_errors(self, rng):
        x = pictures(rng)
        for arguments, error, message in (
            ({"brightness": -0.1}, ValueError, "brightness: expected a finite number >= 0"),
            ({"contrast": (1.2, 0.8)}, ValueError, r"contrast: expected factors in \[0, inf\], the lower first"),
            ({"saturation": (-1, 1)}, ValueError, r"saturation: expected factors in \[0, inf\]"),
            ({"saturation": (1,)}, ValueError, r"saturation: expected a number or \(low, high\)"),
            ({"hue": 0.6}, ValueError, r"hue: expected factors in \[-0.5, 0.5\]"),
            ({"hue": True}, TypeError, "hue: expected a number, got bool"),
        ):
            with pytest.raises(error, match=message):
                color_jitter(x, **arguments, rng=rng, layout="NHWC")
        for wrong in (x - 1, x * 2, np.where(x > 0.5, F(np.nan), x)):
            with pytest.raises(ValueError, match=r"x: expected values in \[0, 1\]"):
                color_jitter(wrong, 0.1, rng=rng, layout="NHWC")


class TestMixup:
    @pytest.mark.parametrize("per_sample", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("shape", [(1,), (9,), (9, 4), (9, 3, 2, 2)])
    def test_against_a_loop(self, rng, per_sample, dtype, shape):
        x, targets = rng.standard_normal(shape).astype(dtype), one_hot(rng.integers(0, 3, shape[0]), 3, dtype)
        before = x.copy(), targets.copy()
        mixed, soft = mixup(x, targets, 0.4, rng=np.random.default_rng(7), per_sample=per_sample)
        replica = np.random.default_rng(7)
        lams = replica.beta(0.4, 0.4, shape[0]) if per_sample else [replica.beta(0.4, 0.4)] * shape[0]
        order = replica.permutation(shape[0])
        tolerance = {"rtol": 0, "atol": 1e-6 if dtype == np.float32 else 1e-15}
        for n, (lam, other) in enumerate(zip(lams, order, strict=True)):
            for got, values in ((mixed, x), (soft, targets)):
                exact = lam * values[n].astype(np.float64) + (1 - lam) * values[other].astype(np.float64)
                np.testing.assert_allclose(got[n], exact, **tolerance)
        assert mixed.dtype == soft.dtype == dtype
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(targets, before[1])
        again, _ = mixup(x, targets, 0.4, rng=np.random.default_rng(7), per_sample=per_sample, out=x)
        assert again is x
        np.testing.assert_array_equal(x, mixed)

    def test_distribution_of_lambda(self):
        """Beta(α, α) has mean 1/2 and E λ² = (α + 1) / (4 α + 2); one in a billion false alarms for each."""
        n = 100_000
        x = np.arange(n, dtype=np.float64)
        for alpha in (0.2, 1.0, 4.0):
            mixed, _ = mixup(x, x, alpha, rng=np.random.default_rng(9), per_sample=True)
            replica = np.random.default_rng(9)
            replica.beta(alpha, alpha, n)
            other = x[replica.permutation(n)]
            apart = other != x
            lam = ((mixed - other)[apart] / (x - other)[apart]).clip(0, 1)
            assert abs(lam.mean() - 1 / 2) <= bound(len(lam), 1e-9) + 1e-6
            assert abs((lam**2).mean() - (alpha + 1) / (4 * alpha + 2)) <= bound(len(lam), 1e-9) + 1e-6

    def test_cross_entropy_of_mixtures(self, rng):
        """It is linear in the targets: that of the mixture is the mixture of those of the labels."""
        logits, labels = rng.standard_normal((16, 5)), rng.integers(0, 5, 16)
        _, soft = mixup(logits, one_hot(labels, 5, np.float64), 1.0, rng=np.random.default_rng(3))
        replica = np.random.default_rng(3)
        lam, order = replica.beta(1.0, 1.0), replica.permutation(16)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(16)
        expected = -(lam * log_p[rows, labels] + (1 - lam) * log_p[rows, labels[order]]).mean()
        assert fs.softmax_cross_entropy(logits, soft)[0] == pytest.approx(expected, rel=1e-12)

    def test_errors(self, rng):
        x, t = np.ones((4, 2), F), np.ones((4, 3), F)
        state = rng.bit_generator.state
        for arguments, options, error, message in (
            ((x, t, 0), {}, ValueError, "alpha: expected a finite number > 0"),
            ((x, t, True), {}, TypeError, "alpha: expected a number, got bool"),
            ((x, t, math.inf), {}, ValueError, "alpha: expected a finite number"),
            ((x, t[:3], 1), {}, ValueError, r"targets: expected 4 rows as x has, got shape \(3, 3\)"),
            ((x[:0], t[:0], 1), {}, ValueError, "x: expected at least one example"),
            ((x.astype(np.uint8), t, 1), {}, TypeError, "x: expected float32 or float64, got uint8"),
            ((x, np.arange(4), 1), {}, TypeError, "targets: expected float32 or float64, got int64"),
            ((x, t, 1), {"per_sample": 1}, TypeError, "per_sample: expected True or False"),
            ((x, t, 1), {"rng": None}, TypeError, "rng: expected a numpy.random.Generator, got NoneType"),
            ((x, x, 1), {"out": x}, ValueError, "out: overlaps targets"),
            ((x[1:], t[1:], 1), {"out": x[:-1]}, ValueError, "out: overlaps x"),
        ):
            with pytest.raises(error, match=message):
                mixup(*arguments, **{"rng": rng, **options})
        assert rng.bit_generator.state == state
        assert (x == 1).all()


class TestOneHot:
    def test_against_the_identity(self, rng):
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        for kind in (np.uint8, np.int16, np.int64, np.uint64):
            for dtype in (np.float16, np.float32, np.float64, bfloat16):
                labels = rng.integers(0, 7, (3, 5)).astype(kind)
                got = one_hot(labels, 300, dtype)
                assert got.dtype == dtype
                np.testing.assert_array_equal(got.astype(F), np.eye(300)[labels.astype(int)])
        assert one_hot(np.array(2), 3).tolist() == [0, 0, 1]
        assert one_hot(np.empty(0, int), 3).shape == (0, 3)

    def test_errors(self):
        for labels, classes, dtype, error, message in (
            (np.array([0, 3]), 3, F, ValueError, r"labels: expected classes in \[0, 3\), got 3"),
            (np.array([-1]), 3, F, ValueError, r"labels: expected classes in \[0, 3\), got -1"),
            (np.array([2**64 - 1], np.uint64), 3, F, ValueError, "labels: expected classes in"),
            (np.array([1.0]), 3, F, TypeError, "labels: expected integers, got float64"),
            (np.array([True]), 3, F, TypeError, "labels: expected integers, got bool"),
            (np.array([0]), 0, F, ValueError, "classes: expected a whole number >= 1"),
            (np.array([0]), 3, np.int64, TypeError, "dtype: expected a floating dtype, got int64"),
        ):
            with pytest.raises(error, match=message):
                one_hot(labels, classes, dtype)
