"""When to stop, and with which weights."""

import math

import numpy as np
import pytest

import fusedstep as fs
from checkpoints import through
from helpers import assert_same_bits

F = np.float32
NAN, INF = math.nan, math.inf


def first_stop(stopping, metrics):
    """The position of the observation that says to stop; None where none does."""
    for k, metric in enumerate(metrics):
        if stopping.observe(metric):
            return k
    return None


class TestWhen:
    @pytest.mark.parametrize(
        ("arguments", "metrics", "stop", "best", "best_step"),
        [
            ({"patience": 1}, [3.0, 2.0, 2.0], 2, 2.0, 1),
            ({"patience": 2}, [3.0, 2.0, 2.5, 1.0, 1.5, 1.25, 0.0], 5, 1.0, 3),
            ({"patience": 3}, [1.0, 2.0, 3.0], None, 1.0, 0),
            ({"patience": 3}, [1.0, 2.0, 3.0, 4.0], 3, 1.0, 0),
            ({"patience": 2, "min_delta": 0.5}, [3.0, 2.75, 2.5, 2.0], 2, 3.0, 0),
            ({"patience": 2, "min_delta": 0.5}, [3.0, 2.75, 2.25, 2.0], None, 2.25, 2),
            ({"patience": 2, "mode": "max"}, [0.5, 0.75, 0.75, 0.5], 3, 0.75, 1),
            ({"patience": 2, "mode": "max", "min_delta": 0.5}, [0.5, 1.0, 1.25, 1.5, 1.75], 4, 1.25, 2),
            ({"patience": 2}, [1.0, NAN, NAN], 2, 1.0, 0),
            ({"patience": 2}, [NAN, 1.0, NAN, 0.5], None, 0.5, 3),
            ({"patience": 2}, [NAN, NAN], 1, None, None),
            ({"patience": 1}, [INF, 1.0, 2.0], 2, 1.0, 1),
            ({"patience": 2, "mode": "max"}, [-INF, -5.0, -5.0, -6.0], 3, -5.0, 1),
        ],
    )
    def test_it_stops(self, arguments, metrics, stop, best, best_step):
        stopping = fs.EarlyStopping(**arguments)
        assert first_stop(stopping, metrics) == stop
        assert (stopping.best, stopping.best_step) == (best, best_step)

    def test_random_metrics_against_a_search_of_the_whole_past(self, rng):
        """Stop at the first k ≥ patience with no value among the last `patience` below all those before them."""
        for _ in range(50):
            metrics = rng.integers(0, 50, 60).astype(float)
            patience = int(rng.integers(1, 12))
            expected = next(
                (
                    k
                    for k in range(patience, 60)
                    if metrics[: k - patience + 1].min() <= metrics[k - patience + 1 : k + 1].min()
                ),
                None,
            )
            assert first_stop(fs.EarlyStopping(patience), metrics) == expected

    def test_steps_of_ones_own(self):
        stopping = fs.EarlyStopping(3)
        stopping.observe(2.0, step=100)
        stopping.observe(1.0, step=np.int64(200))
        assert stopping.best_step == 200
        stopping.observe(0.5)
        assert stopping.best_step == 2

    def test_it_goes_on_saying_so_until_it_improves(self):
        stopping = fs.EarlyStopping(1)
        assert [stopping.observe(metric) for metric in (1.0, 1.0, 1.0, 0.5)] == [False, True, True, False]


class TestWeights:
    @pytest.mark.parametrize("structure", ["array", "list", "dict"])
    def test_the_best_are_put_back(self, rng, structure):
        w, n = np.asfortranarray(rng.standard_normal((3, 4)).astype(F)), np.zeros(1, np.int64)
        w[0, :2] = [-0.0, NAN]
        params = {"array": w, "list": [w, n], "dict": {"w": w, "n": n}}[structure]
        stopping = fs.EarlyStopping(2, params=params)
        stopping.observe(1.0)
        best = w.copy(order="K")
        for k in range(2):
            w += 1
            n += 1
            assert (w != best).any()
            assert stopping.observe(1.0) is (k == 1)
        assert w.tobytes() == best.tobytes()
        assert n[0] == (2 if structure == "array" else 0)
        w += 1
        stopping.restore()
        assert w.tobytes() == best.tobytes()

    def test_an_optimizer_goes_on_from_them(self):
        params = {"w": np.full(2, 2.0)}
        optimizer = fs.SGD(params, lr=0.25)
        stopping = fs.EarlyStopping(1, params=params)
        assert not stopping.observe(1.0)
        optimizer.step({"w": np.ones(2)})
        assert params["w"].tolist() == [1.75] * 2
        assert stopping.observe(2.0)
        assert params["w"].tolist() == [2.0] * 2
        optimizer.step({"w": np.ones(2)})
        assert params["w"].tolist() == [1.75] * 2

    def test_none_are_kept(self):
        w = np.zeros(2)
        for stopping in (fs.EarlyStopping(1), fs.EarlyStopping(1, restore_best=False, params=w)):
            assert not stopping.observe(1.0)
            w += 1
            now = w.tolist()
            assert stopping.observe(1.0)
            assert w.tolist() == now
            with pytest.raises(RuntimeError, match="restore: no weights are kept"):
                stopping.restore()
        with pytest.raises(RuntimeError, match="nothing was observed"):
            fs.EarlyStopping(1, params=w).restore()


class TestStates:
    def test_a_resumed_run_stops_where_the_uninterrupted_one_does(self, tmp_path, rng):
        metrics = 1 / np.arange(1, 40) + 0.05 * rng.standard_normal(39)
        metrics[4] = NAN

        def run(stopping, w, steps):
            for step in steps:
                w[...] = step
                if stopping.observe(metrics[step]):
                    return step
            return None

        w = np.empty(3, F)
        whole = fs.EarlyStopping(6, params={"w": w})
        expected = run(whole, w, range(39))
        assert 8 < expected < 38
        for split in range(1, expected):
            again = np.zeros(3, F)
            first = fs.EarlyStopping(6, params={"w": again})
            assert run(first, again, range(split)) is None
            loaded = through(tmp_path / "run", [again], stopping=first.state_dict())
            fresh = loaded.params["0"]
            resumed = fs.EarlyStopping(6, params={"w": fresh})
            resumed.load_state_dict(loaded.metadata["stopping"])
            assert run(resumed, fresh, range(split, 39)) == expected
            assert_same_bits(fresh, w)
            assert (resumed.best, resumed.best_step) == (whole.best, whole.best_step)

    def test_what_is_refused(self):
        w = np.zeros(3, F)
        stopping = fs.EarlyStopping(6, params=[w])
        empty = stopping.state_dict()
        stopping.observe(1.0)
        good = stopping.state_dict()
        for change, error, message in (
            ({"best": "x"}, TypeError, "best"),
            ({"best": NAN}, ValueError, "best"),
            ({"best": None}, ValueError, "best_step"),
            ({"best_step": -1}, ValueError, "best_step"),
            ({"bad_observations": 0.5}, TypeError, "bad_observations"),
            ({"observations": -1}, ValueError, "observations"),
            ({"best_params": None}, ValueError, "best_params.*expected the best weights, got none"),
            ({"best_params": [np.zeros(2, F)]}, ValueError, r"expected shape \(3,\), got \(2,\)"),
            ({"best_params": [np.zeros(3)]}, TypeError, "expected dtype float32, got float64"),
            ({"best_params": w}, TypeError, "expected a list, got ndarray"),
            ({"more": 1}, KeyError, "more"),
        ):
            with pytest.raises(error, match=message):
                stopping.load_state_dict({**good, "bad_observations": 3, **change})
            assert stopping.state_dict()["bad_observations"] == 0
        with pytest.raises(ValueError, match=r"best_params.*expected none, got some"):
            fs.EarlyStopping(6).load_state_dict(good)
        with pytest.raises(TypeError, match="state: expected a dict, got list"):
            stopping.load_state_dict([])
        stopping.load_state_dict(empty)
        assert stopping.best is None
        with pytest.raises(RuntimeError, match="restore"):
            stopping.restore()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fs.EarlyStopping(0), ValueError, "patience: expected a whole number >= 1"),
        (lambda: fs.EarlyStopping(1.0), TypeError, "patience: expected a whole number, got float"),
        (lambda: fs.EarlyStopping(1, -0.1), ValueError, "min_delta: expected a finite number >= 0"),
        (lambda: fs.EarlyStopping(1, INF), ValueError, "min_delta: "),
        (lambda: fs.EarlyStopping(1, mode="auto"), ValueError, "mode: expected one of 'min', 'max', got 'auto'"),
        (lambda: fs.EarlyStopping(1, restore_best=1), TypeError, "restore_best: expected True or False"),
        (lambda: fs.EarlyStopping(1, params=[3.0]), TypeError, r"params\[0\]: expected an array, got float"),
        (lambda: fs.EarlyStopping(1, params={"w": np.broadcast_to(1.0, 2)}), ValueError, r"params\['w'\]: .*read-only"),
        (lambda: fs.EarlyStopping(1).observe("low"), TypeError, "metric: expected a number, got str"),
        (lambda: fs.EarlyStopping(1).observe(True), TypeError, "metric: expected a number, got bool"),
        (lambda: fs.EarlyStopping(1).observe(1.0, step=-1), ValueError, "step: expected a whole number >= 0"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_refused_observation_changes_nothing():
    stopping = fs.EarlyStopping(1)
    for metric, step in (("x", None), (1.0, 0.5), (1.0, True)):
        with pytest.raises(TypeError):
            stopping.observe(metric, step)
    assert stopping.state_dict() == fs.EarlyStopping(1).state_dict()
