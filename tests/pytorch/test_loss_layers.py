"""Cross-entropy and dropout of torch tensors."""

import copy

import pytest
import torch

from fusedstep.torch import functional as F  # noqa: N812
from fusedstep.torch import nn

D = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20260101)


def both(logits, target, dloss=None, **options):
    """(loss, gradient) of ours and of torch's."""
    results = []
    for function in (F.cross_entropy, torch.nn.functional.cross_entropy):
        leaf = logits.detach().clone().requires_grad_()
        loss = function(leaf, target, **options)
        loss.backward(torch.ones_like(loss) if dloss is None else dloss)
        results.append((loss.detach(), leaf.grad))
    return results


def assert_same(results, tolerance=1e-12):
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


class TestCrossEntropy:
    @pytest.mark.parametrize("shape", [(7,), (6, 7), (3, 7, 5), (2, 7, 3, 4), (2, 7, 1, 3, 2)], ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_labels(self, shape, reduction, smoothing, weighted):
        logits = torch.randn(shape, dtype=D) * 3
        rows = (shape[0], *shape[2:]) if len(shape) > 1 else ()
        target = torch.randint(0, 7, rows)
        if rows:
            target[0] = -100
        weight = torch.rand(7, dtype=D) + 0.1 if weighted else None
        if smoothing == 0.0:
            options = {"weight": weight, "reduction": reduction}
            assert_same(both(logits, target, **options))
        if rows:
            # Torch spreads no smoothing over rows that are ignored either.
            options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing, "ignore_index": -100}
            assert_same(both(logits, target, **options))
        loss = torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
        assert_same(both(logits, target, torch.randn(loss.shape, dtype=D), reduction=reduction))

    @pytest.mark.parametrize("shape", [(7,), (6, 7), (2, 7, 3, 4)], ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_probabilities(self, shape, reduction):
        logits = torch.randn(shape, dtype=D)
        target = torch.softmax(torch.randn(shape, dtype=D), 0 if len(shape) == 1 else 1)
        weight = torch.rand(7, dtype=D) + 0.1
        assert_same(both(logits, target, reduction=reduction))
        assert_same(both(logits, target, reduction=reduction, weight=weight, label_smoothing=0.2))
        # Torch does not ask that they are probabilities.
        assert_same(both(logits, 3 * target - 1, reduction=reduction))

    def test_gradcheck(self):
        logits = torch.randn(3, 7, 2, dtype=D, requires_grad=True)
        target = torch.randint(0, 7, (3, 2))
        for reduction in ("mean", "none"):
            assert torch.autograd.gradcheck(
                lambda z, r=reduction: F.cross_entropy(z, target, reduction=r, label_smoothing=0.1), (logits,)
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_narrow(self, dtype):
        logits = torch.randn(6, 7).to(dtype)
        target = torch.randint(0, 7, (6,))
        (loss, grad), _ = both(logits, target)
        (exact, exact_grad), _ = both(logits.to(D), target)
        assert (loss.dtype, grad.dtype) == (dtype, dtype)
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(loss.to(D), exact, rtol=unit, atol=unit)
        torch.testing.assert_close(grad.to(D), exact_grad, rtol=unit, atol=1e-6)

    def test_autocast(self):
        logits, target = torch.randn(6, 7, dtype=torch.bfloat16), torch.randint(0, 7, (6,))
        with torch.autocast("cpu"):
            mine, theirs = F.cross_entropy(logits, target), torch.nn.functional.cross_entropy(logits, target)
        assert mine.dtype == theirs.dtype == torch.float32

    def test_no_rows_that_count(self):
        """Torch's mean is NaN; ours is 0, as everywhere in this library."""
        logits = torch.randn(3, 7, requires_grad=True)
        loss = F.cross_entropy(logits, torch.full((3,), -100))
        loss.backward()
        assert loss.item() == 0.0
        assert not logits.grad.any()
        for reduction in ("mean", "sum", "none"):
            empty = torch.zeros(0, 7, requires_grad=True)
            loss = F.cross_entropy(empty, torch.zeros(0, dtype=torch.int64), reduction=reduction)
            assert loss.shape == ((0,) if reduction == "none" else ())
            loss.sum().backward()
            assert empty.grad.shape == (0, 7)

    def test_module_and_older_names(self):
        logits, target = torch.randn(6, 7), torch.randint(0, 7, (6,))
        options = {"weight": torch.rand(7), "ignore_index": 2, "label_smoothing": 0.1, "reduction": "sum"}
        mine, theirs = nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
        mine.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(mine(logits, target), theirs(logits, target))
        with pytest.warns(UserWarning, match="size_average and reduce"):
            older = F.cross_entropy(logits, target, size_average=False)
        torch.testing.assert_close(older, torch.nn.functional.cross_entropy(logits, target, reduction="sum"))

    def test_gradient_used_twice(self):
        logits, target = torch.randn(6, 7, requires_grad=True), torch.randint(0, 7, (6,))
        loss = F.cross_entropy(logits, target)
        loss.backward(retain_graph=True)
        kept = logits.grad.clone()
        logits.grad.zero_()
        loss.backward()
        assert torch.equal(logits.grad, kept)

    def test_second_derivative_is_refused(self):
        logits = torch.randn(6, 7, requires_grad=True)
        loss = F.cross_entropy(logits, torch.randint(0, 7, (6,)))
        (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match=r"Cross-entropy of fusedstep\.torch has no second derivative"):
            grad.sum().backward()

    @pytest.mark.parametrize(
        ("logits", "target", "options", "kind", "message"),
        [
            (torch.zeros(2, 3), torch.tensor([0, 3]), {}, ValueError, r"target\[1\]: expected a class in \[0, 3\)"),
            (torch.zeros(2, 3), torch.tensor([0]), {}, ValueError, "target: expected shape"),
            (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), {}, ValueError, "target: expected shape"),
            (torch.zeros(2, 3, dtype=D), torch.zeros(2, 3), {}, TypeError, "target: expected dtype float64"),
            (torch.zeros(2, 3).int(), torch.tensor([0, 1]), {}, TypeError, "input: expected float32"),
            (torch.zeros(2, 3), torch.tensor([0, 1]), {"weight": torch.ones(2)}, ValueError, "weight: expected shape"),
            (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "max"}, ValueError, "reduction: expected"),
            (
                torch.zeros(2, 3),
                torch.tensor([0, 1]),
                {"label_smoothing": 2.0},
                ValueError,
                "label_smoothing: expected",
            ),
            (torch.zeros(2, 0), torch.tensor([0, 1]), {}, ValueError, "input: expected"),
            (torch.zeros(()), torch.tensor(0), {}, ValueError, "input: expected"),
            (torch.zeros(2, 3), [0, 1], {}, TypeError, "target: expected a tensor, got list"),
        ],
        ids=lambda value: "",
    )
    def test_errors(self, logits, target, options, kind, message):
        with pytest.raises(kind, match=message):
            F.cross_entropy(logits, target, **options)


class TestDropout:
    @pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16, torch.float16])
    def test_what_is_kept(self, dtype):
        x = torch.rand(40, 50).add(1).to(dtype).requires_grad_()
        y = F.dropout(x, 0.25)
        kept = y != 0
        assert y.dtype == dtype
        assert abs(kept.double().mean().item() - 0.75) < 0.05  # 5 standard deviations of 2,000 draws
        torch.testing.assert_close(y[kept], (x.detach().to(D) / 0.75).to(dtype)[kept])
        y.backward(torch.ones_like(y))
        torch.testing.assert_close(x.grad, kept.to(D).div(0.75).to(dtype))

    def test_manual_seed_repeats(self):
        layer, x = nn.Dropout(0.5), torch.ones(100)
        torch.manual_seed(3)
        first, second = layer(x), layer(x)
        torch.manual_seed(3)
        assert torch.equal(layer(x), first)
        assert torch.equal(layer(x), second)
        assert not torch.equal(first, second)

    def test_gradcheck_and_its_derivative(self):
        x = torch.randn(4, 5, dtype=D, requires_grad=True)

        def repeated(x):
            torch.manual_seed(1)
            return F.dropout(x, 0.5) ** 2

        assert torch.autograd.gradcheck(repeated, (x,))
        assert torch.autograd.gradgradcheck(repeated, (x,))

    @pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2)], ids=str)
    def test_channels_last_is_kept(self, shape):
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        x = torch.ones(shape).contiguous(memory_format=last).requires_grad_()
        y = F.dropout(x)
        assert y.is_contiguous(memory_format=last)
        y.backward(torch.ones(shape))
        assert torch.equal(x.grad, y.detach())

    def test_any_strides(self):
        x = torch.ones(8, 6)[::2].T.requires_grad_()
        y = F.dropout(x)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())

    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels-last"])
    def test_inplace(self, layout):
        layer = nn.Dropout(0.5, inplace=True)
        shape = (2, 3, 4, 5)
        leaf = torch.ones(shape, requires_grad=True)
        h = leaf * 2
        if layout == "transposed":
            h = h.transpose(1, 3)
        if layout == "channels-last":
            h = h.contiguous(memory_format=torch.channels_last)
        y = layer(h)
        assert y.data_ptr() == h.data_ptr()
        assert set(y.unique().tolist()) == {0.0, 4.0}
        y.sum().backward()
        expected = y.detach().transpose(1, 3) if layout == "transposed" else y.detach()
        assert torch.equal(leaf.grad, expected)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            layer(leaf)

    def test_edges(self):
        x = torch.ones(5)
        assert F.dropout(x, 0.5, training=False) is x
        assert F.dropout(x, 0.0) is x
        assert not F.dropout(x, 1.0).any()
        assert F.dropout(x[:0]).shape == (0,)
        assert nn.Dropout(0.3).eval()(x) is x
        assert str(nn.Dropout(0.3)) == str(torch.nn.Dropout(0.3))

    def test_errors(self):
        with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\], got 1.5"):
            F.dropout(torch.ones(3), 1.5)
        with pytest.raises(TypeError, match="input: expected float32"):
            F.dropout(torch.ones(3, dtype=torch.int64))

    def test_copies(self):
        layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        again = copy.deepcopy(layer)
        x = torch.ones(2, 4)
        torch.manual_seed(0)
        first = layer(x)
        torch.manual_seed(0)
        assert torch.equal(again(x), first)


@pytest.mark.parametrize("name", ["target", "weight"])
def test_a_tensor_on_another_device_than_the_input(name):
    """A fake kernel would have answered with memory that nobody wrote."""
    given = {"target": torch.tensor([0, 1, 2]), "weight": torch.ones(4)}
    given[name] = given[name].to("meta")
    with pytest.raises(TypeError, match=f"{name}: expected a tensor on the CPU, got one on meta"):
        F.cross_entropy(torch.randn(3, 4), **given)


def test_class_weights_that_want_a_gradient():
    """PyTorch refuses them in the backward pass."""
    with pytest.raises(ValueError, match="weight: expected numbers that require no gradient"):
        F.cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.ones(4, requires_grad=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_probabilities_that_want_a_gradient(reduction):
    """Of the sum it is −log softmax of the logits."""
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.softmax(torch.randn(5, 4, dtype=torch.float64), 1).requires_grad_()
    loss = F.cross_entropy(logits, target, reduction=reduction)
    loss.sum().backward()
    rows = 5 if reduction == "mean" else 1
    torch.testing.assert_close(target.grad, -torch.log_softmax(logits.detach(), 1) / rows)
    torch.testing.assert_close(logits.grad, (torch.softmax(logits.detach(), 1) - target.detach()) / rows)
    plain = F.cross_entropy(logits, target.detach(), reduction=reduction)
    torch.testing.assert_close(loss, plain)


def test_targets_beside_no_rows():
    with pytest.raises(ValueError, match=r"target: expected shape \(0,\) as input has rows, got \(5,\)"):
        F.cross_entropy(torch.randn(0, 4), torch.zeros(5, dtype=torch.long))


def test_class_weights_that_are_no_tensor():
    with pytest.raises(TypeError, match="weight: expected a tensor, got list"):
        F.cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]), [1.0, 1.0, 1.0, 1.0])
