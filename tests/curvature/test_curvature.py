"""Curvature against closed forms: quadratics of known spectra, and the notes' saddle."""

import json
import math
import re
import sys

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import curvature
from fusedstep.curvature import GradientError, NoNegativeCurvatureError
from helpers import assert_same_bits

F, D = np.float32, np.float64


def notes_loss(w):
    return (1 - w[0] * w[1]) ** 2


def notes_grad(w):
    return -2 * (1 - w[0] * w[1]) * w[::-1]


def quadratic(eigenvalues, rng, dtype=D):
    """½(θ − θ*)ᵀH(θ − θ*) with a random orthogonal basis: the gradient, which rounds as others do, θ* and the basis."""
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = (basis * eigenvalues) @ basis.T
    matrix = ((matrix + matrix.T) / 2).astype(dtype)
    center = rng.standard_normal(n).astype(dtype)
    offset = matrix @ center
    return lambda w: matrix @ w - offset, center, basis


def diagonal(eigenvalues, rng, dtype=D):
    """A quadratic of any size, at its critical point."""
    curvatures, center = eigenvalues.astype(dtype), rng.standard_normal(len(eigenvalues)).astype(dtype)
    offset = curvatures * center
    return lambda w: curvatures * w - offset, center


class TestTheNotes:
    def test_the_saddle(self):
        point = curvature.classify(notes_grad, np.zeros(2))
        assert point.kind == "saddle"
        np.testing.assert_allclose(point.eigenvalues, [-2, 2], atol=1e-6)
        np.testing.assert_allclose(np.abs(point.directions[0]), math.sqrt(0.5), atol=1e-6)
        assert point.directions[0][0] * point.directions[0][1] > 0
        assert point.tolerance < 1e-6
        assert "both signs" in point.reason

    def test_the_escape(self):
        start = np.zeros(2)
        out = curvature.escape(notes_loss, notes_grad, start)
        assert out.loss_before == 1.0
        assert out.loss_after == notes_loss(out.params) < 0.5
        assert out.eigenvalue == pytest.approx(-2, abs=1e-6)
        np.testing.assert_allclose(out.params, out.step_length * out.direction, rtol=1e-12)
        assert {np.sign(length) for length, _ in out.trials} == {-1, 1}
        assert start.tolist() == [0, 0]

    def test_the_valley_is_degenerate(self):
        point = curvature.classify(notes_grad, np.ones(2))
        assert point.kind == "degenerate"
        assert point.zeros == 1
        assert "1 of 2 eigenvalues is zero" in point.reason
        np.testing.assert_allclose(point.eigenvalues, [0, 4], atol=1e-6)
        with pytest.raises(NoNegativeCurvatureError, match=r"no negative curvature: .* found is .*\(degenerate\)"):
            curvature.escape(notes_loss, notes_grad, np.ones(2))

    def test_elsewhere(self):
        point = curvature.classify(notes_grad, np.array([1.0, 0.0]))
        assert (point.kind, point.grad_norm) == ("not critical", 2.0)
        assert "norm 2 is above" in point.reason
        assert curvature.classify(notes_grad, np.array([1.0, 0.0]), grad_tol=2.0).kind == "saddle"

    def test_any_structure(self):
        def grad(params):
            a, b = params["a"], params["b"]
            return {"b": (-2 * (1 - a * b) * a).astype(F), "a": (-2 * (1 - a * b) * b)[0, 0].astype(D)}

        params = {"a": np.zeros((), D), "b": np.zeros((1, 1), F)}
        point = curvature.classify(grad, params)
        assert point.kind == "saddle"
        np.testing.assert_allclose(point.eigenvalues, [-2, 2], atol=1e-4)
        assert {name: (v.dtype, v.shape) for name, v in point.directions[0].items()} == {"a": (D, ()), "b": (F, (1, 1))}

        def of_list(params):
            return tuple(notes_grad(np.concatenate(params))[:, None])

        assert curvature.classify(of_list, [np.zeros(1), np.zeros(1)]).kind == "saddle"


N = 100_000
HALF = np.arange(1.0, N // 2 + 1)
SPECTRA = {
    "outliers": np.r_[-3.0, np.linspace(-1, 1, N - 2), 5.0],
    "gap of 1 %": np.r_[-1.02, np.linspace(-1, 1, N - 2), 1.02],
    "a network's": np.r_[-0.05, np.linspace(-0.01, 0.01, N - 11), np.geomspace(1, 30, 10)],
    "power law": np.r_[-1 / HALF, 2 / HALF],
    "slow power law": np.r_[-(HALF**-0.5), 2 * HALF**-0.5],
    "exponential": np.r_[-np.exp(-HALF / 10), 3 * np.exp(-HALF / 10)],
}


class TestSpectrum:
    @pytest.mark.parametrize(
        ("name", "dtype"), [*((name, D) for name in SPECTRA), ("gap of 1 %", F), ("a network's", F)]
    )
    def test_both_ends_in_sixty_products(self, name, dtype, rng):
        values = SPECTRA[name]
        grad, params = diagonal(values, rng, dtype)
        calls = [0]

        def counted(w):
            calls[0] += 1
            return grad(w)

        found = curvature.spectrum(counted, params, max_products=60)
        np.testing.assert_allclose(found.eigenvalues, [values.min(), values.max()], rtol=1e-4)
        assert found.products <= 60
        assert found.gradients == calls[0] <= 3 * 60
        # Next to a dense bulk the eigenvectors come later than the eigenvalues.
        assert found.converged.all() or name == "gap of 1 %"

    @pytest.mark.parametrize("size", [56, 57, 58, 59, 60, 61, 62])
    def test_no_more_than_were_allowed(self, size, rng):
        grad, params = diagonal(np.linspace(-1, 3, size), rng)
        found = curvature.spectrum(grad, params, max_products=60)
        assert found.products <= 60
        np.testing.assert_allclose(found.eigenvalues, [-1, 3], rtol=1e-6)

    @pytest.mark.parametrize("size", [61, 100, 200])
    def test_evenly_spread_and_not_large(self, size, rng):
        grad, params = diagonal(np.linspace(-1, 3, size), rng)
        found = curvature.spectrum(grad, params, max_products=60)
        np.testing.assert_allclose(found.eigenvalues, [-1, 3], rtol=1e-3 if size > 100 else 1e-4)

    def test_evenly_dense_to_the_end(self, rng):
        """Lanczos of m steps is then Gauss-Legendre quadrature, whose last node is j₀²/(2(m + ½)²) from the end."""
        grad, params = diagonal(np.linspace(-1, 1, N), rng)
        found = curvature.spectrum(grad, params, max_products=60)
        last = np.polynomial.legendre.leggauss(56)[0][-1]
        np.testing.assert_allclose(found.eigenvalues, [-last, last], atol=4e-4)
        np.testing.assert_allclose(found.eigenvalues, [-1, 1], rtol=1.2e-3)
        assert not found.converged.any()
        assert (np.abs(np.abs(found.eigenvalues) - 1) <= found.residuals).all()

    def test_residuals_are_those_of_the_vectors(self, rng):
        values = np.r_[-4.0, np.linspace(-1, 1, 500), 3.0]
        grad, params = diagonal(values, rng)
        found = curvature.spectrum(grad, params, 3, max_products=40)
        assert len(found.eigenvalues) == 6
        expected = [
            np.linalg.norm(values * v - eigenvalue * v)
            for v, eigenvalue in zip(found.eigenvectors, found.eigenvalues, strict=True)
        ]
        np.testing.assert_allclose(found.residuals, expected, rtol=1e-3, atol=1e-8)
        assert found.residuals[0] < 1e-6 < found.residuals[2]

    @pytest.mark.parametrize("which", ["both", "largest", "smallest"])
    @pytest.mark.parametrize("size", [2, 5, 59, 150])
    def test_against_lapack(self, which, size, rng):
        values = np.sort(rng.standard_normal(size)) * np.geomspace(1, 30, size)
        grad, params, _ = quadratic(values, rng)
        values = np.sort(values)
        found = curvature.spectrum(grad, params, 2, which=which, max_products=148)
        expected = {"both": np.r_[values[:2], values[-2:]], "largest": values[-2:], "smallest": values[:2]}[which]
        np.testing.assert_allclose(found.eigenvalues, expected[:size], atol=1e-6)

    def test_exact_products(self, rng):
        values = np.r_[-4.0, np.linspace(-1, 1, 500), 3.0]
        grad, params = diagonal(values, rng)
        found = curvature.spectrum(grad, params, hvp=lambda _, v: values * v)
        np.testing.assert_allclose(found.eigenvalues, [-4, 3], rtol=1e-12)
        # Twice at the parameters, and twice near them, as it is 0 there.
        assert found.gradients == 4

    def test_where_there_is_no_curvature(self):
        found = curvature.spectrum(np.zeros_like, np.zeros(1000))
        assert found.eigenvalues.tolist() == [0, 0]
        assert curvature.classify(np.zeros_like, np.zeros(1000)).kind == "degenerate"

    def test_the_same_seed(self, rng):
        grad, params = diagonal(np.linspace(-1, 1, 500), rng)
        first, again, other = (curvature.spectrum(grad, params, seed=seed) for seed in (1, 1, 2))
        assert_same_bits(first.eigenvalues, again.eigenvalues)
        assert (first.eigenvalues != other.eigenvalues).any()

    def test_progress(self, rng, capfd):
        grad, params = diagonal(np.linspace(-1, 1, 500), rng)
        shown = []
        found = curvature.spectrum(grad, params, progress=lambda done, total: shown.append((done, total)))
        assert shown == [(k + 1, 60) for k in range(found.products)]
        curvature.spectrum(grad, params, progress=True)
        curvature.spectrum(grad, params)
        assert capfd.readouterr() == ("", "")

    def test_json(self, rng):
        grad, params = diagonal(np.linspace(-1, 1, 500), rng)
        content = json.loads(json.dumps(curvature.spectrum(grad, params).to_dict(), allow_nan=False))
        assert content["which"] == "both"
        # SciPy before 1.15 stops one product earlier.
        assert content["products"] in (59, 60)


def random_eigenvalues(kind, size, condition, rng):
    """Of sizes between 1 and `condition`, both reached, times any scale."""
    sizes = np.r_[1.0, condition, condition ** rng.random(size)][:size] if size > 1 else np.ones(1)
    signs = {"minimum": 1.0, "maximum": -1.0}.get(kind, 1.0) * np.ones(size)
    if kind == "saddle":
        signs = np.where(rng.random(size) < 0.5, -1.0, 1.0)
        signs[:2] = rng.permutation([-1.0, 1.0])
    if kind == "degenerate":
        signs *= rng.choice([-1.0, 1.0])
        signs[: rng.integers(1, size)] = 0.0
    return signs * sizes * 10 ** rng.uniform(-3, 3)


class TestClassify:
    def test_two_hundred_random_quadratics(self):
        rng = np.random.default_rng(7)
        right = dict.fromkeys(["minimum", "maximum", "saddle", "degenerate", "not critical"], 0)
        for k in range(200):
            kind = list(right)[k % 5]
            values = random_eigenvalues(kind, int(rng.integers(2, 201)), 10 ** rng.uniform(0, 6), rng)
            grad, params, _ = quadratic(values, rng)
            if kind == "not critical":
                params = params + 1e-3 * rng.standard_normal(len(params))
            point = curvature.classify(grad, params)
            right[kind] += point.kind == kind
            if point.kind != kind:
                assert point.kind == "degenerate", (kind, point)
                assert np.abs(values).min() <= point.tolerance
            assert np.abs(np.sort(values) - point.eigenvalues).max() <= point.tolerance
        assert right == dict.fromkeys(right, 40)

    @pytest.mark.parametrize("kind", ["minimum", "maximum", "saddle", "degenerate"])
    def test_float32(self, kind):
        rng = np.random.default_rng(3)
        for _ in range(10):
            values = random_eigenvalues(kind, int(rng.integers(2, 100)), 30.0, rng)
            grad, params, _ = quadratic(values, rng, F)
            point = curvature.classify(grad, params)
            assert point.kind == kind
            assert point.directions[0].dtype == F

    @pytest.mark.parametrize("kind", ["minimum", "maximum", "saddle"])
    def test_by_the_ends_alone(self, kind, rng):
        ends = {"minimum": (1.0, 6.0), "maximum": (-6.0, -1.0), "saddle": (-1.0, 6.0)}[kind]
        bulk = {"minimum": (2.0, 4.0), "maximum": (-4.0, -2.0), "saddle": (0.0, 1.0)}[kind]
        grad, params = diagonal(np.r_[ends[0], np.linspace(*bulk, 5000), ends[1]], rng)
        point = curvature.classify(grad, params)
        assert point.kind == kind
        assert not point.complete
        assert point.products <= 60

    def test_an_end_that_is_not_known_is_no_minimum(self, rng):
        grad, params = diagonal(np.geomspace(1e-6, 1, 5000), rng)
        point = curvature.classify(grad, params)
        assert point.kind == "degenerate"
        assert "more products would tell" in point.reason or "zero within" in point.reason

    @pytest.mark.parametrize("kind", ["minimum", "maximum", "saddle", "degenerate"])
    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_parameters_of_any_scale(self, kind, scale, rng):
        values = random_eigenvalues(kind, 30, 1e4, rng)
        grad, params, _ = quadratic(values, rng)
        assert curvature.classify(lambda w: grad(w / scale), scale * params).kind == kind

    @pytest.mark.parametrize("size", [1, 2, 30, 300])
    @pytest.mark.parametrize("dtype", [D, F])
    def test_where_second_derivatives_do_not_decide(self, size, dtype):
        """±x⁴: differences see a curvature of ±4h², which is their own error."""
        signs = np.where(np.arange(size) % 2, 1, -1).astype(dtype)
        point = curvature.classify(lambda w: signs * w**3, np.zeros(size, dtype))
        assert point.kind == "degenerate"
        assert point.zeros == len(point.eigenvalues)

    def test_the_monkey_saddle(self):
        """x³ − 3xy²."""
        point = curvature.classify(lambda w: np.array([3 * (w[0] ** 2 - w[1] ** 2), -6 * w[0] * w[1]]), np.zeros(2))
        assert (point.kind, point.zeros) == ("degenerate", 2)

    def test_a_kink_at_the_point_itself(self):
        """|x| + y²: there is no second derivative, and no sign is made up."""
        point = curvature.classify(lambda w: np.array([np.sign(w[0]), 2 * w[1]]), np.zeros(2))
        assert point.kind == "degenerate"
        assert "a kink: the gradient jumps by 2 " in point.reason

    @pytest.mark.parametrize("dtype", [D, F])
    @pytest.mark.parametrize(
        ("grad", "jump"),
        [
            (np.sign, 2.0),
            (lambda w: -np.sign(w), 2.0),
            (lambda w: (w > 0).astype(w.dtype), 1.0),
            (lambda w: np.where(w > 0, w + 1, 1e-3 * w).astype(w.dtype), 1.0),
        ],
        ids=["|x|", "-|x|", "relu", "a slope that begins"],
    )
    @pytest.mark.parametrize("exact", [False, True])
    def test_kinks_are_named(self, grad, jump, dtype, exact):
        """One number in the middle of a bowl; exact products see nothing of the kink."""

        def both(w):
            g = 2 * w
            g[1:2] = grad(w[1:2])
            return g

        hvp = (lambda w, v: np.array([2, 0, 2], dtype) * v) if exact else None
        point = curvature.classify(both, np.zeros(3, dtype), hvp=hvp)
        assert point.kind == "degenerate"
        found = float(re.search(r"a kink: the gradient jumps by ([0-9.e-]+)", point.reason)[1])
        assert found == pytest.approx(jump, rel=1e-2)

    @pytest.mark.parametrize("dtype", [D, F])
    def test_no_kink_where_the_gradient_is_smooth(self, dtype, rng):
        """Flat, rounded, and steep ones."""
        slope = rng.standard_normal(5).astype(dtype)
        for grad in (
            lambda w: w**3,
            lambda w: 0 * w,
            lambda w: np.tanh(w) ** 3,
            lambda w: (1e4 * (w - 1e-3)) ** 3 * 0 + w * np.abs(w),
        ):
            assert "kink" not in curvature.classify(grad, np.zeros(5, dtype)).reason
        assert "kink" not in curvature.classify(lambda w: slope + 0 * w, np.ones(5, dtype), grad_tol=100).reason

    def test_a_zero_has_no_sign(self):
        for hvp in (None, lambda w, v: -0.0 * v):
            point = curvature.classify(lambda w: -0.0 * w, np.zeros(3), hvp=hvp)
            assert "-0" not in point.reason
            assert not np.signbit(point.eigenvalues).any()

    def test_json(self):
        content = json.loads(json.dumps(curvature.classify(notes_grad, np.zeros(2)).to_dict(), allow_nan=False))
        assert content["kind"] == "saddle"
        assert set(content) == {*curvature.CriticalPoint.__slots__} - {"directions"}


class TestProducts:
    @pytest.mark.parametrize(("dtype", "error"), [(D, 1e-9), (F, 1e-3)])
    def test_of_a_loss_that_is_no_quadratic(self, dtype, error, rng):
        """Σ exp(aᵢᵀθ): H = Aᵀ diag(exp(Aθ)) A."""
        a, theta, v = rng.standard_normal((30, 8)), rng.standard_normal(8) / 4, rng.standard_normal(8)
        narrow = a.astype(dtype)
        product = curvature.hvp(lambda w: narrow.T @ np.exp(narrow @ w), theta.astype(dtype), v.astype(dtype))
        exact = a.T @ (np.exp(a @ theta) * (a @ v))
        assert product.dtype == dtype
        assert np.linalg.norm(product - exact) <= error * np.linalg.norm(exact)

    def test_is_linear_in_the_length(self, rng):
        grad, params = diagonal(np.linspace(1, 2, 10), rng)
        v = rng.standard_normal(10)
        small, large = (curvature.hvp(grad, params, scale * v) for scale in (1e-20, 1e20))
        np.testing.assert_allclose(large, 1e40 * small, rtol=1e-12)
        assert not curvature.hvp(grad, params, np.zeros(10)).any()

    def test_the_step_stays_on_one_side_of_a_kink(self):
        """|x| + x²/2 near 0: the jump is not the curvature."""

        def grad(w):
            return np.sign(w) + w

        assert curvature.hvp(grad, np.array([1e-8]), np.ones(1))[0] == pytest.approx(1.0, rel=1e-5)
        assert curvature.hvp(grad, np.array([1e-8]), np.ones(1), step=1e-3)[0] > 100

    def test_whole_hessian(self, rng):
        values = rng.standard_normal(20)
        grad, params, basis = quadratic(values, rng)
        found = curvature.hessian(grad, params)
        np.testing.assert_allclose(found.matrix, (basis * values) @ basis.T, atol=1e-8)
        assert_same_bits(found.matrix, found.matrix.T.copy())
        assert 0 < found.asymmetry < 1e-8
        assert json.dumps(found.to_dict())

    def test_the_callers_arrays_are_only_read(self, rng):
        params = {"a": rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
        for array in params.values():
            array.flags.writeable = False
        seen = []

        def grad(w):
            seen.extend(w.values())
            return {name: array**3 for name, array in w.items()}

        curvature.hessian(grad, params)
        assert not any(np.shares_memory(array, given) for array in seen for given in params.values())
        assert all(array.flags.writeable for array in seen)


class TestEscape:
    def test_down_to_the_minimum_of_the_line(self, rng):
        """Σ (x⁴/4 − x²/2 · aᵢ): along the axis of the largest a the loss is lowest at √a."""
        a = np.array([0.5, 4.0, 1.0])
        out = curvature.escape(
            lambda w: float((w**4 / 4 - a * w**2 / 2).sum()), lambda w: w**3 - a * w, np.zeros(3), length=0.5
        )
        assert np.abs(out.params) == pytest.approx([0, 2, 0], abs=1e-6)
        assert (out.loss_before, out.loss_after) == (0, pytest.approx(-4))

    def test_the_side_that_falls_farther(self):
        """x³/3 − x²/2 along the first axis falls farther towards −∞."""
        out = curvature.escape(
            lambda w: float(w[0] ** 3 / 3 - w[0] ** 2 / 2 + w[1] ** 2),
            lambda w: np.array([w[0] ** 2 - w[0], 2 * w[1]]),
            np.zeros(2),
        )
        assert out.params[0] < -1

    def test_a_first_length_that_is_too_long(self):
        out = curvature.escape(lambda w: float(np.cos(w[0])), lambda w: -np.sin(w), np.zeros(1), length=100.0)
        assert out.loss_after < 1 + out.eigenvalue * out.step_length**2 / 4
        assert out.step_length < 4

    def test_a_point_that_is_known(self):
        point = curvature.classify(notes_grad, np.zeros(2))
        out = curvature.escape(notes_loss, lambda _: pytest.fail("it is known"), np.zeros(2), point=point)
        assert out.loss_after < 0.5
        assert set(out.to_dict()) == {*curvature.Escape.__slots__} - {"params", "direction"}
        assert json.dumps(out.to_dict())

    def test_a_loss_of_something_else(self):
        with pytest.raises(ValueError, match=r"^loss: falls on neither side .* curves by -2; is grad its gradient\?"):
            curvature.escape(lambda w: float(w @ w), notes_grad, np.zeros(2))
        with pytest.raises(ValueError, match=r"^loss\(params\): expected a finite number, got nan"):
            curvature.escape(lambda _: math.nan, notes_grad, np.zeros(2))
        with pytest.raises(TypeError, match=r"^loss\(params\): expected a number, got ndarray"):
            curvature.escape(lambda w: w, notes_grad, np.zeros(2))


def polynomial(loss):
    """A loss of torch and its gradient, as functions of NumPy arrays of any dtype."""
    torch = pytest.importorskip("torch")

    def value(w):
        return float(loss(torch.tensor(w, dtype=torch.float64)))

    def grad(w):
        at = torch.tensor(w, dtype=torch.float64, requires_grad=True)
        loss(at).backward()
        return at.grad.numpy().astype(w.dtype)

    return value, grad


class TestEscapeOfHigherOrder:
    """Where the second derivatives are zero, a term of higher order may lead down."""

    @pytest.mark.parametrize("dtype", [D, F])
    @pytest.mark.parametrize("offset", [0.0, 1.0, -3.0])
    @pytest.mark.parametrize(
        ("size", "loss"),
        [
            (2, lambda w: w[0] ** 3 - 3 * w[0] * w[1] ** 2),
            (1, lambda w: -(w[0] ** 4)),
            (1, lambda w: w[0] ** 3),
            (1, lambda w: w[0] ** 5),
            (2, lambda w: w[0] ** 2 - w[1] ** 4),
            (2, lambda w: w[0] ** 4 + w[1] ** 4 - 6 * w[0] ** 2 * w[1] ** 2),
            (3, lambda w: w[0] * w[1] * w[2]),
            (3, lambda w: 5 * w[0] ** 2 + w[1] ** 3 - w[2] ** 4),
            (2, lambda w: (w[1] - w[0] ** 2) ** 2 - w[0] ** 4 / 2),
            (3, lambda w: (1 - w[0] * w[1] * w[2]) ** 2),
            (300, lambda w: (w[:200] ** 2).sum() + (w[200:] ** 3).sum()),
        ],
        ids=["monkey", "-x4", "x3", "x5", "x2-y4", "between the axes", "xyz", "mixed", "bent", "three layers", "large"],
    )
    def test_leads_down(self, size, loss, offset, dtype):
        value, grad = polynomial(lambda w: loss(w) + offset)
        out = curvature.escape(value, grad, np.zeros(size, dtype))
        assert out.loss_before == value(np.zeros(size))
        assert out.loss_after == value(out.params) < out.loss_before
        assert np.linalg.norm(out.direction) == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(out.params, out.step_length * out.direction, rtol=1e-5, atol=1e-30)
        assert json.dumps(out.to_dict())

    @pytest.mark.parametrize("dtype", [D, F])
    @pytest.mark.parametrize(
        ("size", "loss"),
        [
            (2, lambda w: w[0] ** 2 + w[1] ** 4),
            (1, lambda w: w[0] ** 6),
            (2, lambda w: (w[0] - w[1]) ** 2),
            (2, lambda w: 0 * w[0] + 1),
            (2, lambda w: (w[1] - w[0] ** 2) ** 2),
            (1, lambda w: w[0] ** 4 - 4 * w[0] ** 6),
            (2, lambda w: abs(w[0]) + w[1] ** 2),
            (30, lambda w: (w**4).sum() + (w[:10] ** 2).sum() + 7),
        ],
        ids=["x2+y4", "x6", "valley", "constant", "bent valley", "behind a ridge", "kink", "many"],
    )
    def test_a_flat_minimum_is_not_left(self, size, loss, dtype):
        value, grad = polynomial(loss)
        with pytest.raises(curvature.NoNegativeCurvatureError, match=r"no negative curvature.*degenerate") as caught:
            curvature.escape(value, grad, np.zeros(size, dtype))
        assert "nor does the loss fall" in str(caught.value)

    def test_away_from_the_origin(self, rng):
        """A monkey saddle turned and moved, in a bowl of three more parameters, as a dict."""
        basis, _ = np.linalg.qr(rng.standard_normal((5, 5)))
        center = rng.standard_normal(5) * 10
        value, grad = polynomial(
            lambda w: (lambda z: z[0] ** 3 - 3 * z[0] * z[1] ** 2 + (z[2:] ** 2).sum())(
                w.new_tensor(basis) @ (w - w.new_tensor(center))
            )
        )
        out = curvature.escape(
            lambda p: value(np.r_[p["a"], p["b"].ravel()]),
            lambda p: (lambda g: {"a": g[:1], "b": g[1:].reshape(2, 2)})(grad(np.r_[p["a"], p["b"].ravel()])),
            {"a": center[:1], "b": center[1:].reshape(2, 2)},
        )
        assert out.loss_after < -1e-6

    def test_a_kink_that_leads_down(self):
        out = curvature.escape(lambda w: -abs(float(w[0])), lambda w: -np.sign(w), np.zeros(1))
        assert out.loss_after < 0

    def test_a_slope_is_no_way_out_of_a_critical_point(self):
        with pytest.raises(curvature.NoNegativeCurvatureError, match="not critical"):
            curvature.escape(lambda w: float(w.sum()), np.ones_like, np.zeros(2))


class TestNumbersAsPoints:
    """A number is an array without axes, a list of numbers one array."""

    @pytest.mark.parametrize("params", [[0.0, 0.0], (0, 0), [np.float64(0), 0]])
    def test_a_list(self, params):
        seen = []

        def grad(w):
            seen.append(w)
            return [-2 * (1 - w[0] * w[1]) * w[1], -2 * (1 - w[0] * w[1]) * w[0]]

        point = curvature.classify(grad, params)
        assert point.kind == "saddle"
        np.testing.assert_allclose(point.eigenvalues, [-2, 2], atol=1e-6)
        assert all(isinstance(w, np.ndarray) and w.shape == (2,) and w.dtype == D for w in seen)
        out = curvature.escape(notes_loss, grad, params)
        assert out.loss_after < 0.5
        np.testing.assert_allclose(curvature.hvp(grad, params, [1.0, 0.0]), [0, -2], atol=1e-6)

    @pytest.mark.parametrize("params", [2.0, 2, np.float64(2), np.array(2.0)])
    def test_a_number(self, params):
        assert curvature.hvp(lambda x: x**3, params, 1.0) == pytest.approx(12)
        assert curvature.classify(lambda x: x - 2, params).kind == "minimum"
        assert curvature.newton_step(lambda x: x - 1, params).params == pytest.approx(1)

    def test_lists_within(self):
        def grad(p):
            return {"a": [2 * x for x in p["a"]], "b": -p["b"], "c": p["c"]}

        params = {"a": [1.0, 2.0], "b": 3.0, "c": np.zeros((2, 2))}
        found = curvature.hessian(grad, params)
        np.testing.assert_allclose(found.matrix, np.diag([2, 2, -1, 1, 1, 1, 1]), atol=1e-6)

    def test_a_matrix(self):
        assert (
            curvature.hvp(lambda w: 2 * w, [[1.0, 2.0], [3.0, 4.0]], np.ones((2, 2))).tolist()
            == [[pytest.approx(2)] * 2] * 2
        )

    def test_shift_of_lists(self):
        assert curvature.measure_shift([[-1], [1]], [[1.0], [5.0]]).distances == pytest.approx([math.sqrt(10)])


class TestNewton:
    def test_a_quadratic_is_solved_in_one_step(self, rng):
        values = np.geomspace(1, 1e3, 20)
        grad, center, basis = quadratic(values, rng)
        start = center + rng.standard_normal(20)
        taken = curvature.newton_step(grad, start)
        np.testing.assert_allclose(taken.params, center, atol=1e-6)
        offset = start - center
        expected = offset @ ((basis * values) @ basis.T) @ offset / 2
        assert taken.predicted_decrease == pytest.approx(expected, rel=1e-6)
        assert (taken.damping, taken.eigenvalue) == (0.0, pytest.approx(1.0))
        assert json.dumps(taken.to_dict())

    def test_damping(self, rng):
        values, start = np.array([1.0, 10.0]), np.array([3.0, 4.0])
        taken = curvature.newton_step(lambda w: values * w, start, damping=2.0)
        np.testing.assert_allclose(taken.move, -values * start / (values + 2), rtol=1e-6)

    def test_at_a_saddle_it_leads_down(self):
        start = np.array([0.3, 0.2])
        taken = curvature.newton_step(notes_grad, start)
        assert taken.eigenvalue < 0 < taken.damping
        assert taken.move @ notes_grad(start) < 0
        with pytest.raises(ValueError, match=r"^damping: expected more than 1.\d+, for the smallest eigenvalue"):
            curvature.newton_step(notes_grad, start, damping=0.0)
        with pytest.raises(ValueError, match="the Hessian is zero"):
            curvature.newton_step(np.ones_like, start)


class TestQuadrature:
    def test_trace(self, rng):
        values = rng.standard_normal(300) + 1
        grad, params, _ = quadratic(values, rng)
        found = curvature.trace(grad, params, 200)
        # Of signs, the variance of a term is 2 Σ over i ≠ j of Hᵢⱼ².
        bound = math.sqrt(2 * (values**2).sum() / 200)
        assert abs(found.value - values.sum()) < 4 * bound
        assert 0.5 * bound < found.standard_error < 1.2 * bound
        assert len(found.samples) == 200

    def test_density_has_the_moments_of_the_spectrum(self, rng):
        values = np.r_[np.linspace(-1, 1, 4900), np.linspace(6, 7, 100)]
        grad, params = diagonal(values, rng)
        found = curvature.spectral_density(grad, params, probes=6, steps=30)
        np.testing.assert_allclose(found.weights.sum(axis=1), 1)
        assert np.trapezoid(found.density, found.grid) == pytest.approx(1, abs=1e-3)
        for power in (1, 2, 3):
            moment = (found.weights * found.nodes**power).sum(axis=1).mean()
            assert moment == pytest.approx((values**power).mean(), rel=0.1)
        above = found.grid > 3
        assert np.trapezoid(found.density[above], found.grid[above]) == pytest.approx(0.02, rel=0.2)
        assert json.dumps(found.to_dict(), allow_nan=False)

    def test_density_where_a_run_ends_early(self, rng):
        grad, params = diagonal(np.r_[np.zeros(700), np.full(300, 2.0)], rng)
        found = curvature.spectral_density(grad, params, probes=3, steps=20, width=0.05)
        assert np.isfinite(found.nodes).sum(axis=1).tolist() == [2, 2, 2]
        np.testing.assert_allclose(found.nodes[:, :2], [[0, 2]] * 3, atol=1e-8)
        assert found.weights[:, 1].mean() == pytest.approx(0.3, abs=0.06)
        assert json.dumps(found.to_dict(), allow_nan=False)

    def test_plot(self, rng, tmp_path):
        grad, params = diagonal(np.linspace(-1, 1, 500), rng)
        found = curvature.spectral_density(grad, params)
        for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
            found.plot(str(tmp_path / name))
            assert (tmp_path / name).read_bytes().startswith(start)


ENTRIES = {
    "hvp": lambda grad, params: curvature.hvp(grad, params, params),
    "spectrum": curvature.spectrum,
    "classify": curvature.classify,
    "hessian": curvature.hessian,
    "trace": curvature.trace,
    "spectral_density": curvature.spectral_density,
    "newton_step": curvature.newton_step,
    "escape": lambda grad, params: curvature.escape(lambda _: 1.0, grad, params),
}


@pytest.fixture(params=ENTRIES)
def entry(request):
    return ENTRIES[request.param]


class TestBadInput:
    @pytest.mark.parametrize(
        ("grad", "error", "message"),
        [
            (
                lambda w: {"v": w["w"]},
                ValueError,
                r"grad\(params\): expected a dict with the names \['w'\], got \['v'\]",
            ),
            (lambda w: w["w"], TypeError, r"grad\(params\): expected a dict, got ndarray"),
            (lambda w: {"w": w["w"][:1]}, ValueError, r"grad\(params\)\['w'\]: expected shape \(2,\), got \(1,\)"),
            (lambda w: {"w": w["w"].astype(F)}, TypeError, r"grad\(params\)\['w'\]: expected float64, got float32"),
            (lambda w: {"w": [1.0, 2.0]}, TypeError, r"grad\(params\)\['w'\]: expected an array, got list"),
            (
                lambda w: {"w": w["w"] * np.nan},
                ValueError,
                r"grad\(params\)\['w'\]: expected finite .* 2 of 2 that are",
            ),
            (lambda w: None, TypeError, r"grad\(params\): expected a dict, got NoneType"),
            (3, TypeError, "grad: expected a function, got int"),
        ],
    )
    def test_gradients(self, entry, grad, error, message):
        with pytest.raises(error, match=f"^{message}"):
            entry(grad, {"w": np.ones(2)})

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            ({"w": np.ones(2, np.int64)}, TypeError, r"params\['w'\]: expected float32 or float64, got int64"),
            ([np.ones(2, np.float16)], TypeError, r"params\[0\]: expected float32 or float64, got float16"),
            ("1.0", TypeError, "params: expected arrays, got str"),
            (True, TypeError, "params: expected an array, got bool"),
            ([1.0, "2"], TypeError, r"params\[1\]: expected an array, got str"),
            ([1.0, None], TypeError, r"params\[1\]: expected an array, got NoneType"),
            (1j, TypeError, "params: expected an array, got complex"),
            ([1.0, math.nan], ValueError, "params: expected finite numbers, got 1 of 2 that are not"),
            ([], ValueError, "params: expected at least one number, got none"),
            ([np.ones(0)], ValueError, "params: expected at least one number, got none"),
            (np.array([1.0, np.inf]), ValueError, "params: expected finite numbers, got 1 of 2 that are not"),
        ],
    )
    def test_params(self, entry, params, error, message):
        with pytest.raises(error, match=f"^{message}"):
            entry(lambda w: w, params)

    @pytest.mark.parametrize("name", [name for name in ENTRIES if name != "hvp"])
    def test_a_gradient_of_another_batch_each_time(self, name):
        rng = np.random.default_rng(0)
        with pytest.raises(
            GradientError, match=r"it is not deterministic .*measured asymmetry of H is [0-9.e+]+ of its"
        ):
            ENTRIES[name](lambda w: w + 0.01 * rng.standard_normal(len(w)), np.ones(80))

    @pytest.mark.parametrize("name", [name for name in ENTRIES if name != "hvp"])
    @pytest.mark.parametrize("dtype", [D, F])
    def test_a_gradient_that_is_none(self, name, dtype):
        matrix = np.random.default_rng(0).standard_normal((80, 80)).astype(dtype)
        with pytest.raises(GradientError, match=r"an H whose measured asymmetry is [0-9.]+ of its size"):
            ENTRIES[name](lambda w: matrix @ w, np.ones(80, dtype))

    def test_a_gradient_that_is_not_finite_nearby(self):
        with (
            np.errstate(divide="ignore"),
            pytest.raises(ValueError, match=r"not \(at a distance of 6.06e-06 from params\)"),
        ):
            curvature.hessian(lambda w: 1 / (w + 6.055454452393343e-06), np.zeros(1))

    def test_rounding_is_no_asymmetry(self):
        """A large gradient that hardly changes: the quotient is rounding alone."""
        slope = np.random.default_rng(0).standard_normal(300) * 1e6
        assert curvature.spectrum(lambda w: slope + 0 * w, np.ones(300)).asymmetry < 0.01
        grad = lambda w: slope + 1e-12 * w  # noqa: E731
        assert curvature.classify(grad, np.ones(300)).kind == "not critical"

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"k": 101}, ValueError, "k: expected at most the number of parameters, 100, got 101"),
            (
                {"k": 20, "max_products": 60},
                ValueError,
                "max_products: expected at least 86 for 40 eigenvalues, got 60",
            ),
            ({"k": 0}, ValueError, "k: expected a whole number >= 1, got 0"),
            ({"k": 1.0}, TypeError, "k: expected a whole number, got float"),
            ({"k": True}, TypeError, "k: expected a whole number, got bool"),
            ({"which": "LM"}, ValueError, "which: expected one of 'both', 'largest', 'smallest', got 'LM'"),
            ({"tol": 0.0}, ValueError, "tol: expected a finite number > 0, got 0.0"),
            ({"tol": "x"}, TypeError, "tol: expected a number, got str"),
            ({"seed": -1}, ValueError, "seed: expected a whole number >= 0, got -1"),
            ({"step": -1.0}, ValueError, "step: expected a finite number > 0, got -1.0"),
            ({"step": 1e-30}, ValueError, "step: 1e-30 is lost in the rounding of params"),
            ({"progress": 1}, TypeError, "progress: expected a bool or a function, got int"),
            ({"hvp": 1}, TypeError, "hvp: expected a function, got int"),
            ({"hvp": lambda p, v: v[1:]}, ValueError, r"hvp\(params, v\): expected shape \(100,\), got \(99,\)"),
            ({"hvp": lambda p, v: np.roll(v, 1)}, GradientError, "hvp: expected the derivatives of one function"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=f"^{message}"):
            curvature.spectrum(lambda w: w, np.ones(100), **options)

    def test_more_options(self):
        with pytest.raises(ValueError, match=r"^params: expected at most max_size = 5 numbers, got 6"):
            curvature.hessian(lambda w: w, np.ones(6), max_size=5)
        with pytest.raises(ValueError, match=r"^v: expected shape"):
            curvature.hvp(lambda w: w, np.ones(6), np.ones(5))
        with pytest.raises(TypeError, match=r"^point: expected a CriticalPoint, got str"):
            curvature.escape(lambda w: 1.0, lambda w: w, np.ones(6), point="saddle")
        with pytest.raises(ValueError, match=r"^k: expected at most the number of parameters, 2, got 3"):
            curvature.classify(notes_grad, np.zeros(2), 3)

    @pytest.mark.parametrize(
        ("module", "call"),
        [
            ("scipy.sparse.linalg", lambda: curvature.spectrum(notes_grad, np.ones(2))),
            ("scipy.linalg", lambda: curvature.newton_step(notes_grad, np.ones(2))),
            ("scipy.linalg", lambda: curvature.spectral_density(notes_grad, np.ones(2))),
        ],
    )
    def test_without_scipy(self, module, call, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedstep\[curvature\]'"):
            call()

    def test_small_points_are_classified_without_scipy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
        assert fs.curvature.classify(notes_grad, np.zeros(2)).kind == "saddle"


class TestNeverWrong:
    """What a run of Lanczos, or the first differences, would have called a minimum."""

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize(
        "values",
        [
            np.r_[-1e-6, 1e-6, np.linspace(0.01, 1, 298)],
            np.r_[-1e-6, np.linspace(1e-3, 1, 299)],
            np.r_[-1e-6, 2e-6, np.linspace(0.003, 1, 298)],
        ],
    )
    def test_a_way_down_that_sixty_products_hardly_see(self, values, sign):
        for seed in range(10):
            point = curvature.classify(lambda w: sign * values * w, np.zeros(300), seed=seed)
            assert point.kind in ("saddle", "degenerate")

    def test_an_eigenvalue_of_zero(self):
        """Which a start that is multiplied by H has lost."""
        values = np.r_[0.0, np.linspace(1e-3, 1, 299)]
        for seed in range(5):
            point = curvature.classify(lambda w: values * w, np.zeros(300), seed=seed, max_products=120)
            assert point.kind == "degenerate"

    def test_third_derivatives_that_only_some_directions_feel(self):
        values = np.r_[1.0, 1e-7, np.full(98, -1e-9)]

        def grad(w):
            g = values * w
            g[2:] += 4e3 * w[2:] ** 3
            return g

        assert curvature.classify(grad, np.zeros(100)).kind in ("saddle", "degenerate")

    def test_dropout_where_there_is_nothing_to_drop(self):
        generator = np.random.default_rng(0)
        with pytest.raises(curvature.GradientError, match=r"places near them.*not deterministic"):
            curvature.classify(lambda w: w * (generator.random(300) < 0.8) / 0.8, np.zeros(300))


def test_a_loss_that_has_no_bottom():
    def loss(w):
        return float(w[0] ** 2 - w[1] ** 2) if abs(w[1]) < 1 else -math.inf

    with pytest.raises(ValueError, match="loss: expected a number, got -inf"):
        curvature.escape(loss, lambda w: np.array([2.0, -2.0]) * w, np.zeros(2))
