"""Schedules, against PyTorch's and against closed forms."""

import copy
import inspect
import math
import pickle
import random
import sys
import warnings

import numpy as np
import pytest

import fusedstep as fs
from checkpoints import rewritten, through
from fusedstep import schedules
from fusedstep.schedules import (
    ReduceOnPlateau,
    constant,
    cosine,
    cosine_warm_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    join,
    linear,
    multi_step,
    one_cycle,
    polynomial,
    scale,
    step_decay,
    transformer,
    warmup,
    warmup_stable_decay,
)

STEPS = 500
#: One of each, with arguments that are not the defaults.
EXAMPLES = [
    constant(0.3),
    step_decay(0.3, 30, 0.5),
    multi_step(0.3, [10, 200, 201], 0.5),
    exponential(0.3, 0.99),
    polynomial(0.3, 400, 2.5, 0.01),
    linear(0.3, 400, 0.01),
    cosine(0.3, 400, 0.01),
    inverse_sqrt(0.3, 40),
    transformer(64, 40, 2.0),
    one_cycle(0.3, 400, 0.25, 10, 100, "linear", True),
    cyclic(0.01, 0.3, 20, 30, "exp_range", 0.99),
    cosine_warm_restarts(0.3, 10, 2, 0.01),
    warmup_stable_decay(0.3, 400, 40, 80, 0.01, "sqrt"),
    warmup(cosine(0.3, 400), 50, 0.1),
    join([linear(0.0, 50, 0.3), cosine(0.3, 100), constant(0.01)], [50, 150]),
    scale(warmup(join([constant(1.0), exponential(1.0, 0.9)], [70]), 20), 0.3),
    ReduceOnPlateau(0.3, "max", 0.5, 2, 1e-3, "abs", 1, 0.01, 1e-6),
]


def names(examples=EXAMPLES):
    return [type(example).__name__ for example in examples]


def torchs(make, lr=0.3, steps=STEPS):
    """The learning rates that a scheduler of PyTorch gives, before each step and after the last."""
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=lr, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        rates = [optimizer.param_groups[0]["lr"]]
        for _ in range(steps - 1):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
    return np.array(rates, np.float64)


def rates(schedule, steps=STEPS):
    return np.array([schedule(step) for step in range(steps)])


def assert_close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.max(expected))


class TestAgainstTorch:
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (constant(0.3), lambda s, o: s.ConstantLR(o, factor=1.0)),
            (step_decay(0.3, 30), lambda s, o: s.StepLR(o, 30)),
            (step_decay(0.3, 7, 0.9), lambda s, o: s.StepLR(o, 7, 0.9)),
            (multi_step(0.3, [1, 30, 31, 400]), lambda s, o: s.MultiStepLR(o, [1, 30, 31, 400])),
            (multi_step(0.3, [0, 30]), lambda s, o: s.MultiStepLR(o, [0, 30])),
            (exponential(0.3, 0.97), lambda s, o: s.ExponentialLR(o, 0.97)),
            (exponential(0.3, 1.01), lambda s, o: s.ExponentialLR(o, 1.01)),
            (polynomial(0.3, 400), lambda s, o: s.PolynomialLR(o, 400)),
            (polynomial(0.3, 400, 3.0), lambda s, o: s.PolynomialLR(o, 400, 3.0)),
            (polynomial(0.3, 700, 0.5), lambda s, o: s.PolynomialLR(o, 700, 0.5)),
            (linear(0.3, 400), lambda s, o: s.LinearLR(o, 1.0, 0.0, 400)),
            (linear(0.3, 400, 0.03), lambda s, o: s.LinearLR(o, 1.0, 0.1, 400)),
            (linear(0.03, 40, 0.3), lambda s, o: s.LinearLR(o, 0.1, 1.0, 40)),
            (cosine(0.3, STEPS), lambda s, o: s.CosineAnnealingLR(o, STEPS)),
            (cosine(0.3, STEPS - 1, 0.01), lambda s, o: s.CosineAnnealingLR(o, STEPS - 1, 0.01)),
            (cosine_warm_restarts(0.3, 37), lambda s, o: s.CosineAnnealingWarmRestarts(o, 37)),
            (cosine_warm_restarts(0.3, 10, 2), lambda s, o: s.CosineAnnealingWarmRestarts(o, 10, 2)),
            (cosine_warm_restarts(0.3, 1, 3, 0.01), lambda s, o: s.CosineAnnealingWarmRestarts(o, 1, 3, 0.01)),
            (warmup(constant(0.3), 50), lambda s, o: s.LambdaLR(o, lambda t: min(t / 50, 1))),
            (
                warmup(cosine(0.3, STEPS), 50, 0.1),
                lambda s, o: s.LambdaLR(
                    o, lambda t: (0.1 + 0.9 * min(t / 50, 1)) * (1 + math.cos(math.pi * t / STEPS)) / 2
                ),
            ),
            (
                join([linear(0.003, 50, 0.3), cosine(0.3, 300), exponential(0.3, 0.9)], [50, 350]),
                lambda s, o: s.SequentialLR(
                    o,
                    [s.LinearLR(o, 0.01, 1.0, 50), s.CosineAnnealingLR(o, 300), s.ExponentialLR(o, 0.9)],
                    [50, 350],
                ),
            ),
            (scale(exponential(0.6, 0.99), 0.5), lambda s, o: s.LambdaLR(o, lambda t: 0.99**t)),
        ],
    )
    def test_the_same_rates(self, ours, theirs):
        expected = torchs(theirs)
        assert expected.max() > expected.min() or isinstance(ours, constant)
        assert_close(rates(ours), expected)

    @pytest.mark.parametrize("three_phase", [False, True])
    @pytest.mark.parametrize("anneal", ["cos", "linear"])
    @pytest.mark.parametrize(("pct_start", "div_factor", "final_div_factor"), [(0.3, 25, 1e4), (0.123, 4, 10)])
    def test_one_cycle(self, three_phase, anneal, pct_start, div_factor, final_div_factor):
        ours = one_cycle(0.3, STEPS, pct_start, div_factor, final_div_factor, anneal, three_phase)
        expected = torchs(
            lambda s, o: s.OneCycleLR(
                o,
                0.3,
                STEPS,
                pct_start=pct_start,
                div_factor=div_factor,
                final_div_factor=final_div_factor,
                anneal_strategy=anneal,
                three_phase=three_phase,
            )
        )
        assert_close(rates(ours), expected)

    @pytest.mark.parametrize(
        ("mode", "gamma"), [("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.99), ("exp_range", 1.0)]
    )
    @pytest.mark.parametrize(("up", "down"), [(20, None), (13, 29), (1, 1)])
    def test_cyclic(self, mode, gamma, up, down):
        ours = cyclic(0.01, 0.3, up, down, mode, gamma)
        assert_close(rates(ours), torchs(lambda s, o: s.CyclicLR(o, 0.01, 0.3, up, down, mode, gamma)))

    @pytest.mark.parametrize("mode", ["min", "max"])
    @pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
    @pytest.mark.parametrize(("patience", "cooldown", "min_lr", "eps"), [(3, 0, 0.0, 1e-8), (0, 4, 0.01, 1e-3)])
    def test_reduce_on_plateau(self, rng, mode, threshold_mode, patience, cooldown, min_lr, eps):
        torch = pytest.importorskip("torch")
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        arguments = (mode, 0.7, patience, 0.05, threshold_mode, cooldown, min_lr, eps)
        theirs, ours = (
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, *arguments),
            ReduceOnPlateau(0.3, *arguments),
        )
        metrics = np.cumsum(rng.standard_normal(STEPS))
        # Relative to a negative best, PyTorch's margin is on the wrong side.
        metrics = metrics if threshold_mode == "abs" else np.abs(metrics)
        metrics[[3, 40]] = np.nan
        metrics[[0, 50]] = math.inf if mode == "min" else -math.inf
        found = set()
        for metric in metrics:
            theirs.step(metric)
            ours.observe(metric)
            assert ours(7) == optimizer.param_groups[0]["lr"]
            assert ours.bad_observations == theirs.num_bad_epochs
            found.add(ours(7))
        assert len(found) > 3


class TestSignedMetrics:
    @pytest.mark.parametrize("mode", ["min", "max"])
    @pytest.mark.parametrize("value", [-5.0, -1e-9, 0.0, 5.0, -1e300])
    def test_what_stays_is_no_improvement(self, mode, value):
        lr = ReduceOnPlateau(1.0, mode, 0.5, patience=3)
        for _ in range(5):
            lr.observe(value)
        assert (lr(0), lr.best) == (0.5, value)

    @pytest.mark.parametrize("mode", ["min", "max"])
    @pytest.mark.parametrize("best", [-5.0, 5.0])
    def test_the_margin_is_a_part_of_the_size(self, mode, best):
        """An improvement is beyond 10 % of |best|, towards the better side."""
        sign = -1 if mode == "min" else 1
        for change, improves in ((0.09, False), (0.11, True), (-0.01, False), (-0.11, False)):
            lr = ReduceOnPlateau(1.0, mode, threshold=0.1)
            lr.observe(best)
            lr.observe(best + sign * change * abs(best))
            assert (lr.bad_observations == 0) is improves, change

    def test_a_negative_metric_that_gets_worse_does_not_move_the_best(self):
        """Log-likelihoods that creep upwards by less than the threshold at each observation."""
        lr = ReduceOnPlateau(1.0, "min", 0.5, patience=10, threshold=1e-2)
        for k in range(12):
            lr.observe(-5.0 + 0.04 * k)
        assert (lr.best, lr(0)) == (-5.0, 0.5)


class TestClosedForms:
    @pytest.mark.parametrize(("lr", "warmup_steps"), [(0.3, 40), (2.0, 1)])
    def test_inverse_sqrt(self, lr, warmup_steps):
        t = np.arange(1.0, STEPS)
        expected = lr * np.minimum(t / warmup_steps, np.sqrt(warmup_steps / t))
        assert_close(rates(inverse_sqrt(lr, warmup_steps)), np.concatenate([[0.0], expected]))

    def test_transformer(self):
        """Equation 3 of the paper, whose steps are counted from 1."""
        s = np.arange(1.0, STEPS + 1)
        expected = 512**-0.5 * np.minimum(s**-0.5, s * 40**-1.5)
        assert_close(rates(transformer(512, 40)), expected)
        assert_close(rates(transformer(512, 40, 3.0)), 3 * expected)
        assert expected.argmax() == 39 == rates(transformer(512, 40)).argmax()

    def test_the_transformers_rates_as_the_paper_has_them(self):
        """The base model: 4,000 steps of warm-up at a width of 512 peak at 7.0e-4 (1 / √(512 · 4000))."""
        assert math.isclose(transformer(512, 4000)(3999), 1 / math.sqrt(512 * 4000), rel_tol=1e-14)

    @pytest.mark.parametrize(
        ("decay", "shape"),
        [("linear", lambda x: x), ("cosine", lambda x: (1 - np.cos(np.pi * x)) / 2), ("sqrt", np.sqrt)],
    )
    def test_warmup_stable_decay(self, decay, shape):
        t = np.arange(STEPS)
        expected = np.select(
            [t < 40, t < 320, t < 400],
            [0.3 * t / 40, 0.3, 0.3 + (0.01 - 0.3) * shape(np.clip((t - 320) / 80, 0, 1))],
            0.01,
        )
        assert_close(rates(warmup_stable_decay(0.3, 400, 40, 80, 0.01, decay)), expected)

    def test_polynomial_to_a_final_rate(self):
        t = np.minimum(np.arange(STEPS), 400)
        assert_close(rates(polynomial(0.3, 400, 2.5, 0.01)), 0.01 + 0.29 * (1 - t / 400) ** 2.5)

    def test_restarts_and_cycles_far_out(self):
        """Cycle k of length 10 · 2ᵏ starts at 10 · (2ᵏ − 1); a triangle of 50 steps starts at its multiples."""
        restarts, triangles = cosine_warm_restarts(0.3, 10, 2), cyclic(0.0, 0.5, 20, 30, "triangular2")
        for k in range(40):
            assert restarts(10 * (2**k - 1)) == 0.3
            assert restarts(10 * (2**k - 1) + 5 * 2**k) == pytest.approx(0.15, rel=1e-14)
            assert triangles(50 * k + 20) == 0.5 / 2**k
        assert cosine_warm_restarts(0.3, 10)(10**15) == 0.3
        assert triangles(2**53 - 1) == 0.0


class TestEdges:
    @pytest.mark.parametrize(
        ("schedule", "at"),
        [
            (constant(0.3), {0: 0.3, 10**9: 0.3}),
            (step_decay(1.0, 30, 0.5), {0: 1, 29: 1, 30: 0.5, 59: 0.5, 60: 0.25, 30 * 5000: 0}),
            (multi_step(1.0, [3, 4], 0.5), {0: 1, 2: 1, 3: 0.5, 4: 0.25, 5: 0.25, 10**9: 0.25}),
            (exponential(1.0, 0.5), {0: 1, 1: 0.5, 2000: 0}),
            (exponential(1.0, 2.0), {1023: 2.0**1023, 1024: math.inf}),
            (exponential(0.0, 2.0), {0: 0, 5000: 0}),
            (polynomial(0.3, 7, 3.0, 0.1), {0: 0.3, 7: 0.1, 8: 0.1, 10**9: 0.1}),
            (linear(0.3, 7, 0.1), {0: 0.3, 7: 0.1, 8: 0.1, 10**9: 0.1}),
            (linear(0.3, 1), {0: 0.3, 1: 0}),
            (cosine(0.3, 7, 0.1), {0: 0.3, 7: 0.1, 8: 0.1, 10**9: 0.1}),
            (inverse_sqrt(0.3, 4), {0: 0, 4: 0.3, 16: 0.15}),
            (one_cycle(0.5, 20, 0.5, 10, 100), {0: 0.05, 9: 0.5, 19: 0.0005, 20: 0.0005, 10**9: 0.0005}),
            (one_cycle(0.5, 21, 6 / 21, 10, 100, "linear", True), {0: 0.05, 5: 0.5, 10: 0.05, 20: 0.0005, 99: 0.0005}),
            (cyclic(0.1, 0.3, 4, 2), {0: 0.1, 4: 0.3, 6: 0.1, 10: 0.3}),
            (cosine_warm_restarts(0.3, 5), {0: 0.3, 5: 0.3, 10: 0.3}),
            (warmup_stable_decay(0.3, 10, 3, 7, 0.1), {0: 0, 3: 0.3, 10: 0.1, 11: 0.1, 10**9: 0.1}),
            (warmup_stable_decay(0.3, 10, 0, 10, 0.1), {0: 0.3, 10: 0.1}),
            (warmup(constant(0.3), 4, 0.5), {0: 0.15, 4: 0.3, 10**9: 0.3}),
            (warmup(cosine(0.3, 4), 4), {0: 0, 4: 0, 5: 0}),
            (warmup(cosine(0.3, 4), 0), {0: 0.3, 2: 0.15, 4: 0}),
            (warmup(0.3, 0, 0.5), {0: 0.3, 1: 0.3}),
            (warmup(0.3, 4), {0: 0, 1: 0.075, 4: 0.3, 9: 0.3}),
            (warmup(np.float32(0.5), 2), {0: 0, 1: 0.25, 2: 0.5}),
            (join([linear(0.0, 0, 0.3), cosine(0.3, 4)], [0]), {0: 0.3, 2: 0.15, 4: 0}),
            (join([1, 0.5, 0.25], [0, 3]), {0: 0.5, 2: 0.5, 3: 0.25}),
            (scale(0.5, 2.0), {0: 1, 7: 1}),
            (linear(0.1, 0, 0.3), {0: 0.3, 1: 0.3}),
            (join([constant(1.0), linear(0.5, 4)], [3]), {0: 1, 2: 1, 3: 0.5, 7: 0, 10**9: 0}),
            (join([cosine(0.3, 4)], []), {0: 0.3, 4: 0}),
            (scale(linear(0.5, 4), 2.0), {0: 1, 4: 0}),
        ],
    )
    def test_exact_values(self, schedule, at):
        assert {step: schedule(step) for step in at} == pytest.approx(at, rel=1e-15, abs=0)

    @pytest.mark.parametrize("schedule", EXAMPLES, ids=names())
    def test_the_order_of_calls_does_not_matter(self, schedule):
        steps = list(range(450))
        forwards = {step: schedule(step) for step in steps}
        random.Random(1).shuffle(steps)
        assert {step: schedule(step) for step in steps} == forwards
        assert {type(rate) for rate in forwards.values()} == {float}
        assert all(0 <= rate <= 0.3 + 1e-15 for rate in forwards.values())
        assert schedule(np.int64(17)) == forwards[17]

    @pytest.mark.parametrize("schedule", EXAMPLES, ids=names())
    def test_they_are_values(self, schedule):
        others = [pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)]
        if not isinstance(schedule, ReduceOnPlateau):
            others.append(eval(repr(schedule), dict(vars(schedules))))
        for other in others:
            assert other == schedule
            assert repr(other) == repr(schedule)
            assert other(123) == schedule(123)
        if not isinstance(schedule, ReduceOnPlateau):
            assert hash(schedule) == hash(copy.deepcopy(schedule))
            with pytest.raises((AttributeError, TypeError)):
                schedule.lr = 1.0
        assert not hasattr(schedule, "__dict__")

    def test_a_warmup_sees_the_whole_run_and_a_join_its_own_steps(self):
        seen = []
        warmup(lambda step: seen.append(step) or 1.0, 10)(25)
        join([constant(1.0), lambda step: seen.append(step) or 1.0], [20])(25)
        assert seen == [25, 5]

    def test_every_schedule_is_in_the_examples(self):
        kinds = {name for name in schedules.__all__ if name not in ("Schedule", "plot")}
        assert kinds == set(names()) == set(schedules.saving.REGISTRY)

    @pytest.mark.parametrize("name", schedules.__all__)
    def test_they_are_documented(self, name):
        thing = getattr(schedules, name)
        if name != "Schedule":
            assert all(f"{section}:" in thing.__doc__ for section in ("Args", "Raises", "Examples"))
            for argument in list(inspect.signature(thing).parameters):
                assert f"\n    {argument}: " in inspect.getdoc(thing)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: constant(-1.0), ValueError, r"lr: expected a finite number >= 0, got -1.0"),
            (lambda: constant(math.nan), ValueError, "lr: expected a finite number >= 0, got nan"),
            (lambda: constant(math.inf), ValueError, "lr: .* got inf"),
            (lambda: constant(10**400), ValueError, "lr: "),
            (lambda: constant(True), TypeError, "lr: expected a number, got bool"),
            (lambda: constant("1"), TypeError, "lr: expected a number, got str"),
            (lambda: constant(None), TypeError, "lr: expected a number, got NoneType"),
            (lambda: step_decay(0.1, 0), ValueError, "step_size: expected a whole number >= 1 .* got 0"),
            (lambda: step_decay(0.1, 2.0), TypeError, "step_size: expected a whole number, got float"),
            (lambda: step_decay(0.1, 2, 0.0), ValueError, "gamma: expected a finite number > 0, got 0.0"),
            (lambda: multi_step(0.1, []), ValueError, "milestones: expected at least one"),
            (lambda: multi_step(0.1, [3, 3]), ValueError, "milestones: expected rising numbers, got 3 after 3"),
            (lambda: multi_step(0.1, [4, 3]), ValueError, "milestones: expected rising numbers, got 3 after 4"),
            (lambda: multi_step(0.1, [-1, 3]), ValueError, r"milestones\[0\]: expected a whole number >= 0"),
            (lambda: multi_step(0.1, [1, True]), TypeError, r"milestones\[1\]: expected a whole number, got bool"),
            (lambda: multi_step(0.1, 3), TypeError, "milestones: expected a list of whole numbers, got int"),
            (lambda: multi_step(0.1, "12"), TypeError, "milestones: expected a list of whole numbers, got str"),
            (lambda: multi_step(0.1, [1], -1.0), ValueError, "gamma: "),
            (lambda: exponential(0.1, math.inf), ValueError, "gamma: "),
            (lambda: polynomial(0.1, 0), ValueError, "total_steps: expected a whole number >= 1"),
            (lambda: polynomial(0.1, 5, 0.0), ValueError, "power: "),
            (lambda: polynomial(0.1, 5, 1.0, -0.1), ValueError, "final_lr: "),
            (lambda: linear(0.1, -5), ValueError, "total_steps: "),
            (lambda: linear(0.1, 2**53), ValueError, "total_steps: "),
            (lambda: cosine(0.1, 0), ValueError, "total_steps: "),
            (lambda: cosine(0.1, 5, math.nan), ValueError, "final_lr: "),
            (lambda: inverse_sqrt(0.1, 0), ValueError, "warmup_steps: "),
            (lambda: transformer(0, 10), ValueError, "model_size: "),
            (lambda: transformer(10, 0), ValueError, "warmup_steps: "),
            (lambda: transformer(10, 10, -1.0), ValueError, "factor: "),
            (lambda: one_cycle(0.1, 1), ValueError, "total_steps: "),
            (lambda: one_cycle(0.1, 100, 1.0), ValueError, "pct_start: expected a finite number > 0 and < 1, got 1.0"),
            (lambda: one_cycle(0.1, 3), ValueError, "pct_start: expected more than one step of 3"),
            (lambda: one_cycle(0.1, 100, 0.6, three_phase=True), ValueError, "pct_start: expected at most 0.5"),
            (lambda: one_cycle(0.1, 100, div_factor=0), ValueError, "div_factor: "),
            (lambda: one_cycle(0.1, 100, final_div_factor=-1), ValueError, "final_div_factor: "),
            (
                lambda: one_cycle(0.1, 100, anneal="sin"),
                ValueError,
                "anneal: expected one of 'cos', 'linear', got 'sin'",
            ),
            (lambda: one_cycle(0.1, 100, three_phase=1), TypeError, "three_phase: expected True or False, got 1"),
            (lambda: cyclic(0.2, 0.1, 5), ValueError, "max_lr: expected at least lr = 0.2, got 0.1"),
            (lambda: cyclic(0.1, 0.2, 0), ValueError, "step_size_up: "),
            (lambda: cyclic(0.1, 0.2, 5, 0), ValueError, "step_size_down: "),
            (lambda: cyclic(0.1, 0.2, 5, mode="sine"), ValueError, "mode: "),
            (lambda: cyclic(0.1, 0.2, 5, gamma=0.9), ValueError, "gamma: only for mode 'exp_range'"),
            (lambda: cyclic(0.1, 0.2, 5, mode="exp_range", gamma=1.1), ValueError, "gamma: expected at most 1"),
            (lambda: cosine_warm_restarts(0.1, 0), ValueError, "period: "),
            (lambda: cosine_warm_restarts(0.1, 5, 0), ValueError, "period_mult: "),
            (lambda: cosine_warm_restarts(0.1, 5, 1.5), TypeError, "period_mult: "),
            (lambda: warmup_stable_decay(0.1, 10, 6, 5), ValueError, "warmup_steps: .* at most total_steps = 10"),
            (lambda: warmup_stable_decay(0.1, 10, 11, 1), ValueError, "warmup_steps: "),
            (lambda: warmup_stable_decay(0.1, 10, -1, 5), ValueError, "warmup_steps: "),
            (lambda: warmup_stable_decay(0.1, 10, 1, 0), ValueError, "decay_steps: "),
            (lambda: warmup_stable_decay(0.1, 10, 1, 5, decay="exp"), ValueError, "decay: "),
            (lambda: warmup(constant(0.1), -1), ValueError, "steps: "),
            (lambda: warmup(constant(0.1), True), TypeError, "steps: "),
            (lambda: warmup(-0.1, 5), ValueError, "schedule: expected a finite number >= 0, got -0.1"),
            (lambda: warmup(math.nan, 5), ValueError, "schedule: expected a finite number >= 0, got nan"),
            (lambda: warmup(True, 5), TypeError, "schedule: expected a schedule, got True"),
            (lambda: warmup("0.1", 5), TypeError, "schedule: expected a schedule, got '0.1'"),
            (lambda: warmup(cosine, 5), TypeError, "schedule: expected a schedule, got <class"),
            (lambda: warmup(constant(0.1), 5, 1.5), ValueError, "start_factor: expected at most 1"),
            (lambda: warmup(cosine(0.1, 99), 100), ValueError, "steps: .* no longer than the run of 99 steps, got 100"),
            (lambda: warmup(scale(cosine(0.1, 9), 1), 10), ValueError, "steps: .* no longer than the run of 9 steps"),
            (lambda: warmup(join([constant(1), cosine(0.1, 9)], [5]), 15), ValueError, "the run of 14 steps"),
            (lambda: warmup(one_cycle(0.1, 9), 10), ValueError, "steps: .* no longer than the run"),
            (lambda: join([], []), ValueError, "schedules: expected at least one"),
            (lambda: join(constant(0.1), []), TypeError, "schedules: expected a list, got constant"),
            (lambda: join([constant(0.1), None], [5]), TypeError, r"schedules\[1\]: expected a schedule, got None"),
            (lambda: join([constant(0.1), -1.0], [5]), ValueError, r"schedules\[1\]: expected a finite number >= 0"),
            (lambda: join([constant(0.1), 0.1], [-1]), ValueError, r"milestones\[0\]: expected a whole number >= 0"),
            (lambda: join([constant(0.1)], [5]), ValueError, "milestones: expected 0 for 1 schedules, got 1"),
            (lambda: join([constant(0.1)] * 3, [5, 5]), ValueError, "milestones: expected rising"),
            (lambda: scale(constant(0.1), -1.0), ValueError, "factor: "),
            (lambda: scale(None, 1.0), TypeError, "schedule: "),
            (lambda: scale(-0.1, 1.0), ValueError, "schedule: "),
            (lambda: ReduceOnPlateau(-0.1), ValueError, "lr: "),
            (lambda: ReduceOnPlateau(0.1, "least"), ValueError, "mode: expected one of 'min', 'max', got 'least'"),
            (lambda: ReduceOnPlateau(0.1, factor=1.0), ValueError, "factor: "),
            (lambda: ReduceOnPlateau(0.1, patience=-1), ValueError, "patience: "),
            (lambda: ReduceOnPlateau(0.1, threshold=-1), ValueError, "threshold: "),
            (lambda: ReduceOnPlateau(0.1, threshold_mode="both"), ValueError, "threshold_mode: "),
            (lambda: ReduceOnPlateau(0.1, cooldown=0.5), TypeError, "cooldown: "),
            (lambda: ReduceOnPlateau(0.1, min_lr=0.2), ValueError, "min_lr: expected at most lr = 0.1, got 0.2"),
            (lambda: ReduceOnPlateau(0.1, eps=math.nan), ValueError, "eps: "),
            (lambda: ReduceOnPlateau(0.1).observe("low"), TypeError, "metric: expected a number, got str"),
            (lambda: ReduceOnPlateau(0.1).observe(True), TypeError, "metric: expected a number, got bool"),
            (lambda: schedules.plot([], 10), ValueError, "schedules: expected at least one"),
            (lambda: schedules.plot(constant(0.1), 0), ValueError, "steps: "),
            (lambda: schedules.plot({"a": 0.1}, 5), TypeError, "schedules: expected a schedule as 'a', got 0.1"),
        ],
    )
    def test_of_arguments(self, make, error, message):
        with pytest.raises(error, match=message):
            make()

    @pytest.mark.parametrize("schedule", EXAMPLES, ids=names())
    def test_of_steps(self, schedule):
        for step, error in (
            (-1, ValueError),
            (2**53, ValueError),
            (1.0, TypeError),
            (True, TypeError),
            (None, TypeError),
        ):
            with pytest.raises(error, match=r"step: expected a whole number"):
                schedule(step)

    def test_a_state_that_is_none(self):
        plateau = ReduceOnPlateau(0.1)
        good = plateau.state_dict()
        for change, error, message in (
            ({"current_lr": 0.2}, ValueError, "at most lr = 0.1"),
            ({"current_lr": "x"}, TypeError, "current_lr"),
            ({"best": math.nan}, ValueError, "best"),
            ({"bad_observations": -1}, ValueError, "bad_observations"),
            ({"cooldown_left": 0.5}, TypeError, "cooldown_left"),
            ({"more": 1}, KeyError, "expected"),
        ):
            with pytest.raises(error, match=message):
                plateau.load_state_dict({**good, "bad_observations": 1, **change})
            assert plateau == ReduceOnPlateau(0.1)
        with pytest.raises(TypeError, match="state: expected a dict"):
            plateau.load_state_dict(None)


def grads(count=1):
    return [np.ones(2, np.float32) for _ in range(count)]


def arrays(count=1):
    return [np.ones(2, np.float32) for _ in range(count)]


class TestWithOptimizers:
    def test_every_optimizer_asks_for_the_steps_taken(self, vector_optimizer):
        schedule = join([constant(0.25), linear(0.5, 4)], [1])
        optimizer = vector_optimizer(arrays(), lr=schedule)
        assert [optimizer.step(grads()).lr for _ in range(3)] == [0.25, 0.5, 0.375]

    def test_groups(self):
        base = cosine(0.5, 4)
        optimizer = fs.SGD([{"params": arrays(), "lr": scale(base, 0.5)}, {"params": arrays()}], lr=base)
        optimizer.step(grads(2))
        optimizer.step(grads(2))
        assert optimizer.step(grads(2)).lr == pytest.approx((0.125, 0.25), rel=1e-15)

    def test_a_rate_that_overflows_is_refused(self):
        optimizer = fs.SGD(arrays(), lr=exponential(1e300, 1e10))
        optimizer.step(grads())
        with pytest.raises(ValueError, match="lr"):
            optimizer.step(grads())


@pytest.mark.filterwarnings("ignore:load_state_dict. replaced")
class TestCheckpoints:
    @pytest.mark.parametrize("schedule", EXAMPLES, ids=names())
    @pytest.mark.parametrize("kind", [fs.SGD, fs.LBFGS])
    def test_a_fresh_optimizer_takes_it_over(self, tmp_path, schedule, kind):
        params, schedule = arrays(), copy.deepcopy(schedule)
        if isinstance(schedule, ReduceOnPlateau):
            for metric in (1.0, 0.5, 0.5, 0.5, 0.75):
                schedule.observe(metric)
            assert schedule.current_lr < schedule.lr
        loaded = through(tmp_path / "run", params, kind(params, lr=schedule)).optimizer
        assert loaded["schedules"] == [[]]
        assert loaded["param_groups"][0]["lr"] == schedule
        for lr in (0.5, constant(0.1), lambda taken: 0.1, ReduceOnPlateau(0.1)):
            optimizer = kind(arrays(), lr=lr)
            optimizer.load_state_dict(loaded)
            assert optimizer.param_groups[0]["lr"] == schedule
            assert type(optimizer.param_groups[0]["lr"]) is type(schedule)
            if isinstance(schedule, ReduceOnPlateau):
                assert optimizer.param_groups[0]["lr"] is not loaded["param_groups"][0]["lr"]

    def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(self, tmp_path, rng):
        def run(optimizer, params, plateau, gradients):
            for k, gradient in enumerate(gradients):
                optimizer.step([gradient])
                if k % 5 == 4:
                    plateau.observe(float(params[0].sum()))

        gradients = rng.standard_normal((100, 2)).astype(np.float32)
        whole, parts = arrays(), arrays()
        plateau = ReduceOnPlateau(0.1, factor=0.5, patience=1, cooldown=1)
        run(fs.AdamW(whole, lr=warmup(plateau, 20)), whole, plateau, gradients)
        plateau = ReduceOnPlateau(0.1, factor=0.5, patience=1, cooldown=1)
        optimizer = fs.AdamW(parts, lr=warmup(plateau, 20))
        run(optimizer, parts, plateau, gradients[:55])
        reduced = plateau(0)
        assert reduced < 0.1
        loaded = through(tmp_path / "run", parts, optimizer)
        parts = [loaded.params["0"]]
        plateau = ReduceOnPlateau(0.1, factor=0.5, patience=1, cooldown=1)
        optimizer = fs.AdamW(parts, lr=warmup(plateau, 20))
        optimizer.load_state_dict(loaded.optimizer)
        # The object at hand is the one that the optimizer goes on with.
        assert optimizer.param_groups[0]["lr"].schedule is plateau
        assert plateau(0) == reduced
        run(optimizer, parts, plateau, gradients[55:])
        assert plateau(0) < reduced
        assert parts[0].tobytes() == whole[0].tobytes()

    def test_what_groups_share_they_go_on_sharing(self, tmp_path):
        def made(*rates):
            return fs.SGD([{"params": arrays(), "lr": lr} for lr in rates], lr=0.1)

        plateau, other = ReduceOnPlateau(0.5, patience=0), ReduceOnPlateau(0.5, patience=0)
        optimizer = made(plateau, scale(plateau, 0.5), other, 0.25)
        plateau.observe(1.0)
        plateau.observe(2.0)
        loaded = through(tmp_path / "run", [], optimizer).optimizer
        first, second, third, fourth = (group["lr"] for group in loaded["param_groups"])
        assert first is second.schedule
        assert (first, third, fourth) == (plateau, other, 0.25)
        assert first is not third
        fresh = made(0.1, 0.1, 0.1, 0.1)
        fresh.load_state_dict(loaded)
        lrs = [group["lr"] for group in fresh.param_groups]
        assert lrs[0] is lrs[1].schedule
        lrs[0].observe(3.0)
        assert fresh.step(grads(4)).lr == pytest.approx((0.005, 0.0025, 0.5, 0.25), rel=1e-15)
        # One object cannot go on as two: both are new then.
        mine = ReduceOnPlateau(0.5)
        fresh = made(mine, mine, mine, 0.1)
        fresh.load_state_dict(loaded)
        lrs = [group["lr"] for group in fresh.param_groups]
        assert lrs[0] is lrs[1].schedule is mine
        assert (lrs[0], lrs[2]) == (plateau, other)
        assert lrs[2] is not mine

    def test_nothing_has_changed_where_a_state_is_refused(self):
        plateau, saved = ReduceOnPlateau(0.5), ReduceOnPlateau(0.25)
        optimizer = fs.SGD(arrays(), lr=plateau)
        state = fs.SGD(arrays(), lr=saved).state_dict()
        state["param_groups"][0]["momentum"] = -1.0
        with pytest.raises(ValueError, match="momentum"):
            optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["lr"] is plateau
        assert plateau == ReduceOnPlateau(0.5)

    def test_a_live_state_is_not_shared(self):
        theirs = ReduceOnPlateau(0.5, patience=0)
        optimizer = fs.SGD(arrays(), lr=0.1)
        optimizer.load_state_dict(fs.SGD(arrays(), lr=theirs).state_dict())
        theirs.observe(1.0)
        theirs.observe(1.0)
        assert (theirs(0), optimizer.step(grads()).lr) == (0.05, 0.5)

    def test_foreign_functions_are_left_to_the_caller(self, tmp_path):
        class Own(constant):
            pass

        rates = [lambda taken: 0.5, warmup(lambda taken: 0.5, 5), Own(0.5), cosine(0.5, 5)]
        optimizer = fs.SGD([{"params": arrays(), "lr": lr} for lr in rates], lr=0.1)
        loaded = through(tmp_path / "run", [], optimizer).optimizer
        assert loaded["schedules"] == [["lr"], ["lr"], ["lr"], []]
        assert [group.get("lr") for group in loaded["param_groups"]] == [None, None, None, cosine(0.5, 5)]
        optimizer.load_state_dict(loaded)
        assert [group["lr"] for group in optimizer.param_groups] == rates

    def test_numbers_that_json_has_not(self, tmp_path):
        plateau = ReduceOnPlateau(0.1)
        plateau.observe(-math.inf)
        loaded = through(tmp_path / "run", [], fs.SGD(arrays(), lr=plateau)).optimizer
        assert loaded["param_groups"][0]["lr"].best == -math.inf

    def test_older_readers_are_told(self, tmp_path):
        """A file with schedules has a new number; one without can be read by those that know format 2."""
        formats = []
        for lr in (cosine(0.1, 5), 0.1, lambda taken: 0.1):
            fs.save_checkpoint(tmp_path / "run", [], fs.SGD(arrays(), lr=lr))
            rewritten(tmp_path / "run", lambda header, tensors: formats.append(header["format"]))
        fs.save_checkpoint(tmp_path / "run", arrays())
        rewritten(tmp_path / "run", lambda header, tensors: formats.append(header["format"]))
        assert formats == [3, 2, 2, 2]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda rows, o: rows[0]["dict"].update(name="system"), "name: expected one of constant, .*, got 'system'"),
            (lambda rows, o: rows[0]["dict"].update(name="Schedule"), "name: expected one of"),
            (lambda rows, o: rows[0]["dict"].update(name=["cosine"]), "name: expected one of"),
            (lambda rows, o: rows[0]["dict"].pop("name"), "schedule 0: "),
            (lambda rows, o: rows[0]["dict"].update(state={"dict": {}}), "schedule 0: state: cosine has none"),
            (lambda rows, o: rows[0]["dict"].update(arguments=3), "schedule 0: "),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].update(lr=-1.0), "schedule 0: lr: expected"),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].update(lr="x"), "schedule 0: lr: expected"),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].update(lr={"float": "nan"}), "schedule 0: lr: "),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].update(total_steps=0), "total_steps: expected"),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].update(more=0), "arguments of cosine: expected"),
            (lambda rows, o: rows[0]["dict"]["arguments"]["dict"].pop("final_lr"), "arguments of cosine: expected"),
            (lambda rows, o: rows[1]["dict"]["schedules"]["dict"].update(schedule=[1]), "schedule 1: "),
            (lambda rows, o: rows[1]["dict"]["schedules"]["dict"].update(schedule=[-1]), "schedule 1: "),
            (lambda rows, o: rows[1]["dict"]["schedules"]["dict"].update(schedule=[True]), "schedule 1: "),
            (lambda rows, o: rows[1]["dict"]["schedules"]["dict"].update(schedule=[]), "schedule 1: "),
            (lambda rows, o: rows[1]["dict"]["schedules"]["dict"].update(steps=[0]), "schedule 1: "),
            (lambda rows, o: rows[1]["dict"]["arguments"]["dict"].update(steps=101), "steps: .* no longer"),
            (lambda rows, o: rows[2]["dict"].update(state=None), "schedule 2: state: expected a dict"),
            (lambda rows, o: rows[2]["dict"]["state"]["dict"].update(current_lr=5.0), "schedule 2: .*current_lr"),
            (lambda rows, o: rows[2]["dict"]["state"]["dict"].pop("best"), "schedule 2: "),
            (lambda rows, o: rows.append(3), "schedule 3: "),
            (lambda rows, o: rows.pop(), "'lr' is schedule 2"),
            (lambda rows, o: o["schedule_rows"][0].update(lr=-1), "'lr' is schedule -1"),
            (lambda rows, o: o["schedule_rows"][0].update(lr=True), "'lr' is schedule True"),
            (lambda rows, o: o["schedule_rows"][0].update(params=1), "'params' is schedule 1"),
            (lambda rows, o: o["schedule_rows"].pop(), "2 groups, schedules of 1"),
            (lambda rows, o: o.update(schedule_rows=[3, 3]), "a group's schedules is 3"),
            (lambda rows, o: o.pop("schedule_rows"), "no 'schedule_rows'"),
            (lambda rows, o: o.pop("schedule_table"), "no 'schedule_table'"),
        ],
    )
    def test_damage_is_refused(self, tmp_path, change, expected):
        path = tmp_path / "run"
        groups = [{"params": arrays(), "lr": lr} for lr in (warmup(cosine(0.1, 100), 5), ReduceOnPlateau(0.1))]
        fs.save_checkpoint(path, [], fs.SGD(groups, lr=0.1))
        rewritten(path, lambda header, tensors: None)
        fs.load_checkpoint(path)
        rewritten(path, lambda h, t: change(h["optimizer"]["schedule_table"], h["optimizer"]))
        with pytest.raises(ValueError, match=f"{path}: damaged: .*{expected}"):
            fs.load_checkpoint(path)

    def test_every_flipped_byte_of_the_table(self, tmp_path):
        path = tmp_path / "run"
        fs.save_checkpoint(path, [], fs.SGD([{"params": arrays(), "lr": warmup(cosine(0.1, 100), 5)}], lr=0.1))
        whole = path.read_bytes()
        start, end = whole.index(b"schedule_table"), whole.index(b"schedule_rows")
        assert 0 < start < end
        for place in range(start, end):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=str(path)):
                fs.load_checkpoint(path)


class TestPlot:
    def test_what_is_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        path = tmp_path / "lr.svg"
        curves = {"down": linear(1.0, 4), "own": lambda step: 0.5}
        axes = schedules.plot(curves, 6, path=path)
        assert path.read_text().lstrip().startswith("<?xml")
        assert [line.get_label() for line in axes.lines] == list(curves)
        assert axes.lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4, 5]
        assert axes.lines[0].get_ydata().tolist() == [1, 0.75, 0.5, 0.25, 0, 0]
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2
        assert axes.get_legend() is not None
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "learning rate")

    def test_on_given_axes_and_long_runs(self):
        figure = pytest.importorskip("matplotlib.figure").Figure()
        axes = figure.subplots()
        assert schedules.plot([cosine(1.0, 10**6), constant(0.5)], 10**6, ax=axes) is axes
        assert axes.lines[0].get_xdata()[[0, -1]].tolist() == [0, 10**6 - 1]
        assert len(axes.lines[0].get_xdata()) < 5000
        assert [line.get_label() for line in axes.lines] == ["1 cosine", "2 constant"]
        alone = schedules.plot(cosine(1.0, 10), 10, ax=figure.subplots())
        assert alone.get_legend() is None

    def test_a_figure_of_its_own(self):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        axes = schedules.plot(cosine(1.0, 10), 10)
        assert axes.figure.number in plt.get_fignums()
        plt.close(axes.figure)

    def test_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedstep\[train\]'"):
            schedules.plot(constant(0.1), 5)
