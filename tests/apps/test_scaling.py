"""`fusedstep bench scaling`: the model against closed forms and cases by hand, and the command."""

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import run
from fusedstep import _core
from fusedstep.apps.bench.process import MeasurementError
from fusedstep.apps.bench.scaling import forecast as forecasts
from fusedstep.apps.bench.scaling import measure, simulate
from fusedstep.apps.bench.scaling.collectives import KINDS, Time, exchange, messages, volume
from fusedstep.apps.bench.scaling.forecast import ADVICE, MODES, Setting, fewest_nodes, forecast, needs, traffics
from fusedstep.apps.bench.scaling.machine import Assumed, Machine
from fusedstep.apps.bench.scaling.measure import Constants, Here, Line, fit, loaded
from fusedstep.apps.bench.scaling.simulate import Stage, Work, pipeline
from fusedstep.apps.bench.scaling.team import Team
from fusedstep.apps.bench.scaling.traffic import Traffic, traffic
from fusedstep.apps.cli import scaling_report
from optional import torch

DENSE = [name for name, about in _core.rules().items() if about["native"] and about["dense"]]
ADAMW = Traffic(moved=28.0, kept=8.0, param=4, grad=4, norm=4)


class TestTraffic:
    @pytest.mark.parametrize(
        ("rule", "dtype", "options", "moved", "kept"),
        [
            ("adamw", "float32", {}, 28, 8),  # g, p twice, m twice, v twice
            ("sgd", "float32", {}, 20, 4),  # with momentum
            ("lion", "float32", {}, 20, 4),
            ("adamw", "float32", {"ema_decay": 0.9}, 36, 12),
            ("adamw", "float32", {"state_dtype": "bfloat16"}, 20, 4),
            ("adamw", "float32", {"state_dtype": "8bit"}, 12 + 2 * (2 + 2 * 4 / 256), 2 + 2 * 4 / 256),
            ("adamw", "bfloat16", {}, 22, 8),
            ("adamw", "bfloat16", {"master_weights": True}, 30, 12),  # the parameter is compared with its master
            ("adamw", "bfloat16", {"master_weights": True, "masters_lead": True}, 28, 12),
            ("adamw", "bfloat16", {"state_dtype": "bfloat16", "master_weights": True, "masters_lead": True}, 20, 8),
            ("lamb", "float32", {}, 28 + 16, 8),  # its norms read all once before
        ],
    )
    def test_by_hand(self, rule, dtype, options, moved, kept):
        found = traffic(rule, dtype, **options)
        assert (found.moved, found.kept) == (moved, kept)
        assert found.memory == kept + 2 * (4 if dtype == "float32" else 2)

    @pytest.mark.parametrize("rule", DENSE)
    def test_states_are_those_of_the_registry(self, rule):
        assert traffic(rule).kept in {4 * len(states) for states in _core.rules()[rule]["variants"]}

    def test_a_clip_reads_gradients_once_more(self):
        assert traffic("adamw", clip=True).norm == 4
        assert traffic("adamw", "bfloat16", clip=True).norm == 2
        assert traffic("adamw").norm == 0

    @pytest.mark.parametrize(
        ("rule", "dtype", "message"),
        [
            ("adam2", "float32", "rule: expected one with a kernel for dense gradients, got 'adam2'; valid: sgd, "),
            ("muon", "float32", "got 'muon'"),
            ("sparse_adam", "float32", "got 'sparse_adam'"),
            ("adamw", "float64", r"dtype: expected one of \('float32', 'bfloat16'\), got 'float64'"),
        ],
    )
    def test_errors(self, rule, dtype, message):
        with pytest.raises(ValueError, match=message):
            traffic(rule, dtype)


def at(kind, ranks, nbytes=1e6, algorithm="ring"):
    return exchange(kind, ranks, nbytes, latency=1e-5, bandwidth=1e9, algorithm=algorithm)


class TestCollectives:
    @pytest.mark.parametrize("ranks", [2, 3, 8, 4096])
    def test_a_ring(self, ranks):
        """Every rank sends 2 (n - 1) / n of the bytes in 2 (n - 1) messages."""
        assert at("all_reduce", ranks).volume == pytest.approx(2 * (ranks - 1) / ranks * 1e-3)
        assert at("all_reduce", ranks).latency == pytest.approx(2 * (ranks - 1) * 1e-5)
        halves = [at(kind, ranks) for kind in ("reduce_scatter", "all_gather")]
        assert sum(half.total for half in halves) == pytest.approx(at("all_reduce", ranks).total)

    def test_a_tree(self):
        assert [messages("all_reduce", ranks, "tree") for ranks in (2, 8, 9, 4096)] == [2, 6, 8, 24]
        assert at("all_reduce", 4096, algorithm="tree").volume == 2e-3
        assert at("all_gather", 8, algorithm="tree").volume == volume("all_gather", 8, 1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("algorithm", ["ring", "tree", "best"])
    def test_alone_it_is_nothing(self, kind, algorithm):
        assert at(kind, 1, algorithm=algorithm) == Time(0, 0)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("algorithm", ["ring", "tree", "best"])
    def test_more_ranks_or_bytes_never_take_less(self, kind, algorithm):
        by_ranks = [at(kind, ranks, algorithm=algorithm).total for ranks in range(1, 100)]
        by_bytes = [at(kind, 8, nbytes, algorithm).total for nbytes in np.geomspace(1, 1e12, 50)]
        for times in (by_ranks, by_bytes):
            assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(times))

    def test_the_limit_of_many_ranks(self):
        assert volume("all_reduce", 10**9, 1.0) == pytest.approx(2)
        assert volume("reduce_scatter", 10**9, 1.0) == pytest.approx(1)

    def test_the_best_is_a_tree_for_small_messages_and_a_ring_for_large(self):
        for nbytes, name in ((8, "tree"), (1e9, "ring")):
            assert at("all_reduce", 8, nbytes, "best") == at("all_reduce", 8, nbytes, name)


class TestPipeline:
    @pytest.mark.parametrize("count", [1, 2, 17])
    @pytest.mark.parametrize("seconds", [(1.0,), (2.0, 3.0, 1.0), (5.0, 1.0, 1.0, 4.0)])
    def test_the_slowest_stage_sets_the_pace(self, seconds, count):
        stages = [Stage(str(k), [each] * count) for k, each in enumerate(seconds)]
        assert max(pipeline(stages, [0.0] * count)) == sum(seconds) + (count - 1) * max(seconds)

    def test_one_slot_is_one_bucket_at_a_time(self):
        stages = [Stage("a", [2.0] * 5, takes_slot=True), Stage("b", [3.0] * 5), Stage("c", [1.0] * 5, frees_slot=True)]
        assert pipeline(stages, [0.0] * 5, slots=1) == [6.0, 12.0, 18.0, 24.0, 30.0]
        times = [max(pipeline(stages, [0.0] * 5, slots)) for slots in (1, 2, 3, None)]
        # Two slots on the way of 6 seconds: one every 3, which is the slowest stage's pace.
        assert times == [30.0, 18.0, 18.0, 18.0]

    def test_against_the_recurrence(self):
        """A bucket begins when it has come, the one before has left the stage, and a slot is free."""
        rng = np.random.default_rng(0)
        for slots, count in ((1, 6), (2, 9), (3, 9), (None, 12)):
            seconds = rng.uniform(0.1, 2, (4, count))
            ready = np.sort(rng.uniform(0, 5, count))
            end = np.zeros((4, count))
            for k in range(count):
                now = ready[k]
                for stage in range(4):
                    start = max(now, end[stage, k - 1] if k else 0.0)
                    if stage == 1 and slots is not None and k >= slots:
                        start = max(start, end[3, k - slots])
                    now = end[stage, k] = start + seconds[stage, k]
            stages = [
                Stage(str(stage), list(seconds[stage]), takes_slot=stage == 1, frees_slot=stage == 3)
                for stage in range(4)
            ]
            np.testing.assert_allclose(pipeline(stages, list(ready), slots), end[3], rtol=1e-12)

    def test_stages_that_share_a_resource_wait_for_each_other(self):
        stages = [Stage("network", [1.0, 1.0]), Stage("host", [0.5, 0.5]), Stage("network", [1.0, 1.0])]
        # Out 0-1 and 1-2; back 2-3 and 3-4.
        assert pipeline(stages, [0.0, 0.0]) == [3.0, 4.0]

    def test_nothing(self):
        assert pipeline([Stage("a", [])], []) == []


class Flat:
    """Costs that a hand adds up: 1 s a collective and its message another, 1 s an element of steps, 0.1 of norms."""

    def exchange(self, kind, nbytes):
        return Time(1.0, 1.0)

    def step(self, elements):
        return float(elements)

    def norm(self, elements):
        return 0.1 * elements


class TestSteps:
    def test_data_parallel(self):
        line = simulate.data_parallel(Work(10, 4, 4, 4), Flat())
        assert line.end == line.exposed == 3 * 2 + 10
        assert dict(line.busy) == {"messages": 3, "network": 3, "norm": 0, "step": 10}
        assert simulate.data_parallel(Work(10, 4, 4, 4, clip=True), Flat()).end == 3 * 2 + 1 + 10

    def test_sharded(self):
        assert simulate.sharded(Work(10, 5, 4, 4), Flat(), 2).end == 2 * 2 + 5 + 2 * 2
        line = simulate.sharded(Work(10, 5, 4, 4, clip=True), Flat(), 2)
        assert line.end == 2 * 2 + 0.5 + 2 + 5 + 2 * 2
        assert line.busy["norm's collective"] == 2

    def test_gradients_hide_all_but_the_last_exchange(self):
        line = simulate.data_parallel(Work(10, 5, 4, 4, arrival=100.0), Flat())
        assert line.hidden == 100
        assert line.exposed == 2 + 10

    def test_offloaded(self):
        # Of each bucket: out 2 s, down 1, step 2, up 1, back 2. The network does both ways: out, out, back, back.
        work = Work(8, 4, 4, 4)
        line = simulate.offloaded(work, Flat(), 2, link=8.0, slots=2)
        assert line.end == 2 + 1 + 2 + 1 + 2 + 2
        # The last gradient is there after 4 + 1 and measured after 0.2; its collective, 2; then 2, 1, and 2 back twice.
        clipped = simulate.offloaded(Work(8, 4, 4, 4, clip=True), Flat(), 2, link=8.0, slots=2)
        assert clipped.end == pytest.approx(4 + 1 + 0.2 + 2 + 2 + 1 + 2 + 2)
        assert clipped.busy["link"] == 2 * 1 + 2 * 1
        # One slot still holds a gradient. The other goes down again when it is free, after 2 + 1: 1, 2, 1, and 2 back.
        single = simulate.offloaded(Work(8, 4, 4, 4, clip=True), Flat(), 2, link=8.0, slots=1)
        assert single.end == pytest.approx(4 + 1 + 0.2 + 2 + 3 + 1 + 2 + 1 + 2)
        assert single.busy["link"] == 2 * 1 + 1 + 2 * 1

    def test_more_slots_never_take_longer(self):
        work = Work(1 << 20, 1 << 14, 2, 2)
        ends = [
            simulate.offloaded(work, Assumed(Machine(latency_us=1e-3), ADAMW, 8, 8), 8, link=1e9, slots=slots).end
            for slots in range(1, 6)
        ]
        assert ends == sorted(ends, reverse=True)
        assert ends[0] > ends[-1]

    @pytest.mark.parametrize("mode", MODES)
    def test_one_rank_alone_exchanges_nothing(self, mode):
        one = Machine(accelerators=1, host_gbs=28.0, efficiency=1.0, link_gbs=math.inf)
        found = forecast(mode, 1, 10**6, one, ADAMW, Setting(clip=False))
        assert found.busy["network"] == found.busy["messages"] == 0
        # Offloaded gradients and values pass through the same memory.
        assert found.busy["step"] == pytest.approx(1e-3 if mode != "offloaded" else 36 / 28 * 1e-3)

    def test_a_step_on_shards_is_the_faster_the_more_ranks(self):
        steps = [forecast("sharded", nodes, 10**9, Machine(), ADAMW, Setting()).busy["step"] for nodes in (1, 2, 8, 64)]
        np.testing.assert_allclose(steps[0] / np.array(steps), [1, 2, 8, 64])


class TestForecast:
    def test_memory(self):
        """AdamW in float32 has 16 bytes an element; bfloat16 with masters 4 on the accelerator, 12 on the host."""
        host, accelerator = needs("data parallel", 64, 10**9, Machine(), ADAMW, Setting())
        assert (host, accelerator) == (16, 0)
        assert needs("sharded", 64, 10**9, Machine(), ADAMW, Setting()) == (16 / 64, 0)
        offloaded = traffics("adamw", "float32", True, "float32", False)["offloaded"]
        ring = 4 * 2 * 8 * 2**20 * 8 / 1e9  # slots of gradients and of values, by accelerators
        host, accelerator = needs("offloaded", 4, 10**9, Machine(), offloaded, Setting())
        assert (host, accelerator) == pytest.approx((3 + ring, 4 / 32))

    @pytest.mark.parametrize("mode", ["sharded", "offloaded"])
    def test_fewest_nodes(self, mode):
        for elements in (10**11, 10**12):
            count = fewest_nodes(mode, elements, Machine(), ADAMW, Setting())
            assert forecast(mode, count, elements, Machine(), ADAMW, Setting()).fits
            lacking = forecast(mode, count - 1, elements, Machine(), ADAMW, Setting())
            assert not lacking.fits
            assert lacking.fits_from == count

    def test_more_nodes_do_not_help_data_parallel_memory(self):
        assert fewest_nodes("data parallel", 10**12, Machine(), ADAMW, Setting()) is None
        assert forecast("data parallel", 4096, 10**12, Machine(), ADAMW, Setting()).breaks == "host memory"

    @pytest.mark.parametrize(
        ("breaks", "mode", "machine", "setting"),
        [
            ("host memory", "sharded", {"host_gb": 1.0}, {}),
            ("accelerator memory", "offloaded", {"accelerator_gb": 0.1}, {}),
            ("network", "sharded", {"network_gbs": 0.01}, {}),
            ("messages", "data parallel", {"latency_us": 1e5}, {}),
            ("step", "data parallel", {"host_gbs": 1.0}, {}),
            ("step", "offloaded", {"host_gbs": 1.0}, {"clip": False}),
            ("link", "offloaded", {"link_gbs": 0.01}, {"clip": False}),
            # The steps would hide behind the gradients, if they need not wait for the last one.
            ("norm", "offloaded", {"host_gbs": 30.0}, {"tokens": 65536}),
            (None, "sharded", {}, {"tokens": 10**6}),
        ],
    )
    def test_what_breaks_first(self, breaks, mode, machine, setting):
        kind = traffics("adamw", "float32", True, "float32", False)[mode]
        found = forecast(mode, 8, 10**10, Machine(**machine), kind, Setting(**setting))
        assert found.breaks == breaks
        assert breaks is None or breaks in ADVICE
        assert found.fits == (breaks is None or "memory" not in breaks)
        if found.gains:
            assert found.gains[breaks] == max(found.gains.values())

    def test_rules_of_whole_tensors_are_not_offloaded(self):
        assert set(traffics("lamb", "float32", True, "float32", False)) == {"data parallel", "sharded"}
        assert set(traffics("lion", "float32", True, "float32", False)) == set(MODES)

    def test_all_that_can_break_has_advice(self):
        parts = set(forecasts._without(Machine(), ADAMW, Setting()))
        assert parts | {"host memory", "accelerator memory"} == set(ADVICE)

    def test_a_grid(self):
        found = forecasts.grid([8, 4096], [10**9, 10**12], Machine(), dict.fromkeys(MODES, ADAMW), Setting())
        assert len(found) == 3 * 2 * 2
        assert all(entry.exposed >= 0 and entry.gradients > 0 for entry in found)


class TestHere:
    constants = Constants(2, 50e9, 30e9, 1e-9, 0.6e-9, 1e-10, {2: {"all_reduce": Line(1e-3, 1e-9)}})

    @pytest.mark.parametrize(
        ("ranks", "seconds"),
        [
            (1, 1.0),  # as measured
            (2, 1.12),  # 2 * 28 bytes at 50 GB/s
            (4, 2.24),
        ],
    )
    def test_processes_share_cores_and_memory(self, ranks, seconds):
        assert Here(self.constants, ADAMW, ranks).step(1e9) == pytest.approx(seconds)

    def test_more_processes_than_cores_take_turns(self):
        """Of a step that the processor limits."""
        light = Traffic(moved=1.0, kept=0.0, param=4, grad=4, norm=4)
        assert [Here(self.constants, light, ranks).step(1e9) for ranks in (1, 2, 3)] == pytest.approx([1, 1, 1.5])

    def test_efficiency(self):
        assert self.constants.efficiency(ADAMW) == pytest.approx(28 / 50 / 0.6)

    @pytest.mark.parametrize(("start", "per_byte"), [(1e-3, 1e-9), (0.0, 2e-9), (5e-4, 0.0)])
    def test_a_fit_finds_its_line(self, start, per_byte):
        sizes = [64, 1e6, 1e7]
        line = fit(sizes, [start + per_byte * size for size in sizes])
        assert (line.start, line.per_byte) == pytest.approx((start, per_byte), abs=1e-15)
        assert line(1e5) == Time(line.start, line.per_byte * 1e5)

    def test_a_fit_has_no_negative_numbers(self):
        assert fit([1e3, 1e6], [2e-3, 1e-3]).per_byte == 0
        assert fit([1e3, 1e6], [1e-9, 1e-3]).start == 0

    def test_a_loaded_machine_decides_nothing(self):
        assert loaded(3.0, [], 1.0) == ["3.0 threads ran before the start"]
        assert len(loaded(0.0, [0.9], 0.8)) == 2
        assert scaling_report.agrees({"ratio": 1.0}, loaded=True) is None
        assert [scaling_report.agrees({"ratio": r}, loaded=False) for r in (0.8, 0.84, 1.2, 1.21)] == [
            False,
            True,
            True,
            False,
        ]


OF_STEP = {"rule": "adamw", "dtype": "float32", "options": {}}


class TestTeam:
    def test_alone(self):
        with Team(2, 1, group=False, timeout=60, **OF_STEP) as team:
            team.ask("prepare", side="step", elements=100)
            answers = team.ask("rate", seconds=0.001)
            assert len(answers) == 2
            assert all(answer["typical"] > 0 and answer["mean"] > 0 for answer in answers)

    def test_an_error_is_told_with_its_rank(self):
        with (
            Team(1, 1, group=False, timeout=60, **OF_STEP) as team,
            pytest.raises(MeasurementError, match="prepare: rank 0: AttributeError"),
        ):
            team.ask("prepare", side="nothing", elements=1)

    def test_a_process_that_ends(self):
        with Team(1, 1, group=False, timeout=60, **OF_STEP) as team:
            team._workers[0].kill()
            with pytest.raises(MeasurementError, match="rate: a measuring process ended with -9"):
                team.ask("rate", seconds=0.001)

    def test_one_that_takes_too_long(self):
        with (
            Team(1, 1, group=False, timeout=0.05, **OF_STEP) as team,
            pytest.raises(MeasurementError, match=r"rate: no answer within 0\.05 s"),
        ):
            team.ask("rate", seconds=60)
        assert team._workers[0].returncode == -signal.SIGKILL


TINY = ["--elements", "20000", "--bucket-mib", "0.02", "--rounds", "1", "--seconds", "0.01", "--processes", "2"]


class TestCommand:
    def test_forecast_alone(self, capsys, tmp_path):
        plot = tmp_path / "scaling.png"
        status, out, err = run(capsys, "bench", "scaling", "--no-measure", "--json", "-", "--plot", str(plot))
        assert status == 0
        content = json.loads(out)
        assert content["measured"] is None
        assert content["bytes"] == {"moved": 28, "kept": 8}
        assert {entry["nodes"] for entry in content["forecasts"]} == {8, 64, 512, 4096}
        assert {entry["elements"] for entry in content["forecasts"]} == {10**9, 10**10, 10**11, 10**12}
        assert "host memory, fits from" in err
        assert plot.read_bytes().startswith(b"\x89PNG")

    def test_hardware_is_given(self, capsys):
        options = ["--host-gbs", "100", "--latency-us", "7", "--nodes", "3", "--billions", "0.5", "--rule", "lion"]
        content = json.loads(run(capsys, "bench", "scaling", "--no-measure", "--json", "-", *options)[1])
        assert (content["assumed"]["host_gbs"], content["assumed"]["latency_us"]) == (100, 7)
        assert content["bytes"]["moved"] == 20
        assert {(entry["nodes"], entry["elements"]) for entry in content["forecasts"]} == {(3, 5 * 10**8)}

    def test_measured(self, capsys, tmp_path, monkeypatch):
        """Real processes; the figures themselves depend on the machine."""
        torch.tensor(0)  # which skips the test without it
        monkeypatch.setattr(measure, "load", lambda: 5.0)
        target = tmp_path / "scaling.json"
        status, out, err = run(
            capsys, "bench", "scaling", *TINY, "--json", str(target), "--plot", str(tmp_path / "a.svg")
        )
        assert status == 0
        assert "collectives of 3 processes" in err
        assert "This machine is loaded, so the figures show nothing: 5.0 threads ran before the start" in out
        found = json.loads(target.read_text())["measured"]
        assert [(entry["mode"], entry["ranks"]) for entry in found["steps"]] == [
            (mode, ranks) for ranks in (1, 2, 3) for mode in ("data parallel", "sharded")
        ]
        for entry in found["steps"]:
            assert entry["ratio"] == pytest.approx(entry["measured"] / entry["predicted"])
            assert entry["agrees"] is None
        assert set(found["constants"]["exchanges"]) == {"1", "2", "3"}
        assert found["beside"]["processes"] == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--rule", "muon"], "rule: expected one with a kernel for dense gradients, got 'muon'"),
            (["--latency-us", "0"], "argument --latency-us: expected a finite number > 0, got '0'"),
            (["--nodes", "8,x"], "argument --nodes: expected a whole number >= 1, got 'x'"),
            (["--billions", ""], "argument --billions: expected a finite number > 0, got ''"),
            (["--state-dtype", "int3"], "state_dtype: expected 'float32', 'bfloat16' or '8bit', got 'int3'"),
            (["--plot", "missing/x.png"], "--plot: cannot write 'missing/x.png'"),
            (["--json", "a", "--plot", "a"], "--json, --plot: expected a file each, got ['a', 'a']"),
            (["--unknown"], "unrecognized arguments: --unknown"),
        ],
    )
    def test_errors(self, capsys, options, message):
        status, out, err = run(capsys, "bench", "scaling", "--no-measure", *options)
        assert (status, out) == (2, "")
        assert message in err
        assert "fusedstep bench scaling: error" in err

    def test_interrupt_ends_all_processes(self):
        command = [sys.executable, "-m", "fusedstep", "bench", "scaling", "--seconds", "60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline() == "memory and step, all threads\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (mine := children.read_text().split()):
                pass
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.endswith("fusedstep bench scaling: interrupted\n")
        # One that had not begun yet ends when it finds nobody to ask it.
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{child}").exists() for child in mine) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(Path(f"/proc/{child}").exists() for child in mine)
