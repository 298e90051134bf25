"""Curvature of the digits network, against exact products of torch; and the adapter to torch."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import curvature
from fusedstep.apps.examples import digits
from helpers import assert_same_bits
from optional import torch

D = np.float64


@pytest.fixture(scope="module")
def data():
    x, y, _, _ = digits.load(0)
    return x.astype(D), y


def network(batch_norm, epochs, data):
    """The example's network after some epochs: its parameters in float64."""
    x, y = data[0].astype(np.float32), data[1]
    model = digits.MLP([64, 32, 10], batch_norm, 0)
    optimizer = fs.AdamW(model.params, lr=3e-3)
    for epoch in range(epochs):
        for rows in digits.batches(len(x), 64, 0, epoch):
            digits.train_step(model, optimizer, x[rows], y[rows], lambda f, *a, **k: f(*a, **k))
    return {name: value.astype(D) for name, value in model.params.items()}


def in_torch(params, data, batch_norm):
    """Its loss once more, from torch's functions."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    x, y = torch.tensor(data[0]), torch.tensor(data[1])

    def loss():
        h = x @ tensors["w0"] + tensors["b0"]
        if batch_norm:
            h = torch.nn.functional.batch_norm(h, None, None, tensors["gamma0"], tensors["beta0"], training=True)
        return torch.nn.functional.cross_entropy(torch.relu(h) @ tensors["w1"] + tensors["b1"], y)

    return tensors, loss


def in_numpy(data):
    """The gradient in float64 without batch norm, by NumPy alone."""
    x, y = data

    def grad(p):
        h = x @ p["w0"] + p["b0"]
        active = h > 0
        z = (h * active) @ p["w1"] + p["b1"]
        dz = np.exp(z - z.max(axis=1, keepdims=True))
        dz /= dz.sum(axis=1, keepdims=True)
        dz[np.arange(len(y)), y] -= 1
        dz /= len(y)
        dh = dz @ p["w1"].T * active
        return {"w0": x.T @ dh, "b0": dh.sum(axis=0), "w1": (h * active).T @ dz, "b1": dz.sum(axis=0)}

    return grad


@pytest.fixture(scope="module", params=[(False, 0), (False, 5), (True, 0), (True, 5)], ids=str)
def digits_network(request, data):
    batch_norm, epochs = request.param
    params = network(batch_norm, epochs, data)
    tensors, loss = in_torch(params, data, batch_norm)
    grad, given, product = curvature.from_torch(tensors, loss)
    if not batch_norm:
        grad = in_numpy(data)
    return grad, given, product, curvature.loss_from_torch(tensors, loss)


class TestDigits:
    def test_spectrum_by_differences(self, digits_network):
        grad, params, product, _ = digits_network
        exact = curvature.spectrum(grad, params, 2, hvp=product)
        found = curvature.spectrum(grad, params, 2)
        np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues, rtol=1e-5)
        assert found.products == exact.products <= 60

    def test_products_by_differences(self, digits_network, rng):
        grad, params, product, _ = digits_network
        v = {name: rng.standard_normal(value.shape) for name, value in params.items()}
        found, exact = curvature.hvp(grad, params, v), product(params, v)
        # As a whole: of a bias before batch norm the second derivatives are 0.
        difference, size = (
            np.concatenate([part.ravel() for part in parts])
            for parts in ([found[name] - exact[name] for name in exact], exact.values())
        )
        assert np.linalg.norm(difference) <= 1e-7 * np.linalg.norm(size)

    def test_the_trace_by_differences(self, digits_network):
        grad, params, product, _ = digits_network
        by_differences = curvature.trace(grad, params, 10)
        exact = curvature.trace(grad, params, 10, hvp=product)
        np.testing.assert_allclose(by_differences.samples, exact.samples, rtol=1e-5, atol=1e-5)

    def test_the_way_out(self, digits_network):
        grad, params, product, loss = digits_network
        point = curvature.classify(grad, params, hvp=product, grad_tol=1e3)
        assert point.kind == "saddle"
        out = curvature.escape(loss, grad, params, hvp=product, point=point)
        assert out.loss_after == loss(out.params) < out.loss_before == loss(params)


class TestAdapter:
    def test_a_module_is_as_it_was(self):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        module[2].bias.requires_grad_(False)
        x = torch.randn(16, 4)
        before = {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}
        grad, params, product = curvature.from_torch(module, lambda: (module(x) ** 2).mean())
        assert list(params) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
        moved = {name: value + 1 for name, value in params.items()}
        grads, products = grad(moved), product(moved, params)
        assert any((grads[name] != grad(params)[name]).any() for name in grads)
        for name, value in module.state_dict().items():
            assert value.numpy().tobytes() == before[name].tobytes(), name
        assert {name: value.dtype for name, value in products.items()} == dict.fromkeys(params, np.float32)
        params["0.weight"][...] = 7
        assert_same_bits(module[0].weight.detach().numpy(), before["0.weight"])

    def test_it_is_put_back_after_an_error(self):
        w = torch.ones(2, requires_grad=True)
        grad, params, _ = curvature.from_torch([w], lambda: (_ for _ in ()).throw(ArithmeticError("in the closure")))
        with pytest.raises(ArithmeticError, match="in the closure"):
            grad([5 * params[0]])
        assert w.tolist() == [1, 1]

    def test_against_the_hessian_of_torch(self, rng):
        w = torch.tensor(rng.standard_normal(5), requires_grad=True)
        a = torch.tensor(rng.standard_normal((7, 5)))

        def function(w):
            return torch.log1p((a @ w) ** 2).sum()

        grad, params, product = curvature.from_torch(w, lambda: function(w))
        expected = torch.autograd.functional.hessian(function, w.detach()).numpy()
        np.testing.assert_allclose(curvature.hessian(grad, params, hvp=product).matrix, expected, atol=1e-12)
        np.testing.assert_allclose(curvature.hessian(grad, params).matrix, expected, atol=1e-7)

    def test_tensors_that_the_loss_does_not_see(self):
        w, other = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
        grad, params, product = curvature.from_torch([w, other], lambda: (w * 3).sum())
        assert [g.tolist() for g in grad(params)] == [[3, 3], [0, 0, 0]]
        assert [g.tolist() for g in product(params, params)] == [[0, 0], [0, 0, 0]]

    def test_dropout_is_found_out(self):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        x = torch.randn(16, 8)
        grad, params, product = curvature.from_torch(module, lambda: (module(x) ** 2).mean())
        with pytest.raises(curvature.GradientError, match=r"it is not deterministic .* measured asymmetry of H"):
            curvature.spectrum(grad, params, hvp=product)
        module.eval()
        assert curvature.spectrum(grad, params, hvp=product).eigenvalues[-1] > 0

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            (3, TypeError, "module_or_params: expected a module or tensors, got int"),
            ([], ValueError, "module_or_params: expected at least one parameter"),
            ([np.ones(2)], TypeError, r"module_or_params\[0\]: expected a tensor, got ndarray"),
            ([torch.ones(2)], ValueError, r"module_or_params\[0\]: expected a leaf that requires a gradient"),
            (
                {"w": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)},
                TypeError,
                r"module_or_params\['w'\]: expected float32 or float64 on the CPU, got torch.bfloat16 on cpu",
            ),
        ],
    )
    def test_bad_tensors(self, source, error, message):
        with pytest.raises(error, match=f"^{message}"):
            curvature.from_torch(source, lambda: None)

    def test_bad_losses(self):
        w = torch.ones(2, requires_grad=True)
        for closure, error, message in (
            (lambda: w, ValueError, r"loss_closure: expected a tensor of one number, got shape \(2,\)"),
            (lambda: 1.0, TypeError, "loss_closure: expected a tensor, got float"),
        ):
            grad, params, _ = curvature.from_torch(w, closure)
            with pytest.raises(error, match=message):
                grad(params)
        with pytest.raises(TypeError, match="loss_closure: expected a function, got int"):
            curvature.from_torch(w, 1)


def worst_beta(batch_norm, data, seed):
    """The largest effective smoothness at ten places of a short training of a deep network."""
    torch.manual_seed(seed)
    layers = []
    for _ in range(3):
        layers += [torch.nn.Linear(64, 64), *([torch.nn.BatchNorm1d(64)] if batch_norm else []), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, (2 / 64) ** 0.5)
    x, y = torch.tensor(data[0][:400]), torch.tensor(data[1][:400])

    def closure():
        return torch.nn.functional.cross_entropy(net(x), y)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    betas = []
    for k in range(40):
        if k % 4 == 0:
            grad, params, _ = curvature.from_torch(net, closure)
            loss = curvature.loss_from_torch(net, closure)
            betas.append(curvature.measure_smoothness(loss, grad, params, [0.1, 0.3, 1.0]).beta)
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    return max(betas)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batch_norm_makes_the_surface_smoother(data, seed):
    """Santurkar et al., figure 4: the gradient along the gradient changes less."""
    assert worst_beta(True, data, seed) < 0.5 * worst_beta(False, data, seed)
