"""LBFGS against its equations and torch; its line search against the conditions it promises; what it refuses."""

import copy
import pickle
import sys

import numpy as np
import pytest

import fusedstep as fs
import oracles
from fusedstep.optimizers.lbfgs import LBFGS, LBFGSReport
from helpers import assert_same_bits, ones
from optional import torch

# Where another optimizer takes a state over, hyper-parameters change.
pytestmark = pytest.mark.filterwarnings("ignore:load_state_dict. replaced")

F, D = np.float32, np.float64
WOLFE = {"line_search_fn": "strong_wolfe"}


def orthonormal(rng, rows, columns):
    """Random orthonormal columns in long double, by Gram and Schmidt, twice."""
    q = rng.standard_normal((rows, columns)).astype(np.longdouble)
    for k in range(columns):
        for _ in range(2):
            q[:, k] -= q[:, :k] @ (q[:, k] @ q[:, :k])
        q[:, k] /= np.sqrt(q[:, k] @ q[:, k])
    return q


def exact_least_squares(rng, size=20, rows=30, condition=100.0):
    """½‖Ax − b‖² in long double, where AᵀA has this condition number: the function, and its minimum."""
    left, right = orthonormal(rng, rows, size), orthonormal(rng, size, size)
    scales = np.logspace(0, -np.log10(condition) / 2, size)
    matrix = left * scales @ right.T
    target = rng.standard_normal(rows)

    def function(x):
        residual = matrix @ np.asarray(x, np.longdouble) - target
        return 0.5 * (residual @ residual), matrix.T @ residual

    return function, right @ (target @ left / scales)


def rounded(function):
    """Its loss and gradient as float64: within a rounding of the exact ones, whatever BLAS the processor gets."""

    def wrapped(x):
        loss, gradient = function(x)
        return float(loss), gradient.astype(D)

    return wrapped


def least_squares(rng, size=20, rows=30, condition=100.0):
    """The same in float64."""
    function, minimum = exact_least_squares(rng, size, rows, condition)
    return rounded(function), minimum.astype(D)


def rosenbrock(x):
    """Its minimum is 0, at ones."""
    loss, gradient = exact_rosenbrock(x)
    return float(loss), gradient


def exact_rosenbrock(x):
    """In the precision of x."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * a - 2 * b
    gradient[1:] += 200 * a
    return (100 * a * a + b * b).sum(), gradient


def quadratic(x):
    return 0.5 * float(x @ x), x.copy()


class Recorded:
    """The closure of a function of one array; remembers every call."""

    def __init__(self, function, param):
        self.function, self.param = function, param
        self.places, self.losses = [], []

    def __call__(self):
        loss, gradient = self.function(self.param)
        self.places.append(self.param.copy())
        self.losses.append(loss)
        return loss, gradient


def torch_closure(function, peers):
    """The same for torch parameters, whose values `function` gets as one vector."""

    def closure():
        loss, gradient = function(np.concatenate([peer.detach().numpy().ravel() for peer in peers]))
        ends = np.cumsum([peer.numel() for peer in peers])[:-1]
        for peer, part in zip(peers, np.split(gradient, ends), strict=True):
            peer.grad = torch.from_numpy(part.reshape(peer.shape).copy())
        return torch.tensor(loss, dtype=torch.float64)

    return closure


def list_closure(function, params):
    def closure():
        loss, gradient = function(np.concatenate([param.ravel() for param in params]))
        ends = np.cumsum([param.size for param in params])[:-1]
        parts = np.split(gradient, ends)
        return loss, [part.reshape(param.shape) for part, param in zip(parts, params, strict=True)]

    return closure


def assert_close(mine, theirs, tolerance):
    mine, theirs = np.asarray(mine), np.asarray(theirs)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()


def continue_from(peer, peers, optimizer, params):
    """Gives our side the parameters and the state of torch's."""
    for param, other in zip(params, peers, strict=True):
        param[...] = other.detach().numpy()
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))


def tensors(value):
    """Our state dict as torch keeps it."""
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tensors(item) for item in value]
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


# What a run of many steps can be held to: each move's rounding is multiplied by what the next moves make of it, and
# torch rounds as the kernels of the processor at hand do. After 30 steps of the fourth problem its distance is below
# 1e-12 of the largest parameter with AVX-512, and 4e-12 without. So whole runs are compared with the equations in long
# double, from gradients that are exact but for their last rounding: what is left is our own rounding, the same on every
# processor, at most 2e-13. Torch is asked for one step at a time from its own state, where little is multiplied: with
# any kernels it is within 1e-14.
PROBLEMS = [
    (100.0, {"max_iter": 1}),
    (1e4, {"max_iter": 1}),
    (100.0, {"max_iter": 2}),
    (100.0, {"max_iter": 4, "lr": 0.3}),
    (10.0, {"max_iter": 4, "history_size": 3, "lr": 0.5}),
    (10.0, {"max_iter": 20}),
    (10.0, {}),
    (10.0, {"max_iter": 3, "max_eval": 2}),
    (10.0, {"max_iter": 6, "tolerance_grad": 0.05}),
    (10.0, {"max_iter": 6, "tolerance_change": 1e-3}),
    (10.0, {"max_iter": 6, "tolerance_grad": 0.0, "tolerance_change": 0.0}),
    (10.0, {"max_iter": 3, "lr": 0.0}),
]
ROSENBROCK = [{"lr": 0.1, "max_iter": 4}, {"lr": 0.5, "max_iter": 1}, {"max_iter": 12}]


class TestAgainstTheEquations:
    """Whole runs."""

    @pytest.mark.parametrize(("condition", "hypers"), PROBLEMS)
    def test_thirty_steps(self, condition, hypers, rng):
        """A least-squares problem in three tensors: after each step a relative difference of at most 1e-12."""
        function, _ = exact_least_squares(rng, condition=condition)
        params = [rng.standard_normal(shape) for shape in [(7,), (1, 5), (2, 2, 2)]]
        expected = oracles.lbfgs(np.concatenate([param.ravel() for param in params]), function, 30, **hypers)
        optimizer = LBFGS(params, **hypers)
        closure = list_closure(rounded(function), params)
        for place, evaluations, moves in expected:
            report = optimizer.step(closure)
            assert_close(np.concatenate([param.ravel() for param in params]), place, 1e-12)
            # Once the moves are down to rounding, how many there are is chance.
            if report.grad_max > 1e-12:
                state = optimizer.state[0]
                assert (state["func_evals"], state["n_iter"]) == (evaluations, moves)

    @pytest.mark.parametrize("hypers", ROSENBROCK)
    def test_rosenbrock(self, hypers):
        p = np.array([-1.2, 1.0])
        optimizer = LBFGS(p, **hypers)
        for place, _, _ in oracles.lbfgs(p, exact_rosenbrock, 12 // hypers["max_iter"], **hypers):
            optimizer.step(lambda: rosenbrock(p))
            assert_close(p, place, 1e-12)


class TestAgainstTorch:
    """Without a line search, every decision is torch's: one step at a time from its own state."""

    @pytest.mark.parametrize(("condition", "hypers"), PROBLEMS)
    def test_thirty_steps(self, condition, hypers, rng):
        """A least-squares problem in three tensors: relative difference at most 1e-12."""
        function, _ = least_squares(rng, condition=condition)
        params = [rng.standard_normal(shape) for shape in [(7,), (1, 5), (2, 2, 2)]]
        peers = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
        optimizer, peer = LBFGS(params, **hypers), torch.optim.LBFGS(peers, **hypers)
        closure, peer_closure = list_closure(function, params), torch_closure(function, peers)
        for step in range(30):
            if step:
                continue_from(peer, peers, optimizer, params)
            report = optimizer.step(closure)
            assert report.initial_loss == float(peer.step(peer_closure))
            for mine, other in zip(params, peers, strict=True):
                assert_close(mine, other.detach().numpy(), 1e-12)
            state, theirs = optimizer.state[0], peer.state[peers[0]]
            # Once the moves are down to rounding, how many there are is chance.
            if report.grad_max > 1e-12:
                assert (state["func_evals"], state["n_iter"]) == (theirs["func_evals"], theirs["n_iter"])
            if hypers.get("max_iter") == 1:
                assert_close(state["d"], theirs["d"], 1e-12)

    @pytest.mark.parametrize("hypers", ROSENBROCK)
    def test_rosenbrock(self, hypers):
        p = np.array([-1.2, 1.0])
        q = torch.nn.Parameter(torch.from_numpy(p.copy()))
        optimizer, peer = LBFGS(p, **hypers), torch.optim.LBFGS([q], **hypers)
        for step in range(12 // hypers["max_iter"]):
            if step:
                continue_from(peer, [q], optimizer, [p])
            optimizer.step(lambda: rosenbrock(p))
            peer.step(torch_closure(rosenbrock, [q]))
            assert_close(p, q.detach().numpy(), 1e-12)

    def test_state(self, rng):
        """The state is torch's, by name and value."""
        function, _ = least_squares(rng)
        p = rng.standard_normal(20)
        q = torch.nn.Parameter(torch.from_numpy(p.copy()))
        optimizer, peer = LBFGS(p, max_iter=2, history_size=3), torch.optim.LBFGS([q], max_iter=2, history_size=3)
        for step in range(5):
            if step:
                continue_from(peer, [q], optimizer, [p])
            optimizer.step(lambda: function(p))
            peer.step(torch_closure(function, [q]))
            mine, theirs = optimizer.state[0], peer.state[q]
            assert list(mine) == [name for name in theirs if name != "al"]
            for name, value in mine.items():
                if isinstance(value, list):
                    for one, other in zip(value, theirs[name], strict=True):
                        assert_close(one, other, 1e-12)
                else:
                    assert_close(value, theirs[name], 1e-12)
        assert len(mine["ro"]) == 3

    def test_float32(self, rng):
        function, _ = least_squares(rng, condition=10.0)
        p = rng.standard_normal(20).astype(F)
        q = torch.nn.Parameter(torch.from_numpy(p.copy()))

        def single(x):
            loss, gradient = function(x)
            return loss, gradient.astype(F)

        optimizer, peer = LBFGS(p, max_iter=1), torch.optim.LBFGS([q], max_iter=1)
        for step in range(10):
            if step:
                continue_from(peer, [q], optimizer, [p])
            optimizer.step(lambda: single(p))
            peer.step(torch_closure(single, [q]))
            assert_close(p, q.detach().numpy(), 1e-6)
        assert all(array.dtype == F for array in [optimizer.state[0]["d"], *optimizer.state[0]["old_stps"]])

    def test_gradients_that_are_none(self, rng):
        function, _ = least_squares(rng, size=6, condition=10.0)
        a, b = rng.standard_normal((2, 3))
        peers = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in (a, b)]
        optimizer, peer = LBFGS([a, b]), torch.optim.LBFGS(peers)
        before = b.copy()

        def closure():
            loss, gradient = function(np.concatenate([a, b]))
            return loss, [gradient[:3], None]

        def peer_closure():
            loss = torch_closure(function, peers)()
            peers[1].grad = None
            return loss

        optimizer.step(closure)
        peer.step(peer_closure)
        assert_same_bits(b, before)
        assert_close(a, peers[0].detach().numpy(), 1e-12)

    def test_a_closure_that_clamps(self, rng):
        """As in style transfer: the closure limits the parameters first, and the moves go on from there."""
        function, _ = least_squares(rng, condition=10.0)
        p = rng.standard_normal(20)
        q = torch.nn.Parameter(torch.from_numpy(p.copy()))
        optimizer, peer = LBFGS(p, max_iter=3), torch.optim.LBFGS([q], max_iter=3)

        def closure():
            np.clip(p, -5.0, 5.0, out=p)
            return function(p)

        def peer_closure():
            q.data.clamp_(-5.0, 5.0)
            return torch_closure(function, [q])()

        for step in range(5):
            if step:
                continue_from(peer, [q], optimizer, [p])
            optimizer.step(closure)
            peer.step(peer_closure)
            assert_close(p, q.detach().numpy(), 1e-12)

    def test_states_are_exchanged(self, rng):
        """Each goes on from the other's state dict, ten times there and back: every step agrees to 1e-12."""
        function, _ = least_squares(rng)
        p = rng.standard_normal(20)
        q = torch.nn.Parameter(torch.from_numpy(p.copy()))
        hypers = {"max_iter": 2, "history_size": 4}
        peer = torch.optim.LBFGS([q], **hypers)
        closure, peer_closure = (lambda: function(p)), torch_closure(function, [q])
        for _ in range(4):
            peer.step(peer_closure)
        for _ in range(10):
            optimizer = LBFGS(p)
            continue_from(peer, [q], optimizer, [p])
            assert optimizer.param_groups[0]["history_size"] == 4
            optimizer.step(closure)
            peer.step(peer_closure)
            assert_close(p, q.detach().numpy(), 1e-12)

            with torch.no_grad():
                q.copy_(torch.from_numpy(p))
            peer = torch.optim.LBFGS([q])
            peer.load_state_dict(tensors(optimizer.state_dict()))
            optimizer.step(closure)
            peer.step(peer_closure)
            assert_close(p, q.detach().numpy(), 1e-12)

    def test_state_before_any_move(self):
        """Torch's state has no direction yet when the first step found nothing to do."""
        q = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        peer = torch.optim.LBFGS([q])
        peer.step(torch_closure(quadratic, [q]))
        p = ones(2, dtype=D)
        optimizer = LBFGS(p)
        optimizer.load_state_dict(peer.state_dict())
        assert optimizer.state == {0: {"func_evals": 1, "n_iter": 0}}
        optimizer.step(lambda: quadratic(p))
        assert np.abs(p).max() < 1e-12


class TestReport:
    """What a step says of itself."""

    @pytest.mark.parametrize(
        ("hypers", "reason", "iterations", "evaluations"),
        [
            ({}, "tolerance_grad", 2, 3),
            ({"tolerance_grad": 10.0}, "tolerance_grad", 0, 1),
            ({"max_iter": 1}, "max_iter", 1, 1),
            ({"max_iter": 1, "tolerance_change": 2.0}, "tolerance_change", 1, 1),
            ({"max_iter": 5, "max_eval": 2}, "max_eval", 1, 2),
            ({"tolerance_change": 100.0}, "tolerance_change", 1, 1),
            ({"lr": 0.0}, "tolerance_change", 1, 2),
            ({"max_iter": 50, **WOLFE}, "tolerance_grad", 2, 3),
        ],
    )
    def test_reasons(self, hypers, reason, iterations, evaluations):
        p = np.array([3.0, 4.0])
        closure = Recorded(quadratic, p)
        optimizer = LBFGS(p, **hypers)
        report = optimizer.step(closure)
        assert (report.reason, report.iterations, report.evaluations) == (reason, iterations, evaluations)
        assert report.converged == reason.startswith("tolerance")
        assert (report.step, report.initial_loss) == (1, 12.5)
        assert len(closure.losses) == evaluations == optimizer.state[0]["func_evals"]
        assert report.loss == closure.losses[-1]
        assert report.grad_max == np.abs(closure.places[-1]).max()

    def test_steps_are_counted(self):
        p = ones(2)
        optimizer = LBFGS(p)
        assert [optimizer.step(lambda: quadratic(p)).step for _ in range(3)] == [1, 2, 3]

    def test_is_frozen(self):
        report = LBFGSReport(1, 0.5, 1.0, 0.1, 3, 2, "max_iter")
        with pytest.raises(AttributeError):
            report.loss = 0.0
        assert not report.converged
        assert pickle.loads(pickle.dumps(report)) == report


class TestLineSearch:
    def test_rosenbrock(self):
        p = np.array([-1.2, 1.0, -0.5, 2.0, 0.3])
        closure = Recorded(rosenbrock, p)
        report = LBFGS(p, max_iter=200, tolerance_grad=1e-10, tolerance_change=1e-16, **WOLFE).step(closure)
        np.testing.assert_allclose(p, np.ones(5), rtol=1e-9)
        assert report.converged
        assert report.evaluations == len(closure.losses) < 150

    def test_least_squares(self, rng):
        function, minimum = least_squares(rng)
        p = rng.standard_normal(20)
        report = LBFGS(p, max_iter=200, tolerance_change=0.0, **WOLFE).step(lambda: function(p))
        assert report.reason == "tolerance_grad"
        # max |g| <= tolerance_grad, and the least curvature is 1/100.
        assert np.linalg.norm(p - minimum) <= 100 * np.sqrt(20) * 1e-7
        assert report.loss <= function(minimum)[0] + 1e-11

    def test_float32(self):
        p = np.array([-1.2, 1.0], F)
        optimizer = LBFGS(p, max_iter=100, **WOLFE)
        for _ in range(3):
            optimizer.step(lambda: rosenbrock(p))
        np.testing.assert_allclose(p, 1.0, rtol=1e-3)

    @pytest.mark.parametrize("lr", [1e-3, 1.0, 1e3])
    @pytest.mark.parametrize("problem", ["rosenbrock", "least_squares"])
    def test_moves_satisfy_the_wolfe_conditions(self, problem, lr, rng):
        """One move per step, checked with the function alone, however bad the first try is."""
        function, _ = least_squares(rng, rows=20) if problem == "least_squares" else (rosenbrock, None)
        p = rng.standard_normal(20 if problem == "least_squares" else 4)
        closure = Recorded(function, p)
        optimizer = LBFGS(p, lr=lr, max_iter=1, max_eval=60, tolerance_change=0.0, **WOLFE)
        for _ in range(30):
            before = p.copy()
            report = optimizer.step(closure)
            if report.grad_max < 1e-4:
                break
            move = p - before
            (loss, gradient), (next_loss, next_gradient) = function(before), function(p)
            slope = gradient @ move
            assert slope < 0.0
            assert next_loss <= loss + 1e-4 * slope * (1 - 1e-6)
            assert abs(next_gradient @ move) <= 0.9 * abs(slope) * (1 + 1e-6)
            assert (report.initial_loss, report.loss) == (loss, next_loss)
        assert report.loss < 0.1 * closure.losses[0]

    @pytest.mark.parametrize("hypers", [{}, {"lr": 0.01}, {"lr": 100.0}])
    def test_no_place_is_evaluated_twice(self, hypers):
        p = np.array([-1.2, 1.0])
        closure = Recorded(rosenbrock, p)
        report = LBFGS(p, max_iter=60, **hypers, **WOLFE).step(closure)
        assert len({place.tobytes() for place in closure.places}) == len(closure.places) == report.evaluations

    @pytest.mark.parametrize("lr", [1e-3, 1.0, 50.0])
    @pytest.mark.parametrize("max_eval", [2, 3, 5, 8])
    def test_evaluations_are_limited(self, max_eval, lr):
        """A search that the limit has ended goes on with shorter moves in the next step, so that it gets somewhere."""
        p = np.array([-1.2, 1.0])
        start = rosenbrock(p)[0]
        optimizer = LBFGS(p, max_iter=20, max_eval=max_eval, lr=lr, **WOLFE)
        for _ in range(40):
            closure = Recorded(rosenbrock, p)
            report = optimizer.step(closure)
            assert report.evaluations == len(closure.losses) <= max_eval
            assert report.loss == min(closure.losses) == rosenbrock(p)[0]
            if report.loss == report.initial_loss and not report.converged:
                assert report.reason == "max_eval"
                optimizer.load_state_dict(optimizer.state_dict())  # the shorter move is part of the state
        assert rosenbrock(p)[0] < 0.95 * start

    @pytest.mark.parametrize("line_search", [{}, WOLFE])
    def test_one_evaluation(self, line_search):
        """A move that no evaluation is left for is made unseen: the minimum of a quadratic is found all the same."""
        p = np.array([3.0, 4.0])
        optimizer = LBFGS(p, max_eval=1, **line_search)
        for step in range(12):
            closure = Recorded(quadratic, p)
            report = optimizer.step(closure)
            assert len(closure.losses) == report.evaluations == 1
            assert report.reason == ("max_eval" if step < 2 else report.reason)
        assert report.converged
        np.testing.assert_allclose(p, 0.0, atol=1e-6)

    def test_backs_off_from_what_is_not_finite(self):
        """log x has no value beyond 0, nor has its gradient: the minimum of x − log x is found all the same."""
        p = np.array([3.0, 0.01])
        values = []

        def closure():
            if p.min() <= 0.0:
                values.append(p.copy())
                return -np.inf if len(values) % 2 else np.nan, np.full(2, np.nan)
            return float((p - np.log(p)).sum()), 1 - 1 / p

        report = LBFGS(p, lr=20.0, max_iter=50, **WOLFE).step(closure)
        assert values
        np.testing.assert_allclose(p, 1.0, rtol=1e-4)
        assert report.converged

    def test_a_wall_nearby(self):
        """Where only moves of less than 1/2000 of the first try lead anywhere: SciPy gives up, halving goes on."""
        p = np.array([1.0])

        def closure():
            return (float(p[0]), ones(1, dtype=D)) if p[0] > 1 - 1e-5 else (np.nan, ones(1, dtype=D))

        report = LBFGS(p, max_iter=1, max_eval=40, **WOLFE).step(closure)
        assert 1 - 1e-5 < p[0] < 1.0
        assert report.loss == p[0]

    def test_a_loss_without_end(self):
        """Nothing on the line satisfies the curvature condition: the lowest of what was seen is taken."""
        p = np.zeros(1)
        closure = Recorded(lambda x: (float(x[0]), ones(1, dtype=D)), p)
        report = LBFGS(p, max_iter=1, max_eval=10, **WOLFE).step(closure)
        assert report.reason == "max_iter"
        assert p[0] == min(closure.losses) == -(2.0**8)

    def test_no_lower_loss(self):
        """A gradient of the wrong sign: nothing moves, and the report says so."""
        p = np.array([3.0, 4.0])
        closure = Recorded(lambda x: (0.5 * float(x @ x), -x), p)
        optimizer = LBFGS(p, max_iter=50, **WOLFE)
        report = optimizer.step(closure)
        assert p.tolist() == [3.0, 4.0]
        assert (report.reason, report.converged, report.iterations) == ("line_search", False, 1)
        assert report.loss == report.initial_loss == 12.5
        assert report.evaluations == len(closure.losses) <= 62
        assert optimizer.state[0] == {"func_evals": report.evaluations, "n_iter": 0}

    def test_starts_again_down_the_gradient(self):
        """The loss falls straight down the gradient only, not along what the pairs say."""
        p = np.array([1.0, 1.0])
        scale = np.array([1.0, 10.0])
        bent = []

        def closure():
            loss, gradient = 0.5 * float(scale @ (p * p)), scale * p
            if bent:
                (x, y), (gx, gy) = p - bent[0], bent[1]
                loss += 10.0 * (abs(x * gy - y * gx) > 1e-12)
            return loss, gradient

        optimizer = LBFGS(p, max_iter=2, max_eval=200, **WOLFE)
        optimizer.step(closure)
        assert len(optimizer.state[0]["old_dirs"]) == 1
        start, start_gradient = bent[:] = p.copy(), scale * p
        report = optimizer.step(closure)
        assert (report.reason, report.iterations) == ("max_iter", 2)
        assert report.loss < report.initial_loss
        np.testing.assert_allclose((start - p) / start_gradient, optimizer.state[0]["t"], rtol=1e-9)
        assert (optimizer.state[0]["n_iter"], optimizer.state[0]["old_dirs"]) == (1, [])

    def test_ends_where_rounding_begins(self):
        """With no tolerance, the search for a lower loss ends where a move would change no digit."""
        p = np.array([3.0, 4.0])
        closure = Recorded(lambda x: (0.5 * float(x @ x), -x), p)
        report = LBFGS(p, max_iter=50, tolerance_change=0.0, **WOLFE).step(closure)
        assert report.reason == "line_search"
        assert p.tolist() == [3.0, 4.0]
        assert len({place.tobytes() for place in closure.places}) == len(closure.places)

    def test_the_conditions_come_before_the_lowest_loss(self):
        """The first try has a lower loss than the second, but decreases it by too little for its length."""
        p = np.zeros(1)

        def closure():
            if p[0] < 0.25:
                return 0.0, np.array([-1.0])
            return (-0.7e-4, np.array([0.0])) if p[0] < 0.75 else (-0.9e-4, np.array([1.0]))

        report = LBFGS(p, max_iter=1, max_eval=10, tolerance_change=0.0, **WOLFE).step(closure)
        assert report.loss == -0.7e-4
        assert 0.25 < p[0] < 0.75

    def test_a_rate_of_zero(self):
        p = ones(2)
        report = LBFGS(p, lr=0.0, **WOLFE).step(lambda: quadratic(p))
        assert p.tolist() == [1.0, 1.0]
        assert (report.reason, report.evaluations) == ("line_search", 1)

    def test_without_scipy(self, monkeypatch):
        p = ones(2)
        optimizer = LBFGS(p)
        other = LBFGS(ones(2), **WOLFE).state_dict()
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedstep\[lbfgs\]'"):
            LBFGS(p, **WOLFE)
        with pytest.raises(ModuleNotFoundError, match="line_search_fn needs SciPy"):
            optimizer.load_state_dict(other)
        optimizer.param_groups[0]["line_search_fn"] = "strong_wolfe"
        with pytest.raises(ModuleNotFoundError, match="line_search_fn needs SciPy"):
            optimizer.step(lambda: pytest.fail("asked before the check"))
        optimizer.param_groups[0]["line_search_fn"] = None
        optimizer.step(lambda: quadratic(p))


HYPERS = [
    ({"lr": -1}, ValueError, "lr: expected a finite number >= 0, got -1$"),
    ({"lr": float("nan")}, ValueError, "lr: expected a finite number >= 0, got nan"),
    ({"lr": "fast"}, TypeError, "lr: expected a number, got str"),
    ({"lr": True}, TypeError, "lr: expected a number, got bool"),
    ({"lr": 10**400}, ValueError, "lr: expected a finite number >= 0, got 1000"),
    ({"max_iter": 0}, ValueError, "max_iter: expected a whole number >= 1, got 0"),
    ({"max_iter": 1.5}, TypeError, "max_iter: expected a whole number, got float"),
    ({"max_iter": "many"}, TypeError, "max_iter: expected a whole number, got str"),
    ({"max_iter": True}, TypeError, "max_iter: expected a whole number, got bool"),
    ({"max_eval": 0}, ValueError, "max_eval: expected a whole number >= 1, got 0"),
    ({"tolerance_grad": -1e-7}, ValueError, "tolerance_grad: expected a finite number >= 0, got -1e-07"),
    ({"tolerance_grad": None}, TypeError, "tolerance_grad: expected a number, got NoneType"),
    ({"tolerance_change": float("inf")}, ValueError, "tolerance_change: expected a finite number >= 0, got inf"),
    ({"tolerance_change": np.ones(1)}, TypeError, "tolerance_change: expected a number, got ndarray"),
    ({"history_size": -2}, ValueError, "history_size: expected a whole number >= 1, got -2"),
    ({"line_search_fn": "armijo"}, ValueError, "line_search_fn: expected None or 'strong_wolfe', got 'armijo'"),
    ({"line_search_fn": max}, TypeError, "line_search_fn: expected None or 'strong_wolfe', got builtin_function"),
]


class TestErrors:
    """Typed, named, and nothing written."""

    @pytest.mark.parametrize(("hypers", "error", "message"), HYPERS)
    def test_hyper_parameters(self, hypers, error, message):
        p = ones(3)
        with pytest.raises(error, match=message):
            LBFGS(p, **hypers)
        optimizer = LBFGS(p)
        optimizer.param_groups[0].update(hypers)
        with pytest.raises(error, match=message):
            optimizer.step(lambda: pytest.fail("asked before the check"))
        assert optimizer.state == {}

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            ([ones(3), np.ones(3, np.int64)], TypeError, r"params\[1\]: expected float32.* got dtype int64"),
            ([ones(3), ones(3, dtype=D)], TypeError, r"params\[1\]: expected dtype float32 as params\[0\] has"),
            ([ones(4)[::2]], ValueError, r"params\[0\]: expected one dense block of memory"),
            ([np.frombuffer(bytes(16), F)], ValueError, r"params\[0\]: expected a writable array"),
            ([[1.0, 2.0]], TypeError, r"params\[0\]: expected an array, got list"),
            ([], ValueError, "params: expected at least one array, got none"),
            ([{"params": ones(1)}] * 2, ValueError, "takes all parameters in one group, got 2"),
            ([{"lr": 0.1}], ValueError, "a group has no 'params'"),
            ([{"params": ones(1), "momentum": 0.9}], ValueError, "momentum: not a hyper-parameter of LBFGS"),
            ([{"params": [ones(1)], "param_names": ["a", "b"]}], ValueError, "expected 1 names"),
        ],
    )
    def test_parameters(self, params, error, message):
        with pytest.raises(error, match=message):
            LBFGS(params)

    def test_overlapping_parameters(self):
        base = ones(8)
        with pytest.raises(ValueError, match=r"params\[\d\]: overlaps params\[\d\] in memory"):
            LBFGS([base[:5], base[3:]])

    def test_parameters_that_changed(self):
        p = ones(3)
        optimizer = LBFGS(p)
        optimizer.step(lambda: (1.0, ones(3)))
        p.flags.writeable = False
        with pytest.raises(ValueError, match=r"params\[0\]: expected a writable array"):
            optimizer.step(lambda: pytest.fail("asked before the check"))
        optimizer.param_groups[0]["params"] = [ones(4)]
        with pytest.raises(ValueError, match=r"state\[0\]\['d'\]: expected shape \(4,\), got \(3,\)"):
            optimizer.step(lambda: pytest.fail("asked before the check"))

    def test_groups_that_the_user_broke(self):
        for change, error, message in (
            (lambda o: o.param_groups.clear(), ValueError, "param_groups: expected one group, got 0"),
            (lambda o: o.param_groups.append({}), ValueError, "param_groups: expected one group, got 2"),
            (lambda o: o.param_groups.__setitem__(0, 1), TypeError, r"param_groups\[0\]: expected a dict, got int"),
            (lambda o: o.param_groups[0].pop("lr"), ValueError, "lr: missing"),
            (lambda o: o.param_groups[0].pop("params"), ValueError, "a group has no 'params'"),
            (lambda o: o.state.update({0: None}), TypeError, r"state\[0\]: expected a dict, got NoneType"),
        ):
            optimizer = LBFGS(ones(1))
            change(optimizer)
            with pytest.raises(error, match=message):
                optimizer.step(lambda: pytest.fail("asked before the check"))

    @pytest.mark.parametrize(
        ("closure", "error", "message"),
        [
            (None, TypeError, r"closure: expected a function that returns \(loss, grads\), got NoneType"),
            (lambda: 1.0, TypeError, r"closure: expected it to return \(loss, grads\), got float"),
            (lambda: (1.0, None, None), TypeError, r"closure: expected it to return \(loss, grads\), got 3 values"),
            (lambda: ("1.0", [ones(3), None]), TypeError, "loss: expected a number, got str"),
            (lambda: (True, [ones(3), None]), TypeError, "loss: expected a number, got bool"),
            (lambda: (ones(2), [ones(3), None]), TypeError, "loss: expected a number, got ndarray"),
            (lambda: (torch.ones(2), [ones(3), None]), TypeError, "loss: expected a number, got Tensor"),
            (lambda: (1j, [ones(3), None]), TypeError, "loss: expected a number, got complex"),
            (lambda: (np.nan, [ones(3), None]), ValueError, "loss: expected finite numbers, got nan$"),
            (lambda: (10**400, [ones(3), None]), ValueError, "loss: expected finite numbers, got inf$"),
            (lambda: (1.0, [np.full(3, np.inf, F), None]), ValueError, "grads: expected finite numbers, got inf$"),
            (lambda: (1.0, [np.array([1, np.nan, 2], F), None]), ValueError, "grads: expected finite .* got nan$"),
            (lambda: (1.0, ones(3)), TypeError, "grads: expected a list of 2 arrays, got ndarray"),
            (lambda: (1.0, [ones(3)]), ValueError, "grads: expected 2 arrays .* got 1"),
            (lambda: (1.0, [ones(3), ones(4)]), ValueError, r"grads\[1\]: expected shape \(3,\) as params\[1\] has"),
            (lambda: (1.0, [ones(3), ones(3, dtype=D)]), TypeError, r"grads\[1\]: expected dtype float32 as params"),
            (lambda: (1.0, [ones(3), [1.0] * 3]), TypeError, r"grads\[1\]: expected an array, got list"),
            (lambda: (1.0, [ones(3), np.ma.MaskedArray(ones(3))]), TypeError, r"grads\[1\]: expected a plain NumPy"),
        ],
    )
    def test_closures(self, closure, error, message):
        a, b = ones(3), ones(3)
        optimizer = LBFGS([a, b])
        with pytest.raises(error, match=message):
            optimizer.step(closure)
        assert a.tolist() == b.tolist() == [1.0] * 3
        assert optimizer.state == {}
        assert optimizer.step(lambda: (1.0, [None, None])).step == 1

    @pytest.mark.parametrize(
        ("grads", "error", "message"),
        [
            ({"w": ones(3)}, ValueError, r"grads: no gradient for 'b' \(give None"),
            ({"w": None, "b": None, "c": None}, ValueError, "grads: 'c' is not the name of a parameter"),
            ([ones(3), ones(1)], TypeError, "grads: expected a dict with the parameters' names, got list"),
            ({"w": ones(3), "b": ones(2)}, ValueError, r"grads\['b'\]: expected shape \(1,\) as params\['b'\] has"),
        ],
    )
    def test_named_gradients(self, grads, error, message):
        with pytest.raises(error, match=message):
            LBFGS({"w": ones(3), "b": ones(1)}).step(lambda: (1.0, grads))

    def test_a_step_within_a_step(self):
        p = ones(2)
        optimizer = LBFGS(p)
        for call in (lambda: optimizer.step(lambda: quadratic(p)), lambda: optimizer.load_state_dict({})):
            with pytest.raises(RuntimeError, match="this optimizer is in the middle of a step"):
                optimizer.step(call)
        assert optimizer.step(lambda: quadratic(p)).converged

    def test_an_overflowing_direction(self):
        p = ones(2, dtype=D)
        with pytest.raises(ValueError, match=r"grads: too large for a direction in float64, max \|g\| is 1e\+300"):
            LBFGS(p).step(lambda: (1.0, np.full(2, 1e300)))
        assert p.tolist() == [1.0, 1.0]

    def test_an_overflowing_difference(self):
        """Both gradients are numbers, but y is not: refused, not warned of."""
        p = np.zeros(1, F)
        with pytest.raises(ValueError, match="grads: too large for a direction in float32"):
            LBFGS(p).step(lambda: (float(p[0]), np.where(p == 0, F(3e38), F(-3e38))))
        assert p[0] == pytest.approx(-1.0, rel=1e-5)

    def test_a_move_to_what_is_not_finite(self):
        """Without a line search there is no other place to try: back to the last one that had a loss."""
        p = np.array([3.0, 1.0])

        def closure():
            return (float((p - np.log(p)).sum()), 1 - 1 / p) if p.min() > 0 else (np.nan, np.full(2, np.nan))

        with pytest.raises(ValueError, match=r"loss: expected finite numbers, got nan after a move of t = 5 \(a line"):
            LBFGS(p, lr=5.0).step(closure)
        assert p.tolist() == [3.0, 1.0]


class Interrupted:
    """A closure that raises at its n-th call, once."""

    def __init__(self, closure, at, error):
        self.closure, self.calls, self.at, self.error = closure, 0, at, error

    def __call__(self):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.closure()


class TestInterrupts:
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")])
    @pytest.mark.parametrize("at", [1, 2, 3, 6, 11])
    @pytest.mark.parametrize("hypers", [{"lr": 0.3}, WOLFE])
    def test_goes_on_as_if_nothing_had_been(self, hypers, at, error, rng):
        """The steps after an interrupt reach the places that the undisturbed ones do, bit for bit."""
        function, _ = least_squares(rng)
        p = rng.standard_normal(20)
        q = p.copy()
        calm = LBFGS(p, max_iter=15, max_eval=1000, **hypers)
        disturbed = LBFGS(q, max_iter=15, max_eval=1000, **hypers)
        trace = Recorded(function, p)
        calm.step(trace)
        closure = Interrupted(lambda: function(q), at, error)
        with pytest.raises(type(error)):
            disturbed.step(closure)
        state = disturbed.state.get(0, {"n_iter": 0, "func_evals": 0})
        if at == 1:
            assert disturbed.state == {}
        # One of the places that were evaluated, and the state is its own.
        assert any(np.array_equal(q, place) for place in trace.places[: max(1, at - 1)])
        assert state["func_evals"] < at
        disturbed.param_groups[0]["max_iter"] = 15 - state["n_iter"]
        report = disturbed.step(closure)
        assert report.step == 1
        assert_same_bits(p, q)
        assert calm.state[0]["n_iter"] == disturbed.state[0]["n_iter"]
        for name in ("d", "prev_flat_grad", "ro", "H_diag"):
            assert_same_bits(calm.state[0][name], disturbed.state[0][name])

    def test_wrong_gradients_later(self):
        """What is wrong with a later evaluation is refused as at the first, with the parameters at the last place."""
        p = np.array([3.0, 4.0])
        calls = []

        def closure():
            calls.append(p.copy())
            return 0.5 * float(p @ p), p if len(calls) < 3 else p[:1]

        optimizer = LBFGS(p, lr=0.1)
        with pytest.raises(ValueError, match=r"grads\[0\]: expected shape \(2,\)"):
            optimizer.step(closure)
        assert_same_bits(p, calls[1])
        assert (optimizer.state[0]["n_iter"], optimizer.state[0]["func_evals"]) == (1, 2)


class TestStructures:
    @pytest.mark.parametrize("hypers", [{"max_iter": 5}, {"max_iter": 5, **WOLFE}])
    def test_all_are_the_same(self, hypers, rng):
        """One vector, however it is cut up, named, laid out in memory, and however its gradients come."""
        function, _ = least_squares(rng, size=6)
        start = rng.standard_normal(6)
        expected = start.copy()
        LBFGS(expected, **hypers).step(lambda: function(expected))

        def parts():
            return np.asfortranarray(start[:4].reshape(2, 2)), start[4:].copy()

        def step(make_params, make_grads):
            w, b = parts()

            def closure():
                loss, gradient = function(np.concatenate([w.ravel(), b]))
                gw, gb = gradient[:4].reshape(2, 2), gradient[4:]
                # Read-only and reversed in memory: gradients are only read.
                gb = gb[::-1].copy()[::-1]
                gb.flags.writeable = False
                return loss, make_grads(gw, gb)

            LBFGS(make_params(w, b), **hypers).step(closure)
            assert_same_bits(np.concatenate([w.ravel(), b]), expected)

        step(lambda w, b: [w, b], lambda w, b: [w, b])
        step(lambda w, b: (w, b), lambda w, b: (w, b))
        step(lambda w, b: {"w": w, "b": b}, lambda w, b: {"b": b, "w": w})
        for params in (lambda w, b: [w, b], lambda w, b: {"w": w, "b": b}):
            step(lambda w, b, params=params: [{"params": params(w, b)}], lambda w, b: [w, b])
            step(lambda w, b, params=params: [{"params": params(w, b)}], lambda w, b: [[w, b]])
        step(lambda w, b: [{"params": {"w": w, "b": b}}], lambda w, b: [{"w": w, "b": b}])

    def test_a_group_sets_its_own(self):
        optimizer = LBFGS([{"params": ones(2), "max_iter": 8, "lr": 0.5}], lr=0.1)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["max_iter"], group["max_eval"]) == (0.5, 8, 10)
        assert LBFGS(ones(1)).param_groups[0]["max_eval"] == 25

    def test_torch_tensors(self):
        """Parameters, gradients and the loss may be another library's, where NumPy can see them without a copy."""
        q = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

        def closure():
            q.grad = None
            loss = 0.5 * (q**2).sum()
            loss.backward()
            return loss, q.grad

        report = LBFGS(q).step(closure)
        assert report.converged
        assert q.detach().abs().max() < 1e-12

    @pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
    def test_shapes(self, shape):
        p = np.full(shape, 2.0)
        report = LBFGS([p]).step(lambda: (0.5 * float((p * p).sum()), [p]))
        assert report.converged
        assert np.abs(p).max(initial=0.0) < 1e-12

    def test_numbers_of_numpy(self):
        p = ones(2)
        report = LBFGS(p, lr=F(1.0), max_iter=np.int64(3)).step(lambda: (F(0.5) * (p @ p), p))
        assert report.converged
        assert isinstance(report.loss, float)

    def test_schedule_is_a_function_of_steps_taken(self):
        asked = []

        def schedule(taken):
            asked.append(taken)
            return 0.1

        p = np.array([3.0, 4.0])
        optimizer = LBFGS(p, lr=schedule, max_iter=2)
        for _ in range(3):
            optimizer.step(lambda: quadratic(p))
        assert asked == [0, 1, 2]
        optimizer.param_groups[0]["lr"] = lambda taken: -1.0
        with pytest.raises(ValueError, match=r"lr: expected a finite number >= 0, got -1\.0"):
            optimizer.step(lambda: pytest.fail("asked before the check"))


class TestState:
    @pytest.fixture
    def problem(self, rng):
        """A function, and an optimizer that has made some steps, and its parameter."""
        function, _ = least_squares(rng)
        p = rng.standard_normal(20)
        optimizer = LBFGS(p, max_iter=3, history_size=5)
        for _ in range(3):
            optimizer.step(lambda: function(p))
        return function, optimizer, p

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_go_on_alone(self, problem, how):
        function, optimizer, p = problem
        twin = how(optimizer)
        twin_p = twin.param_groups[0]["params"][0]
        report = optimizer.step(lambda: function(p))
        assert not np.array_equal(p, twin_p)
        assert twin.step(lambda: function(twin_p)) == report
        assert report.step == 4
        assert_same_bits(p, twin_p)

    def test_a_copy_within_a_step(self):
        p = ones(2)
        optimizer = LBFGS(p)
        twins = []

        def closure():
            twins.append(copy.deepcopy(optimizer))
            return quadratic(p)

        optimizer.step(closure)
        twin_p = twins[0].param_groups[0]["params"][0]
        assert twins[0].step(lambda: quadratic(twin_p)).converged

    def test_state_dict_round_trip(self, problem):
        function, optimizer, p = problem
        saved, q = copy.deepcopy(optimizer.state_dict()), p.copy()
        other = LBFGS(q, lr=0.1)
        other.load_state_dict(saved)
        for _ in range(3):
            mine, theirs = optimizer.step(lambda: function(p)), other.step(lambda: function(q))
        assert_same_bits(p, q)
        assert mine == theirs
        assert mine.step == 6

    def test_a_state_dict_stays_as_it_was(self, problem):
        """Its arrays are the optimizer's own, but a step makes new ones."""
        function, optimizer, p = problem
        saved = optimizer.state_dict()
        before = copy.deepcopy(saved)
        optimizer.step(lambda: function(p))
        assert repr(saved) == repr(before)

    def test_loading_copies(self, problem):
        _, optimizer, p = problem
        other = LBFGS(p.copy())
        other.load_state_dict(optimizer.state_dict())
        mine, theirs = optimizer.state[0], other.state[0]
        assert_same_bits(mine["d"], theirs["d"])
        for one, two in zip([mine["d"], *mine["old_dirs"]], [theirs["d"], *theirs["old_dirs"]], strict=True):
            assert not np.shares_memory(one, two)
        assert theirs["old_stps"] is not mine["old_stps"]

    def test_vectors_that_the_user_laid_out_otherwise(self, problem):
        function, optimizer, p = problem
        twin = copy.deepcopy(optimizer)
        twin_p = twin.param_groups[0]["params"][0]
        twin.state[0]["d"] = np.repeat(twin.state[0]["d"], 2)[::2]
        optimizer.step(lambda: function(p))
        twin.step(lambda: function(twin_p))
        assert_same_bits(p, twin_p)

    def test_a_shorter_history(self, problem):
        function, optimizer, p = problem
        assert len(optimizer.state[0]["old_dirs"]) == 5
        optimizer.param_groups[0]["history_size"] = 2
        optimizer.step(lambda: function(p))
        assert [len(optimizer.state[0][name]) for name in ("old_dirs", "old_stps", "ro")] == [2, 2, 2]

    def test_wrong_state_dicts_change_nothing(self, problem):
        _, source, _ = problem
        optimizer = LBFGS(ones(20, dtype=D))
        for change, error, message in (
            (lambda s: s.pop("state"), ValueError, "state_dict: no 'state'"),
            (lambda s: s.update(rule="sgd"), ValueError, "expected a state of 'lbfgs', got one of 'sgd'"),
            (lambda s: s["param_groups"][0].update(params=[0, 1]), ValueError, r"groups of \[1\] .* got \[2\]"),
            (lambda s: s["param_groups"].append({"params": []}), ValueError, r"groups of \[1\] .* got \[1, 0\]"),
            (lambda s: s["param_groups"][0].update(max_iter=0), ValueError, "max_iter: expected"),
            (lambda s: s["state"].update({1: {}}), ValueError, "expected the state at position 0, got one at 1"),
            (lambda s: s["state"][0].update(d=np.ones(3)), ValueError, r"\['d'\]: expected shape \(20,\), got \(3,\)"),
            (lambda s: s["state"][0].update(d=ones(20)), TypeError, r"\['d'\]: expected dtype float64, got float32"),
            (lambda s: s["state"][0].update(d=[1.0]), TypeError, r"\['d'\]: expected an array, got list"),
            (lambda s: s["state"][0].pop("H_diag"), ValueError, r"\['H_diag'\]: missing after 6 iterations"),
            (lambda s: s["state"][0].update(H_diag=np.nan), ValueError, r"\['H_diag'\]: expected a finite .* got nan"),
            (lambda s: s["state"][0].update(t="x"), TypeError, r"\['t'\]: expected a number, got str"),
            (lambda s: s["state"][0]["ro"].pop(), ValueError, r"\['ro'\]: expected 5 as 'old_dirs' has, got 4"),
            (lambda s: s["state"][0].update(ro=1.0), TypeError, r"\['ro'\]: expected a list, got float"),
            (lambda s: s["state"][0]["ro"].__setitem__(2, None), TypeError, r"\['ro'\]\[2\]: expected a number"),
            (lambda s: s["state"][0]["old_dirs"].__setitem__(1, np.ones(2)), ValueError, r"\]\[1\]: expected shape"),
            (lambda s: s["state"][0].update(exp_avg=np.ones(20)), ValueError, r"\['exp_avg'\]: not a state of 'lbfgs'"),
            (lambda s: s["state"][0].update(n_iter=-1), ValueError, r"\['n_iter'\]: expected a whole number >= 0"),
            (lambda s: s.update(step=0.5), ValueError, r"state_dict\['step'\]: expected a whole number >= 0"),
        ):
            state = copy.deepcopy(source.state_dict())
            change(state)
            with pytest.raises(error, match=message):
                optimizer.load_state_dict(state)
            assert optimizer.state == {}
            assert optimizer.param_groups[0]["max_iter"] == 20

    def test_repr(self):
        lines = repr(LBFGS([ones(2, 3), ones(1)], lr=0.5)).splitlines()
        assert lines[0] == "LBFGS("
        assert lines[1] == (
            "    2 arrays of 7 parameters: lr=0.5, max_iter=20, max_eval=25, tolerance_grad=1e-07, "
            "tolerance_change=1e-09, history_size=100, line_search_fn=None"
        )


def test_sums_do_not_depend_on_instruction_set_or_threads(native, threads, rng):
    """Without a line search: the same bits on every processor, for the same gradients."""
    scale = rng.uniform(0.5, 2.0, 20000).astype(F)
    start = rng.standard_normal(20000).astype(F)

    def run():
        p = start.copy()
        optimizer = LBFGS(p, max_iter=4)
        for _ in range(2):
            optimizer.step(lambda: (0.0, scale * p))
        return p

    with fs.runtime.use_isa("numpy"):
        expected = run()
    assert_same_bits(run(), expected)
