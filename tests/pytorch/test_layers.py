"""Batch norm modules against torch's, with the same state and the same inputs."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import fusedstep as fs
from fusedstep.torch import functional as F  # noqa: N812
from fusedstep.torch import nn

D = torch.float64
DIMS = {1: (6, 5), 11: (4, 5, 7), 2: (3, 5, 4, 6), 3: (2, 5, 3, 4, 2)}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20260101)


def pair(dims, activation=None, **options):
    """Torch's module and ours, with the same random parameters."""
    name = f"BatchNorm{1 if dims == 11 else dims}d"
    theirs = getattr(torch.nn, name)(5, **options)
    ours = getattr(nn, name)(5, activation=activation, **options)
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def draw(dims, dtype=D, last=False):
    x = torch.randn(DIMS[dims], dtype=D).to(dtype)
    return x.contiguous(memory_format=FORMATS[dims]) if last else x


def run(module, x, residual, dy, activation):
    """The output and all gradients, of torch's module by torch's steps."""
    x = x.detach().clone().requires_grad_()
    r = None if residual is None else residual.detach().clone().requires_grad_()
    if isinstance(module, nn._BatchNorm):
        y = module(x, r)
    else:
        y = module(x)
        y = y if r is None else y + r
        y = y if activation is None else y.relu()
    for parameter in module.parameters():
        parameter.grad = None
    y.backward(dy)
    grads = [x.grad, *(p.grad for p in module.parameters()), *([] if r is None else [r.grad])]
    return y.detach(), grads


def assert_close(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class TestAgainstTorch:
    @pytest.mark.parametrize("dims", DIMS)
    @pytest.mark.parametrize("activation", [None, "relu"])
    @pytest.mark.parametrize("with_residual", [False, True])
    @pytest.mark.parametrize("training", [True, False])
    def test_every_pass(self, dims, activation, with_residual, training):
        theirs, ours = pair(dims, activation, dtype=D)
        for last in [False, True] if dims in FORMATS else [False]:
            for module in (theirs, ours):
                module.train(training)
            for _ in range(3):
                x, dy = draw(dims, last=last) * 3 + 1, draw(dims)
                residual = draw(dims, last=last) if with_residual else None
                y, grads = run(ours, x, residual, dy, activation)
                y_theirs, grads_theirs = run(theirs, x, residual, dy, activation)
                assert y.stride() == x.stride()
                assert grads[0].stride() == x.stride()
                assert_close(y, y_theirs, 1e-12)
                for mine, other in zip(grads, grads_theirs, strict=True):
                    assert_close(mine, other, 1e-12)
            for name, value in theirs.state_dict().items():
                assert_close(ours.state_dict()[name], value, 1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {"affine": False},
            {"bias": False},
            {"track_running_stats": False},
            {"momentum": None},
            {"momentum": 0.7, "eps": 1e-3},
            {"momentum": 1.0},
        ],
        ids=str,
    )
    def test_options(self, options):
        theirs, ours = pair(2, dtype=D, **options)
        for training in (True, True, True, False):
            theirs.train(training)
            ours.train(training)
            x, dy = draw(2), draw(2)
            y, grads = run(ours, x, None, dy, None)
            y_theirs, grads_theirs = run(theirs, x, None, dy, None)
            assert_close(y, y_theirs, 1e-12)
            for mine, other in zip(grads, grads_theirs, strict=True):
                assert_close(mine, other, 1e-12)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], value, 1e-12)
        assert str(ours) == str(theirs)

    def test_flags_changed_later(self):
        """Running statistics that are there, and not to be tracked any more."""
        theirs, ours = pair(2, dtype=D)
        for module in (theirs, ours):
            module.track_running_stats = False
        x = draw(2)
        assert_close(ours(x), theirs(x), 1e-12)
        assert_close(ours.eval()(x), theirs.eval()(x), 1e-12)
        assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("wide", [True, False], ids=["float32 parameters", "narrow parameters"])
    @pytest.mark.parametrize("last", [True, False])
    def test_narrow_inputs(self, dtype, wide, last):
        """Rounded once: within half a unit, and the last bit of float32, of what float64 gives."""
        _, ours = pair(2, "relu", dtype=torch.float32 if wide else dtype)
        exact, _ = pair(2, dtype=D)
        exact.load_state_dict(ours.state_dict())
        x, residual, dy = draw(2, dtype, last), draw(2, dtype, last), draw(2, dtype)
        y, grads = run(ours, x, residual, dy, "relu")
        # The same units pass in both where none is at 0 to within the rounding.
        y_exact, grads_exact = run(exact, x.to(D), residual.to(D), dy.to(D), "relu")
        unit = torch.finfo(dtype).eps
        assert y.dtype == dtype
        for mine, other in zip([y, *grads], [y_exact, *grads_exact], strict=True):
            torch.testing.assert_close(mine.to(D), other, rtol=unit * 0.51, atol=1e-5)
        assert grads[1].dtype == ours.weight.dtype
        for name in ("running_mean", "running_var"):
            statistics = getattr(ours, name)
            assert statistics.dtype == (torch.float32 if wide else dtype)
            assert_close(statistics.to(D), getattr(exact, name), 1e-6 if wide else unit)

    def test_float32_is_as_near_to_float64_as_torch(self):
        theirs, ours = pair(2)
        exact, _ = pair(2, dtype=D)
        exact.load_state_dict(theirs.state_dict())
        x, dy = draw(2, torch.float32) + 10, draw(2, torch.float32)
        y, grads = run(ours, x, None, dy, None)
        y_theirs, grads_theirs = run(theirs, x, None, dy, None)
        y_exact, grads_exact = run(exact, x.to(D), None, dy.to(D), None)
        for mine, other, truth in zip([y, *grads], [y_theirs, *grads_theirs], [y_exact, *grads_exact], strict=True):
            error, allowed = (mine - truth).abs().max(), (other - truth).abs().max()
            assert error <= allowed + 1e-6

    def test_gradcheck(self):
        layer = nn.BatchNorm2d(5, activation="relu", dtype=D)
        x, residual = draw(2).requires_grad_(), draw(2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, r, w, b: F.batch_norm(x, None, None, w, b, True, activation="relu", residual=r),
            (x, residual, layer.weight, layer.bias),
        )
        statistics = torch.zeros(5, dtype=D), torch.ones(5, dtype=D)
        assert torch.autograd.gradcheck(
            lambda x, w, b: F.batch_norm(x, *statistics, w, b), (x, layer.weight, layer.bias)
        )

    @pytest.mark.parametrize("expanded", [True, False])
    def test_gradients_and_inputs_of_any_strides(self, expanded):
        theirs, ours = pair(2, "relu", dtype=D)
        wide = torch.randn(3, 5, 8, 6, dtype=D)
        x = wide[:, :, ::2]
        dy = (
            torch.ones((), dtype=D).expand(x.shape)
            if expanded
            else torch.randn(6, 4, 5, 3, dtype=D).permute(3, 2, 1, 0)
        )
        residual = torch.randn(3, 4, 6, 5, dtype=D).permute(0, 3, 1, 2)
        results = []
        for module in (ours, theirs):
            leaf, other = wide.clone().requires_grad_(), residual.clone().requires_grad_()
            view = leaf[:, :, ::2]
            y = module(view, other) if module is ours else (module(view) + other).relu()
            y.backward(dy)
            results.append([y, leaf.grad, other.grad])
        for mine, other in zip(*results, strict=True):
            assert_close(mine.detach(), other.detach(), 1e-12)

    def test_negated_views(self):
        """Numbers whose sign is still to be turned."""
        theirs, ours = pair(2, dtype=D)
        x, residual, dy = (torch._neg_view(draw(2)) for _ in range(3))
        y, grads = run(ours, x, residual, dy, None)
        y_theirs, grads_theirs = run(theirs, x, residual, dy, None)
        for mine, other in zip([y, *grads], [y_theirs, *grads_theirs], strict=True):
            assert_close(mine, other, 1e-12)

    def test_residual_of_another_shape_or_dtype(self):
        theirs, ours = pair(2, "relu")
        x = draw(2, torch.float32)
        for residual in (torch.randn(3, 5, 1, 1), torch.randn(3, 5, 4, 6, dtype=D), torch.randn(2, 3, 5, 4, 6)):
            assert_close(ours(x, residual), (theirs(x) + residual).relu(), 1e-5)


class TestEdges:
    @pytest.mark.parametrize("shape", [(0, 5, 4, 4), (2, 5, 0, 4)])
    @pytest.mark.parametrize("training", [True, False])
    def test_empty(self, shape, training):
        theirs, ours = pair(2, "relu")
        results = []
        for module in (theirs, ours):
            module.train(training)
            x = torch.zeros(shape, requires_grad=True)
            y = module(x)
            y.sum().backward()
            results.append((y.shape, x.grad.shape, module.weight.grad, module.state_dict()))
        assert results[0][:2] == results[1][:2]
        assert torch.equal(results[0][2], results[1][2])
        for name, value in results[0][3].items():
            assert torch.equal(results[1][3][name], value)

    def test_one_value_per_channel(self):
        _, ours = pair(2)
        before = copy.deepcopy(ours.state_dict())
        with pytest.raises(ValueError, match="input: expected more than 1 value per channel"):
            ours(torch.zeros(1, 5, 1, 1))
        for name, value in before.items():
            assert torch.equal(ours.state_dict()[name], value)
        assert ours.eval()(torch.zeros(1, 5, 1, 1)).shape == (1, 5, 1, 1)

    def test_nan_and_infinity_as_torch(self):
        theirs, ours = pair(2, "relu", dtype=D)
        x = draw(2)
        x[0, 1, 0, 0], x[1, 2, 0, 0] = float("nan"), float("inf")
        assert torch.equal(ours(x).isnan(), theirs(x).relu().isnan())
        for name in ("running_mean", "running_var"):
            assert torch.equal(getattr(ours, name).isfinite(), getattr(theirs, name).isfinite())

    def test_second_derivative_is_refused(self):
        x = draw(2).requires_grad_()
        y = nn.BatchNorm2d(5, dtype=D)(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            dx.sum().backward()

    def test_input_changed_before_the_backward(self):
        x = draw(2).requires_grad_()
        h = x * 1
        y = nn.BatchNorm2d(5, dtype=D)(h)
        h.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_weight_changed_before_the_backward(self):
        layer = nn.BatchNorm2d(5, dtype=D)
        y = layer(draw(2))
        with torch.no_grad():
            layer.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()

    def test_versions_of_running_statistics(self):
        layer = nn.BatchNorm2d(5)
        before = [layer.running_mean._version, layer.running_var._version]
        layer(draw(2, torch.float32))
        assert layer.running_mean._version > before[0]
        assert layer.running_var._version > before[1]
        before = [layer.running_mean._version, layer.running_var._version]
        layer.eval()(draw(2, torch.float32))
        assert [layer.running_mean._version, layer.running_var._version] == before

    def test_backward_twice(self):
        layer = nn.BatchNorm2d(5, activation="relu", dtype=D)
        x = draw(2).requires_grad_()
        y = layer(x)
        (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (second,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(first, second)

    def test_meta(self):
        layer = nn.BatchNorm2d(5, device="meta", activation="relu")
        assert layer(torch.zeros(2, 5, 3, 3, device="meta")).device.type == "meta"


class TestErrors:
    @pytest.mark.parametrize(
        ("given", "kind", "message"),
        [
            (torch.zeros(2, 5, 3, 3, dtype=torch.int64), TypeError, "input: expected float32"),
            (torch.zeros(2, 5, 3, 3, dtype=torch.complex64), TypeError, "input: expected float32"),
            (torch.zeros(2, 5, 3, 3).to_sparse(), TypeError, "input: expected a dense tensor"),
            (torch.zeros(2, 4, 3, 3), ValueError, r"(weight|running_mean): expected shape \(4,\), got \(5,\)"),
            (torch.zeros(5, 3), ValueError, "4D"),
        ],
        ids=["int64", "complex", "sparse", "channels", "axes"],
    )
    def test_input(self, given, kind, message):
        layer = nn.BatchNorm2d(5)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(kind, match=message):
            layer(given)
        for name, value in before.items():
            assert torch.equal(layer.state_dict()[name], value)

    def test_no_tensor(self):
        with pytest.raises(TypeError, match="input: expected a tensor, got ndarray"):
            F.batch_norm(np.zeros((2, 3), np.float32), None, None, training=True)

    def test_options(self):
        with pytest.raises(ValueError, match="activation: expected 'relu' or None, got 'gelu'"):
            nn.BatchNorm2d(5, activation="gelu")
        layer = nn.BatchNorm1d(5)
        layer.eps = -1.0
        with pytest.raises(ValueError, match="eps: expected"):
            layer(torch.zeros(2, 5))
        layer = nn.BatchNorm1d(5, momentum=2.0)
        with pytest.raises(ValueError, match="momentum: expected"):
            layer(torch.zeros(2, 5))

    def test_negative_variance(self):
        layer = nn.BatchNorm1d(5).eval()
        layer.running_var[2] = -1
        with pytest.raises(ValueError, match=r"running_var\[2\]"):
            layer(torch.zeros(2, 5))

    def test_parameters_of_another_dtype(self):
        with pytest.raises(TypeError, match="weight: expected float32"):
            nn.BatchNorm1d(5, dtype=D)(torch.zeros(2, 5))


class TestModules:
    def test_state_dicts_go_both_ways(self):
        theirs, ours = pair(3, "relu")
        ours(draw(3, torch.float32))
        theirs.load_state_dict(ours.state_dict())
        assert isinstance(ours, torch.nn.BatchNorm3d)
        assert torch.equal(theirs.running_var, ours.running_var)
        old = {name: value for name, value in ours.state_dict().items() if name != "num_batches_tracked"}
        ours.load_state_dict(old, strict=False)

    def test_copies(self, tmp_path):
        _, ours = pair(2, "relu")
        x = draw(2, torch.float32)
        torch.save(ours, tmp_path / "layer.pt")
        for again in (
            copy.deepcopy(ours),
            pickle.loads(pickle.dumps(ours)),
            torch.load(tmp_path / "layer.pt", weights_only=False),
        ):
            assert again.activation == "relu"
            assert again.weight is not ours.weight
            assert torch.equal(again.eval()(x), copy.deepcopy(ours).eval()(x))

    def test_the_rest_of_nn_is_torchs(self):
        assert nn.Linear is torch.nn.Linear
        with pytest.raises(AttributeError):
            nn.Nonsense  # noqa: B018

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_same_bits_on_any_number_of_threads(self, count):
        torch.manual_seed(1)
        layer = nn.BatchNorm2d(5, activation="relu")
        x, dy = draw(2, torch.float32), draw(2, torch.float32)
        expected = run(layer, x, None, dy, "relu")
        with fs.runtime.threads(count):
            again = run(layer, x, None, dy, "relu")
        assert torch.equal(again[0], expected[0])
        assert all(torch.equal(a, b) for a, b in zip(again[1], expected[1], strict=True))

    def test_the_reference_too(self):
        theirs, ours = pair(2, "relu", dtype=D)
        x, dy = draw(2), draw(2)
        with fs.runtime.use_isa("numpy"):
            y, grads = run(ours, x, None, dy, "relu")
        y_theirs, grads_theirs = run(theirs, x, None, dy, "relu")
        assert_close(y, y_theirs, 1e-12)
        for mine, other in zip(grads, grads_theirs, strict=True):
            assert_close(mine, other, 1e-12)


class TestImport:
    def test_fusedstep_imports_no_torch(self):
        code = "import sys, fusedstep; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_without_torch_the_extra_is_named(self):
        code = "import sys; sys.modules['torch'] = None\nimport fusedstep.torch"
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert "pip install 'fusedstep[torch]'" in done.stderr


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "residual"])
def test_a_tensor_on_another_device_than_the_input(name):
    """A fake kernel would have answered with memory that nobody wrote."""
    x = torch.randn(4, 3, 5, 5)
    given = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    given[name] = torch.ones(x.shape if name == "residual" else 3, device="meta")
    with pytest.raises(TypeError, match=f"{name}: expected a tensor on the CPU, got one on meta"):
        F.batch_norm(x, training=True, **given)


@pytest.mark.parametrize(
    ("residual", "kind", "message"),
    [
        (torch.ones(2, 2), ValueError, r"residual: expected a shape like \(4, 3, 5, 5\), got \(2, 2\)"),
        (torch.ones(3, 1, 1, device="meta"), TypeError, "residual: expected a tensor on the CPU, got one on meta"),
        ("one", TypeError, "residual: expected a tensor, got str"),
    ],
    ids=["shape", "device", "kind"],
)
def test_a_residual_that_cannot_be_added_changes_nothing(residual, kind, message):
    layer = nn.BatchNorm2d(3)
    with pytest.raises(kind, match=message):
        layer(torch.randn(4, 3, 5, 5), residual)
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_input_without_channels(shape):
    with pytest.raises(ValueError, match="input: expected two axes or more"):
        F.batch_norm(torch.ones(shape), None, None, training=True)
