"""The doctor: every rule on both sides of its thresholds, and real runs."""

import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _core
from fusedstep.apps.cli import main
from fusedstep.doctor import (
    Doctor,
    RunRecorder,
    Thresholds,
    Verdict,
    cases,
    dead_part,
    diagnosis,
    healthy,
    rules,
    trial,
)
from fusedstep.doctor.run import TELEMETRY, Run
from fusedstep.doctor.verdict import REMEDIES
from fusedstep.doctor.windows import Windows

F = np.float32
N = 100  # steps of a synthetic run: windows of 10
PAGE = Path(__file__).parents[2] / "docs/doctor.md"
#: A seed that neither set the thresholds nor is judged in the table.
SEED = 200


def record(losses, *, val=(), dead=(), options=None, chance=None, **telemetry):
    """A run file: a number stands for every step, or for every epoch."""
    losses = [losses] * N if isinstance(losses, float) else list(losses)
    length = len(val) or len(dead)
    epochs = [
        {"test_loss": val[k] if len(val) else None, "dead_units": dead[k] if len(dead) else None} for k in range(length)
    ]
    lists = {name: [v] * len(losses) if isinstance(v, float) else list(v) for name, v in telemetry.items()}
    return {"steps": losses, "epochs": epochs, "telemetry": lists, "options": options or {}, "chance_loss": chance}


def named(content, **options):
    return [verdict.name for verdict in Doctor.from_record(content, **options).diagnose()]


def falling(end=0.01, count=N):
    """A healthy loss."""
    return list(np.geomspace(1.0, end, count))


def steps(*parts):
    """(value, how often), one after the other."""
    return [value for value, count in parts for _ in range(count)]


def blow_up(grad=0.101, update=0.0501, loss=3.03, sigma=0.0202, optimizer=None):
    """σ = 0.01 for 60 steps, then a jump, and `sigma`; the limits are 0.1, 0.05, 3 and a σ of 0.02."""
    return record(
        steps((1.0, 60), (loss, 5), (1.0, 35)),
        lr=0.1,
        grad_norm=steps((1e-3, 60), (grad, 1), (1e-3, 39)),
        update_norm=steps((1e-2, 60), (update, 1), (0.1 * 1e-3 / sigma, 39)),
        options={"optimizer": optimizer},
    )


def decay(fall=0.0505, slowed=0.099, rate=0.199):
    """The loss falls by `fall` from the median of steps 30–39 to that of steps 40–49, then at `slowed` of the pace."""
    slope = fall / (10 + 34.5 * fall)
    before = 1 - slope * np.arange(50)
    after = slowed * fall / 20 * 50
    later = after * before[-1] / (25 + 12 * after)
    return record(
        [*before, *(before[-1] - later * np.arange(50))],
        lr=steps((1.0, 50), (rate, 50)),
    )


def bounce(cosine=-0.41, grad=0.31, losses=1.0):
    cosines = cosine if isinstance(cosine, float) else cosine * (N // 2)
    return record(losses, grad_cosine=cosines, grad_norm=steps((1.0, 10), (grad, 90)))


def batch(size=7, val=0.66, norm=True):
    return record(1.0, val=[val] * 4, options={"batch_size": size, "batch_norm": norm})


def fit(train, early, late, count=6):
    """Evaluations of which the first half are `early`, the others `late`; the reference is 1."""
    return record(train, val=[early] * (count // 2) + [late] * (count - count // 2), chance=1.0)


#: A verdict, a run just beyond the limit, and runs just short of it.
BOTH_SIDES = {
    "exploded since the start": ("exploding", record([1.0, *[3.03] * 99]), [record([1.0, *[2.97] * 99])]),
    "exploded after a low": (
        "exploding",
        record(steps((0.3, 50), (0.909, 50)), chance=1.0),
        [record(steps((0.3, 50), (0.891, 50)), chance=1.0), record(steps((0.03, 50), (0.0909, 50)), chance=1.0)],
    ),
    "came back": (
        "exploding",
        record(steps((1.0, 1), (5.0, 49), (0.101, 50))),
        [record(steps((1.0, 1), (5.0, 49), (0.099, 50)))],
    ),
    "long steps": (
        "exploding",
        record(1.0, update_ratio=0.505),
        [record(1.0, update_ratio=0.495), record(falling(), update_ratio=0.505)],
    ),
    "blow-up": (
        "adagrad_blow_up",
        blow_up(),
        [
            blow_up(grad=0.099),
            blow_up(update=0.0499),
            blow_up(loss=2.97),
            blow_up(sigma=0.0198),
            blow_up(optimizer="sgd"),
        ],
    ),
    "dead": (
        "dead_units",
        record(1.0, dead=[0.0, 0.71, 0.71, 0.71]),
        [record(1.0, dead=[0.71, 0.71, 0.69, 0.69]), record(falling(), dead=[0.71] * 4)],
    ),
    # 1 / 0.66 − 1 = 0.515, 1 / 0.67 − 1 = 0.493
    "batch": ("batch_too_small_for_batch_norm", batch(), [batch(size=8), batch(val=0.67), batch(norm=False)]),
    "critical": (
        "at_critical_point",
        record(1.0, grad_norm=0.0198, param_norm=1.0),
        [record(1.0, grad_norm=0.0202, param_norm=1.0), record(1.0, grad_norm=0.0102, param_norm=2.0)],
    ),
    "critical with small parameters": (
        "at_critical_point",
        record(1.0, grad_norm=0.0198, param_norm=0.0),
        [
            record(1.0, grad_norm=0.0202, param_norm=0.0),
            record(steps((1.0, 90), (0.94, 10)), grad_norm=0.01),
            record(0.09, grad_norm=0.001, chance=1.0),
        ],
    ),
    "bouncing": (
        "bouncing",
        bounce(),
        [
            bounce(cosine=-0.39),
            bounce(grad=0.29),
            bounce(losses=steps((1.0, 90), (0.94, 10))),
            bounce(losses=steps((1.0, 50), (0.09, 50))),
        ],
    ),
    "bouncing every other step": ("bouncing", bounce(cosine=[1.0, -0.41]), [bounce(cosine=[1.0, -0.39])]),
    "decayed": (
        "decayed_too_early",
        decay(),
        [
            decay(fall=0.0495),
            decay(slowed=0.101),
            decay(rate=0.201),
            # Eight steps say nothing.
            record([*(1 - 0.005 * np.arange(92)), *[0.545] * 8], lr=steps((1.0, 92), (0.1, 8))),
        ],
    ),
    "crawling": (
        "crawling",
        record(1.0, update_ratio=0.99e-5),
        [
            record(1.0, update_ratio=1.01e-5),
            record(falling(), update_ratio=0.99e-5),
            record(1.0, update_ratio=0.99e-5, lr=list(np.linspace(0.1, 1, N))),
            record(1.0, update_ratio=0.99e-5, lr=steps((1.0, 50), (0.19, 50))),
        ],
    ),
    "flat from the start": (
        "bad_initialization",
        record(steps((1.0, 40), (1.049, 10), (1.0, 50))),
        [
            record(steps((1.0, 40), (1.051, 10), (1.0, 50))),
            record([1.0] * 49),
            record(0.09, chance=1.0),
            record(1.0, lr=list(np.linspace(0.1, 1, N))),
        ],
    ),
    "a bad first loss": (
        "bad_initialization",
        record(list(np.geomspace(5.05, 0.15, N)), chance=1.0),
        [record(list(np.geomspace(4.95, 0.15, N)), chance=1.0), record(list(np.geomspace(5.05, 0.05, N)), chance=1.0)],
    ),
    "a gap that grows": ("overfitting", fit(0.9, 0.9, 1.16), [fit(0.9, 0.9, 1.14)]),
    "a validation loss that rises": ("overfitting", fit(0.9, 1.2, 1.251), [fit(0.9, 1.2, 1.249)]),
    "a gap at a low loss": (
        "overfitting",
        fit(0.24, 0.6, 0.6, count=5),
        [fit(0.26, 0.6, 0.6), fit(0.24, 0.48, 0.48), fit(0.24, 0.6, 0.6, count=4)],
    ),
    "poor": (
        "underfitting",
        record(steps((1.0, 20), (0.3, 55), (0.2703, 25)), chance=1.0),
        [
            record(steps((1.0, 20), (0.3, 55), (0.2697, 25)), chance=1.0),
            # A gap, in too few evaluations to call it overfitting.
            record(steps((1.0, 20), (0.26, 80)), chance=1.0, val=[0.52] * 4),
            record(steps((1.0, 20), (0.24, 80)), chance=1.0),
            record(steps((1.0, 20), (0.26, 20)), chance=1.0),
            record(steps((1.0, 20), (0.26, 80)), chance=1.0, lr=list(np.linspace(0.1, 1, N))),
        ],
    ),
}


class TestRules:
    @pytest.mark.parametrize("case", BOTH_SIDES)
    def test_both_sides_of_every_threshold(self, case):
        verdict, beyond, short = BOTH_SIDES[case]
        assert verdict in named(beyond)
        for content in short:
            assert verdict not in named(content)

    def test_rules_are_in_the_order_of_the_verdicts(self):
        names = [rule.__name__ for rule in diagnosis.RULES]
        assert ["nonfinite", *names, "underfitting", "healthy"] == list(REMEDIES)

    def test_every_verdict_is_tried(self):
        assert {verdict for verdict, _, _ in BOTH_SIDES.values()} | {"nonfinite", "healthy"} == set(REMEDIES)

    def test_thresholds_can_be_set(self):
        content = record(1.0, update_ratio=2e-5)
        assert named(content) == ["bad_initialization"]
        assert named(content, thresholds=Thresholds(crawl_ratio=3e-5)) == ["crawling"]

    @pytest.mark.parametrize(
        "content", [record([*[1.0] * 6, None, 1.0]), record([1.0] * 8, nonfinite=[0] * 6 + [2, 0])]
    )
    def test_nonfinite_needs_no_window(self, content):
        (verdict,) = Doctor.from_record(content).diagnose()
        assert (verdict.name, verdict.numbers["step"]) == ("nonfinite", 7)
        assert verdict.numbers["losses"] + verdict.numbers["gradients"] == 1

    def test_an_explosion_comes_before_what_it_broke(self):
        assert named(record([1.0, *[9.0] * 50, *[None] * 49]))[:2] == ["exploding", "nonfinite"]
        assert named(record([*falling()[:50], *[None] * 50]))[0] == "nonfinite"

    def test_single_steps_do_not_decide(self):
        """Medians: a spike in everything at every twentieth step changes nothing."""
        spiky = [5.0 if k % 20 == 7 else loss for k, loss in enumerate(falling())]
        rare = [k % 20 == 7 for k in range(N)]
        content = record(
            spiky,
            lr=0.1,
            grad_norm=[100.0 if spike else 1.0 for spike in rare],
            grad_cosine=[-1.0 if spike else 0.5 for spike in rare],
            update_ratio=[10.0 if spike else 1e-3 for spike in rare],
            param_norm=1.0,
        )
        assert named(content) == ["healthy"]

    def test_what_explains_leaves_out_what_it_explains(self):
        assert named(record(1.0)) == ["bad_initialization"]
        assert named(record(1.0, update_ratio=1e-9)) == ["crawling"]

    def test_most_important_first(self):
        content = record(1.0, update_ratio=0.6, dead=[1.0] * 3, grad_norm=0.001)
        assert named(content) == ["exploding", "at_critical_point", "dead_units"]

    def test_too_few_steps(self):
        assert named(record([])) == []
        assert named(record([1.0] * 19, update_ratio=0.9)) == []
        assert named(record([1.0] * 20, update_ratio=0.9)) == ["exploding"]

    @pytest.mark.parametrize(("count", "width"), [(20, 10), (100, 10), (500, 50), (2000, 200), (5000, 200)])
    def test_windows_are_a_tenth_of_the_run(self, count, width):
        values = np.arange(count, dtype=np.float64)
        seen = Windows(Run(losses=list(values)), Thresholds())
        assert seen.last == np.median(values[-width:])
        assert seen.before == np.median(values[-2 * width : -width])
        assert seen.first == np.median(values[:width])

    def test_an_evaluation_before_any_step(self):
        content = record(falling(), val=[9.0, *[0.1] * 5])
        for entry, step in zip(content["epochs"], [0, 20, 40, 60, 80, 100], strict=True):
            entry["step"] = step
        assert named(content) == ["healthy"]

    def test_a_loss_of_zero(self):
        assert named(record(0.0, grad_norm=0.0, update_ratio=0.0)) == ["healthy"]

    def test_nothing_finite(self):
        assert named(record([None] * N, grad_norm=[None] * N)) == ["nonfinite"]

    def test_healthy_says_what_it_could_not_see(self):
        doctor = Doctor.from_record(record(falling()))
        assert doctor.unseen() == [
            "adagrad_blow_up",
            "at_critical_point",
            "dead_units",
            "bouncing",
            "decayed_too_early",
            "crawling",
            "overfitting",
        ]
        assert "at_critical_point, dead_units, bouncing" in doctor.diagnose()[0].evidence
        seen = record(
            falling(),
            val=[1.0] * 2,
            dead=[0.0] * 2,
            **dict.fromkeys(("lr", "grad_norm", "update_norm", "update_ratio", "grad_cosine"), 0.1),
        )
        assert Doctor.from_record(seen).unseen() == []

    def test_curvature_is_asked_at_a_critical_point_only(self):
        asked = []

        def curvature():
            asked.append(1)
            return SimpleNamespace(kind="saddle")

        assert named(record(1.0, grad_norm=1.0), curvature=curvature) == ["bad_initialization"]
        assert asked == []
        (verdict,) = Doctor.from_record(record(1.0, grad_norm=1e-9), curvature=curvature).diagnose()
        assert verdict.numbers["kind"] == "saddle"
        assert verdict.evidence.endswith("It is a saddle.")
        assert asked == [1]

    def test_evidence_has_the_numbers_and_the_thresholds(self):
        (verdict,) = Doctor.from_record(record(1.0, update_ratio=3e-7)).diagnose()
        assert "3e-07" in verdict.evidence
        assert "1e-05" in verdict.evidence
        assert verdict.numbers["update_ratio"] == pytest.approx(3e-7)
        assert str(verdict).splitlines()[1:] == [
            f"  remedy: {REMEDIES['crawling']}",
            "  more:   docs/doctor.md#crawling",
        ]
        for content in (beyond for _, beyond, _ in BOTH_SIDES.values()):
            for found in Doctor.from_record(content).diagnose():
                assert all(type(value) in (int, float, str) for value in found.numbers.values())
                assert re.search(r"limit|reference|further than", found.evidence) or found.name == "healthy"


class TestObserving:
    def test_cosines_between_gradients(self):
        doctor = Doctor()
        for grads in (
            {"a": np.array([3.0, 0.0], F), "b": None},
            {"a": np.array([3.0, 4.0], F), "b": None},
            {"a": np.array([-6.0, -8.0], F), "b": None},
            {"a": np.zeros(2, F), "b": None},
            {"a": np.ones(2, F), "b": np.ones(1)},
        ):
            doctor.observe(1.0, grads=grads)
        expected = [math.nan, 0.6, -1.0, math.nan, math.nan]
        np.testing.assert_allclose(doctor.run.telemetry["grad_cosine"], expected, rtol=1e-15)

    def test_gradients_of_any_structure(self):
        words = np.array([0x3F80, 0xC000], np.uint16).view(fs.bfloat16)  # 1 and −2
        sparse = fs.RowSparse(np.array([0]), np.ones((1, 2), F), (3, 2))
        for first, second in (
            (words, np.array([2.0, 1.0])),
            (np.array([1, -2], ml_dtypes.bfloat16), [np.array([2.0, 1.0])]),
            ([[np.array([1.0])], [sparse, np.array([-2.0])]], [[np.array([2.0])], [sparse, np.array([1.0])]]),
        ):
            doctor = Doctor()
            doctor.observe(1.0, grads=first)
            doctor.observe(1.0, grads=second)
            assert doctor.run.telemetry["grad_cosine"][1] == 0.0

    def test_gradients_are_copied(self):
        doctor, grad = Doctor(), np.array([1.0, 2.0])
        doctor.observe(1.0, grads=grad)
        grad *= -1
        doctor.observe(1.0, grads=grad)
        assert doctor.run.telemetry["grad_cosine"][1] == pytest.approx(-1, rel=1e-15)

    def test_what_a_report_has(self):
        a, b = np.full(4, 2.0), np.full(1, 1.0)
        optimizer = fs.SGD([{"params": a, "lr": 0.5}, {"params": b}], lr=0.25, momentum=0.9, telemetry=True)
        doctor = Doctor(optimizer)
        doctor.observe(1.0, report=optimizer.step([np.full(4, 1.0), np.full(1, 2.0)]))
        seen = {name: values[0] for name, values in doctor.run.telemetry.items()}
        # Steps of 0.5 in each of four elements and of 0.5 in one.
        expected = {
            "lr": 0.5,
            "grad_norm": math.sqrt(8),
            "update_norm": math.sqrt(1.25),
            "param_norm": math.sqrt(17),
            "update_ratio": math.sqrt(1.25 / 17),
            "largest_update_ratio": 0.5,
            "grad_momentum_cosine": 1.0,
            "nonfinite": 0.0,
        }
        assert seen == pytest.approx(expected, rel=1e-12)

    def test_dead_part(self):
        layer = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
        assert dead_part(layer) == 0.5
        assert dead_part({"a": np.ones((2, 3)), "b": layer}) == 0.5
        assert dead_part([np.stack([layer, np.zeros((2, 4))], axis=-1)]) == 0.5

    def test_accuracies_and_validation(self):
        doctor = Doctor(batch_size=4, batch_norm=True, chance_loss=2.0)
        doctor.observe(1.0)
        doctor.observe(0.5, 0.75, train_accuracy=0.5, val_accuracy=0.25)
        content = doctor.to_record()
        assert content["epochs"] == [
            {
                "epoch": 1,
                "step": 2,
                "train_loss": 0.75,
                "test_loss": 0.75,
                "train_accuracy": 0.5,
                "test_accuracy": 0.25,
                "dead_units": None,
            }
        ]
        assert content["options"] == {"batch_size": 4, "batch_norm": True}
        assert content["chance_loss"] == 2.0

    def test_what_is_measured_later_is_missing_before(self):
        doctor = Doctor()
        doctor.observe(1.0)
        doctor.observe(math.inf, grads=np.ones(2))
        doctor.observe(1.0, grads=np.ones(2))
        content = doctor.to_record()
        assert content["steps"] == [1.0, None, 1.0]
        assert content["telemetry"] == {"grad_cosine": [None, None, pytest.approx(1.0)]}

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: Doctor(3), TypeError, "optimizer: expected an Optimizer or None, got int"),
            (lambda: Doctor(fs.SGD(np.ones(1))), ValueError, "optimizer: expected one with telemetry=True"),
            (lambda: Doctor(thresholds={}), TypeError, "thresholds: expected Thresholds or None, got dict"),
            (lambda: Doctor(curvature=3), TypeError, "curvature: expected a function or None, got int"),
            (lambda: Doctor(batch_size=0), ValueError, "batch_size: expected a whole number >= 1, got 0"),
            (lambda: Doctor(batch_size=True), TypeError, "batch_size: expected a whole number, got bool True"),
            (lambda: Doctor(batch_norm=1), TypeError, "batch_norm: expected True or False, got int 1"),
            (lambda: Doctor(chance_loss=0), ValueError, "chance_loss: expected a finite number > 0, got 0"),
            (lambda: Doctor(chance_loss="x"), TypeError, "chance_loss: expected a number, got str 'x'"),
            (lambda: Doctor().observe("x"), TypeError, "train_loss: expected a number, got str 'x'"),
            (lambda: Doctor().observe(True), TypeError, "train_loss: expected a number, got bool True"),
            (lambda: Doctor().observe(1.0, "x"), TypeError, "val_loss: expected a number, got str 'x'"),
            (lambda: Doctor().observe(1.0, val_accuracy=[]), TypeError, "val_accuracy: expected a number"),
            (lambda: Doctor().observe(1.0, report=3), TypeError, "report: expected a StepReport or None, got int"),
            (lambda: Doctor().observe(1.0, grads=np.ones(2, int)), TypeError, "grads: expected arrays of floating"),
            (lambda: Doctor().observe(1.0, grads="x"), TypeError, "grads: expected an array, got str"),
            (lambda: Doctor().observe(1.0, activations=np.ones(2)), ValueError, "activations: expected shape"),
            (lambda: Doctor().observe(1.0, activations=[]), ValueError, "activations: expected at least one array"),
            (
                lambda: Doctor(fs.SGD(np.ones(1), telemetry=True)).observe(1.0),
                ValueError,
                "report: expected what optimizer.step gave, got None",
            ),
            (lambda: RunRecorder(None), TypeError, "optimizer: expected an Optimizer, got NoneType"),
            (lambda: Thresholds(window=0.6), ValueError, "window: expected a finite number in its range"),
            (lambda: Thresholds(solved=math.inf), ValueError, "solved: expected a finite number in its range"),
            (lambda: Thresholds(dead=True), TypeError, "dead: expected a number, got True"),
            (lambda: Thresholds(min_window=2.5), TypeError, "min_window: expected a whole number, got 2.5"),
            (lambda: Thresholds(max_window=5), ValueError, "max_window: expected at least min_window = 10, got 5"),
        ],
    )
    def test_errors(self, call, error, message):
        with pytest.raises(error, match=re.escape(message)):
            call()

    def test_a_refused_observation_leaves_no_trace(self):
        doctor = Doctor()
        doctor.observe(1.0, grads=np.ones(2))
        for wrong in ({"val_loss": "x"}, {"report": 3}, {"grads": np.ones(2, int)}, {"activations": np.ones(2)}):
            with pytest.raises((TypeError, ValueError)):
                doctor.observe(2.0, **wrong)
        assert doctor.run.losses == [1.0]
        assert doctor.run.evaluations == []


class TestRecords:
    @pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
    def test_one_seed_of_each_scripted_run(self, case):
        """And the record of the run says what the doctor said who watched it."""
        doctor = case.run(SEED)
        found = doctor.diagnose()
        assert found[0].name == case.verdict
        content = json.loads(json.dumps(doctor.to_record(), allow_nan=False))
        assert repr(Doctor.from_record(content).diagnose()) == repr(found)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_no_sigma_without_a_rate_per_parameter(self, momentum):
        """Of the run on which RMSProp's σ is too small, SGD's loss rises as well, for another reason."""
        (case,) = (case for case in cases.CASES if case.name == "rmsprop, one class first")
        assert case.run(SEED).diagnose()[0].name == "adagrad_blow_up"
        order = cases._one_class_first
        doctor = cases.train(SEED, cases.sgd(0.03, momentum=momentum), batch_size=16, epochs=1, order=order)
        assert doctor.diagnose()[0].name == "exploding"

    def test_rules_without_sigma_are_rules(self):
        assert set(_core.rules()) > rules.ONE_RATE

    @pytest.mark.parametrize("index", [0, 3, 6])
    def test_healthy_runs(self, index):
        doctor = healthy.run(index, SEED)
        assert [verdict.name for verdict in doctor.diagnose()] == ["healthy"]
        assert doctor.unseen() == []

    def test_healthy_settings_differ(self):
        settings = [repr(healthy.settings(index)) for index in range(healthy.COUNT)]
        assert len(set(settings)) == healthy.COUNT == 50

    def test_a_recorder_keeps_what_a_doctor_sees(self):
        rng = np.random.default_rng(3)
        params = {"w": rng.standard_normal((3, 2)).astype(F)}
        optimizer = fs.AdamW(params, telemetry=True)
        recorder, doctor = RunRecorder(optimizer), Doctor(optimizer)
        call = recorder.through(lambda function, *args, **kwargs: function(*args, **kwargs))
        other = fs.AdamW(np.ones(1), telemetry=True)
        for k in range(4):
            grads = {"w": rng.standard_normal((3, 2)).astype(F)}
            report = recorder.step(grads) if k < 2 else call(optimizer.step, grads)
            call(other.step, np.ones(1))
            doctor.observe(1.0, report=report, grads=grads)
        assert set(recorder.telemetry) == set(TELEMETRY)
        assert recorder.telemetry == doctor.to_record()["telemetry"]
        recorder.cut(3)
        assert {len(values) for values in recorder.telemetry.values()} == {3}

    def test_epochs_of_equal_length_where_no_step_is_given(self):
        content = {"steps": [1.0] * 10, "epochs": [{"test_loss": 1.0}] * 3}
        assert [entry["step"] for entry in Doctor.from_record(content).run.evaluations] == [3, 6, 10]

    def test_numbers_that_no_double_holds(self):
        assert named({"steps": [10**400, *[1.0] * 20], "epochs": []})[0] == "nonfinite"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": None}, "record['steps']: expected a list, got NoneType None"),
            ({"steps": [1.0, "x"]}, "record['steps'][1]: expected a number, got str 'x'"),
            ({"steps": [True]}, "record['steps'][0]: expected a number, got bool True"),
            ({"epochs": {}}, "record['epochs']: expected a list, got dict {}"),
            ({"epochs": [3]}, "record['epochs'][0]: expected an object, got int 3"),
            ({"epochs": [{}]}, "record['epochs'][0]: no 'test_loss'"),
            ({"epochs": [{"test_loss": "x"}]}, "record['epochs'][0]['test_loss']: expected a number, got str 'x'"),
            (
                {"epochs": [{"test_loss": 1, "dead_units": []}]},
                "record['epochs'][0]['dead_units']: expected a number, got list []",
            ),
            (
                {"epochs": [{"test_loss": 1, "step": 3}]},
                "record['epochs'][0]['step']: expected a whole number in [0, 2], got 3",
            ),
            (
                {"epochs": [{"test_loss": 1, "step": 2}, {"test_loss": 1, "step": 1}]},
                "record['epochs'][1]['step']: expected a whole number in [2, 2], got 1",
            ),
            ({"telemetry": []}, "record['telemetry']: expected an object, got list []"),
            ({"telemetry": {"lr": 1}}, "record['telemetry']['lr']: expected a list, got int 1"),
            (
                {"telemetry": {"lr": [1]}},
                "record['telemetry']['lr']: expected 2 numbers, as record['steps'] has, got 1",
            ),
            (
                {"telemetry": {"lr": [1, {}]}},
                "record['telemetry']['lr'][1]: expected a number, got dict {}",
            ),
            ({"options": {"optimizer": 3}}, "record['options']['optimizer']: expected a string, got int 3"),
            ({"options": 3}, "record['options']: expected an object, got int 3"),
            ({"options": {"batch_size": 1.5}}, "record['options']['batch_size']: expected a whole number, got float"),
            ({"options": {"batch_norm": "x"}}, "record['options']['batch_norm']: expected True or False, got str 'x'"),
            ({"chance_loss": -1}, "record['chance_loss']: expected a finite number > 0, got -1"),
        ],
    )
    def test_records_that_do_not_fit(self, change, message, capsys, tmp_path):
        content = {"steps": [1.0, 1.0], "epochs": []} | change
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            Doctor.from_record(content)
        path = tmp_path / "run.json"
        path.write_text(json.dumps(content))
        assert main(["doctor", str(path)]) == 2
        assert f"{path}: {message}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no JSON, or not all of it"),
            ("{", "no JSON, or not all of it"),
            ('{"steps": [1.0, 2', "no JSON, or not all of it"),
            ("[" * 100_000, "no JSON, or not all of it"),
            ("[]", "record: expected an object, got list []"),
            ("{}", "record: no 'steps'"),
            ('{"steps": []}', "record: no 'epochs'"),
        ],
    )
    def test_files_that_are_none(self, text, message, capsys, tmp_path):
        path = tmp_path / "run.json"
        path.write_text(text)
        assert main(["doctor", str(path)]) == 2
        assert f"{path}: {message}" in capsys.readouterr().err

    def test_bytes_and_missing_files(self, capsys, tmp_path):
        (tmp_path / "a").write_bytes(b"\xff\xfe{")
        assert main(["doctor", str(tmp_path / "a")]) == 2
        assert "no JSON" in capsys.readouterr().err
        assert main(["doctor", str(tmp_path / "b")]) == 2
        assert "No such file" in capsys.readouterr().err

    def test_every_truncation(self, tmp_path, capsys):
        text = json.dumps(record([1.0] * 3, val=[1.0], lr=0.1))
        path = tmp_path / "run.json"
        for end in range(len(text)):
            path.write_text(text[:end])
            assert main(["doctor", str(path)]) == 2
        assert "no JSON, or not all of it" in capsys.readouterr().err


class TestCommands:
    def test_verdicts_of_a_file(self, capsys, tmp_path, monkeypatch):
        for module in ("sklearn", "rich", "matplotlib", "safetensors", "scipy", "torch"):
            monkeypatch.setitem(sys.modules, module, None)
        path, out = tmp_path / "run.json", tmp_path / "verdicts.json"
        path.write_text(json.dumps(record(1.0, update_ratio=1e-9)))
        assert main(["doctor", str(path), "--json", str(out)]) == 0
        text = capsys.readouterr().out
        assert text.startswith("crawling: Updates are 1e-09 of the parameters")
        written = json.loads(out.read_text())
        assert written["steps"] == N
        (verdict,) = written["verdicts"]
        assert set(verdict) == {"name", "evidence", "remedy", "page", "numbers"}
        assert main(["doctor", str(path), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out) == written

    def test_too_short_a_run(self, capsys, tmp_path):
        path = tmp_path / "run.json"
        path.write_text(json.dumps(record([1.0] * 5)))
        assert main(["doctor", str(path)]) == 0
        assert capsys.readouterr().out == "nothing can be said of 5 steps; a diagnosis takes 20\n"

    @pytest.mark.parametrize("arguments", [[], ["run.json", "--trial"]])
    def test_either_a_file_or_a_trial(self, arguments, capsys):
        assert main(["doctor", *arguments]) == 2
        assert "expected either a file RUN.json or --trial" in capsys.readouterr().err

    def test_output_is_checked_before_the_work(self, capsys, tmp_path):
        assert main(["doctor", "--trial", "--json", str(tmp_path / "a/b")]) == 2
        assert "--json: cannot write" in capsys.readouterr().err

    def test_trial(self, capsys, monkeypatch, tmp_path):
        wrong = cases.Case("not so", "crawling", cases.CASES[0].run)
        monkeypatch.setattr(trial, "CASES", (cases.CASES[0], wrong))
        monkeypatch.setattr(trial, "SEEDS", range(2))
        monkeypatch.setattr(healthy, "COUNT", 1)
        out = tmp_path / "trial.json"
        assert main(["doctor", "--trial", "--json", str(out)]) == 0
        text = capsys.readouterr().out
        assert re.search(r"not so +│ crawling +│ +0/2 │ +0/2", text)
        assert re.search(r"1 settings +│ healthy +│ +1/1", text)
        written = json.loads(out.read_text())
        assert [case["first"] for case in written["cases"]] == [2, 0]
        assert written["cases"][1]["said_first"] == {"at_critical_point": 2}
        assert written["healthy"]["healthy"] == 1

    def test_train_says_what_is_wrong(self, capsys, tmp_path):
        path = tmp_path / "run.json"
        options = ["--epochs", "3", "--hidden", "8", "--optimizer", "sgd", "--lr", "1e-7", "--json", str(path)]
        assert main(["train", *options, "--doctor"]) == 0
        text = capsys.readouterr().out
        # Once when it showed, and once at the end.
        assert text.count("doctor, epoch 1: crawling: ") == text.count("doctor, epoch") == 1
        assert text.count("remedy: ") == 1
        content = json.loads(path.read_text())
        assert {len(values) for values in content["telemetry"].values()} == {3 * 23}
        assert [entry["step"] for entry in content["epochs"]] == [23, 46, 69]
        assert content["chance_loss"] == pytest.approx(2.302585, rel=1e-6)
        assert set(content["telemetry"]) == set(TELEMETRY)
        assert 0 <= content["epochs"][-1]["dead_units"] <= 1
        assert main(["doctor", str(path)]) == 0
        assert capsys.readouterr().out.startswith("crawling: ")


class TestPage:
    def text(self):
        return PAGE.read_text(encoding="utf-8")

    def test_a_section_for_every_verdict(self):
        assert re.findall(r"^### (\w+)$", self.text(), re.MULTILINE) == list(REMEDIES)
        for name in REMEDIES:
            assert Verdict(name, "", {}).page == f"docs/{PAGE.name}#{name}"

    def test_thresholds_are_those_of_the_code(self):
        rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", self.text(), re.MULTILINE))
        assert {name: float(value) for name, value in rows.items()} == {
            field.name: field.default for field in fields(Thresholds)
        }

    def test_the_table_has_every_scripted_run(self):
        rows = re.findall(r"^\| ([^|`]+) \| `(\w+)` \| (\d+)/10 \| (\d+)/10 \|$", self.text(), re.MULTILINE)
        assert [(name, verdict) for name, verdict, _, _ in rows] == [(case.name, case.verdict) for case in cases.CASES]
        assert all(int(first) >= 9 for _, _, first, _ in rows)


def test_picture_of_the_steps(tmp_path):
    """What is 0 or lost has no place on a logarithmic axis."""
    telemetry = {"update_ratio": [1e-3, 0.0, None, 2e-3], "largest_update_ratio": [1e-2, 1e-2, None, 5e-2]}
    axes = fs.doctor.plot_update_ratios(telemetry, path=tmp_path / "ratios.svg")
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(drawn["all parameters"], [1e-3, np.nan, np.nan, 2e-3])
    np.testing.assert_array_equal(drawn["largest of a tensor"], [1e-2, 1e-2, np.nan, 5e-2])
    assert (tmp_path / "ratios.svg").exists()
    with pytest.raises(ValueError, match="telemetry: expected update_ratio"):
        fs.doctor.plot_update_ratios({"lr": [1.0]})


def test_at_an_optimum_no_step_is_too_small():
    """Full-batch descent on noisy data, to the last digit: its steps are nothing, and that is right."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5))
    y = x @ rng.standard_normal(5) + 0.7 * rng.standard_normal(200)
    w = np.zeros(5)
    optimizer = fs.SGD(w, lr=0.1, telemetry=True)
    doctor = fs.doctor.Doctor(optimizer)
    for _ in range(600):
        error = x @ w - y
        grad = 2 * x.T @ error / len(y)
        doctor.observe(float((error**2).mean()), report=optimizer.step(grad), grads=grad)
    names = [verdict.name for verdict in doctor.diagnose()]
    assert "crawling" not in names
    assert "bad_initialization" not in names


def test_a_fall_within_the_first_window_is_one():
    losses = [1.0 * 0.8**k + 0.5 for k in range(600)]
    flat = {"steps": [0.5] * 600, "epochs": [], "chance_loss": 0.6}
    assert fs.doctor.Doctor.from_record(flat).diagnose()[0].name == "bad_initialization"
    fallen = {**flat, "steps": losses}
    assert fs.doctor.Doctor.from_record(fallen).diagnose()[0].name != "bad_initialization"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [-1.0] * 30}, r"record\['steps'\]\[0\]: expected a number in \[0, inf\], got -1"),
        ({"telemetry": {"lr": [-1.0] * 30}}, r"record\['telemetry'\]\['lr'\]\[0\]: expected a number in \[0, inf\]"),
        ({"telemetry": {"update_ratio": [-1.0] * 30}}, r"\['update_ratio'\]\[0\]: expected a number in \[0, inf\]"),
        ({"epochs": [{"test_loss": 1.0, "dead_units": 5}]}, r"'dead_units'\]: expected a number in \[0, 1\], got 5"),
    ],
)
def test_numbers_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        fs.doctor.Doctor.from_record({"steps": [1.0] * 30, "epochs": [], **change})


def test_a_loss_below_zero():
    with pytest.raises(ValueError, match="train_loss: expected a loss >= 0, got -1"):
        fs.doctor.Doctor().observe(-1.0)
