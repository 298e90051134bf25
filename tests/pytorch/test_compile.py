"""The layers where torch traces, transforms or repeats what it runs."""

import copy

import pytest
import torch
from networks import ResNet, batch
from torch.utils.checkpoint import checkpoint

from fusedstep.torch import _batch_norm, _cross_entropy, _dropout, nn
from fusedstep.torch import functional as F  # noqa: N812

D = torch.float64
SHAPES = [(6, 5), (4, 5, 7), (3, 5, 4, 6), (2, 5, 3, 4, 2), (3, 1, 4, 6), (3, 5, 1, 1), (1, 5, 4, 4), (2, 17, 3, 5)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20260101)
    torch._dynamo.reset()


class Network(nn.Module):
    """Everything that is here."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6, momentum=momentum, activation="relu")
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6, momentum=momentum, activation="relu")
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(6, 10)
        self.norm = nn.BatchNorm1d(10, momentum=momentum)
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x, target):
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x), x)
        return self.loss(self.norm(self.fc(self.dropout(x.mean((2, 3))))), target)


def train(call, model, steps=2, rng=5):
    """Losses, gradients and buffers of some passes."""
    x, target = batch(6, 8)
    losses = []
    for step in range(steps):
        torch.manual_seed(rng + step)
        model.zero_grad()
        loss = call(x, target)
        loss.backward()
        losses.append(loss.detach())
    return losses, [p.grad for p in model.parameters()], dict(model.named_buffers())


def assert_same(actual, expected, tolerance=0.0):
    for mine, other in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    for name, value in expected[2].items():
        torch.testing.assert_close(actual[2][name], value, rtol=tolerance, atol=tolerance)


class TestCompile:
    @pytest.mark.parametrize(("backend", "momentum"), [("eager", 0.1), ("aot_eager", None)])
    def test_no_graph_break(self, backend, momentum):
        model = Network(momentum)
        compiled = copy.deepcopy(model)
        call = torch.compile(compiled, backend=backend, fullgraph=True)
        expected = train(model, model)
        assert_same(train(call, compiled), expected, 0.0 if backend == "eager" else 1e-5)
        compiled.eval()
        model.eval()
        x, target = batch(6, 8)
        torch.testing.assert_close(call(x, target), model(x, target))

    # Torch's own, as it is imported.
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_inductor(self):
        """In evaluation, for then there is next to nothing to compile but the call of the operator."""
        layer = nn.BatchNorm2d(5, activation="relu", dtype=D).eval()
        call = torch.compile(layer, fullgraph=True)
        results = []
        for function in (layer, call):
            x = torch.ones(2, 5, 3, 3, dtype=D).requires_grad_()
            y = function(x)
            y.backward(y.detach())
            results.append((y.detach(), x.grad))
        for mine, other in zip(*results, strict=True):
            assert torch.equal(mine, other)

    def test_dynamic_shapes(self):
        layer = nn.BatchNorm2d(3, activation="relu").eval()
        call = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for size in (4, 6, 9):
            x, _ = batch(size, 8)
            torch.testing.assert_close(call(x), layer(x))

    def test_dropout_repeats_with_the_seed(self):
        call = torch.compile(lambda x: F.dropout(x, 0.5), backend="aot_eager", fullgraph=True)
        x = torch.ones(200, requires_grad=True)
        torch.manual_seed(1)
        first = call(x)
        first.sum().backward()
        torch.manual_seed(1)
        assert torch.equal(call(x), first)
        assert torch.equal(x.grad, first.detach())


class TestOperators:
    """Torch's own examination: schemas, fake kernels, autograd, tracing."""

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("relu", [True, False])
    def test_batch_norm(self, shape, relu):
        x = torch.randn(shape, dtype=D, requires_grad=True)
        channels = shape[1]
        parameters = [torch.randn(channels, dtype=D, requires_grad=True) for _ in range(2)]
        running = torch.zeros(channels, dtype=D), torch.ones(channels, dtype=D)
        residual = torch.randn(shape, dtype=D, requires_grad=True) if relu else None
        arguments = (x, *parameters, *running, residual, None, True, 0.1, 1e-5, relu)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(_batch_norm.NORMALIZE.op, arguments, test_utils=tests)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_size_of_the_mask(self, shape):
        """The fake kernel says it for any order of axes."""
        x = torch.randn(shape)
        for axes in (tuple(range(x.ndim)), (0, *range(2, x.ndim), 1), tuple(reversed(range(x.ndim)))):
            inverse = [axes.index(k) for k in range(x.ndim)]
            y = x.permute(axes).contiguous().permute(inverse)
            _, _, mask = _batch_norm.normalize(y, None, None, None, None, None, None, True, 0.1, 1e-5, True)
            assert mask.shape == (_batch_norm._mask_words(y),)

    def test_losses_and_dropout(self):
        logits = torch.randn(4, 7, dtype=D, requires_grad=True)
        for reduction in ("mean", "none"):
            target = torch.randint(0, 7, (4,))
            torch.library.opcheck(_cross_entropy.LOSS.op, (logits, target, None, -100, 0.0, reduction))
        torch.library.opcheck(_dropout.DROPOUT.op, (logits, torch.tensor(5), 0.5))


class TestTransformations:
    def test_export(self):
        model = Network().eval()
        x, target = batch(6, 8)
        exported = torch.export.export(model, (x, target))
        names = {str(node.target) for node in exported.graph.nodes}
        assert "fusedstep.batch_norm.default" in names
        assert "fusedstep.cross_entropy.default" in names
        torch.testing.assert_close(exported.module()(x, target), model(x, target))

    def test_functional_call_and_grad(self):
        model = Network()
        model.dropout.p = 0.0
        x, target = batch(6, 8)
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: b.clone() for name, b in model.named_buffers()}

        def loss(parameters, buffers):
            return torch.func.functional_call(model, (parameters, buffers), (x, target)), buffers

        grads, (value, buffers) = torch.func.grad_and_value(loss, has_aux=True)(parameters, buffers)
        expected = model(x, target)
        expected.backward()
        torch.testing.assert_close(value, expected.detach())
        for name, p in model.named_parameters():
            torch.testing.assert_close(grads[name], p.grad)
        for name, b in model.named_buffers():
            torch.testing.assert_close(buffers[name], b)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing(self, reentrant):
        """A repeated pass drops the same, and updates the running statistics once more, as with torch's layers."""
        model = Network()
        again = copy.deepcopy(model)

        def call(x, target):
            return checkpoint(again, x.requires_grad_(), target, use_reentrant=reentrant)

        actual, expected = train(call, again, 1), train(model, model, 1)
        assert_same((*actual[:2], {}), (*expected[:2], {}))
        assert int(again.bn1.num_batches_tracked) == 2

    def test_checkpointing_keeps_nothing(self):
        """What the backward pass needs goes through the hooks of saved tensors, all of it."""
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
            layer = nn.BatchNorm2d(5, activation="relu")
            x = torch.randn(3, 5, 4, 6, requires_grad=True)
            layer(x)
        assert seen == [(3, 5, 4, 6), (5,), (2, 5), (_batch_norm._mask_words(x),)]

    def test_symbolic_trace(self):
        model = ResNet()
        model.bn1 = nn.BatchNorm2d(8, activation="relu")
        traced = torch.fx.symbolic_trace(model)
        assert any(node.op == "call_module" and node.target == "bn1" for node in traced.graph.nodes)
        x, _ = batch()
        torch.testing.assert_close(traced.eval()(x), model.eval()(x))

    def test_traces(self):
        layer = nn.BatchNorm2d(5, activation="relu").eval()
        x = torch.randn(2, 5, 3, 3)
        graph = torch.fx.experimental.proxy_tensor.make_fx(layer)(x)
        assert any("fusedstep.batch_norm" in str(node.target) for node in graph.graph.nodes)
        torch.testing.assert_close(graph(x), layer(x))

    def test_vjp_and_its_own_derivative(self):
        x = torch.randn(4, 5, dtype=D)

        def function(x):
            return F.batch_norm(x, None, None, training=True, activation="relu")

        y, pull = torch.func.vjp(function, x)
        leaf = x.clone().requires_grad_()
        function(leaf).backward(y)
        torch.testing.assert_close(pull(y)[0], leaf.grad)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.func.grad(lambda x: torch.func.grad(lambda x: function(x).square().sum())(x).sum())(x)

    # Torch's own, where it loads its rules of forward mode.
    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
    @pytest.mark.parametrize(
        ("name", "function"),
        [
            ("batch_norm", lambda x: F.batch_norm(x, None, None, training=True)),
            ("cross_entropy", lambda x: F.cross_entropy(x, torch.zeros(len(x), dtype=torch.long))),
            ("dropout", lambda x: F.dropout(x, 0.5)),
        ],
    )
    def test_what_there_is_no_rule_for_is_named(self, name, function):
        x = torch.randn(3, 8, 4)
        with pytest.raises(NotImplementedError, match=f"{name} of fusedstep.torch takes no torch.func.vmap"):
            torch.func.vmap(function, randomness="different")(x)
        with pytest.raises(NotImplementedError, match=f"{name} of fusedstep.torch takes no forward-mode derivatives"):
            torch.func.jvp(function, (x[0],), (x[0],))
        per_sample = torch.func.vmap(torch.func.grad(lambda x: function(x).sum()), randomness="different")
        with pytest.raises(NotImplementedError, match=rf"{name}\w* of fusedstep.torch takes no torch.func.vmap"):
            per_sample(x)

    def test_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            layer = nn.BatchNorm2d(5, activation="relu")
            y = layer(torch.randn(2, 5, 3, 3))
            assert y.shape == (2, 5, 3, 3)

    def test_deterministic_algorithms_and_inference(self):
        layer = nn.BatchNorm2d(5)
        with torch.inference_mode():
            y = layer(torch.randn(2, 5, 3, 3))
        assert y.is_inference()
