"""What batch norm holds between its two passes, and who is told of what it writes."""

import copy

import numpy as np
import pytest

import fusedstep as fs
from helpers import assert_same_bits

F = np.float32
ISAS = ["numpy", fs.runtime.available_isas()[-1]]
CHANGED = "saved: x has been changed since the forward pass"


@pytest.fixture(params=ISAS)
def isa(request):
    with fs.runtime.use_isa(request.param):
        yield request.param


def forward(x, **options):
    return fs.batch_norm(x, None, None, None, None, training=True, **options)[1]


def memory(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape, F)


def expected_gradient(x, dy):
    """In float64, from the equation."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    d = x - x.mean(0)
    inv_std = 1 / np.sqrt(x.var(0) + 1e-5)
    return inv_std * (dy - dy.mean(0) - d * inv_std**2 * (dy * d).mean(0))


def set_shape(x):
    x.shape = (3, 8)


def set_strides(x):
    with np.errstate(all="ignore"):
        x.strides = (4, 24)


def set_dtype(x):
    x.dtype = np.int32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "change",
    [
        set_shape,
        set_strides,
        set_dtype,
        lambda x: x.resize((6, 3), refcheck=False),
        lambda x: x.resize((60000, 40), refcheck=False),
        lambda x: x.resize((0, 4), refcheck=False),
        lambda x: x.__setitem__((0, 0), 9),
    ],
)
def test_x_that_changed(isa, change):
    x, dy = memory((6, 4)), memory((6, 4), 2)
    saved = forward(x)
    change(x)
    out = np.full((6, 4), 7, F)
    for call in (
        lambda: fs.batch_norm_backward(dy, saved, out=out),
        lambda: fs.batch_norm_backward_sums(dy, saved),
    ):
        with pytest.raises((ValueError, TypeError), match=r"saved: x has been changed|saved\.x"):
            call()
    assert (out == 7).all()


def test_a_length_of_one_may_have_any_stride(isa):
    x = memory((4, 3, 1))
    saved = forward(x)
    dy = memory((4, 3, 1), 2)
    expected, *_ = fs.batch_norm_backward(dy, saved)
    x.shape = (4, 3, 1)
    assert_same_bits(fs.batch_norm_backward(dy, saved)[0], expected)


def test_what_is_saved_cannot_be_written(isa):
    saved = forward(memory((6, 4)), activation="relu")
    for name in ("mean", "inv_std", "mask"):
        array = getattr(saved, name)
        assert not array.flags.writeable
        assert array.base is saved
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="cannot resize"):
            array.resize(1, refcheck=False)
    mean = saved.mean
    del saved
    assert np.isfinite(mean).all()  # it keeps what it is part of


def test_the_mask_is_the_same_every_time(isa):
    for shape in ((6, 4), (5, 3), (2, 3, 17), (2, 3, 4, 4)):
        x = memory(shape)
        masks = []
        for fill in (0, 0xFF):
            trash = [np.full(size, fill, np.uint8) for size in range(2, 200)]
            del trash
            masks.append(forward(x, activation="relu").mask.copy())
        assert masks[0][-1] == 0
        assert_same_bits(masks[0].view(np.float16), masks[1].view(np.float16))


@pytest.mark.parametrize("dtype", [F, np.float64])
def test_a_negative_variance_is_none(isa, dtype):
    x, mean, out = memory((4, 3)).astype(dtype), np.zeros(3, dtype), np.full((4, 3), 7, dtype)
    for bad in (-1.0, -1e-30, -np.inf):
        var = np.array([1, 1, bad], dtype)
        with pytest.raises(ValueError, match=r"running_var\[2\]: expected a number >= 0, got -"):
            fs.batch_norm(x, None, None, mean, var, training=False, out=out)
        layer = fs.BatchNorm(3, dtype=dtype)
        layer.running_var[...] = var
        with pytest.raises(ValueError, match=r"running_var\[2\]"):
            layer.forward(x, training=False, out=out)
        assert (out == 7).all()
    for fine in (0.0, -0.0, np.inf):
        fs.batch_norm(x, None, None, mean, np.array([1, 1, fine], dtype), training=False)


def test_a_layer_with_a_strange_axis(isa):
    layer = fs.BatchNorm(3)
    for axis, error in (("x", TypeError), (None, TypeError), (2.0, TypeError), (10**400, ValueError), (5, ValueError)):
        layer.channel_axis = axis
        with pytest.raises(error, match="channel_axis"):
            layer.forward(memory((4, 3)), training=True)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("value", [10**400, -(10**5000), 10**5000, "\ud800", None, np.ones(2)], ids=range(6))
def test_a_layer_of_strange_numbers(value):
    for name in ("num_features", "eps", "momentum", "channel_axis", "activation", "affine", "unbiased", "dtype"):
        options = {"num_features": 3, name: value}
        if (value is None and name in ("momentum", "activation", "dtype")) or (
            isinstance(value, int) and name == "channel_axis"  # asked when there is an x
        ):
            continue
        with pytest.raises((TypeError, ValueError), match=name):
            fs.BatchNorm(**options)
    for count in (10**5000, -(10**5000)):
        with pytest.raises(ValueError, match="count: expected"):
            fs.BatchStats(count, np.zeros(1), np.zeros(1))


def test_statistics_of_a_subclass():
    """What merges computes with plain arrays."""

    class Odd(np.ndarray):
        def __array_ufunc__(self, *given, **options):
            raise AssertionError("nobody computes with this class")

        shape = property(lambda self: (7,))

    x = memory((6, 4))
    parts = [fs.batch_norm_stats(x[:2]), fs.batch_norm_stats(x[2:])]
    odd = [fs.BatchStats(part.count, part.mean.view(Odd), part.m2.view(Odd)) for part in parts]
    plain = [fs.BatchStats(part.count, part.mean, part.m2) for part in parts]
    assert_same_bits(fs.merge_stats(odd).m2, fs.merge_stats(plain).m2)
    sums = fs.BatchGradSums(np.ones(2).view(Odd), np.ones(2).view(Odd))
    assert fs.merge_grad_sums([sums, sums]).dy.tolist() == [2, 2]
    with pytest.raises(TypeError, match="mean: expected a float64 array, got MaskedArray"):
        fs.BatchStats(2, np.ma.ones(3), np.ones(3))


# torch

torch = pytest.importorskip("torch")


def done(change, x):
    """False where PyTorch refuses, for a NumPy array of the memory has been seen."""
    try:
        change(x)
    except RuntimeError:
        return False
    return True


def tensor(shape=(6, 4), seed=1, **options):
    """Of torch's own memory."""
    given = torch.empty(shape, **options)
    with torch.no_grad():
        given.copy_(torch.from_numpy(memory(shape, seed)))
    return given


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.resize_(2, 2),
        lambda x: x.resize_(600, 400),
        lambda x: x.untyped_storage().resize_(0),
        lambda x: x.untyped_storage().resize_(40),
        lambda x: x.set_(torch.zeros(6, 4)),
        lambda x: x.set_(),
        lambda x: setattr(x, "data", torch.zeros(6, 4)),
        lambda x: setattr(x, "data", torch.zeros(600, 400)),
        lambda x: x.t_(),
        lambda x: x.zero_(),
    ],
)
def test_a_tensor_that_changed(isa, change):
    x, dy, out = tensor(), memory((6, 4), 2), np.full((6, 4), 7, F)
    saved = forward(x)
    assert saved.x is x
    if not done(change, x):
        return
    with pytest.raises((ValueError, TypeError), match=r"saved: x has been changed|saved\.x"):
        fs.batch_norm_backward(dy, saved, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.share_memory_(),
        lambda x: setattr(x, "data", x.detach().clone()),
        lambda x: x.set_(x.detach().clone()),
        lambda x: x.untyped_storage().resize_(1 << 20),
    ],
)
def test_a_tensor_that_moved_is_followed(isa, move):
    x, dy = tensor(), memory((6, 4), 2)
    values = x.detach().clone().numpy()
    saved = forward(x)
    before = x.data_ptr()
    if not done(move, x):
        return
    keep = [torch.full((6, 4), 9.0) for _ in range(50)]  # takes what was freed
    dx, *_ = fs.batch_norm_backward(dy, saved)
    np.testing.assert_allclose(dx, expected_gradient(values, dy), atol=1e-5)
    assert x.data_ptr() != before
    del keep


def test_a_tensor_without_its_storage(isa):
    x, y = tensor(), tensor(seed=2)
    x.untyped_storage().resize_(0)
    mean, var = np.zeros(4, F), np.ones(4, F)
    for call, name in (
        (lambda: forward(x), "x"),
        (lambda: fs.batch_norm(y, None, None, mean, var, training=True, out=x), "out"),
        (lambda: fs.batch_norm_backward(x, forward(y)), "dy"),
        (lambda: fs.softmax(x), "logits"),
        (lambda: fs.mean_squared_error(y, x), "targets"),
        (lambda: fs.dropout(y, 0.5, seed=0, residual=x), "residual"),
    ):
        with pytest.raises(ValueError, match=f"{name}: its storage is smaller than its shape"):
            call()
    assert (mean == 0).all()


def test_losses_and_dropout_take_tensors(isa):
    z, t = tensor(), torch.softmax(tensor(seed=2), 1)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    loss, dz = fs.softmax_cross_entropy(z, labels)
    z.requires_grad_()
    expected = torch.nn.functional.cross_entropy(z, labels)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    np.testing.assert_allclose(dz, z.grad, atol=1e-6)
    assert_same_bits(fs.softmax(z.t()), fs.softmax(z.detach().numpy().T.copy()))
    assert fs.mean_squared_error(z, t)[0] == pytest.approx(((z - t) ** 2).mean().item(), rel=1e-5)
    fs.sigmoid_binary_cross_entropy(z, t)
    half = tensor(dtype=torch.bfloat16)
    assert fs.dropout(half, 0.0, seed=0).view(np.uint16).tolist() == half.view(torch.uint16).tolist()


def test_autograd_is_told_of_what_is_written(isa):
    x, dy = memory((6, 4)), memory((6, 4), 2)
    mean, var = torch.zeros(4), torch.ones(4)
    saved = forward(x, activation="relu", residual=dy)
    layer = fs.BatchNorm(4)
    layer.running_mean, layer.running_var = torch.zeros(4), torch.ones(4)
    stats, sums = fs.batch_norm_stats(x), fs.batch_norm_backward_sums(dy, forward(x))
    labels = np.array([0, 1, 2, 3, 0, 1])
    calls = [
        (lambda out: fs.batch_norm(x, None, None, mean, var, training=True, out=out), [mean, var]),
        (lambda out: fs.batch_norm_apply(x, stats, None, None, out=out), []),
        (lambda out: fs.batch_norm_backward_apply(dy, forward(x), sums, out=out), []),
        (lambda out: fs.batch_norm_backward(dy, forward(x), out=out), []),
        (lambda out: fs.batch_norm_backward(dy, saved, residual_out=out), []),
        (lambda out: layer.forward(x, training=True, out=out), [layer.running_mean, layer.running_var]),
        (lambda out: fs.update_running_stats(mean, var, stats), [mean, var]),
        (lambda out: fs.softmax(x, out=out), []),
        (lambda out: fs.log_softmax(x, out=out), []),
        (lambda out: fs.softmax_cross_entropy(x, labels, out=out), []),
        (lambda out: fs.sigmoid_binary_cross_entropy(x, np.zeros((6, 4), F), out=out), []),
        (lambda out: fs.mean_squared_error(x, dy, out=out), []),
        (lambda out: fs.dropout(x, 0.5, seed=0, out=out), []),
        (lambda out: fs.dropout_backward(x, 0.5, seed=0, out=out), []),
        (lambda out: fs.drop_connect(x, 0.5, seed=0, out=out), []),
        (lambda out: fs.stochastic_depth(x, 0.5, seed=0, out=out), []),
    ]
    for number, (call, others) in enumerate(calls):
        out = torch.zeros(6, 4, requires_grad=True)
        written = others if number == 6 else [out, *others]
        used = [torch.ones_like(t, requires_grad=True) for t in written]
        losses = [(t * w).sum() for t, w in zip(written, used, strict=True)]  # keeps t for the gradient of w
        call(out)
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    # What is only read, or refused, stays at its version.
    versions = [mean._version, var._version]
    fs.batch_norm(x, None, None, mean, var, training=False)
    with pytest.raises(ValueError, match="x: expected more than one value"):
        fs.batch_norm(x[:1], None, None, mean, var, training=True)
    assert versions == [mean._version, var._version]
    with torch.inference_mode():
        fs.softmax(x, out=torch.zeros(6, 4))


def test_layers_are_copied_without_what_they_saved(isa):
    layer = fs.BatchNorm(4)
    layer.forward(tensor(), training=True)
    twin = copy.deepcopy(layer)
    assert_same_bits(twin.running_mean, layer.running_mean)
    with pytest.raises(RuntimeError, match="no forward"):
        twin.backward(memory((6, 4)))
