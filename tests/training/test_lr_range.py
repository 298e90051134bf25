"""The learning rate range test, smoothness and shift against closed forms."""

import json
import math
import sys
import warnings

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import curvature
from helpers import assert_same_bits
from optional import torch

F = np.float32


def descent(curvatures, optimizer_class=fs.SGD, **options):
    w = np.ones(len(curvatures))
    optimizer = optimizer_class(w, **options)

    def step(lr):
        optimizer.param_groups[0]["lr"] = lr
        loss = float(curvatures @ w**2 / 2)
        optimizer.step(curvatures * w)
        return loss

    return step, w, optimizer


class TestRange:
    def test_a_quadratic_diverges_beyond_two_over_the_curvature(self):
        step, w, _ = descent(np.array([10.0, 10.0]))
        found = fs.lr_range_test(step, (1e-4, 10.0, 300), smoothing=0.0, params=w)
        assert found.stopped == "diverged"
        assert found.lowest < found.lrs[-1]
        assert 2 / 10 <= found.lrs[np.argmin(found.losses)] < found.lrs[-1]
        # Up to a rate of 1/10 every step is better than the one before: there, it is the exact minimum.
        assert found.steepest < 0.1
        assert found.tenth == found.lowest / 10
        np.testing.assert_allclose(np.diff(np.log(found.lrs)), np.log(1e5) / 299)

    def test_the_average_is_of_the_losses(self):
        losses = [3.0, 1.0, 2.0]
        given = iter(losses)
        found = fs.lr_range_test(lambda lr: next(given), [0.1, 0.2, 0.4], smoothing=0.5)
        # Weights ¼ : ½ : 1 of the latest three.
        np.testing.assert_allclose(found.smoothed, [3, (1.5 + 1) / 1.5, (0.75 + 0.5 + 2) / 1.75])
        assert found.losses.tolist() == losses
        assert found.stopped == "end"

    def test_steepest_where_the_loss_falls_fastest(self):
        """A logistic curve in the logarithm of the rate is steepest in its middle."""
        found = fs.lr_range_test(lambda lr: 1 / (1 + (lr / 0.01) ** 2), (1e-5, 10.0, 301), smoothing=0.0)
        assert found.steepest == pytest.approx(0.01, rel=0.05)
        assert found.lowest == pytest.approx(10)

    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, loss):
        found = fs.lr_range_test(lambda lr: loss if lr > 1 else 1 - lr / 2, [0.1, 0.5, 2.0, 3.0], smoothing=0.0)
        assert (found.stopped, len(found.losses), len(found.smoothed)) == ("not finite", 3, 2)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["losses"][-1] is None
        worst = fs.lr_range_test(lambda lr: loss, [0.1, 0.5])
        assert (worst.steepest, worst.lowest, worst.tenth) == (None, None, None)

    @pytest.mark.parametrize("warm", [0, 3])
    def test_model_and_optimizer_are_put_back(self, warm):
        step, w, optimizer = descent(np.array([10.0, 1.0]), fs.AdamW, ema_decay=0.9)
        for _ in range(warm):
            step(0.01)
        rate = optimizer.param_groups[0]["lr"]
        before, state = w.copy(), optimizer.state_dict()
        kept = {name: np.array(value) for name, value in (state["state"].get(0) or {}).items()}
        fs.lr_range_test(step, (1e-4, 1.0, 20), params={"w": w}, optimizer=optimizer)
        assert_same_bits(w, before)
        after = optimizer.state_dict()
        assert optimizer.param_groups[0]["lr"] == rate
        for name, value in kept.items():
            assert np.array(after["state"][0][name]).tobytes() == value.tobytes(), name
        losses = [step(0.01) for _ in range(3)]
        again, _, _ = descent(np.array([10.0, 1.0]), fs.AdamW, ema_decay=0.9)
        for _ in range(warm):
            again(0.01)
        assert losses == [again(0.01) for _ in range(3)]

    def test_they_are_put_back_after_an_error(self):
        step, w, optimizer = descent(np.array([10.0, 1.0]), fs.Adam)

        def fails(lr):
            step(lr)
            raise ArithmeticError

        with pytest.raises(ArithmeticError):
            fs.lr_range_test(fails, params=[w], optimizer=optimizer)
        assert w.tolist() == [1, 1]
        assert optimizer.state_dict()["step"] == 0

    @pytest.mark.parametrize("smoothing", [0.5, 0.9, 0.98])
    @pytest.mark.parametrize("mean", [0.0, 1e-3, -1e-3])
    def test_noise_around_a_loss_near_zero_is_no_divergence(self, mean, smoothing):
        for seed in range(60):
            noise = np.random.default_rng(seed)
            step = lambda lr, noise=noise: mean + 0.3 * noise.standard_normal()  # noqa: E731
            assert fs.lr_range_test(step, smoothing=smoothing).stopped == "end", seed

    @pytest.mark.parametrize("offset", [0.0, 1.0, -1.0, -100.0])
    @pytest.mark.parametrize("noise", [0.0, 0.05])
    def test_divergence_is_seen_whatever_the_sign(self, offset, noise):
        """A loss that explodes beyond a rate of 1 as λ⁴ does: seen within a factor of ten of the rate."""
        random = np.random.default_rng(0)
        step = lambda lr: offset + noise * random.standard_normal() + max(0.0, lr - 1) ** 4 * 100  # noqa: E731
        found = fs.lr_range_test(step, (1e-5, 1e3, 200))
        assert found.stopped == "diverged"
        assert 1 < found.lrs[-1] < 10

    @pytest.mark.parametrize("growth", [1.5, 10.0, 1e6])
    def test_divergence_from_the_first_step_on(self, growth):
        losses = iter(growth**k for k in range(100))
        found = fs.lr_range_test(lambda lr: next(losses), smoothing=0.0)
        assert found.stopped == "diverged"
        assert len(found.losses) < 25

    @pytest.mark.parametrize("fails", [False, True])
    def test_layers_are_put_back_with_their_counts(self, fails):
        layer, net = fs.BatchNorm(3), torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
        x = np.random.default_rng(0).standard_normal((8, 3)).astype(F)
        layer.forward(x, training=True)
        before = {name: np.array(value) for name, value in layer.state_dict().items()}
        torch_before = {name: value.clone() for name, value in net.state_dict().items()}

        def step(lr):
            layer.forward(x, training=True)
            layer.weight[...] += 1
            net(torch.from_numpy(x)).sum().backward()
            with torch.no_grad():
                net[0].weight.add_(1)
            if fails:
                raise KeyboardInterrupt
            return 1.0

        for params in ({"a": layer, "b": [net]}, [layer, net]):
            if fails:
                with pytest.raises(KeyboardInterrupt):
                    fs.lr_range_test(step, [0.1, 0.2], params=params)
            else:
                fs.lr_range_test(step, [0.1, 0.2], params=params)
            after = layer.state_dict()
            assert layer.num_batches_tracked == 1
            assert all(np.array(after[name]).tobytes() == value.tobytes() for name, value in before.items())
            assert all(torch.equal(net.state_dict()[name], value) for name, value in torch_before.items())

    def test_a_state_dict_of_torch_is_put_back(self):
        net = torch.nn.BatchNorm1d(3)

        def step(lr):
            net(torch.randn(8, 3))
            return 1.0

        fs.lr_range_test(step, [0.1, 0.2], params=dict(net.state_dict()))
        assert net.num_batches_tracked == 0
        assert net.running_var.tolist() == [1, 1, 1]

    def test_what_step_replaces_is_there_again(self):
        params = {"w": np.ones(2), "b": [np.zeros(1), np.zeros(2)]}
        w, b = params["w"], list(params["b"])

        def step(lr):
            params["w"] = params["w"] * 2
            params["b"].pop()
            params["b"].append(np.ones(2))
            params["b"][0][...] = 3
            return 1.0

        fs.lr_range_test(step, [0.1, 0.2], params=params)
        assert params["w"] is w
        assert [x is y for x, y in zip(params["b"], b, strict=True)] == [True, True]
        assert (w.tolist(), b[0].tolist()) == ([1, 1], [0])

    def test_schedules_are_the_same_objects_in_the_same_state(self):
        w, plateau = np.ones(2), fs.schedules.ReduceOnPlateau(0.5, patience=0)
        own = lambda step: 0.25  # noqa: E731
        optimizer = fs.SGD([{"params": [w], "lr": fs.schedules.warmup(plateau, 0)}, {"params": np.ones(1), "lr": own}])

        def step(lr):
            plateau.observe(1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.param_groups[0]["momentum"] = 0.9
            optimizer.step([w.copy(), w[:1].copy()])
            return 1.0

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fs.lr_range_test(step, [0.1, 0.2, 0.3], params=w, optimizer=optimizer)
        first, second = optimizer.param_groups
        assert first["lr"].schedule is plateau
        assert second["lr"] is own
        assert (plateau(0), plateau.best, first.get("momentum", 0.0)) == (0.5, None, 0.0)

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
    def test_an_interruption_of_the_putting_back_leaves_nothing_behind(self, kind):
        """Raised at every line of it in turn: all is put back first."""
        at = 0
        while True:
            a, b = np.ones(3), np.ones(2)
            optimizer = fs.SGD([a, b], lr=0.5)
            seen, inside = 0, False

            def step(lr, a=a, b=b, optimizer=optimizer):
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step([a.copy(), b.copy()])
                return 1.0

            def trace(frame, event, argument, at=at):
                nonlocal seen, inside
                if frame.f_code.co_name != "run" or "curvature/lr_range" not in frame.f_code.co_filename:
                    return None
                inside = True

                def line(frame, event, argument):
                    nonlocal seen
                    if event == "line":
                        seen += 1
                        if seen == at + 1:
                            raise kind
                    return line

                return line

            sys.settrace(trace)
            try:
                fs.lr_range_test(step, [0.1, 0.2], params=[a, b], optimizer=optimizer)
                raised = False
            except kind:
                raised = True
            finally:
                sys.settrace(None)
            assert inside
            if not raised:
                break
            # The first lines come before anything that could be taken up again.
            if at >= 3:
                assert (a.tolist(), b.tolist()) == ([1, 1, 1], [1, 1]), at
                assert (optimizer.param_groups[0]["lr"], optimizer.state_dict()["step"]) == (0.5, 0), at
            at += 1
        assert at > 8

    def test_of_torch(self):
        w = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.Adam([w])

        def step(lr):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            loss = (w**2).sum()
            loss.backward()
            optimizer.step()
            return loss

        fs.lr_range_test(step, (1e-3, 1.0, 10), params=w, optimizer=optimizer)
        assert w.tolist() == [1, 1]
        assert optimizer.param_groups[0]["lr"] == 1e-3
        assert not optimizer.state

    def test_plot(self, tmp_path):
        step, w, optimizer = descent(np.array([10.0, 1.0]))
        found = fs.lr_range_test(step, params=w, optimizer=optimizer)
        for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
            found.plot(str(tmp_path / name))
            assert (tmp_path / name).read_bytes().startswith(start)
        fs.lr_range_test(lambda lr: math.nan).plot(str(tmp_path / "nothing.png"))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"step": 1}, TypeError, "step: expected a function, got int"),
            ({"step": lambda lr: "x"}, TypeError, r"step\(lr\): expected a number, got str"),
            ({"lrs": (1.0, 0.1, 5)}, ValueError, "lrs: expected lowest < highest, got 1.0 and 0.1"),
            ({"lrs": (0.1, 1.0)}, ValueError, r"lrs: expected \(lowest, highest, steps\), got 2 entries"),
            ({"lrs": (0.1, 1.0, 1)}, ValueError, r"lrs\[2\]: expected a whole number >= 2, got 1"),
            ({"lrs": [0.1, 0.1]}, ValueError, "lrs: expected at least one rate, each above the one before"),
            ({"lrs": [0.0, 0.1]}, ValueError, r"lrs\[0\]: expected a finite number > 0, got 0.0"),
            ({"lrs": 0.1}, TypeError, "lrs: expected a tuple, a list or an array, got float"),
            ({"smoothing": 1.0}, ValueError, r"smoothing: expected a number in \[0, 1\), got 1.0"),
            ({"divergence": 1.0}, ValueError, "divergence: expected a finite number > 1, got 1.0"),
            ({"params": np.broadcast_to(1.0, 3)}, ValueError, "params: expected an array that can be put back"),
            ({"params": [1.0]}, TypeError, r"params\[0\]: expected an array, got float"),
        ],
    )
    def test_bad_input(self, arguments, error, message):
        with pytest.raises(error, match=f"^{message}"):
            fs.lr_range_test(**{"step": lambda lr: 1.0, **arguments})


class TestSmoothness:
    def test_a_quadratic(self, rng):
        """Along the gradient of ½wᵀHw: β = ‖H·g‖/‖g‖ at every length, and the loss is a parabola."""
        curvatures, w = np.array([1.0, 4.0, 9.0]), rng.standard_normal(3)
        lrs = [0.01, 0.1, 1.0]
        found = curvature.measure_smoothness(lambda w: float(curvatures @ w**2 / 2), lambda w: curvatures * w, w, lrs)
        g = curvatures * w
        beta = np.linalg.norm(curvatures * g) / np.linalg.norm(g)
        np.testing.assert_allclose(found.betas, beta)
        assert found.beta == pytest.approx(beta)
        np.testing.assert_allclose(found.gradient_changes, np.array(lrs) * np.linalg.norm(curvatures * g))
        expected = [curvatures @ (w - lr * g) ** 2 / 2 for lr in lrs]
        np.testing.assert_allclose(found.losses, expected)
        other = curvatures * (w - g)
        assert found.cosines[-1] == pytest.approx(other @ g / np.linalg.norm(other) / np.linalg.norm(g))
        assert json.dumps(found.to_dict(), allow_nan=False)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="the gradient is 0 and has no direction"):
            curvature.measure_smoothness(lambda w: 0.0, np.zeros_like, np.ones(2), [1.0])
        with pytest.raises(TypeError, match=r"lrs: expected a list or array of at least one number, got \[\]"):
            curvature.measure_smoothness(lambda w: 0.0, np.ones_like, np.ones(2), [])


class TestShift:
    @pytest.mark.parametrize("axis", [1, -1])
    def test_moved_and_stretched(self, axis, rng):
        before = rng.standard_normal((50, 4, 6)).astype(F)
        moves, factors = np.arange(before.shape[axis]), 1.0 + np.arange(before.shape[axis])
        shape = (-1, 1) if axis == 1 else (-1,)
        after = before * factors.reshape(shape) + moves.reshape(shape)
        found = curvature.measure_shift(before, after, channel_axis=axis)
        rows = np.moveaxis(before.astype(float), axis, 0).reshape(before.shape[axis], -1)
        spread = np.sqrt(rows.var(axis=1).mean())
        assert found.spread == pytest.approx(spread)
        np.testing.assert_allclose(found.means, (rows.mean(axis=1) * (factors - 1) + moves) / spread, atol=1e-6)
        np.testing.assert_allclose(found.deviations, rows.std(axis=1) * (factors - 1) / spread, atol=1e-6)
        np.testing.assert_allclose(found.distances**2, found.means**2 + found.deviations**2)
        assert found.distance == pytest.approx(np.sqrt((found.distances**2).mean()))
        assert json.dumps(found.to_dict())

    def test_nothing_moved(self, rng):
        x = rng.standard_normal((10, 3))
        assert curvature.measure_shift(x, x).distance == 0

    @pytest.mark.parametrize(
        ("before", "after", "error", "message"),
        [
            (np.ones((3, 2), int), np.ones((3, 2)), TypeError, "before: expected floats, got int64"),
            (np.eye(3), np.eye(4), ValueError, "after: expected 3 features as before has, got 4"),
            (np.ones((3, 2)), np.eye(2), ValueError, "before: every feature is constant"),
            (np.ones(3), np.ones(3), ValueError, "channel_axis: expected an axis of before, which has 1, got 1"),
            (np.ones((1, 3)), np.ones((1, 3)), ValueError, "before: expected at least two values a feature"),
            (np.eye(2), np.full((2, 2), np.nan), ValueError, "after: expected finite numbers"),
        ],
    )
    def test_bad_input(self, before, after, error, message):
        with pytest.raises(error, match=f"^{message}"):
            curvature.measure_shift(before, after)


def test_a_loss_that_does_not_move_suggests_nothing():
    found = fs.lr_range_test(lambda lr: 0.7, (1e-3, 1.0, 20))
    assert (found.steepest, found.lowest, found.tenth) == (None, None, None)
    with pytest.raises(TypeError, match="optimizer: expected one with a state dict, got int"):
        fs.lr_range_test(lambda lr: 0.7, (1e-3, 1.0, 20), optimizer=3)
