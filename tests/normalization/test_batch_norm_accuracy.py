"""Batch norm against the textbook equations in float64, against torch in float64, and against central differences.

Bounds are in units of the last place, in the stored dtype, of each channel's largest output; those of float64 are 1e-12
of it. Evaluation is folded into one multiplication and one addition: its error is relative to |x · scale| + |shift|,
which may dwarf the output.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import fusedstep as fs
from optional import torch

F, D = np.float32, np.float64
# Bits after the leading one, and the exponent of the least number.
FORMATS = {"float32": (23, -149), "float64": (52, -1074), "float16": (10, -24), "bfloat16": (7, -133)}
# The narrow dtypes round once what float32 computed.
FORWARD = {"float32": 4, "float16": 0.51, "bfloat16": 0.51}
BACKWARD = {"float32": 8, "float16": 0.51, "bfloat16": 0.51}
# Shape, the order of its axes in memory, channel_axis.
LAYOUTS = {
    "NC": ((300, 7), (0, 1), 1),
    "NC, C=1": ((57, 1), (0, 1), 1),
    "NC, C=3": ((1001, 3), (0, 1), 1),
    "NC, C=65": ((129, 65), (0, 1), 1),
    "NCL": ((6, 5, 11), (0, 1, 2), 1),
    "NCHW": ((8, 3, 10, 13), (0, 1, 2, 3), -3),
    "NCDHW": ((3, 4, 3, 5, 7), (0, 1, 2, 3, 4), 1),
    "NHWC": ((4, 9, 11, 5), (0, 1, 2, 3), -1),
    "channels_last": ((4, 5, 9, 11), (0, 2, 3, 1), 1),
    "CNHW": ((5, 4, 6, 7), (1, 0, 2, 3), 1),
    "N=1": ((1, 3, 17, 19), (0, 1, 2, 3), 1),
    "C=1": ((9, 1, 8, 7), (0, 1, 2, 3), 1),
    "2x2 planes": ((50, 6, 2, 2), (0, 1, 2, 3), 1),
    "long planes": ((2, 2, 91, 93), (0, 1, 2, 3), 1),
}
OPTIONS = [
    {"weight": True, "bias": True, "activation": "relu", "residual": True, "momentum": 0.3, "unbiased": True},
    {"weight": False, "bias": False, "activation": None, "residual": False, "momentum": 1.0, "unbiased": False},
    {"weight": True, "bias": False, "activation": "relu", "residual": False, "momentum": None, "unbiased": True},
    {"weight": False, "bias": True, "activation": None, "residual": True, "momentum": 0.0, "unbiased": True},
]


@pytest.fixture(params=sorted(FORMATS))
def dtype(request):
    return pytest.importorskip("ml_dtypes").bfloat16 if request.param == "bfloat16" else np.dtype(request.param).type


def kind(dtype):
    return np.dtype(dtype).name


def in_memory(values, order):
    """A copy whose axes lie in memory in this order."""
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def broadcast(values, ndim, channel_axis):
    """(C,) against an array with so many axes."""
    shape = [1] * ndim
    shape[channel_axis] = -1
    return np.asarray(values, D).reshape(shape)


def other_axes(ndim, channel_axis):
    return tuple(axis for axis in range(ndim) if axis != channel_axis % ndim)


def oracle_forward(x, weight, bias, mean, var, *, training, channel_axis=1, eps=1e-5, relu=False, residual=None):
    """y = act(weight · (x − mean) / √(var + eps) + bias + residual); statistics are the batch's in training."""
    x = x.astype(D)
    axes = other_axes(x.ndim, channel_axis)
    count = x.size // x.shape[channel_axis]
    if training:
        mean = x.mean(axes, keepdims=True)
        d = x - mean
        rest = d.mean(axes, keepdims=True)
        d, mean = d - rest, mean + rest
        var = (d * d).mean(axes, keepdims=True)
    else:
        mean, var = broadcast(mean, x.ndim, channel_axis), broadcast(var, x.ndim, channel_axis)
        d = x - mean
    inv_std = 1 / np.sqrt(var + eps)
    normal = d * inv_std
    gamma = broadcast(1.0 if weight is None else weight, x.ndim, channel_axis)
    z = gamma * normal + broadcast(0.0 if bias is None else bias, x.ndim, channel_axis)
    if residual is not None:
        z = z + residual.astype(D)
    passes = ~(z <= 0) if relu else np.ones(z.shape, bool)
    y = np.where(passes, z, 0.0)
    scale = gamma * inv_std
    shift = broadcast(0.0 if bias is None else bias, x.ndim, channel_axis) - mean * scale
    return SimpleNamespace(
        x=x,
        y=y,
        z=z,
        passes=passes,
        normal=normal,
        inv_std=inv_std,
        scale=scale,
        shift=shift,
        mean=mean.ravel(),
        var=var.ravel(),
        count=count,
        axes=axes,
        training=training,
    )


def oracle_backward(dy, forward):
    """dx, dweight, dbias, dresidual."""
    g = np.where(forward.passes, dy.astype(D), 0.0)
    dbias = g.sum(forward.axes, keepdims=True)
    dweight = (g * forward.normal).sum(forward.axes, keepdims=True)
    inner = g
    if forward.training:
        inner = g - dbias / forward.count - forward.normal * dweight / forward.count
    return forward.scale * inner, dweight.ravel(), dbias.ravel(), g


def unit_of(scale, dtype):
    """One unit in the last place of numbers as large as `scale`."""
    bits, least = FORMATS[kind(dtype)]
    return np.where(scale > 0, np.ldexp(1.0, np.maximum(np.frexp(scale)[1] - 1 - bits, least)), 0.0)


def assert_within(actual, expected, units, scale, what, mean_rounding=0.0):
    """So many units in the last place of the scale; in float64 1e-12 of it, and the mean's rounding."""
    if actual.dtype == D:
        bound = 1e-12 * scale + mean_rounding
    else:
        bound = units[kind(actual.dtype)] * unit_of(scale, actual.dtype)
    error = np.abs(actual.astype(D) - expected)
    assert (error <= bound).all(), f"{what}: {(error / np.maximum(bound, 1e-300)).max()} of the bound"


def assert_sums(actual, expected, terms, axes, what):
    """A sum in double, rounded once: relative to the sum of the terms' magnitudes."""
    bound = {F: 1e-7, D: 1e-12}[actual.dtype.type] * np.abs(terms).sum(axes)
    assert (np.abs(actual - expected) <= bound).all(), what


def problem(rng, layout, dtype, x=None, parameters=None):
    shape, order, channel_axis = layout
    parameters = parameters or (D if dtype == D else F)
    channels = shape[channel_axis]
    x = 0.7 + rng.standard_normal(shape) if x is None else x
    return SimpleNamespace(
        x=in_memory(x.astype(dtype), order),
        dy=in_memory(rng.standard_normal(shape).astype(dtype), order),
        residual=in_memory(rng.standard_normal(shape).astype(dtype), order),
        weight=rng.uniform(0.5, 2.0, channels).astype(parameters) * rng.choice([-1, 1], channels).astype(parameters),
        bias=rng.standard_normal(channels).astype(parameters),
        mean=rng.standard_normal(channels).astype(parameters),
        var=rng.uniform(0.5, 2.0, channels).astype(parameters),
        channel_axis=channel_axis,
    )


def away_from_the_kink(p, forward, options):
    """dy in the memory order of x, zero where rounding may decide whether relu lets it pass."""
    if options["activation"] is None:
        return p.dy
    dy = p.dy.copy(order="K")
    dy[np.abs(forward.z) < 1e-5 * np.abs(forward.z).max()] = 0
    return dy


def check_training(p, options, what, terms=False):
    """Forward, running statistics and backward of one pass with the oracle's."""
    dtype = p.x.dtype
    weight, bias = p.weight if options["weight"] else None, p.bias if options["bias"] else None
    residual = p.residual if options["residual"] else None
    relu, momentum = options["activation"] == "relu", options["momentum"]
    mean, var = (None, None) if momentum is None else (p.mean.copy(), p.var.copy())
    y, saved = fs.batch_norm(
        p.x,
        weight,
        bias,
        mean,
        var,
        training=True,
        momentum=0.1 if momentum is None else momentum,
        channel_axis=p.channel_axis,
        activation=options["activation"],
        residual=residual,
        unbiased=options["unbiased"],
    )
    expected = oracle_forward(
        p.x, weight, bias, None, None, training=True, channel_axis=p.channel_axis, relu=relu, residual=residual
    )
    assert y.dtype == dtype
    assert y.strides == p.x.strides
    largest = np.abs(expected.y).max(expected.axes, keepdims=True)
    mean_rounding = 2.0**-53 * np.abs(broadcast(expected.mean, y.ndim, p.channel_axis) * expected.scale)
    assert_within(y, expected.y, FORWARD, largest, f"{what}: y", mean_rounding)
    if momentum is not None:
        correction = expected.count / (expected.count - 1) if options["unbiased"] else 1.0
        rtol = 1e-12 if mean.dtype == D else 6e-8
        for running, before, batch in ((mean, p.mean, expected.mean), (var, p.var, correction * expected.var)):
            new = (1 - momentum) * before.astype(D) + momentum * batch
            atol = max(1e-13 * np.abs(batch).max(), 2.0**-149)
            np.testing.assert_allclose(running, new, rtol=rtol, atol=atol, err_msg=what)
            assert running.dtype == before.dtype
    dy = away_from_the_kink(p, expected, options)
    check_gradients(fs.batch_norm_backward(dy, saved), dy, expected, residual, p, options, what, terms)


def check_gradients(actual, dy, expected, residual, p, options, what, terms=False):
    """With `terms`, dx is relative to the largest term of its equation: for gradients that cancel."""
    dtype = p.x.dtype
    dx, dweight, dbias, *dresidual = actual
    dx_exact, dweight_exact, dbias_exact, g = oracle_backward(dy, expected)
    assert dx.dtype == dtype
    assert dx.strides == p.x.strides
    largest = np.abs(dx_exact).max(expected.axes, keepdims=True)
    if terms:
        largest = np.maximum(largest, np.abs(expected.scale * g).max(expected.axes, keepdims=True))
    assert_within(dx, dx_exact, BACKWARD, largest, f"{what}: dx")
    parameters = p.weight.dtype if options["weight"] else (D if dtype == D else F)
    assert dweight.dtype == dbias.dtype == parameters
    assert_sums(dweight, dweight_exact, g * expected.normal, expected.axes, f"{what}: dweight")
    assert_sums(dbias, dbias_exact, g, expected.axes, f"{what}: dbias")
    assert len(dresidual) == (residual is not None)
    for array in dresidual:
        np.testing.assert_array_equal(array.astype(D), g, err_msg=what)
        assert array.strides == p.x.strides


def check_evaluation(p, options, what):
    """The folded pass; its error relative to |x · scale| + |shift|."""
    dtype = p.x.dtype
    weight, bias = p.weight if options["weight"] else None, p.bias if options["bias"] else None
    residual = p.residual if options["residual"] else None
    mean, var = p.mean.copy(), p.var.copy()
    y, saved = fs.batch_norm(
        p.x,
        weight,
        bias,
        mean,
        var,
        training=False,
        channel_axis=p.channel_axis,
        activation=options["activation"],
        residual=residual,
    )
    expected = oracle_forward(
        p.x,
        weight,
        bias,
        mean,
        var,
        training=False,
        channel_axis=p.channel_axis,
        relu=options["activation"] == "relu",
        residual=residual,
    )
    np.testing.assert_array_equal(mean, p.mean)
    np.testing.assert_array_equal(var, p.var)
    assert y.strides == p.x.strides
    magnitude = np.abs(expected.x * expected.scale) + np.abs(expected.shift)
    magnitude += 0.0 if residual is None else np.abs(residual.astype(D))
    # Scale, product, shift and sum are rounded: at most four halves of a unit; then what is stored.
    bound = (1e-14 if dtype == D else 4 * 2.0**-24) * magnitude
    if dtype not in (F, D):
        bound += 0.5 * unit_of(np.maximum(np.abs(expected.y) + bound, 1e-30), dtype)
    assert (np.abs(y.astype(D) - expected.y) <= bound).all(), f"{what}: y"
    dy = away_from_the_kink(p, expected, options)
    check_gradients(fs.batch_norm_backward(dy, saved), dy, expected, residual, p, options, what)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training(layout, dtype, native, rng):
    for options in OPTIONS:
        check_training(problem(rng, LAYOUTS[layout], dtype), options, str(options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation(layout, dtype, native, rng):
    for options in OPTIONS:
        check_evaluation(problem(rng, LAYOUTS[layout], dtype), options, str(options))


@pytest.mark.parametrize("layout", ["NC", "NCHW", "channels_last"])
def test_float64_with_float32_parameters(layout, native, rng):
    """Values in float64; parameters and running statistics in float32, rounded once."""
    for options in OPTIONS:
        p = problem(rng, LAYOUTS[layout], D, parameters=F)
        check_training(p, options, str(options))
        check_evaluation(p, options, str(options))


@pytest.mark.parametrize("layout", [((4, 3, 301, 300), (0, 1, 2, 3), 1), ((17000, 65), (0, 1), 1)], ids=["NCHW", "NC"])
def test_streamed(layout, rng):
    """Outputs of more than four megabytes."""
    p = problem(rng, layout, F)
    assert p.x.nbytes > 4 << 20
    check_training(p, OPTIONS[0], "training")
    check_evaluation(p, OPTIONS[0], "evaluation")


@pytest.mark.parametrize(("centre", "spread"), [(1e4, 1.0), (0.0, 1e30), (0.0, 1e-30)], ids=str)
@pytest.mark.parametrize("layout", ["NC", "NC, C=65", "NCHW", "channels_last", "long planes"])
def test_conditioning(layout, centre, spread, dtype, native, rng):
    shape = LAYOUTS[layout][0]
    # As far as the narrow dtypes can tell such numbers apart.
    if centre and dtype not in (F, D):
        spread = 100.0
    elif dtype == np.float16:
        spread = {1e30: 1e4, 1e-30: 1e-4}[spread]
    p = problem(rng, LAYOUTS[layout], dtype, centre + spread * rng.standard_normal(shape))
    p.residual = (p.residual.astype(D) * max(1e-28, spread if spread < 1 else 1)).astype(dtype)
    for options in OPTIONS:
        if options["momentum"] and spread > 1e19 and p.var.dtype == F:
            options = {**options, "momentum": None}
        check_training(p, options, str(options))


def test_a_running_variance_beyond_float32(native, rng):
    x = (1e30 * rng.standard_normal((64, 2))).astype(F)
    mean, var = np.zeros(2, F), np.ones(2, F)
    y, _ = fs.batch_norm(x, None, None, mean, var, training=True)
    assert np.isinf(var).all()
    np.testing.assert_allclose(mean, 0.1 * x.astype(D).mean(0), rtol=1e-7)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("layout", ["NC", "NC, C=3", "NC, C=65", "NCHW", "channels_last", "long planes"])
def test_outlier(layout, place, dtype, native, rng):
    """One value of a million among those of deviation 1."""
    shape, order, channel_axis = LAYOUTS[layout]
    x = rng.standard_normal(shape)
    first = np.moveaxis(x, channel_axis, -1)
    first[(place,) * (x.ndim - 1)] = 6e4 if dtype == np.float16 else 1e6
    p = problem(rng, (shape, order, channel_axis), dtype, x)
    for options in OPTIONS:
        # Without bias or residual relu passes the outlier alone, whose gradient cancels.
        alone = options["activation"] == "relu" and not options["residual"]
        check_training(p, options, str(options), terms=alone)


@pytest.mark.parametrize(
    "shape", [(2, 3), (3, 3), (5, 3), (100, 3), (257, 65), (7, 3, 13, 9), (1, 3, 1, 7), (2, 3, 91, 93)]
)
def test_constant_channels(shape, dtype, native, rng):
    """y is bias to the bit, dweight is 0 exactly."""
    parameters = D if dtype == D else F
    channels = shape[1]
    for value in (0.1, 1 / 3, 1e4 / 3, -7e-6, *(() if dtype == np.float16 else (1e30, -1e-30))):
        x = np.full(shape, value).astype(dtype)
        weight, bias = rng.standard_normal((2, channels)).astype(parameters)
        dy = rng.standard_normal(shape).astype(dtype)
        mean, var = np.zeros(channels, parameters), np.ones(channels, parameters)
        y, saved = fs.batch_norm(x, weight, bias, mean, var, training=True, momentum=1.0)
        expected = np.broadcast_to(broadcast(bias, x.ndim, 1).astype(parameters), shape).astype(dtype)
        np.testing.assert_array_equal(y.astype(D), expected.astype(D))
        np.testing.assert_array_equal(mean, np.full(channels, x.flat[0], parameters))
        np.testing.assert_array_equal(var, 0)
        dx, dweight, dbias = fs.batch_norm_backward(dy, saved)
        assert np.isfinite(dx.astype(D)).all()
        np.testing.assert_array_equal(dweight, 0)
        axes = other_axes(x.ndim, 1)
        assert_sums(dbias, dy.astype(D).sum(axes), dy.astype(D), axes, "dbias")


def relative(actual, expected):
    """The largest difference, relative to the largest element."""
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


TORCH_SHAPES = [
    ((64, 9), False),
    ((129, 65), False),
    ((6, 5, 11), False),
    ((8, 4, 10, 11), False),
    ((8, 4, 10, 11), True),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "channels_last"), TORCH_SHAPES, ids=str)
def test_against_torch_functional(shape, channels_last, training, native, rng):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy, residual = (torch.from_numpy(2.0 + rng.standard_normal(shape)).to(memory_format=layout) for _ in range(3))
    weight, bias = (torch.from_numpy(rng.standard_normal(shape[1])) for _ in range(2))
    mean, var = torch.from_numpy(rng.standard_normal(shape[1])), torch.from_numpy(rng.uniform(0.5, 2.0, shape[1]))
    my_mean, my_var = mean.numpy().copy(), var.numpy().copy()
    for relu in (False, True):
        inputs = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
        z = torch.nn.functional.batch_norm(inputs[0], mean, var, *inputs[1:3], training=training, momentum=0.3)
        z = z + inputs[3]
        theirs = torch.relu(z) if relu else z
        gradients = torch.autograd.grad(theirs, inputs, dy)
        y, saved = fs.batch_norm(
            x.numpy(),
            weight.numpy(),
            bias.numpy(),
            my_mean,
            my_var,
            training=training,
            momentum=0.3,
            activation="relu" if relu else None,
            residual=residual.numpy(),
        )
        assert y.strides == x.numpy().strides
        mine = [y, my_mean, my_var, *fs.batch_norm_backward(dy.numpy(), saved)]
        for name, a, b in zip(
            ("y", "mean", "var", "dx", "dweight", "dbias", "dresidual"),
            mine,
            (theirs.detach(), mean, var, *gradients),
            strict=True,
        ):
            assert relative(a, b.numpy()) <= 1e-12, name


def layers(shape, **options):
    """A layer of torch's in float64 with parameters that are not the defaults, and ours."""
    peer = (torch.nn.BatchNorm1d if len(shape) < 4 else torch.nn.BatchNorm2d)(shape[1], **options).double()
    if peer.affine:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            peer.weight.normal_(generator=generator)
            peer.bias.normal_(generator=generator)
    return peer, fs.BatchNorm(shape[1], **options, dtype=D)


@pytest.mark.parametrize("shape", [(32, 6), (16, 6, 7), (8, 6, 5, 7)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.4, "eps": 1e-3},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False, "momentum": None},
    ],
    ids=str,
)
def test_layer_against_torch(shape, options, native, rng):
    """Five batches of training, then evaluation, with gradients; the state goes both ways."""
    peer, layer = layers(shape, **options)
    layer.load_state_dict(peer.state_dict())
    for k in range(7):
        training = k < 5
        peer.train(training)
        x, dy = k + rng.standard_normal(shape), rng.standard_normal(shape)
        given = torch.from_numpy(x).requires_grad_()
        theirs = peer(given)
        dx, *parameters = torch.autograd.grad(theirs, [given, *peer.parameters()], torch.from_numpy(dy))
        assert relative(layer.forward(x, training=training), theirs.detach().numpy()) <= 1e-12
        assert relative(layer.backward(dy), dx.numpy()) <= 1e-12
        if peer.affine:
            for mine, gradient in zip((layer.dweight, layer.dbias), parameters, strict=True):
                assert relative(mine, gradient.numpy()) <= 1e-12
        else:
            assert layer.weight is layer.bias is layer.dweight is layer.dbias is None
        state, expected = layer.state_dict(), peer.state_dict()
        assert set(state) == set(expected)
        for name, tensor in expected.items():
            if name == "num_batches_tracked":
                assert int(state[name]) == int(tensor) == min(k + 1, 5)
            else:
                assert relative(state[name], tensor.numpy()) <= 1e-12
    back, _ = layers(shape, **options)
    back.load_state_dict({name: torch.from_numpy(array) for name, array in layer.state_dict().items()})
    x = rng.standard_normal(shape)
    expected = back.eval()(torch.from_numpy(x)).detach().numpy()
    assert relative(layer.forward(x, training=False), expected) <= 1e-12


def test_state_of_torch_in_float32(native, rng):
    """Tensors are copied: training goes on in the layer's own arrays."""
    peer = torch.nn.BatchNorm2d(4)
    peer(torch.from_numpy((3 + rng.standard_normal((8, 4, 5, 5))).astype(F)))
    layer = fs.BatchNorm(4)
    layer.load_state_dict(peer.state_dict())
    assert layer.num_batches_tracked == 1
    x = rng.standard_normal((8, 4, 5, 5)).astype(F)
    expected = oracle_forward(x, None, None, peer.running_mean.numpy(), peer.running_var.numpy(), training=False)
    np.testing.assert_allclose(layer.forward(x, training=False), expected.y, rtol=0, atol=1e-5)
    before = peer.running_mean.clone()
    layer.forward(x, training=True)
    assert torch.equal(peer.running_mean, before)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 2, 3)])
def test_central_differences(shape, training, relu, native, rng):
    """Of Σ dy · y, by every input; relu's inputs are kept away from 0 by the residual."""
    inputs = {
        "x": rng.standard_normal(shape),
        "weight": rng.uniform(0.5, 1.5, shape[1]),
        "bias": rng.standard_normal(shape[1]),
        "residual": rng.choice([-9.0, 9.0], shape),
    }
    mean, var = rng.standard_normal(shape[1]), rng.uniform(0.5, 2.0, shape[1])
    dy = rng.standard_normal(shape)

    def forward(x, weight, bias, residual):
        running = (None, None) if training else (mean, var)
        return fs.batch_norm(
            x, weight, bias, *running, training=training, activation="relu" if relu else None, residual=residual
        )

    y, saved = forward(**inputs)
    assert not relu or (y == 0).any()
    gradients = fs.batch_norm_backward(dy, saved)
    h = 1e-5
    for name, gradient in zip(("x", "weight", "bias", "residual"), gradients, strict=True):
        for place in np.ndindex(inputs[name].shape):
            sums = []
            for step in (h, -h):
                moved = inputs[name].copy()
                moved[place] += step
                sums.append((dy * forward(**{**inputs, name: moved})[0]).sum())
            assert abs((sums[0] - sums[1]) / (2 * h) - gradient[place]) <= 1e-8, (name, place)


@pytest.mark.parametrize("shape", [(12, 2), (2, 2, 6), (1, 2, 3, 4)])
def test_relu_at_zero_and_nan(shape, dtype, native, rng):
    """With z = x exactly: 0 and −0 do not pass, NaN does."""
    values = np.array([0.0, -0.0, np.nan, 1.5, -2.0, np.inf, -np.inf, 2.0**-14, -(2.0**-14), 0.0, -0.0, np.nan])
    x = np.moveaxis(np.stack([values, values[::-1]], -1).reshape(shape[0], *shape[2:], 2), -1, 1)
    x = np.ascontiguousarray(x).astype(dtype)
    dy = rng.uniform(0.5, 1.0, shape).astype(dtype)
    passes = ~(x.astype(D) <= 0)
    minus_zero = np.full(2, -0.0, F)
    y, saved = fs.batch_norm(
        x,
        None,
        minus_zero,
        np.zeros(2, F),
        np.ones(2, F),
        training=False,
        eps=1e-30,
        activation="relu",
        residual=np.full(shape, -0.0).astype(dtype),
    )
    np.testing.assert_array_equal(y.astype(D), np.where(passes, x.astype(D), 0.0))
    dx, _, dbias, dresidual = fs.batch_norm_backward(dy, saved)
    g = np.where(passes, dy.astype(D), 0.0)
    np.testing.assert_array_equal(dx.astype(D), g)
    np.testing.assert_array_equal(dresidual.astype(D), g)
    np.testing.assert_allclose(dbias, g.sum(other_axes(len(shape), 1)), rtol=1e-7)


@pytest.mark.parametrize("shape", [(8, 2), (2, 2, 2, 2)])
def test_relu_in_training_with_nan_in_the_residual(shape, native, rng):
    """A constant channel gives z = residual to the bit."""
    residual = np.array([0.0, -0.0, np.nan, 1.0, -1.0, 1e-30, -1e-30, np.inf] * 2, F).reshape(shape)
    y, saved = fs.batch_norm(
        np.full(shape, 0.1, F), None, None, None, None, training=True, activation="relu", residual=residual
    )
    passes = ~(residual <= 0)
    np.testing.assert_array_equal(y, np.where(passes, residual, 0))
    dy = rng.standard_normal(shape).astype(F)
    np.testing.assert_array_equal(fs.batch_norm_backward(dy, saved)[3], np.where(passes, dy, 0))
