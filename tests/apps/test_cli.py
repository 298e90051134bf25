"""The commands, as users call them."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from commands import run
from fusedstep.apps.bench import process as bench_process
from fusedstep.apps.bench.harness import Subject, Timing, measure, report
from fusedstep.apps.cli import bench as bench_command
from fusedstep.apps.cli import train as train_command


class TestInfo:
    def test_text(self, capsys):
        status, out, _ = run(capsys, "info")
        assert status == 0
        assert f"{fs.runtime.isa()} (active)" in out

    def test_json(self, capsys):
        facts = json.loads(run(capsys, "info", "--json")[1])
        assert facts["version"] == fs.__version__
        assert facts["available_isas"] == fs.runtime.available_isas()
        assert facts["isa"] == fs.runtime.isa()
        assert facts["threads"] == fs.runtime.num_threads()
        assert set(facts["extras"]) == {"checkpoint", "train", "curvature", "gallery", "bench"}

    def test_module_and_version(self):
        process = subprocess.run(
            [sys.executable, "-m", "fusedstep", "--version"], capture_output=True, text=True, check=True
        )
        assert process.stdout == f"fusedstep {fs.__version__}\n"


class TestTrain:
    def test_default_run_is_good(self, capsys):
        """The main job as the README gives it."""
        record = json.loads(run(capsys, "train", "--json", "-")[1])
        assert record["test_accuracy"] >= 0.975
        assert record["kernels"]["compared_steps"] == record["kernels"]["steps_with_equal_bits"] >= 20

    def test_options_reach_the_run(self, capsys):
        def trained(*options):
            return json.loads(run(capsys, "train", "--epochs", "1", "--hidden", "16", "--json", "-", *options)[1])

        base = trained()
        assert base["options"]["optimizer"] == "adamw"
        assert base["parameters"] == 64 * 16 + 16 + 2 * 16 + 16 * 10 + 10
        assert len(base["steps"]) == 23
        assert trained("--seed", "1")["steps"] != base["steps"]
        assert trained("--no-batch-norm")["parameters"] == base["parameters"] - 32
        assert len(trained("--batch-size", "100")["steps"]) == 15
        assert trained("--threads", "3")["threads"] == 3
        assert trained("--optimizer", "sgd")["options"]["lr"] == 0.1
        assert trained("--lr", "0.5")["options"]["lr"] == 0.5

    def test_outputs_are_checked_before_the_work(self, capsys, tmp_path):
        for option in ("--json", "--plot", "--checkpoint"):
            target = str(tmp_path / "missing" / "run.png")
            status, out, err = run(capsys, "train", "--epochs", "1", option, target)
            assert status == 2
            assert out == ""
            assert f"{option}: cannot write" in err

    def test_everything_it_writes(self, capsys, tmp_path):
        files = {
            name: tmp_path / f"run.{suffix}"
            for name, suffix in (("plot", "png"), ("json", "json"), ("checkpoint", "st"))
        }
        options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
        status, out, _ = run(capsys, "train", "--epochs", "3", "--hidden", "32", "--lr", "0.01", *options)
        assert status == 0
        assert "epoch 3/3  train loss" in out
        record = json.loads(files["json"].read_text())
        assert len(record["epochs"]) == 3
        assert len(record["steps"]) == 3 * 23
        assert record["test_accuracy"] > 0.9
        assert record["kernels"]["compared_steps"] == record["kernels"]["steps_with_equal_bits"] >= 20
        assert files["plot"].read_bytes()[:4] == b"\x89PNG"
        loaded = fs.load_checkpoint(files["checkpoint"])
        assert loaded.params["w0"].shape == (64, 32)
        assert loaded.metadata["test_accuracy"] == record["test_accuracy"]

    def test_same_losses_on_every_set(self, capsys):
        losses = []
        for isa in fs.runtime.available_isas():
            _, out, _ = run(
                capsys, "train", "--epochs", "1", "--hidden", "16,8", "--isa", isa, "--threads", "2", "--json", "-"
            )
            record = json.loads(out)
            assert record["isa"] == isa
            assert record["threads"] == 2
            losses.append(record["steps"])
        assert all(other == losses[0] for other in losses)

    @pytest.mark.parametrize("options", [["--optimizer", "sgd"], ["--optimizer", "adam", "--no-batch-norm"]])
    def test_options(self, capsys, options):
        status, out, _ = run(capsys, "train", "--epochs", "4", "--batch-size", "100", *options)
        assert status == 0
        assert float(out.split("test accuracy")[1].split("%")[0]) > 90

    def test_diverging_run_says_so(self, capsys):
        with np.errstate(all="ignore"):
            status, out, _ = run(
                capsys, "train", "--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm", "--epochs", "2"
            )
        assert status == 0
        assert "the loss is not finite: the learning rate is too large" in out
        with np.errstate(all="ignore"):
            _, out, _ = run(capsys, "train", "--optimizer", "sgd", "--lr", "1e30", "--epochs", "1", "--json", "-")
        assert json.loads(out, parse_constant=lambda name: pytest.fail(name))["epochs"][-1]["test_loss"] is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--lr", "-1"], "lr: expected a finite number >= 0, got -1.0"),
            (["--isa", "sse9"], "isa: 'sse9' is not an instruction set of this processor; valid: 'numpy'"),
            (["--batch-size", "0"], "expected a whole number >= 1, got '0'"),
            (["--batch-size", "1"], "--batch-size: no batch of at least two rows with 1"),
            (["--hidden", "8,x"], "expected a whole number >= 1, got 'x'"),
            (["--optimizer", "sgdd"], "invalid choice: 'sgdd'"),
            (["--seed", "-1"], "--seed: expected a number in [0, 2^32), got -1"),
            (["--plot", "run.txt"], "--plot: expected a name that ends in .png, .svg or .pdf, got 'run.txt'"),
        ],
    )
    def test_errors(self, capsys, options, message):
        status, _, err = run(capsys, "train", "--epochs", "1", *options)
        assert status == 2
        assert message in err

    def test_missing_extra(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich", None)
        status, _, err = run(capsys, "train")
        assert status == 2
        assert "pip install 'fusedstep[train]'" in err

    def test_interrupt_keeps_what_is_done(self, tmp_path):
        target = tmp_path / "run.json"
        command = [sys.executable, "-u", "-m", "fusedstep", "train", "--epochs", "100000", "--json", str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                break
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "interrupted after" in out
        assert len(json.loads(target.read_text())["epochs"]) >= 2

    def test_summary_without_an_epoch(self):
        record = {
            "interrupted": True,
            "epochs": [],
            "test_accuracy": None,
            "kernels": {"compared_steps": 0},
            "steps": [],
            "parameters": 10,
            "options": {"optimizer": "sgd"},
            "seconds": 0.1,
            "threads": 1,
        }
        assert "interrupted after 0 epochs" in train_command.summary(record)


TORCH = importlib.util.find_spec("torch") is not None
#: What torch says that it runs, held to each set.
CAPABILITIES = {"baseline": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512", "neon": "DEFAULT"}


class TestBench:
    def test_list_and_unknown(self, capsys):
        assert "adamw-64Mi" in run(capsys, "bench", "--list")[1].split()
        status, _, err = run(capsys, "bench", "nothing")
        assert status == 2
        assert "no subject begins with 'nothing'; there are: adamw-1Ki" in err

    def test_json(self, capsys, tmp_path):
        target = tmp_path / "bench.json"
        isa = bench_process.sets()[0]
        options = ["--isa", isa, "--threads", "1", "--rounds", "5", "--json", str(target)]
        status, out, _ = run(capsys, "bench", "adamw-1Ki", "adamw-16Ki", *options)
        assert status == 0
        assert "adamw-16Ki" in out
        result = json.loads(target.read_text())
        assert [entry["subject"] for entry in result["subjects"]] == ["adamw-1Ki", "adamw-16Ki"]
        assert set(result["subjects"][0]["ratio"]) == ({"roof", "torch"} if TORCH else {"roof"})
        assert (result["isa"], result["threads"]) == (isa, 1)
        assert result["processor"]
        assert result["processor"] in out
        assert f"set {isa}, 1 threads" in out
        assert result["torch_isa"] == (CAPABILITIES[isa] if TORCH else None)
        assert ("no torch" if not TORCH else f"set {CAPABILITIES[isa]}") in out

    def test_every_set(self, capsys, monkeypatch):
        """Each with its peers held to it, whatever the environment holds them to."""
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
        monkeypatch.setenv("FUSEDSTEP_ISA", "numpy")
        status, out, err = run(capsys, "bench", "adamw-1Ki", "--sets", "--rounds", "5", "--json", "-")
        assert status == 0
        result = json.loads(out)
        natives = fs.runtime.available_isas()[1:]
        assert [entry["isa"] for entry in result["sets"]] == natives
        for entry in result["sets"]:
            assert entry["torch_isa"] == (CAPABILITIES[entry["isa"]] if TORCH else None)
            assert [subject["subject"] for subject in entry["subjects"]] == ["adamw-1Ki"]
        assert "side by side" in err

    def test_a_wider_set_that_is_slower(self):
        def result(isa, *medians):
            subjects = [
                {"subject": f"s{k}", "us": {"fusedstep": {"median": median}}} for k, median in enumerate(medians)
            ]
            return {"isa": isa, "subjects": subjects}

        found = bench_command.slower([result("a", 10.0, 8.0, 5.0), result("b", 5.0, 8.1, 10.0), result("c", 5.1, 7, 5)])
        assert found == [{"subject": "s2", "set": "b", "than": "a", "ratio": 0.5}]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--isa", "sse9"], "--isa: 'sse9' is not a native instruction set of this processor; valid: {natives}"),
            (["--isa", ""], "--isa: '' is not a native instruction set of this processor; valid: {natives}"),
            (["--isa", "numpy"], "--isa: the reference is not for timing; choose a native set: {natives}"),
            (["--isa", "baseline", "--sets"], "--sets: it runs every set; leave --isa out"),
            (["--threads", "5000"], "num_threads: expected 1 to 4096, got 5000"),
        ],
    )
    def test_errors(self, capsys, options, message):
        status, out, err = run(capsys, "bench", "adamw-1Ki", *options)
        assert (status, out) == (2, "")
        assert message.format(natives=", ".join(map(repr, fs.runtime.available_isas()[1:]))) in err

    def test_a_subject_that_fails(self):
        """An error that names it; the process goes on with the next, and one that has ended is an error too."""
        with bench_process.measurers(bench_process.sets()[:1], 1, 5, 1.0) as (child,):
            with pytest.raises(bench_process.MeasurementError, match=r"^nothing: KeyError\('nothing'\)$"):
                child.measure("nothing")
            assert child.measure("adamw-1Ki")["subject"] == "adamw-1Ki"
            child._child.kill()
            with pytest.raises(bench_process.MeasurementError, match="adamw-1Ki: the measuring process ended with -9"):
                child.measure("adamw-1Ki")

    def test_interrupt_ends_both_processes(self):
        command = [sys.executable, "-m", "fusedstep", "bench", "adamw", "list", "--rounds", "5"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline() == "adamw-1Ki\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert out == ""
        assert err.endswith("fusedstep bench: interrupted\n")
        assert len(children) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(children[0]), 0)

    def test_results_are_compared_before_timing(self):
        calls = []

        def check():
            raise AssertionError("not the same")

        subject = Subject("s", lambda: calls.append(1), {}, check)
        with pytest.raises(AssertionError, match="not the same"):
            measure(subject, 5, 1.0)
        assert calls == []

    def test_sides_take_turns(self, monkeypatch):
        order = []
        # A clock by which every call takes a millisecond.
        monkeypatch.setattr("fusedstep.apps.bench.harness.perf_counter", lambda: 1e-3 * len(order))
        sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
        timings = measure(Subject("s", sides["a"], {"b": sides["b"]}, lambda: None), 4, 10.0)
        # Two calls make a sample of 2 ms; one more before it is not timed.
        assert "".join(order[-24:]) == "aaabbbbbbaaa" * 2
        assert [timings[name].median for name in ("fusedstep", "b")] == pytest.approx([1000, 1000])

    def test_ratio_is_theirs_over_ours(self):
        subject = Subject("s", lambda: None, {"peer": lambda: None}, lambda: None, {"peer": 2.0})
        result = report(subject, {"fusedstep": Timing(2.0, 1.0, 3.0), "peer": Timing(5.0, 4.0, 6.0)})
        assert result["ratio"] == {"peer": 2.5}
