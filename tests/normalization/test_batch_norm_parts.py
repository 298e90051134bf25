"""Batch norm in parts: exact statistics and their merging, shards of several workers, and every refusal."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest

import fusedstep as fs
from optional import torch

F, D = np.float32, np.float64
SIZES = [1, 2, 3, 15, 16, 17, 255, 256, 257, 8191, 8192, 8193, 20000]
CHANNELS = 3


@pytest.fixture(params=["float32", "float64", "float16", "bfloat16"])
def dtype(request):
    return pytest.importorskip("ml_dtypes").bfloat16 if request.param == "bfloat16" else np.dtype(request.param).type


@pytest.fixture(params=fs.runtime.available_isas())
def any_isa(request):
    """An instruction set, the reference's too."""
    with fs.runtime.use_isa(request.param):
        yield request.param


def exact_moments(values):
    """Count, and the mean and m2 of each column in whole numbers, rounded once."""
    moments = []
    for column in values.astype(D).T:
        ratios = [value.as_integer_ratio() for value in column.tolist()]
        unit = max(denominator for _, denominator in ratios)
        numbers = [numerator * (unit // denominator) for numerator, denominator in ratios]
        n, total, squares = len(numbers), sum(numbers), sum(number * number for number in numbers)
        moments.append(
            (float(Fraction(total, n * unit)), float(Fraction(n * squares - total * total, n * unit * unit)))
        )
    return len(values), *np.array(moments).T


@cache
def columns(size, centre, spread, dtype, channels=CHANNELS):
    """Random values of every channel, and their moments."""
    rng = np.random.default_rng([size, int(centre)])
    values = (centre + spread * rng.standard_normal((size, channels))).astype(dtype)
    return values, exact_moments(values)


def as_planes(values, length):
    """(N · length, C) as (N, C, length)."""
    return np.ascontiguousarray(values.reshape(-1, length, values.shape[1]).transpose(0, 2, 1))


def lengths_of_planes(size):
    """One plane, and many planes."""
    return sorted({size, max(k for k in range(1, 91) if size % k == 0)} - {1})


def assert_near(actual, expected, bound, what):
    assert actual.dtype == D
    error = np.abs(actual - expected) / bound
    assert (error <= 1).all(), f"{what}: {error.max()} of the bound"


def assert_moments(stats, moments, what="", values=None):
    """Within one unit in the last place of double.

    Squares of float64 `values` are rounded: their m2 is within two units.
    """
    count, mean, m2 = moments
    assert stats.count == count
    units = 2 if values is not None and values.dtype == D else 1
    assert_near(stats.mean, mean, np.spacing(np.abs(mean)), f"mean, {what}")
    assert_near(stats.m2, m2, units * np.spacing(np.abs(m2)), f"m2, {what}")


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (1e4, 1.0)], ids=str)
def test_statistics_are_exact(centre, spread, dtype, any_isa):
    for size in SIZES:
        values, moments = columns(size, centre, spread, dtype)
        assert_moments(fs.batch_norm_stats(values), moments, f"rows, {size}", values)
        for length in lengths_of_planes(size):
            x = as_planes(values, length)
            assert_moments(fs.batch_norm_stats(x), moments, f"planes of {length}, {size}", values)
            x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
            assert_moments(fs.batch_norm_stats(x, channel_axis=-1), moments, f"channels last, {size}", values)


@pytest.mark.parametrize(
    "column",
    [np.array([0.1, 0.2, -0.3]), np.array([1e8, 1e-4, -1e8, 3e-4], F)],
    ids=["float64", "float32 far apart"],
)
def test_statistics_of_values_that_cancel(column):
    """To the last bit of a double here too."""
    assert_moments(fs.batch_norm_stats(column[:, None]), exact_moments(column[:, None]))


@pytest.mark.parametrize("channels", [1, 2, 64, 65, 130])
def test_statistics_of_other_widths(channels, dtype, any_isa):
    for size in (2, 17, 300):
        values, moments = columns(size, 1e4, 1.0, dtype, channels)
        assert_moments(fs.batch_norm_stats(values), moments, str(size), values)
        assert_moments(fs.batch_norm_stats(values.T, channel_axis=0), moments, str(size), values)
        assert_moments(fs.batch_norm_stats(np.ascontiguousarray(values.T), channel_axis=0), moments, str(size), values)


@pytest.mark.parametrize(("place", "size"), [(0, 257), (-1, 257), (0, 8193), (-1, 20000)])
def test_statistics_with_an_outlier(place, size, any_isa, rng):
    values = rng.standard_normal((size, 2)).astype(F)
    values[place] = 1e6
    moments = exact_moments(values)
    assert_moments(fs.batch_norm_stats(values), moments)
    assert_moments(fs.batch_norm_stats(as_planes(values, size)), moments)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_statistics_far_from_one(scale, any_isa, rng):
    values = (scale * rng.standard_normal((300, 3))).astype(F)
    moments = exact_moments(values)
    assert_moments(fs.batch_norm_stats(values), moments)
    assert_moments(fs.batch_norm_stats(as_planes(values, 50)), moments)


def test_statistics_of_nothing(any_isa):
    for shape in ((0, 3), (0, 3, 4, 5), (2, 3, 0), (0, 1)):
        stats = fs.batch_norm_stats(np.empty(shape, F))
        assert stats.count == 0
        np.testing.assert_array_equal([stats.mean, stats.m2], 0)
        assert np.isnan(stats.var).all()


def test_variance():
    stats = fs.BatchStats(4, np.array([2.0, 0.0]), np.array([8.0, 1.0]))
    assert stats.var.tolist() == [2.0, 0.25]


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (1e4, 1.0)], ids=str)
def test_any_split_merges_to_the_whole(centre, spread, planes, dtype, native, rng):
    """Empty parts, parts of one value, parts in any order."""
    for trial in range(12):
        size = (257, 1000)[trial % 2]
        values, moments = columns(size, centre, spread, dtype)
        cuts = np.sort(rng.integers(0, size + 1, rng.integers(1, 12)))
        if trial < 2:
            cuts = np.arange(size)
        elif trial < 4:
            cuts = np.array([0, 0, 1, 2, size - 1, size])
        parts = np.split(values, cuts)
        if planes:
            parts = [as_planes(part, max(1, len(part))) for part in parts]
        stats = [fs.batch_norm_stats(part) for part in parts]
        rng.shuffle(stats)
        merged = fs.merge_stats(stats)
        assert_moments(merged, moments, f"trial {trial}", values)
        whole = fs.batch_norm_stats(values)
        assert_moments(merged, (whole.count, whole.mean, whole.m2), f"trial {trial}, the whole", values)
        np.testing.assert_array_equal(merged.var, merged.m2 / size)


def test_merging_merged_statistics(rng):
    values, moments = columns(1000, 1e4, 1.0, F)
    stats = [fs.batch_norm_stats(part) for part in np.split(values, [3, 3, 10, 400, 401])]
    assert_moments(fs.merge_stats([fs.merge_stats(stats[:2]), fs.merge_stats(stats[2:])]), moments)
    assert_moments(fs.merge_stats([fs.merge_stats(stats)]), moments)


def test_merging_statistics_without_low_parts():
    stats = [
        fs.BatchStats(np.int64(2), np.array([1.0]), np.array([2.0])),
        fs.BatchStats(2, np.array([3.0]), np.zeros(1)),
    ]
    merged = fs.merge_stats(stats)
    assert (merged.count, merged.mean.tolist(), merged.m2.tolist()) == (4, [2.0], [6.0])


def test_merging_only_empty_parts():
    empty = fs.batch_norm_stats(np.empty((0, 4), F))
    merged = fs.merge_stats([empty, empty])
    assert merged.count == 0
    np.testing.assert_array_equal([merged.mean, merged.m2], np.zeros((2, 4)))
    assert np.isnan(merged.var).all()


def test_merging_leaves_the_parts(rng):
    stats = [fs.batch_norm_stats(rng.standard_normal((5, 3))) for _ in range(3)]
    before = [(part.mean.copy(), part.m2.copy()) for part in stats]
    for merged in (fs.merge_stats(stats), fs.merge_stats(stats[:1])):
        merged.mean[:] = merged.m2[:] = 7
    for part, (mean, m2) in zip(stats, before, strict=True):
        np.testing.assert_array_equal(part.mean, mean)
        np.testing.assert_array_equal(part.m2, m2)


SHARDED = {
    "rows": ((23, 5), (0, 1), 1),
    "wide rows": ((40, 65), (0, 1), 1),
    "planes": ((9, 4, 7, 9), (0, 1, 2, 3), 1),
    "channels_last": ((9, 4, 7, 9), (0, 2, 3, 1), 1),
    "NHWC": ((9, 7, 5, 4), (0, 1, 2, 3), -1),
}


def in_memory(values, order):
    """A copy whose axes lie in memory in this order."""
    return np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))


def assert_close_to_scale(actual, expected, units, what):
    """So many float32 units in the last place of the array's largest value."""
    bound = units * np.spacing(np.abs(expected).max())
    assert actual.dtype == expected.dtype == F
    assert np.abs(actual.astype(D) - expected.astype(D)).max() <= bound, what


def synchronised(parts, weight, bias, relu, channel_axis):
    """What several workers compute: of (x, dy, residual) of each."""
    options = {"channel_axis": channel_axis, "activation": "relu" if relu else None}
    stats = fs.merge_stats([fs.batch_norm_stats(x, channel_axis=channel_axis) for x, _, _ in parts])
    passes = [fs.batch_norm_apply(x, stats, weight, bias, residual=residual, **options) for x, _, residual in parts]
    sums = fs.merge_grad_sums(
        [fs.batch_norm_backward_sums(dy, saved) for (_, dy, _), (_, saved) in zip(parts, passes, strict=True)]
    )
    gradients = [
        fs.batch_norm_backward_apply(dy, saved, sums) for (_, dy, _), (_, saved) in zip(parts, passes, strict=True)
    ]
    return stats, [y for y, _ in passes], gradients


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", SHARDED)
def test_synchronised_shards(layout, relu, with_residual, any_isa, rng):
    """Shards of 1, 0 and more samples: outputs and gradients are those of the whole batch."""
    shape, order, channel_axis = SHARDED[layout]
    channels = shape[channel_axis]
    x, dy, residual = ((3 + rng.standard_normal(shape)).astype(F) for _ in range(3))
    residual = residual - 3 if with_residual else None
    weight, bias = rng.standard_normal((2, channels)).astype(F)

    def shards(array):
        return [in_memory(part, order) for part in np.split(array, [1, 1, 6])]

    parts = list(zip(shards(x), shards(dy), shards(residual) if with_residual else [None] * 4, strict=True))
    assert parts[1][0].shape == (0, *shape[1:])
    stats, outputs, gradients = synchronised(parts, weight, bias, relu, channel_axis)
    running, updated = ([np.full(channels, 0.5, F), np.full(channels, 2.0, F)] for _ in range(2))
    y, saved = fs.batch_norm(
        in_memory(x, order),
        weight,
        bias,
        *running,
        training=True,
        momentum=0.3,
        channel_axis=channel_axis,
        activation="relu" if relu else None,
        residual=in_memory(residual, order) if with_residual else None,
    )
    dx, dweight, dbias, *dresidual = fs.batch_norm_backward(in_memory(dy, order), saved)
    assert_close_to_scale(np.concatenate(outputs), y, 2, "y")
    assert_close_to_scale(np.concatenate([g[0] for g in gradients]), dx, 2, "dx")
    for mine in gradients:
        assert len(mine) == 3 + with_residual
        assert_close_to_scale(mine[1], dweight, 2, "dweight")
        assert_close_to_scale(mine[2], dbias, 2, "dbias")
    if with_residual:
        assert_close_to_scale(np.concatenate([g[3] for g in gradients]), dresidual[0], 2, "dresidual")
    assert fs.update_running_stats(*updated, stats, momentum=0.3) is True
    for mine, theirs in zip(updated, running, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(40, 6), (5, 6, 8, 9)])
def test_synchronised_shards_against_float64(shape, relu, native, rng):
    """Against torch in float64 on the whole batch; dy is 0 where rounding may decide what relu lets pass."""
    x = (1e3 + rng.standard_normal(shape)).astype(F)
    weight, bias = rng.standard_normal((2, shape[1])).astype(F)
    tensors = [torch.from_numpy(array.astype(D)).requires_grad_() for array in (x, weight, bias)]
    z = torch.nn.functional.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
    dy = rng.standard_normal(shape).astype(F)
    dy[np.abs(z.detach().numpy()) < 1e-4] = 0
    theirs = torch.relu(z) if relu else z
    expected = torch.autograd.grad(theirs, tensors, torch.from_numpy(dy.astype(D)))
    cuts = [2, 2, 3]
    parts = [(a, b, None) for a, b in zip(np.split(x, cuts), np.split(dy, cuts), strict=True)]
    _, outputs, gradients = synchronised(parts, weight, bias, relu, 1)
    mine = [np.concatenate(outputs), np.concatenate([g[0] for g in gradients]), *gradients[0][1:]]
    for name, a, b, units in zip(
        ("y", "dx", "dweight", "dbias"), mine, (theirs.detach(), *expected), (4, 8, 2, 2), strict=True
    ):
        scale = np.abs(b.numpy()).max()
        assert np.abs(a - b.numpy()).max() <= units * np.spacing(F(scale)), name


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 5), (2, 3, 0), (0, 1), (0, 1, 4, 5)])
def test_a_worker_without_values(shape, relu, any_isa):
    """It takes part with nothing: sums of 0, empty outputs, the gradients of all workers."""
    x, channels = np.empty(shape, F), shape[1]
    stats = fs.BatchStats(8, np.ones(channels), np.ones(channels))
    y, saved = fs.batch_norm_apply(x, stats, None, None, activation="relu" if relu else None, residual=x)
    assert y.shape == shape
    sums = fs.batch_norm_backward_sums(x, saved)
    np.testing.assert_array_equal([sums.dy, sums.dy_d], np.zeros((2, channels)))
    of_all = fs.BatchGradSums(np.full(channels, 2.0), np.full(channels, 3.0))
    dx, dweight, dbias, dresidual = fs.batch_norm_backward_apply(x, saved, of_all)
    assert dx.shape == dresidual.shape == shape
    np.testing.assert_allclose(dweight, 3 / np.sqrt(1 / 8 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(dbias, 2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(37, 6), (37, 65), (5, 6, 8, 9), (2, 1, 91, 93)])
def test_one_shard_alone(shape, relu, any_isa, rng):
    x, dy, residual = (rng.standard_normal(shape).astype(F) for _ in range(3))
    weight, bias = rng.standard_normal((2, shape[1])).astype(F)
    _, outputs, gradients = synchronised([(x, dy, residual)], weight, bias, relu, 1)
    activation = "relu" if relu else None
    y, saved = fs.batch_norm(x, weight, bias, None, None, training=True, activation=activation, residual=residual)
    for name, mine, theirs in zip(
        ("y", "dx", "dweight", "dbias", "dresidual"),
        (outputs[0], *gradients[0]),
        (y, *fs.batch_norm_backward(dy, saved)),
        strict=True,
    ):
        assert_close_to_scale(mine, theirs, 1, name)


def test_a_worker_of_one_value_per_channel(native):
    """Two values of all workers are enough."""
    shards = np.array([[1.0, 5.0]], F), np.array([[3.0, 9.0]], F)
    stats = fs.merge_stats([fs.batch_norm_stats(x) for x in shards])
    outputs = [fs.batch_norm_apply(x, stats, None, None, eps=1e-12)[0] for x in shards]
    assert np.concatenate(outputs).tolist() == [[-1.0, -1.0], [1.0, 1.0]]


def test_update_running_stats_by_hand():
    stats = fs.BatchStats(5, np.array([2.0, -1.0]), np.array([8.0, 0.0]))
    for unbiased, var in ((True, 2.0), (False, 1.6)):
        for kind in (F, D):
            mean, running = np.ones(2, kind), np.full(2, 4.0, kind)
            assert fs.update_running_stats(mean, running, stats, momentum=0.25, unbiased=unbiased)
            np.testing.assert_allclose(mean, [1.25, 0.5], rtol=1e-7)
            np.testing.assert_allclose(running, [3 + 0.25 * var, 3.0], rtol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(20, 3), (4, 3, 5, 6)])
def test_skip_nonfinite(shape, bad, dtype, any_isa, rng):
    """Running statistics stay to the bit; without it they are poisoned; a finite batch is taken."""
    good = rng.standard_normal(shape).astype(dtype)
    x = good.copy()
    x[(-1, 1, *(-1 for _ in shape[2:]))] = bad
    start = rng.uniform(0.5, 2.0, (2, 3)).astype(F)

    def after(values, skip):
        mean, var = start.copy()
        fs.batch_norm(values, None, None, mean, var, training=True, skip_nonfinite=skip)
        other_mean, other_var = start.copy()
        taken = fs.update_running_stats(other_mean, other_var, fs.batch_norm_stats(values), skip_nonfinite=skip)
        for mine, theirs in ((other_mean, mean), (other_var, var)):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)
        return mean, var, taken

    mean, var, taken = after(x, True)
    assert not taken
    assert mean.tobytes() == start[0].tobytes()
    assert var.tobytes() == start[1].tobytes()
    mean, var, taken = after(x, False)
    assert taken
    assert not np.isfinite(mean[1])
    assert np.isnan(var[1])
    assert np.isfinite([mean[[0, 2]], var[[0, 2]]]).all()
    mean, var, taken = after(good, True)
    assert taken
    values = np.moveaxis(good.astype(D), 1, -1).reshape(-1, 3)
    np.testing.assert_allclose(mean, 0.9 * start[0] + 0.1 * values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, 0.9 * start[1] + 0.1 * values.var(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_skip_nonfinite_of_the_layer(momentum, native, rng):
    x = rng.standard_normal((8, 2)).astype(F)
    poisoned = x.copy()
    poisoned[3, 0] = np.nan
    layer = fs.BatchNorm(2, momentum=momentum, skip_nonfinite=True)
    layer.forward(x, training=True)
    before = layer.state_dict()
    y = layer.forward(poisoned, training=True)
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1]).all()
    for name, array in layer.state_dict().items():
        assert array.tobytes() == before[name].tobytes(), name
    layer.forward(x + 1, training=True)
    assert layer.num_batches_tracked == 2
    assert (layer.running_mean > before["running_mean"]).all()
    poisonable = fs.BatchNorm(2, momentum=momentum)
    poisonable.forward(poisoned, training=True)
    assert poisonable.num_batches_tracked == 1
    assert np.isnan([poisonable.running_mean[0], poisonable.running_var[0]]).all()


def frozen(array):
    array = array.copy(order="K")
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("shape", [(12, 3), (3, 3, 4, 5)])
def test_read_only_inputs(shape, any_isa, rng):
    x, dy, residual = (rng.standard_normal(shape).astype(F) for _ in range(3))
    weight, bias = rng.standard_normal((2, 3)).astype(F)
    mean, var = np.zeros(3, F), np.ones(3, F)
    options = {"activation": "relu", "residual": frozen(residual)}
    for training in (True, False):
        running = (None, None) if training else (frozen(mean), frozen(var))
        y, saved = fs.batch_norm(frozen(x), frozen(weight), frozen(bias), *running, training=training, **options)
        fs.batch_norm_backward(frozen(dy), saved)
        z = np.moveaxis(x.astype(D), 1, -1)
        axes = tuple(range(z.ndim - 1))
        centre, spread = (z.mean(axes), z.var(axes)) if training else (0, 1)
        z = (z - centre) / np.sqrt(spread + 1e-5)
        z = np.moveaxis(weight * z + bias, -1, 1) + residual
        np.testing.assert_allclose(y, np.maximum(z, 0), rtol=0, atol=1e-5)
    stats = fs.batch_norm_stats(frozen(x))
    stats = fs.BatchStats(stats.count, frozen(stats.mean), frozen(stats.m2))
    _, saved = fs.batch_norm_apply(frozen(x), stats, frozen(weight), frozen(bias), **options)
    sums = fs.batch_norm_backward_sums(frozen(dy), saved)
    fs.batch_norm_backward_apply(frozen(dy), saved, fs.BatchGradSums(frozen(sums.dy), frozen(sums.dy_d)))


def test_evaluation_in_place(any_isa, rng):
    """Exactly x as out is accepted; there is no backward pass then."""
    for shape in ((9, 3), (2, 3, 5, 7)):
        x = rng.standard_normal(shape).astype(F)
        mean, var = rng.standard_normal(3).astype(F), rng.uniform(0.5, 2.0, 3).astype(F)
        wide = np.moveaxis((np.moveaxis(x.astype(D), 1, -1) - mean) / np.sqrt(var.astype(D) + 1e-5), -1, 1)
        given = x.copy()
        y, saved = fs.batch_norm(given, None, None, mean, var, training=False, out=given)
        assert y is given
        np.testing.assert_allclose(y, wide, rtol=0, atol=2e-6)
        before = y.copy()
        with pytest.raises(ValueError, match="saved: x was overwritten by the forward pass, out=x"):
            fs.batch_norm_backward(np.ones_like(x), saved)
        np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5, 5)])
def test_a_changed_x_is_refused(shape, training, any_isa, rng):
    for place in (0, -1):
        x = rng.standard_normal(shape).astype(F)
        dy, dx = np.ones(shape, F), np.full(shape, 7.0, F)
        _, saved = fs.batch_norm(x, None, None, np.zeros(3, F), np.ones(3, F), training=training)
        kept = x.flat[place]
        x.flat[place] = kept + 1
        with pytest.raises(ValueError, match="saved: x has been changed since the forward pass"):
            fs.batch_norm_backward(dy, saved, out=dx)
        with pytest.raises(ValueError, match="saved: x has been changed since the forward pass"):
            fs.batch_norm_backward_sums(dy, saved)
        assert (dx == 7).all()
        x.flat[place] = kept
        fs.batch_norm_backward(dy, saved, out=dx)


def arrays_in(values):
    """Every array among the arguments, inside of statistics too."""
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, fs.BatchStats):
            yield from arrays_in((value.mean, value.m2))
        elif isinstance(value, fs.BatchGradSums):
            yield from arrays_in((value.dy, value.dy_d))


def assert_refused(call, given, error, message):
    """With this message; nothing has been written."""
    arrays = [array if array.base is None else array.base for array in arrays_in(given.values())]
    arrays = [array for array in arrays if isinstance(array, np.ndarray)]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(error, match=message):
        call(**given)
    for array, content in zip(arrays, before, strict=True):
        assert array.tobytes() == content


def values(*shape, kind=F, order="C"):
    """Different numbers, none of them 0."""
    size = int(np.prod(shape))
    return np.arange(1, size + 1, dtype=kind).reshape(shape, order=order)


def statistics(count=8, channels=3, mean=None, m2=None):
    return fs.BatchStats(
        count, np.ones(channels) if mean is None else mean, np.full(channels, 2.0) if m2 is None else m2
    )


BUFFER = values(64)
BIT16 = np.float16
SUBJECT = BUFFER[8:20].reshape(4, 3)

X_ERRORS = [
    ({"x": values(4, 3, kind=np.int64)}, TypeError, "x: expected float32, float64, float16 or .* got dtype int64"),
    ({"x": values(4, 3, kind=">f4")}, TypeError, "in native byte order, got dtype >f4"),
    ({"x": values(4, 3, kind=np.complex64)}, TypeError, "x: expected .* got dtype complex64"),
    ({"x": [[1.0, 2.0]]}, TypeError, "x: expected a NumPy array, got list"),
    ({"x": None}, TypeError, "x: expected a NumPy array, got NoneType"),
    ({"x": np.ma.masked_array(values(4, 3))}, TypeError, "x: expected a plain NumPy array, got MaskedArray"),
    ({"x": values(3)}, ValueError, r"x: expected a batch and a channel axis, .* got shape \(3,\)"),
    ({"x": values(8, 3)[::2]}, ValueError, r"x: expected one dense block of memory, .* strides \(24, 4\)"),
    ({"x": values(4, 6)[:, :3]}, ValueError, "x: expected one dense block of memory"),
    ({"x": np.broadcast_to(values(3), (4, 3))}, ValueError, r"x: expected one dense block .* strides \(0, 4\)"),
    ({"x": values(4, 3)[::-1]}, ValueError, r"x: expected one dense block of memory, .* strides \(-12, 4\)"),
    ({"x": values(4, 3)[:, ::-1]}, ValueError, "x: expected one dense block of memory"),
    ({"x": values(4, 0)}, ValueError, "x: expected at least one channel"),
    ({"channel_axis": 2}, ValueError, "channel_axis: expected an axis of x, which has 2, got 2"),
    ({"channel_axis": -3}, ValueError, "channel_axis: expected an axis of x, which has 2, got -3"),
    ({"channel_axis": 10**30}, ValueError, "channel_axis: expected an axis of x"),
    ({"channel_axis": 1.0}, TypeError, "channel_axis: expected an integer, got float"),
    ({"channel_axis": True}, TypeError, "channel_axis: expected an integer, got bool"),
    ({"channel_axis": None}, TypeError, "channel_axis: expected an integer, got NoneType"),
]
PASS_ERRORS = [
    ({"weight": values(3, kind=D)}, TypeError, "weight: expected float32, got dtype float64; only a float64 x"),
    ({"bias": values(3, kind=BIT16)}, TypeError, "bias: expected float32 or float64 .* got dtype float16"),
    ({"x": values(4, 3, kind=BIT16), "weight": values(3, kind=D)}, TypeError, "weight: expected float32, got"),
    ({"weight": np.ma.masked_array(values(3))}, TypeError, "weight: expected a plain NumPy array"),
    ({"weight": values(2)}, ValueError, r"weight: expected shape \(3,\), got \(2,\)"),
    ({"bias": values(3, 1)}, ValueError, r"bias: expected shape \(3,\), got \(3, 1\)"),
    ({"bias": values(6)[::2]}, ValueError, "bias: expected a C-contiguous array"),
    ({"residual": values(4, 3, kind=D)}, TypeError, "residual: expected dtype float32 as x has, got float64"),
    ({"residual": values(3, 4)}, ValueError, r"residual: expected shape \(4, 3\) as x has, got \(3, 4\)"),
    ({"residual": values(4, 3, order="F")}, ValueError, "residual: expected the memory order of x"),
    ({"residual": values(4, 6)[:, ::2]}, ValueError, "residual: expected the memory order of x"),
    ({"residual": np.ma.masked_array(values(4, 3))}, TypeError, "residual: expected a plain NumPy array"),
    ({"out": values(4, 3, kind=BIT16)}, TypeError, "out: expected dtype float32 as x has, got float16"),
    ({"out": values(12)}, ValueError, r"out: expected shape \(4, 3\) as x has, got \(12,\)"),
    ({"out": values(4, 3, order="F")}, ValueError, "out: expected the memory order of x"),
    ({"out": frozen(values(4, 3))}, ValueError, "out: expected a writable array"),
    ({"out": np.ma.masked_array(values(4, 3))}, TypeError, "out: expected a plain NumPy array"),
    ({"x": SUBJECT, "out": BUFFER[9:21].reshape(4, 3)}, ValueError, "out: overlaps x in memory"),
    ({"x": SUBJECT, "out": BUFFER[:12].reshape(4, 3)}, ValueError, "out: overlaps x in memory"),
    ({"weight": BUFFER[8:11], "out": SUBJECT}, ValueError, "out: overlaps weight in memory"),
    ({"residual": SUBJECT, "out": SUBJECT}, ValueError, "out: overlaps residual in memory"),
    ({"activation": "gelu"}, ValueError, "activation: expected 'relu' or None, got 'gelu'"),
    ({"activation": 1}, TypeError, "activation: expected 'relu' or None, got int"),
    ({"eps": 0}, ValueError, "eps: expected a finite number > 0, got 0"),
    ({"eps": -1e-5}, ValueError, "eps: expected a finite number > 0, got -1e-05"),
    ({"eps": float("nan")}, ValueError, "eps: expected a finite number > 0, got nan"),
    ({"eps": float("inf")}, ValueError, "eps: expected a finite number > 0, got inf"),
    ({"eps": True}, TypeError, "eps: expected a number, got bool"),
]
MOMENTUM_ERRORS = [
    ({"momentum": None}, TypeError, "momentum: expected a number, got None; fs.BatchNorm keeps the cumulative"),
    ({"momentum": True}, TypeError, "momentum: expected a number, got bool"),
    ({"momentum": "0.1"}, TypeError, "momentum: expected a number, got str"),
    ({"momentum": -0.1}, ValueError, r"momentum: expected a number in \[0, 1\], got -0\.1"),
    ({"momentum": 1.1}, ValueError, r"momentum: expected a number in \[0, 1\], got 1\.1"),
    ({"momentum": float("nan")}, ValueError, r"momentum: expected a number in \[0, 1\], got nan"),
    ({"unbiased": 1}, TypeError, "unbiased: expected True or False, got 1"),
    ({"skip_nonfinite": None}, TypeError, "skip_nonfinite: expected True or False, got None"),
]
BATCH_NORM_ERRORS = [
    ({"x": SUBJECT, "out": SUBJECT}, ValueError, "out: overlaps x in memory"),
    ({"training": 1}, TypeError, "training: expected True or False, got 1"),
    ({"running_mean": None}, ValueError, "running_mean, running_var: expected both or neither"),
    ({"running_var": None}, ValueError, "running_mean, running_var: expected both or neither"),
    ({"running_var": None, "training": False}, ValueError, "running_mean, running_var: expected both or neither"),
    ({"running_mean": None, "running_var": None, "training": False}, ValueError, "with training=False, got None"),
    ({"running_mean": values(3, kind=D)}, TypeError, "running_mean: expected float32, got dtype float64"),
    ({"running_var": values(4)}, ValueError, r"running_var: expected shape \(3,\), got \(4,\)"),
    ({"running_var": frozen(values(3))}, ValueError, "running_var: expected a writable array"),
    ({"running_mean": np.ma.masked_array(values(3))}, TypeError, "running_mean: expected a plain NumPy array"),
    ({"running_mean": BUFFER[:3], "running_var": BUFFER[:3]}, ValueError, "running_var: overlaps running_mean"),
    ({"x": values(1, 3)}, ValueError, r"x: expected more than one value per channel in training, got shape \(1, 3\)"),
    ({"x": values(1, 3, 1, 1)}, ValueError, "x: expected more than one value per channel in training"),
    ({"x": values(0, 3)}, ValueError, r"x: expected at least one value, got shape \(0, 3\)"),
    ({"x": values(4, 3, 0)}, ValueError, r"x: expected at least one value, got shape \(4, 3, 0\)"),
    ({"x": values(0, 3), "training": False}, ValueError, r"x: expected at least one value, got shape \(0, 3\)"),
]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *X_ERRORS,
        *PASS_ERRORS,
        *[({**changes, "training": False}, *rest) for changes, *rest in PASS_ERRORS],
        *MOMENTUM_ERRORS,
        *BATCH_NORM_ERRORS,
    ],
)
@pytest.mark.parametrize("isa", ["numpy", fs.runtime.available_isas()[-1]])
def test_batch_norm_errors(changes, error, message, isa):
    given = {
        "x": values(4, 3),
        "weight": values(3),
        "bias": values(3),
        "running_mean": values(3),
        "running_var": values(3),
        "training": True,
        **changes,
    }
    with fs.runtime.use_isa(isa):
        assert_refused(fs.batch_norm, given, error, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *X_ERRORS,
        *PASS_ERRORS,
        ({"x": SUBJECT, "out": SUBJECT}, ValueError, "out: overlaps x in memory"),
        ({"stats": statistics(count=1)}, ValueError, "stats.count: expected more than one value per channel, got 1"),
        ({"stats": statistics(count=0)}, ValueError, "stats.count: expected more than one value per channel, got 0"),
        ({"stats": statistics(channels=2)}, ValueError, r"stats.mean: expected shape \(3,\), got \(2,\)"),
        ({"stats": (8, np.ones(3), np.ones(3))}, TypeError, "stats: expected BatchStats, got tuple"),
    ],
)
def test_apply_errors(changes, error, message, any_isa):
    given = {"x": values(4, 3), "stats": statistics(), "weight": values(3), "bias": values(3), **changes}
    assert_refused(fs.batch_norm_apply, given, error, message)


@pytest.mark.parametrize(("changes", "error", "message"), X_ERRORS)
def test_stats_errors(changes, error, message, any_isa):
    assert_refused(fs.batch_norm_stats, {"x": values(4, 3), **changes}, error, message)


def test_apply_refuses_to_write_into_the_statistics():
    memory = np.arange(1.0, 13.0)
    given = {"x": values(4, 3, kind=D), "stats": statistics(mean=memory[:3]), "weight": None, "bias": None}
    assert_refused(fs.batch_norm_apply, {**given, "out": memory.reshape(4, 3)}, ValueError, "out: overlaps stats.mean")


SHARED = np.ones(3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        *MOMENTUM_ERRORS,
        ({"running_mean": None}, TypeError, "running_mean: expected a NumPy array, got NoneType"),
        ({"running_var": values(3, kind=BIT16)}, TypeError, "running_var: expected float32 or float64"),
        ({"running_var": values(2)}, ValueError, r"running_var: expected shape \(C,\), got \(2,\)"),
        ({"running_var": values(3, 1)}, ValueError, r"running_var: expected shape \(C,\), got \(3, 1\)"),
        ({"running_mean": frozen(values(3))}, ValueError, "running_mean: expected a writable array"),
        ({"running_mean": values(6)[::2]}, ValueError, "running_mean: expected a C-contiguous array"),
        ({"running_mean": np.ma.masked_array(values(3))}, TypeError, "running_mean: expected a plain NumPy array"),
        ({"running_mean": BUFFER[:3], "running_var": BUFFER[1:4]}, ValueError, "running_var: overlaps running_mean"),
        ({"running_mean": SHARED, "stats": statistics(mean=SHARED)}, ValueError, "running_mean: overlaps stats.mean"),
        ({"stats": statistics(channels=4)}, ValueError, r"stats.mean: expected shape \(3,\), got \(4,\)"),
        ({"stats": statistics(count=1)}, ValueError, "stats.count: expected more than one value per channel, got 1"),
        ({"stats": None}, TypeError, "stats: expected BatchStats, got NoneType"),
    ],
)
def test_update_errors(changes, error, message):
    given = {"running_mean": values(3), "running_var": values(3), "stats": statistics(), **changes}
    assert_refused(fs.update_running_stats, given, error, message)


DY_ERRORS = [
    ({"dy": values(4, 3, kind=D)}, TypeError, r"dy: expected dtype float32 as saved\.x has, got float64"),
    ({"dy": values(4, 3, kind=BIT16)}, TypeError, r"dy: expected dtype float32 as saved\.x has, got float16"),
    ({"dy": values(3, 4)}, ValueError, r"dy: expected shape \(4, 3\) as saved\.x has, got \(3, 4\)"),
    ({"dy": values(4, 3, order="F")}, ValueError, r"dy: expected the memory order of saved\.x"),
    ({"dy": values(8, 3)[::2]}, ValueError, r"dy: expected the memory order of saved\.x"),
    ({"dy": np.ma.masked_array(values(4, 3))}, TypeError, "dy: expected a plain NumPy array, got MaskedArray"),
    ({"dy": None}, TypeError, "dy: expected a NumPy array, got NoneType"),
    ({"saved": None}, TypeError, "saved: expected what batch_norm gave, got NoneType"),
]
WRITE_ERRORS = [
    ({"out": values(4, 3, kind=D)}, TypeError, r"out: expected dtype float32 as saved\.x has, got float64"),
    ({"out": values(3, 4)}, ValueError, r"out: expected shape \(4, 3\) as saved\.x has, got \(3, 4\)"),
    ({"out": values(4, 3, order="F")}, ValueError, r"out: expected the memory order of saved\.x"),
    ({"out": frozen(values(4, 3))}, ValueError, "out: expected a writable array"),
    ({"dy": SUBJECT, "out": SUBJECT}, ValueError, "out: overlaps dy in memory"),
    ({"dy": SUBJECT, "out": BUFFER[10:22].reshape(4, 3)}, ValueError, "out: overlaps dy in memory"),
    ({"residual_out": values(4, 3, kind=D)}, TypeError, "residual_out: expected dtype float32"),
    ({"residual_out": values(4, 3, order="F")}, ValueError, r"residual_out: expected the memory order of saved\.x"),
    ({"residual_out": frozen(values(4, 3))}, ValueError, "residual_out: expected a writable array"),
    ({"out": SUBJECT, "residual_out": SUBJECT}, ValueError, "residual_out: overlaps out in memory"),
    ({"dy": SUBJECT, "residual_out": SUBJECT}, ValueError, "residual_out: overlaps dy in memory"),
]


def saved_by(x, residual=True, activation="relu"):
    options = {"residual": values(*x.shape) if residual else None, "activation": activation}
    return fs.batch_norm_apply(x, statistics(), values(3), None, **options)[1]


@pytest.mark.parametrize(("changes", "error", "message"), DY_ERRORS + WRITE_ERRORS)
def test_backward_errors(changes, error, message, any_isa):
    given = {"dy": values(4, 3), "saved": saved_by(values(4, 3)), **changes}
    assert_refused(fs.batch_norm_backward, given, error, message)
    sums = fs.BatchGradSums(np.ones(3), np.ones(3))
    assert_refused(fs.batch_norm_backward_apply, {**given, "sums": sums}, error, message)
    if "out" not in given and "residual_out" not in given:
        assert_refused(fs.batch_norm_backward_sums, given, error, message)


@pytest.mark.parametrize(
    ("sums", "error", "message"),
    [
        (fs.BatchGradSums(np.ones(2), np.ones(2)), ValueError, r"sums.dy: expected shape \(3,\), got \(2,\)"),
        ((np.ones(3), np.ones(3)), TypeError, "sums: expected BatchGradSums, got tuple"),
    ],
)
def test_errors_of_gradient_sums(sums, error, message, any_isa):
    given = {"dy": values(4, 3), "saved": saved_by(values(4, 3)), "sums": sums, "out": values(4, 3)}
    assert_refused(fs.batch_norm_backward_apply, given, error, message)


@pytest.mark.parametrize(("residual", "activation"), [(True, None), (False, "relu"), (False, None)])
def test_no_gradient_of_the_residual_to_write(residual, activation):
    """Without an activation it is dy itself."""
    saved = saved_by(values(4, 3), residual, activation)
    given = {"dy": values(4, 3), "saved": saved, "residual_out": values(4, 3)}
    assert_refused(
        fs.batch_norm_backward, given, ValueError, "residual_out: expected None: the residual's gradient is dy"
    )
    if residual:
        _, saved = fs.batch_norm(values(4, 3), None, None, None, None, training=True, residual=values(4, 3))
        assert fs.batch_norm_backward(given["dy"], saved)[3] is given["dy"]


def test_backward_may_not_write_into_what_it_reads():
    memory = values(24)
    saved = saved_by(memory[:12].reshape(4, 3))
    for name in ("out", "residual_out"):
        given = {"dy": values(4, 3), "saved": saved, name: memory[6:18].reshape(4, 3)}
        assert_refused(fs.batch_norm_backward, given, ValueError, rf"{name}: overlaps saved\.x in memory")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, np.ones(3), np.ones(3)), ValueError, "count: expected a whole number >= 0, got -1"),
        ((1.0, np.ones(3), np.ones(3)), ValueError, r"count: expected a whole number >= 0, got 1\.0"),
        ((True, np.ones(3), np.ones(3)), ValueError, "count: expected a whole number >= 0, got True"),
        ((4, values(3), np.ones(3)), TypeError, "mean: expected a float64 array, got float32"),
        ((4, np.ones(3), values(3)), TypeError, "m2: expected a float64 array, got float32"),
        ((4, np.ones(3), [1.0]), TypeError, "m2: expected a float64 array, got list"),
        ((4, None, np.ones(3)), TypeError, "mean: expected a float64 array, got NoneType"),
        ((4, np.ones(3), np.ones(2)), ValueError, r"m2: expected shape \(C,\), got \(2,\)"),
        ((4, np.ones((3, 1)), np.ones((3, 1))), ValueError, r"mean: expected shape \(C,\), got \(3, 1\)"),
        ((4, np.ones(3), np.ones(3), np.ones(2)), ValueError, r"mean_low: expected shape \(C,\), got \(2,\)"),
        ((4, np.ones(3), np.ones(3), None, values(3)), TypeError, "m2_low: expected a float64 array, got float32"),
    ],
)
def test_errors_of_statistics(arguments, error, message):
    with pytest.raises(error, match=message):
        fs.BatchStats(*arguments)


@pytest.mark.parametrize(
    ("merge", "parts", "error", "message"),
    [
        (fs.merge_stats, [], ValueError, "stats: expected at least one, got none"),
        (fs.merge_stats, [statistics(), None], TypeError, r"stats\[1\]: expected BatchStats, got NoneType"),
        (fs.merge_stats, [(8, np.ones(3), np.ones(3))], TypeError, r"stats\[0\]: expected BatchStats, got tuple"),
        (
            fs.merge_stats,
            [statistics(), statistics(channels=2)],
            ValueError,
            r"stats\[1\]: expected 3 channels .* got 2",
        ),
        (fs.merge_stats, [statistics(), statistics(0, 2)], ValueError, r"stats\[1\]: expected 3 channels .* got 2"),
        (fs.merge_grad_sums, [], ValueError, "sums: expected at least one, got none"),
        (fs.merge_grad_sums, [statistics()], TypeError, r"sums\[0\]: expected BatchGradSums, got BatchStats"),
        (
            fs.merge_grad_sums,
            [fs.BatchGradSums(np.ones(3), np.ones(3)), fs.BatchGradSums(np.ones(2), np.ones(2))],
            ValueError,
            r"sums\[1\]: expected shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_merge_errors(merge, parts, error, message):
    with pytest.raises(error, match=message):
        merge(parts)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bias": None}, KeyError, "state: expected .*'bias'.* got"),
        ({"num_batches_tracked": None}, KeyError, "state: expected .*'num_batches_tracked'.* got"),
        ({"gamma": values(3)}, KeyError, "state: expected .* got .*'gamma'"),
        ({"running_var": values(4)}, ValueError, r"state\['running_var'\]: expected shape \(3,\), got \(4,\)"),
        ({"weight": values(3, 1)}, ValueError, r"state\['weight'\]: expected shape \(3,\), got \(3, 1\)"),
        ({"running_var": values(3, kind=D)}, TypeError, r"state\['running_var'\]: expected float32, got dtype float64"),
        ({"running_var": torch.ones(3).double()}, TypeError, r"state\['running_var'\]: expected float32"),
        ({"running_var": [1.0, 1.0, 1.0]}, TypeError, r"state\['running_var'\]: expected an array, got list"),
        ({"num_batches_tracked": np.array(-1)}, ValueError, r"state\['num_batches_tracked'\]: expected a whole number"),
    ],
)
def test_a_refused_state_leaves_the_layer(changes, error, message):
    layer = fs.BatchNorm(3)
    layer.forward(values(4, 3), training=True)
    before = layer.state_dict()
    state = {"weight": values(3), "bias": values(3), "running_mean": values(3), "running_var": values(3)}
    state = {**state, "num_batches_tracked": np.array(7), **changes}
    with pytest.raises(error, match=message):
        layer.load_state_dict({name: value for name, value in state.items() if value is not None})
    for name, array in layer.state_dict().items():
        assert array.tobytes() == before[name].tobytes(), name


def test_states_of_layers_without_parameters_or_statistics():
    names = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    for affine in (True, False):
        for tracked in (True, False):
            layer = fs.BatchNorm(3, affine=affine, track_running_stats=tracked)
            mine = {name for name in names if (affine if name in ("weight", "bias") else tracked)}
            assert set(layer.state_dict()) == mine
            layer.load_state_dict(layer.state_dict())
            if mine != names:
                with pytest.raises(KeyError, match="state: expected"):
                    layer.load_state_dict(fs.BatchNorm(3).state_dict())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected a whole number >= 1, got 0"),
        ({"num_features": -2}, ValueError, "num_features: expected a whole number >= 1, got -2"),
        ({"num_features": 2.0}, ValueError, r"num_features: expected a whole number >= 1, got 2\.0"),
        ({"num_features": True}, ValueError, "num_features: expected a whole number >= 1, got True"),
        ({"eps": 0.0}, ValueError, r"eps: expected a finite number > 0, got 0\.0"),
        ({"eps": -1.0}, ValueError, r"eps: expected a finite number > 0, got -1\.0"),
        ({"eps": float("nan")}, ValueError, "eps: expected a finite number > 0, got nan"),
        ({"eps": float("inf")}, ValueError, "eps: expected a finite number > 0, got inf"),
        ({"momentum": -0.1}, ValueError, r"momentum: expected a number in \[0, 1\] or None, got -0\.1"),
        ({"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\] or None, got 1\.5"),
        ({"momentum": float("nan")}, ValueError, r"momentum: expected a number in \[0, 1\] or None, got nan"),
        ({"activation": "gelu"}, ValueError, "activation: expected 'relu' or None, got 'gelu'"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64, got float16"),
        ({"dtype": np.int64}, TypeError, "dtype: expected float32 or float64, got int64"),
    ],
)
def test_constructor_errors(changes, error, message):
    with pytest.raises(error, match=message):
        fs.BatchNorm(**{"num_features": 3, **changes})


def test_layer_calls_out_of_order(rng):
    layer = fs.BatchNorm(3)
    dy = values(4, 3)
    with pytest.raises(RuntimeError, match="backward: no forward since the last backward"):
        layer.backward(dy)
    layer.forward(values(4, 3), training=True)
    with pytest.raises(ValueError, match=r"dy: expected shape \(4, 3\)"):
        layer.backward(values(3, 4))
    layer.backward(dy)
    with pytest.raises(RuntimeError, match="backward: no forward since the last backward"):
        layer.backward(dy)
    before = layer.state_dict()
    for x, error, message in (
        (values(4, 5), ValueError, r"x: expected 3 channels in axis 1, got shape \(4, 5\)"),
        (values(1, 3), ValueError, "x: expected more than one value per channel in training"),
        (values(4, 3, kind=np.int32), TypeError, "x: expected float32"),
    ):
        with pytest.raises(error, match=message):
            layer.forward(x, training=True)
    for name, array in layer.state_dict().items():
        assert array.tobytes() == before[name].tobytes(), name


def test_a_negative_sum_of_squares_is_refused():
    with pytest.raises(ValueError, match="m2: expected numbers >= 0, got -1e-300"):
        fs.BatchStats(4, np.zeros(3), np.array([1, -1e-300, 1]))


def test_errors_of_gradient_sums_themselves():
    with pytest.raises(ValueError, match=r"dy_d: expected shape \(C,\), got \(4,\)"):
        fs.BatchGradSums(np.ones(3), np.ones(4))
    with pytest.raises(TypeError, match="dy: expected a float64 array, got float32"):
        fs.BatchGradSums(values(3), np.ones(3))
    with pytest.raises(TypeError, match="stats: expected a list, got int"):
        fs.merge_stats(5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eps": True}, ValueError, "eps: expected a finite number > 0, got True"),
        ({"eps": "x"}, ValueError, "eps: expected a finite number > 0, got 'x'"),
        ({"momentum": True}, ValueError, "momentum: expected a number in"),
        ({"channel_axis": 1.5}, TypeError, "channel_axis: expected an integer, got float"),
        ({"skip_nonfinite": "no"}, TypeError, "skip_nonfinite: expected True or False, got 'no'"),
        ({"dtype": None}, TypeError, "dtype: expected float32 or float64, got None"),
    ],
)
def test_errors_of_the_layers_constructor(changes, error, message):
    with pytest.raises(error, match=message):
        fs.BatchNorm(**{"num_features": 3, **changes})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("running_var", np.array([1, -1, 1], F), ValueError),
        ("num_batches_tracked", np.array(2.7), ValueError),
        ("num_batches_tracked", np.array([1, 2]), ValueError),
        ("weight", np.ma.masked_array(np.ones(3, F), mask=[0, 1, 0]), TypeError),
    ],
)
def test_damaged_states_of_the_layer_are_refused(name, value, error):
    layer = fs.BatchNorm(3)
    before = layer.state_dict()
    with pytest.raises(error, match=name):
        layer.load_state_dict({**before, name: value})
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("axis", [np.array([0, 1]), np.array(0.0)])
def test_an_axis_that_is_no_integer(axis):
    mean, var = np.zeros(3, F), np.ones(3, F)
    with pytest.raises(TypeError, match="channel_axis: expected an integer, got array"):
        fs.batch_norm(values(4, 3), None, None, mean, var, training=True, channel_axis=axis)
    assert not mean.any()


@pytest.mark.parametrize(
    "change", [lambda x: x.resize((50, 4), refcheck=False), lambda x: setattr(x, "shape", (25, 4, 4))]
)
def test_x_of_another_shape_is_refused(change, any_isa):
    x = np.zeros((100, 4), F)
    _, saved = fs.batch_norm(x, None, None, None, None, training=True)
    change(x)
    with pytest.raises(ValueError, match=r"saved: x has been changed since the forward pass|expected shape"):
        fs.batch_norm_backward(np.ones(x.shape, F), saved)


def test_a_worker_cannot_go_back_alone():
    x = values(8, 2)
    stats = fs.merge_stats([fs.batch_norm_stats(x[:3]), fs.batch_norm_stats(x[3:])])
    _, saved = fs.batch_norm_apply(x[:3], stats, None, None)
    with pytest.raises(ValueError, match="saved: has the statistics of other workers too"):
        fs.batch_norm_backward(np.ones((3, 2), F), saved)


def test_huge_numbers(any_isa):
    """Products of halves do not overflow where the product does not: mean and variance of numbers near the largest."""
    x = np.zeros((32, 1))
    x[20:] = 1e303
    np.testing.assert_allclose(fs.batch_norm_stats(x).mean, [3.75e302], rtol=1e-15)


def test_a_state_of_the_layers_own_arrays():
    layer = fs.BatchNorm(3)
    layer.bias[:] = 5
    layer.load_state_dict({**layer.state_dict(), "weight": layer.bias, "bias": layer.weight})
    np.testing.assert_array_equal([layer.weight, layer.bias], [[5] * 3, [1] * 3])


def test_other_wrong_kinds():
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got 'foo'"):
        fs.BatchNorm(3, dtype="foo")
    with pytest.raises(TypeError, match="state: expected a dict, got NoneType"):
        fs.BatchNorm(3).load_state_dict(None)
    with pytest.raises(ValueError, match="activation: expected 'relu' or None"):
        fs.BatchNorm(3, activation=np.array(["relu", "x"]))
    with pytest.raises(ValueError, match=r"count: expected less than 2\*\*53"):
        fs.BatchStats(2**70, np.zeros(3), np.ones(3))
