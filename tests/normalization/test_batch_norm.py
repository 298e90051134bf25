"""Batch norm: the bits of the reference, float64, gradient checks, torch, errors."""

import base64
import itertools
import pickle
import zlib

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits, misaligned
from optional import torch

F = np.float32
DTYPES = [F, np.float64, np.float16, ml_dtypes.bfloat16]
# Shape, and the order of its axes in memory.
SHAPES = [
    ((2, 1), (0, 1)),
    ((3, 5), (0, 1)),
    ((2, 16), (0, 1)),
    ((17, 33), (0, 1)),
    ((129, 64), (0, 1)),
    ((300, 7), (0, 1)),
    ((1000, 257), (0, 1)),
    ((2, 3), (1, 0)),
    ((6, 2, 5), (0, 2, 1)),
    ((2, 1, 1, 1), (0, 1, 2, 3)),
    ((1, 3, 1, 2), (0, 1, 2, 3)),
    ((4, 3, 7, 7), (0, 1, 2, 3)),
    ((4, 3, 7, 7), (0, 2, 3, 1)),
    ((4, 3, 7, 7), (3, 1, 0, 2)),
    ((5, 2, 4, 8), (1, 0, 2, 3)),
    ((3, 2, 2, 3, 5), (0, 1, 2, 3, 4)),
    ((3, 4, 31, 33), (0, 1, 2, 3)),
    ((40, 3, 16, 16), (0, 1, 2, 3)),
    ((2, 2, 91, 90), (0, 1, 2, 3)),
    ((1, 2, 128, 129), (0, 1, 2, 3)),
    ((1, 9, 65, 3), (0, 1, 2, 3)),
]


def in_memory(values, order):
    """A copy whose axes lie in memory in this order."""
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def problem(rng, shape, centre=0.0, spread=1.0, dtype=F):
    x = (centre + spread * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[1])).astype(np.float64 if dtype == np.float64 else F)
    return x, dy, weight, bias


def everything(x, dy, weight, bias, training=True, **options):
    """All outputs of forward and backward, running statistics included."""
    mean, var = np.full(x.shape[1], 0.5, F), np.full(x.shape[1], 2.0, F)
    y, saved = fs.batch_norm(x, weight, bias, mean, var, training=training, **options)
    mask = [] if saved.mask is None else [saved.mask[:-1]]
    return [y, mean, var, saved.mean, saved.inv_std, *fs.batch_norm_backward(dy, saved), *mask]


def exact(x, dy, weight, bias, eps=1e-5):
    """The equations in float64 as the paper has them: y, dx, dweight, dbias, mean, var."""
    axes = (0, *range(2, x.ndim))
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    shape = (-1,) + (1,) * (x.ndim - 2)
    mean, var = x.mean(axes), x.var(axes)
    normal = (x - mean.reshape(shape)) / np.sqrt(var + eps).reshape(shape)
    y = normal * weight.reshape(shape) + bias.reshape(shape)
    dweight, dbias = (dy * normal).sum(axes), dy.sum(axes)
    count = x.size // x.shape[1]
    inner = dy - dbias.reshape(shape) / count - normal * dweight.reshape(shape) / count
    dx = (weight / np.sqrt(var + eps)).reshape(shape) * inner
    return y, dx, dweight, dbias, mean, var


def ulps_of_scale(actual, expected):
    """Largest error in units of the last place of the largest value of each channel."""
    axes = (0, *range(2, expected.ndim))
    scale = np.abs(expected).max(axes, keepdims=True)
    return float((np.abs(actual - expected) / np.spacing(scale.astype(F))).max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "order"), SHAPES, ids=str)
def test_same_bits_as_the_reference(shape, order, training, native, threads, rng):
    x, dy, weight, bias = problem(rng, shape, 3.0)
    residual = rng.standard_normal(shape).astype(F)
    for parameters, options in itertools.product(
        ((weight, bias), (None, None)),
        ({}, {"activation": "relu"}, {"residual": residual}, {"activation": "relu", "residual": residual}),
    ):
        options = {name: in_memory(v, order) if name == "residual" else v for name, v in options.items()}
        arguments = (in_memory(x, order), in_memory(dy, order), *parameters)
        with fs.runtime.use_isa("numpy"):
            expected = everything(*arguments, training=training, **options)
        actual = everything(*arguments, training=training, **options)
        assert actual[0].strides == arguments[0].strides
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same_bits(mine, theirs, str((shape, order, options.keys())))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_same_bits_in_every_dtype(dtype, training, native, threads, rng):
    for shape in ((3, 5), (129, 64), (70, 3), (4, 3, 7, 7), (2, 3, 33, 65), (1, 2, 91, 93)):
        x, dy, weight, bias = problem(rng, shape, 3.0, dtype=dtype)
        residual = rng.standard_normal(shape).astype(dtype)
        # Any start that the items allow.
        x, dy, residual = misaligned(x, 3), misaligned(dy, 1), misaligned(residual, 7)
        for options in ({}, {"activation": "relu", "residual": residual}):
            with fs.runtime.use_isa("numpy"):
                expected = everything(x, dy, weight, bias, training=training, **options)
            for mine, theirs in zip(
                everything(x, dy, weight, bias, training=training, **options), expected, strict=True
            ):
                assert_same_bits(mine, theirs, str(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_parts_have_the_bits_of_the_reference(dtype, native, threads, rng):
    """Exact statistics with their low parts, sums of the backward pass, and what is made of both."""

    def parts(x, dy, weight, bias):
        stats = fs.batch_norm_stats(x)
        y, saved = fs.batch_norm_apply(x, stats, weight, bias, activation="relu")
        sums = fs.batch_norm_backward_sums(dy, saved)
        gradients = fs.batch_norm_backward_apply(dy, saved, sums)
        return [stats.mean, stats.m2, stats.mean_low, stats.m2_low, y, sums.dy, sums.dy_d, *gradients]

    for shape in ((2, 3), (300, 7), (1000, 65), (4, 3, 7, 7), (3, 2, 91, 95)):
        arguments = problem(rng, shape, 3.0, dtype=dtype)
        with fs.runtime.use_isa("numpy"):
            expected = parts(*arguments)
        for mine, theirs in zip(parts(*arguments), expected, strict=True):
            assert_same_bits(mine, theirs, str(shape))


def test_views_of_the_same_memory_have_the_same_bits(native, rng):
    """What counts is the order in memory: planes of any number of axes, and rows of any number."""
    x, dy, weight, bias = problem(rng, (6, 5, 4, 7))
    planes = everything(x, dy, weight, bias)
    for shape in ((6, 5, 28), (6, 5, 2, 2, 7)):
        for mine, theirs in zip(everything(x.reshape(shape), dy.reshape(shape), weight, bias), planes, strict=True):
            assert_same_bits(mine.reshape(theirs.shape), theirs)
    x, dy = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, dy))
    as_planes = everything(x, dy, weight, bias)
    rows = [np.moveaxis(a, 1, -1).reshape(-1, 5) for a in (x, dy)]
    for mine, theirs in zip(everything(*rows, weight, bias), as_planes, strict=True):
        theirs = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 else theirs
        assert_same_bits(mine, theirs.reshape(mine.shape))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_narrow_numbers_are_read_and_rounded_right(dtype, native):
    """Every number of 16 bits through an evaluation that changes nothing, and ties to even on the way back."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(-1, 2)
    statistics = np.zeros(2, F), np.ones(2, F)
    y, _ = fs.batch_norm(x, None, None, *statistics, training=False, eps=1e-30)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y.astype(F), x.astype(F))
    for scale in (0.5, 0.75, 1.0009765625, 3.0, 1e-3):
        y, _ = fs.batch_norm(x, np.full(2, scale, F), None, *statistics, training=False, eps=1e-30)
        with np.errstate(all="ignore"):
            expected = (x.astype(F) * F(scale) + F(0)).astype(dtype)
        assert_same_bits(y, expected)


@pytest.mark.parametrize("shape", [(3, 5, 265, 266), (8300, 127)])
def test_streamed_outputs(shape, native, threads, rng):
    """Past four megabytes the output is streamed past the cache, from any start."""
    x, dy, weight, bias = problem(rng, shape)
    options = {"activation": "relu", "residual": rng.standard_normal(shape).astype(F)}
    with fs.runtime.use_isa("numpy"):
        expected = everything(x, dy, weight, bias, **options)
    for offset in (0, 1, 15):
        y, dx, dresidual = (misaligned(np.zeros_like(x), (offset + k) % 16) for k in (0, 7, 3))
        _, saved = fs.batch_norm(x, weight, bias, None, None, training=True, out=y, **options)
        fs.batch_norm_backward(dy, saved, out=dx, residual_out=dresidual)
        for mine, theirs in ((y, expected[0]), (dx, expected[5]), (dresidual, expected[8])):
            assert_same_bits(mine, theirs)


@pytest.mark.parametrize(
    ("centre", "spread"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e30), (0.0, 1e-30), (-1e-3, 1e-6)], ids=str
)
@pytest.mark.parametrize("shape", [(1000, 7), (32, 3, 28, 28), (2, 2, 91, 90)])
def test_against_float64(shape, centre, spread, native, rng):
    """Forward within 4 ULP of the output's scale; gradients within 8 of theirs."""
    x, dy, weight, bias = problem(rng, shape, centre, spread)
    y, dx, dweight, dbias, mean, var = exact(x, dy, weight, bias)
    actual = everything(x, dy, weight, bias, momentum=1.0, unbiased=False)
    assert ulps_of_scale(actual[0], y) <= 4
    assert ulps_of_scale(actual[5], dx) <= 8
    magnitude = np.abs(dy).sum(axis=(0, *range(2, x.ndim)))
    np.testing.assert_allclose(actual[6], dweight, rtol=1e-6, atol=1e-6 * magnitude.max())
    np.testing.assert_allclose(actual[7], dbias, rtol=1e-6, atol=1e-6 * magnitude.max())
    np.testing.assert_allclose(actual[1], mean, rtol=1e-6, atol=1e-7 * spread)
    if spread < 1e19:  # beyond, a float32 variance is infinite
        np.testing.assert_allclose(actual[2], var, rtol=1e-6, atol=1e-45)


def test_constant_channel_gives_exactly_bias(native):
    for shape in ((100, 2), (7, 2, 13, 9)):
        for value in (0.1, 1e4 / 3, 1e30, -1e-30):
            bias = np.array([0.3, -7.0], F)
            y, _ = fs.batch_norm(np.full(shape, value, F), np.full(2, 3.0, F), bias, None, None, training=True)
            assert_same_bits(y, np.broadcast_to(bias.reshape((-1,) + (1,) * (len(shape) - 2)), shape).astype(F))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(64, 9), (8, 4, 10, 10)])
def test_against_torch(shape, training, native, rng):
    """Torch in float64 on the same numbers: outputs, gradients and running statistics."""
    x, dy, weight, bias = problem(rng, shape, 2.0)
    tensors = [torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (x, weight, bias)]
    mean, var = torch.full((shape[1],), 0.5).double(), torch.full((shape[1],), 2.0).double()
    y = torch.nn.functional.batch_norm(tensors[0], mean, var, tensors[1], tensors[2], training=training, momentum=0.3)
    gradients = torch.autograd.grad(y, tensors, torch.from_numpy(dy.astype(np.float64)))
    actual = everything(x, dy, weight, bias, training=training, momentum=0.3)
    expected = [y, mean, var, None, None, *gradients]
    for k in (0, 1, 2, 5, 6, 7):
        theirs = expected[k].detach().numpy()
        np.testing.assert_allclose(actual[k], theirs, rtol=2e-6, atol=2e-6 * np.abs(theirs).max())


def test_non_finite_running_mean(native):
    """In evaluation the sums of the backward pass skip the padding also where the mean is infinite."""
    x, dy = np.ones((1, 1, 1, 3), F), np.ones((1, 1, 1, 3), F)
    results = []
    for isa in ("numpy", native):
        with fs.runtime.use_isa(isa):
            _, saved = fs.batch_norm(x, None, None, np.array([-np.inf], F), np.ones(1, F), training=False)
            results.append(fs.batch_norm_backward(dy, saved))
    for mine, theirs in zip(*results, strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize("shape", [(64, 3), (4, 3, 5, 5)])
def test_layer_uses_its_own_eps_and_momentum(shape, native, rng):
    """Against torch's layer in float64, with values that are not the defaults."""
    x = rng.standard_normal(shape).astype(F)
    layer = fs.BatchNorm(3, eps=0.5, momentum=0.25)
    peer = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(3, eps=0.5, momentum=0.25).double()
    expected = peer(torch.from_numpy(x.astype(np.float64)))
    np.testing.assert_allclose(layer.forward(x, training=True), expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_mean, peer.running_mean.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.running_var, peer.running_var.numpy(), rtol=1e-5)


def test_momentum_is_the_part_of_the_batch(rng):
    x = rng.standard_normal((50, 2)).astype(F)
    mean, var = np.full(2, 8.0, F), np.full(2, 8.0, F)
    fs.batch_norm(x, None, None, mean, var, training=True, momentum=0.0)
    assert mean.tolist() == var.tolist() == [8.0, 8.0]
    fs.batch_norm(x, None, None, mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(var, x.var(0, dtype=np.float64, ddof=1), rtol=1e-6)


def test_object_trains_and_evaluates(rng):
    layer = fs.BatchNorm(3)
    x = rng.standard_normal((64, 3)).astype(F)
    with pytest.raises(RuntimeError, match="no forward"):
        layer.backward(x)
    for _ in range(200):
        y = layer.forward(x, training=True)
    # The running variance is the unbiased one: 64/63 of the batch's.
    np.testing.assert_allclose(layer.forward(x, training=False), y, rtol=1e-2, atol=1e-5)
    layer.backward(x)
    assert layer.dweight.shape == layer.dbias.shape == (3,)
    with pytest.raises(ValueError, match="num_features: expected a whole number >= 1, got 0"):
        fs.BatchNorm(0)
    with pytest.raises(ValueError, match="eps: expected a finite number > 0, got nan"):
        fs.BatchNorm(3, eps=float("nan"))
    with pytest.raises(ValueError, match=r"x: expected 3 channels in axis 1, got shape \(4, 5\)"):
        layer.forward(np.ones((4, 5), F), training=True)


def arguments(**changes):
    values = {
        "x": np.ones((4, 3), F),
        "weight": np.ones(3, F),
        "bias": np.zeros(3, F),
        "running_mean": np.zeros(3, F),
        "running_var": np.ones(3, F),
        "training": True,
    }
    return {**values, **changes}


BASE = np.zeros(24, F)
READ_ONLY = np.zeros(3, F)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize("isa", ["numpy", None])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.ones((4, 3), int)}, TypeError, "x: expected float32, float64, float16 or bfloat16"),
        ({"x": [[1.0]]}, TypeError, "x: expected a NumPy array, got list"),
        ({"x": np.ones(4, F)}, ValueError, r"x: expected a batch and a channel axis, .*, got shape \(4,\)"),
        ({"x": np.ones((4, 6), F)[:, ::2]}, ValueError, "x: expected one dense block of memory"),
        ({"x": np.ones((0, 3), F)}, ValueError, r"x: expected at least one value, got shape \(0, 3\)"),
        (
            {"x": np.ones((1, 3), F)},
            ValueError,
            r"x: expected more than one value per channel in training, got .*\(1, 3\)",
        ),
        ({"x": np.ones((1, 3, 1, 1), F)}, ValueError, "x: expected more than one value per channel"),
        ({"weight": np.ones(4, F)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
        ({"bias": np.ones(3)}, TypeError, "bias: expected float32, got dtype float64"),
        ({"running_mean": None}, ValueError, "running_mean, running_var: expected both or neither"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError, "with training=False, got None"),
        ({"running_mean": READ_ONLY}, ValueError, "running_mean: expected a writable array"),
        ({"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\], got 1\.5"),
        ({"momentum": float("nan")}, ValueError, "momentum: expected a number"),
        ({"eps": 0.0}, ValueError, r"eps: expected a finite number > 0, got 0\.0"),
        ({"running_var": READ_ONLY}, ValueError, "running_var: expected a writable array"),
        ({"out": np.frombuffer(bytes(48), F).reshape(4, 3)}, ValueError, "out: expected a writable array"),
        ({"x": BASE[:12].reshape(4, 3), "running_mean": BASE[:3]}, ValueError, "running_mean: overlaps x"),
        ({"weight": BASE[:3], "running_var": BASE[:3]}, ValueError, "running_var: overlaps weight"),
        ({"training": None}, TypeError, "training: expected True or False, got None"),
        ({"eps": "x"}, TypeError, "eps: expected a number, got str"),
        ({"eps": -1e-5}, ValueError, "eps: expected a finite number > 0, got -1e-05"),
        ({"out": np.zeros((3, 4), F)}, ValueError, r"out: expected shape \(4, 3\) as x has, got \(3, 4\)"),
        (
            {"x": BASE[:12].reshape(4, 3), "out": BASE[6:18].reshape(4, 3)},
            ValueError,
            "out: overlaps x in memory",
        ),
        ({"running_mean": BASE[:3], "running_var": BASE[2:5]}, ValueError, "running_var: overlaps running_mean"),
    ],
)
def test_forward_errors(changes, error, message, isa):
    given = arguments(**changes)
    before = {name: value.copy() for name, value in given.items() if isinstance(value, np.ndarray)}
    with fs.runtime.use_isa(isa or fs.runtime.isa()), pytest.raises(error, match=message):
        fs.batch_norm(**given)
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)


@pytest.mark.parametrize(
    ("dy", "out", "error", "message"),
    [
        (np.ones((3, 4), F), None, ValueError, r"dy: expected shape \(4, 3\) as saved\.x has, got \(3, 4\)"),
        (np.ones((4, 3)), None, TypeError, r"dy: expected dtype float32 as saved\.x has, got float64"),
        (np.ones((4, 3), F, order="F"), None, ValueError, r"dy: expected the memory order of saved\.x"),
        (BASE[:12].reshape(4, 3), BASE[4:16].reshape(4, 3), ValueError, "out: overlaps dy in memory"),
    ],
)
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_backward_errors(dy, out, error, message, isa):
    _, saved = fs.batch_norm(**arguments())
    before = None if out is None else out.copy()
    with fs.runtime.use_isa(isa), pytest.raises(error, match=message):
        fs.batch_norm_backward(dy, saved, out=out)
    if out is not None:
        np.testing.assert_array_equal(out, before)


def test_backward_checks_what_was_saved():
    base, weight = np.ones(24, F), np.ones(3, F)
    _, saved = fs.batch_norm(**arguments(x=base[:12].reshape(4, 3), weight=weight))
    dy = np.ones((4, 3), F)
    with pytest.raises(ValueError, match=r"out: overlaps saved\.x"):
        fs.batch_norm_backward(dy, saved, out=base[6:18].reshape(4, 3))
    with pytest.raises(TypeError, match="saved: expected what batch_norm gave, got NoneType"):
        fs.batch_norm_backward(dy, None)


def test_backward_does_not_depend_on_what_becomes_of_the_weight(rng):
    """The optimizer may have stepped in between."""
    x, dy, weight, bias = problem(rng, (8, 3))
    _, saved = fs.batch_norm(x, weight, bias, None, None, training=True)
    expected = fs.batch_norm_backward(dy, saved)
    weight += 1
    for mine, theirs in zip(fs.batch_norm_backward(dy, saved), expected, strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "least"), [(F, 3.5e-77), (np.float64, 9e-308)])
def test_the_least_eps(dtype, least, training, native):
    """A constant channel is 0 in training with any eps; below the least, 1 / sqrt(eps) is no number."""
    x, statistics = np.full((4, 2), 3.0, dtype), (np.full(2, 3.0, dtype), np.zeros(2, dtype))
    if training:
        y, saved = fs.batch_norm(x, None, None, None, None, training=True, eps=least)
        assert (y == 0.0).all()
        assert (fs.batch_norm_backward(np.zeros_like(x), saved)[0] == 0.0).all()
    before = [array.copy() for array in statistics]
    with pytest.raises(ValueError, match=r"eps: expected a number >= .* in the arithmetic of float"):
        fs.batch_norm(x, None, None, *statistics, training=training, eps=least / 2)
    for array, old in zip(statistics, before, strict=True):
        assert (array == old).all()


# (BatchStats(4, [2.0], [8.0]), BatchGradSums([1.0], [2.0]), BatchNorm(2, eps=0.5, momentum=None, activation="relu")
# after the batch [[1, 5], [3, 9]]), pickled while the classes were in `fusedstep._normalization`.
PICKLED = (
    b"eNqNUr1rGzEU1zlO7LhuoSQNHTumi6cOHQpOkyGQAw3JHITuTo5EfLpDH25dKKRDSAxvy8v/lz8hY7dWp3PrQsmHQAKh38d7v6eL7u3PDokL"
    b"3k68FYV1oh4xXZmST9U37lSlEQb73OXyxHFn8Qbf/8BT3E27sKN9Wc9HLK+MGJV+6hQ3hs8RhsyIvNLWGZ+7wID1iETo6aKF3GBKLvEgyfAK"
    b"j4NYkiaXKPuwXrh5LRpKZ/IRF9ft6xokn5BSevQrrHikxGG2OOi3tZM9DFfZk4NGVQ7/1dz+i3oXUZSKTBJ4GVs6NLw48eWqq6c07sfPcWrr"
    b"iT6b0YeGPFuP77gLa6K2eDi+WwbfL6tSaOdLpDDMJddaTBn/qiymCQx47tRsOYeuEVOP0Pc6UzwMC6/hlT1XdZiXniitnMAFbLKJ4M4bEfgd"
    b"2Pgi1Jl0+H/JnXB5HWL+sIpZvnkg5Itxs5umoNtYPyC3v0qARPDQeK2VPmOl4Ppx0h4hdzE2ePGHNOPmSQ75HDlb4YOxrIlaWOYMz89DOiG+"
    b"XrHsn4avFSunsMEsn4Vn6rMrHP0GTPUT/A=="
)


def test_pickles_from_before_the_package():
    stats, sums, layer = pickle.loads(zlib.decompress(base64.b64decode(PICKLED)))
    assert type(stats) is fs.BatchStats
    assert (stats.count, stats.mean.tolist(), stats.m2.tolist()) == (4, [2.0], [8.0])
    assert type(sums) is fs.BatchGradSums
    assert (sums.dy.tolist(), sums.dy_d.tolist()) == ([1.0], [2.0])
    assert type(layer) is fs.BatchNorm
    # Unbiased: deviations of 1 and 2 from the mean, each in two values.
    assert (layer.running_mean.tolist(), layer.running_var.tolist()) == ([2.0, 7.0], [2.0, 8.0])
    assert (layer.eps, layer.momentum, layer.activation, layer.num_batches_tracked) == (0.5, None, "relu", 1)
    y = layer.forward(np.array([[2.0, 7.0]], F), training=False)
    assert y.tolist() == [[0.0, 0.0]]
