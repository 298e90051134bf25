"""A run that is interrupted at any step and taken up again ends with the bits of the run that was not."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import commands
import fusedstep as fs
from fusedstep.apps.cli import main
from fusedstep.apps.examples.training import OPTIMIZERS, SCHEDULES, Options, Training
from runs import bits

SMALL = {"epochs": 3, "hidden": (16,), "batch_size": 256}


def go_on(run, steps=None):
    """So many steps, or to the end."""
    while not run.finished:
        for x, y in run.batches():
            if steps is not None and len(run.record["steps"]) == steps:
                return run
            run.took(*run.loss_step(run.model, run.optimizer, x, y, lambda f, *a, **k: f(*a, **k)))
        run.end_epoch()
    return run


def everything(run):
    """All that the end of a run consists of."""
    cosines = run.recorder.telemetry["grad_cosine"]
    telemetry = {name: values for name, values in run.recorder.telemetry.items() if values is not cosines}
    parts = [part.state_dict() for part in (run.average, run.snapshots, run.stopping) if part is not None]
    state = {k: v for k, v in run.optimizer.state_dict().items() if k != "param_groups"}
    record = {name: run.record[name] for name in ("epochs", "steps", "accuracies", "snapshots")}
    return bits([run.model.params, run.model.buffers(), state, parts, record, telemetry])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "sgd", "batch_norm": False, "dropout": 0.3, "label_smoothing": 0.1},
        {"dropout": 0.2, "ema": 0.9, "schedule": "one-cycle", "warmup": 3},
        {"snapshots": 3, "warmup": 2, "dropout": 0.1},
        {"early_stop": 1, "lr": 0.05, "epochs": 8, "seed": 3},
        {"optimizer": "schedule_free_adamw"},
        {"optimizer": "nadam", "schedule": "restarts"},
    ],
    ids=str,
)
def test_from_any_step(options, tmp_path, rng):
    options = Options(**{**SMALL, **options})
    whole = go_on(Training(options))
    count = len(whole.record["steps"])
    # At both ends, at the end of an epoch, and anywhere.
    for steps in {0, 1, count // options.epochs, count - 1, count, *rng.integers(0, count, 2).tolist()}:
        path = tmp_path / "run.safetensors"
        go_on(Training(options), steps).save(path)
        assert everything(go_on(Training.resume(path, {}))) == everything(whole), steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_of_every_optimizer(optimizer, tmp_path):
    options = Options(**SMALL, optimizer=optimizer)
    with np.errstate(all="ignore"):
        whole = go_on(Training(options))
        go_on(Training(options), 8).save(tmp_path / "run.safetensors")
        assert everything(go_on(Training.resume(tmp_path / "run.safetensors", {}))) == everything(whole)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 5])
def test_of_every_schedule(schedule, warmup, tmp_path):
    options = Options(**SMALL, schedule=schedule, warmup=warmup)
    whole = go_on(Training(options))
    rates = whole.recorder.telemetry["lr"]
    assert len(rates) == whole.total
    assert len(set(rates)) > 1 or (schedule, warmup) == ("constant", 0)
    assert max(rates) <= whole.lr * (1 + 1e-15)
    go_on(Training(options), 7).save(tmp_path / "run.safetensors")
    assert everything(go_on(Training.resume(tmp_path / "run.safetensors", {}))) == everything(whole)


def weights(path):
    return {name: value.tobytes() for name, value in fs.load_checkpoint(path).params.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(number, tmp_path, capsys):
    """Wherever it strikes, the run stops between two steps, saves, and can go on."""
    options = ["--epochs", "60", "--hidden", "32", "--dropout", "0.2"]
    command = [sys.executable, "-u", "-m", "fusedstep", "train", *options, "--checkpoint", str(tmp_path / "cut.st")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "interrupted after" in out
    cut = fs.load_checkpoint(tmp_path / "cut.st").metadata
    assert 2 * 23 <= len(cut["record"]["steps"]) < 60 * 23
    assert main(["train", "--resume", str(tmp_path / "cut.st"), "--checkpoint", str(tmp_path / "end.st")]) == 0
    assert main(["train", *options, "--checkpoint", str(tmp_path / "whole.st")]) == 0
    capsys.readouterr()
    assert weights(tmp_path / "end.st") == weights(tmp_path / "whole.st")
    assert weights(tmp_path / "end.st") != weights(tmp_path / "cut.st")


def run(capsys, *arguments):
    return commands.run(capsys, "train", *arguments)


class TestCommand:
    def test_what_it_reports(self, capsys):
        options = ["--epochs", "4", "--hidden", "32", "--lr", "0.01", "--ema", "0.9"]
        options += ["--snapshots", "2", "--json", "-"]
        status, out, err = run(capsys, *options)
        assert status == 0
        record = json.loads(out)
        assert len(record["snapshots"]["test_accuracies"]) == 2
        assert record["snapshots"]["ensemble_test_accuracy"] > 0.8
        assert all(0 < entry["average_test_accuracy"] <= 1 for entry in record["epochs"])
        assert "averaged weights" in err
        assert "2 snapshots" in err
        rates = record["telemetry"]["lr"]
        assert rates[0] == rates[len(rates) // 2] == record["options"]["lr"]

    def test_a_run_that_has_ended(self, capsys, tmp_path):
        path = str(tmp_path / "run.st")
        run(capsys, "--epochs", "2", "--hidden", "8", "--checkpoint", path)
        status, out, _ = run(capsys, "--resume", path)
        assert status == 0
        assert "46 steps" in out

    def test_early_stop_keeps_the_best(self, capsys, tmp_path):
        path = tmp_path / "run.st"
        status, out, _ = run(
            capsys, "--epochs", "60", "--early-stop", "2", "--lr", "0.05", "--json", "-", "--checkpoint", str(path)
        )
        assert status == 0
        epochs = json.loads(out)["epochs"]
        best = int(np.argmin([entry["held_out_loss"] for entry in epochs]))
        assert len(epochs) == best + 3 < 60
        assert json.loads(out)["test_accuracy"] == epochs[best]["test_accuracy"]

    def test_another_option_than_the_run_has(self, capsys, tmp_path):
        path = str(tmp_path / "run.st")
        run(capsys, "--epochs", "1", "--hidden", "8", "--checkpoint", path)
        assert run(capsys, "--resume", path, "--epochs", "1", "--hidden", "8")[0] == 0
        status, _, err = run(capsys, "--resume", path, "--batch-size", "32")
        assert status == 2
        assert f"--batch-size: the run in {path} has 64, got 32" in err

    def test_the_rate_that_the_run_has(self, capsys, tmp_path):
        path = str(tmp_path / "run.st")
        run(capsys, "--epochs", "1", "--hidden", "8,4", "--checkpoint", path)
        assert run(capsys, "--resume", path, "--lr", "0.001")[0] == 0
        assert f"--lr: the run in {path} has 0.001, got 0.1" in run(capsys, "--resume", path, "--lr", "0.1")[2]
        assert f"--hidden: the run in {path} has 8,4, got 8" in run(capsys, "--resume", path, "--hidden", "8")[2]

    @pytest.mark.parametrize("snapshots", [5, 7, 15, 23])
    def test_as_many_snapshots_as_asked_for(self, snapshots, capsys):
        _, out, _ = run(capsys, "--epochs", "1", "--hidden", "8", "--snapshots", str(snapshots), "--json", "-")
        record = json.loads(out)
        assert len(record["snapshots"]["test_accuracies"]) == snapshots
        assert record["telemetry"]["lr"].count(0.001) == snapshots

    def test_snapshots_of_a_run_that_diverged(self, capsys, tmp_path):
        options = ["--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm", "--epochs", "2", "--snapshots", "4"]
        with np.errstate(all="ignore"):
            status, out, _ = run(capsys, *options, "--json", str(tmp_path / "run.json"))
        assert status == 0
        assert "snapshots" in out
        assert json.loads((tmp_path / "run.json").read_text())["snapshots"]["ensemble_test_accuracy"] is None

    @pytest.mark.parametrize(
        "metadata",
        [
            {"run": {}},
            {"run": {"hidden": [8], "optimizer": "nope"}},
            {"run": {"hidden": [8], "epochs": "3"}},
            {"run": {"hidden": [8]}, "options": {}, "buffers": {}, "progress": {}, "record": {}},
            {"run": None},
        ],
    )
    def test_metadata_of_something_else(self, metadata, capsys, tmp_path):
        path = tmp_path / "other.st"
        fs.save_checkpoint(path, [np.zeros(2, np.float32)], **metadata)
        status, _, err = run(capsys, "--resume", str(path))
        assert status == 2
        assert "--resume: " in err

    def test_a_checkpoint_of_something_else(self, capsys, tmp_path):
        path = tmp_path / "other.st"
        fs.save_checkpoint(path, [np.zeros(2, np.float32)])
        status, _, err = run(capsys, "--resume", str(path))
        assert status == 2
        assert f"--resume: {path} holds no run of fusedstep train" in err
        status, _, err = run(capsys, "--resume", str(tmp_path / "missing"))
        assert status == 2
        assert "No such file" in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--warmup", "24"], "--warmup: expected at most the 23 steps of the run, got 24"),
            (["--warmup", "-1"], "expected a whole number >= 0, got '-1'"),
            (["--dropout", "1"], "expected a number in [0, 1), got '1'"),
            (["--label-smoothing", "x"], "expected a number in [0, 1), got 'x'"),
            (["--ema", "1.5"], "expected a number in [0, 1), got '1.5'"),
            (["--snapshots", "24"], "--snapshots: expected at most one a step, 23, got 24"),
            (["--snapshots", "2", "--schedule", "cosine"], "--schedule: --snapshots has one of its own"),
            (["--schedule", "sine"], "invalid choice: 'sine'"),
            (["--schedule", "one-cycle", "--warmup", "1"], "--schedule: one-cycle does not fit 23 steps, 1 of them"),
            (["--plot", "x.png", "--checkpoint", "x.png"], "--json, --plot, --checkpoint: expected a file each"),
            (["--schedule", "cosine", "--lr", "-1"], "lr: expected"),
            (
                ["--optimizer", "schedule_free_adamw", "--ema", "0.9"],
                "--optimizer: schedule_free_adamw averages",
            ),
        ],
    )
    def test_errors(self, options, message, capsys):
        status, _, err = run(capsys, "--epochs", "1", *options)
        assert status == 2
        assert message in err
