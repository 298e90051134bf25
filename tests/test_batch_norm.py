"""Batch norm: the bits of the reference, float64, gradient checks, torch, errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fusedstep as fs
from fusedstep.reference import layers
from helpers import assert_same_bits, misaligned

F = np.float32
SHAPES = [
    (2, 1),
    (3, 5),
    (2, 16),
    (17, 33),
    (129, 64),
    (300, 7),
    (1000, 257),
    (2, 1, 1, 1),
    (1, 3, 1, 2),
    (4, 3, 7, 7),
    (5, 2, 4, 8),
    (3, 4, 31, 33),
    (40, 3, 16, 16),
    (2, 2, 91, 90),
    (1, 2, 128, 129),
]


def problem(rng, shape, centre=0.0, spread=1.0, dtype=F):
    x = (centre + spread * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[1])).astype(dtype)
    return x, dy, weight, bias


def everything(x, dy, weight, bias, training=True, **options):
    """All outputs of forward and backward, running statistics included."""
    mean, var = np.full(x.shape[1], 0.5, F), np.full(x.shape[1], 2.0, F)
    y, saved = fs.batch_norm(x, weight, bias, mean, var, training=training, **options)
    return [y, mean, var, saved.mean, saved.inv_std, *fs.batch_norm_backward(dy, saved)]


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
@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_as_the_reference(shape, training, native, threads, rng):
    x, dy, weight, bias = problem(rng, shape, 3.0)
    for arguments in ((x, dy, weight, bias), (misaligned(x, 3), misaligned(dy, 1), None, None)):
        with fs.runtime.use_isa("numpy"):
            expected = everything(*arguments, training=training)
        for mine, theirs in zip(everything(*arguments, training=training), expected, strict=True):
            assert_same_bits(mine, theirs, str(shape))


def test_streamed_outputs(native, threads, rng):
    """Past a million values the output is streamed past the cache, from any start."""
    x, dy, weight, bias = problem(rng, (3, 5, 265, 266))
    with fs.runtime.use_isa("numpy"):
        expected = everything(x, dy, weight, bias)
    for offset in (0, 1, 15):
        y, dx = misaligned(np.zeros_like(x), offset), misaligned(np.zeros_like(x), (offset + 7) % 16)
        _, saved = fs.batch_norm(x, weight, bias, None, None, training=True, out=y)
        fs.batch_norm_backward(dy, saved, out=dx)
        assert_same_bits(y, expected[0])
        assert_same_bits(dx, expected[5])


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


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 3)])
def test_gradient_check_of_the_reference(shape, rng):
    """Central differences in float64 agree with the reference's backward to 1e-7."""
    x, dy, weight, bias = problem(rng, shape, dtype=np.float64)

    def forward(x, weight, bias):
        y, mean, inv_std = np.empty_like(x), np.empty(3), np.empty(3)
        layers.batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5, True, y, mean, inv_std)
        return y, mean, inv_std

    _, mean, inv_std = forward(x, weight, bias)
    dx, dweight, dbias = np.empty_like(x), np.empty(3), np.empty(3)
    layers.batch_norm_backward(dy, x, weight, mean, inv_std, True, dx, dweight, dbias)
    h = 1e-5
    for name, array, gradient in (("x", x, dx), ("weight", weight, dweight), ("bias", bias, dbias)):
        arguments = {"x": x, "weight": weight, "bias": bias}
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * h
                sides.append((forward(**{**arguments, name: moved})[0] * dy).sum())
            numeric[index] = (sides[0] - sides[1]) / (2 * h)
        assert np.abs(numeric - gradient).max() <= 1e-7 * max(1.0, np.abs(numeric).max()), name


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
    with pytest.raises(ValueError, match=r"x: expected 3 channels, got shape \(4, 5\)"):
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
        ({"x": np.ones((4, 3))}, TypeError, "x: expected float32, got dtype float64"),
        ({"x": [[1.0]]}, TypeError, "x: expected a NumPy array, got list"),
        ({"x": np.ones((4, 3, 2), F)}, ValueError, r"x: expected shape \(N, C\) or \(N, C, H, W\), got \(4, 3, 2\)"),
        ({"x": np.ones((4, 6), F)[:, ::2]}, ValueError, "x: expected a C-contiguous array"),
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
        (np.ones((4, 3)), None, TypeError, "dy: expected float32, got dtype float64"),
        (np.ones((4, 3), F, order="F"), None, ValueError, "dy: expected a C-contiguous array"),
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
    with pytest.raises(ValueError, match=r"saved\.weight: expected shape \(3,\), got \(2,\)"):
        fs.batch_norm_backward(dy, replace(saved, weight=weight[:2]))
    strided = np.repeat(saved.mean, 2)[::2]
    assert_same_bits(fs.batch_norm_backward(dy, replace(saved, mean=strided))[0], fs.batch_norm_backward(dy, saved)[0])


def test_backward_out_must_not_be_the_weight():
    base = np.ones(12, F)
    _, saved = fs.batch_norm(**arguments(weight=base[:3]))
    with pytest.raises(ValueError, match=r"out: overlaps saved\.weight"):
        fs.batch_norm_backward(np.ones((4, 3), F), saved, out=base.reshape(4, 3))
