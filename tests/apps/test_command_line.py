"""What the command line says and keeps: on any terminal, to any place, whenever it is interrupted."""

import json
import os
import signal
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fusedstep as fs
from commands import run
from fusedstep.apps.cli import main
from fusedstep.apps.cli.common import any_terminal
from fusedstep.apps.examples.training import Options, Training

SMALL = ["--epochs", "2", "--hidden", "8"]


def called(*arguments, **environment):
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fusedstep", *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )


ASCII = [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


class TestTerminals:
    @pytest.mark.parametrize("environment", ASCII)
    @pytest.mark.parametrize(
        "command",
        [
            ["train", "--help"],
            ["train", *SMALL, "--snapshots", "2", "--doctor"],
            ["gallery", "--list"],
            ["doctor", "--help"],
            ["bench", "dropout", "--rounds", "1", "--seconds", "0.01"],
            ["info"],
        ],
        ids=lambda command: " ".join(command[:2]),
    )
    def test_of_ascii(self, command, environment):
        process = called(*command, **environment)
        assert process.returncode == 0, process.stderr
        assert process.stdout
        assert (process.stdout + process.stderr).isascii()

    def test_letters_keep_their_meaning(self):
        process = called("train", *SMALL, PYTHONIOENCODING="ascii")
        assert b"us per step" in process.stdout
        assert b"accuracy" in process.stdout
        assert b"\\x" not in process.stdout

    @pytest.mark.parametrize("environment", [{}, *ASCII])
    def test_a_name_that_is_no_text(self, environment):
        process = called("doctor", os.fsencode("/nowhere/") + b"\xff\xe9.json", **environment)
        assert process.returncode == 2
        assert b"No such file" in process.stderr
        assert b"Traceback" not in process.stderr

    def test_streams_are_given_back(self, capfd):
        before = sys.stdout.errors, sys.stderr.errors
        with any_terminal():
            print("\ud800")
        assert (sys.stdout.errors, sys.stderr.errors) == before


class TestPlaces:
    @pytest.mark.parametrize(
        ("option", "path"),
        [
            ("--checkpoint", "/dev/full"),
            ("--checkpoint", "/dev/null"),
            ("--checkpoint", "/proc/run.safetensors"),
            ("--checkpoint", "pipe"),
            ("--checkpoint", "x" * 300),
            ("--checkpoint", ""),
            ("--checkpoint", "folder"),
            ("--json", "/dev/full"),
            ("--json", "/proc/run.json"),
            ("--json", "folder"),
            ("--plot", "/proc/run.png"),
            ("--plot", "missing/run.png"),
        ],
    )
    def test_what_cannot_be_written_is_refused_before_training(self, capsys, tmp_path, monkeypatch, option, path):
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        os.mkdir("folder")
        status, out, err = run(capsys, "train", "--epochs", "1", option, path)
        assert (status, out) == (2, "")
        assert f"{option}: cannot write {path!r}" in err
        assert sorted(os.listdir()) == ["folder", "pipe"]

    def test_what_can_be_written_stays_as_it_is(self, tmp_path):
        from fusedstep.apps.cli.common import check_writable

        path = tmp_path / "old"
        path.write_text("kept")
        for replaced in (False, True):
            check_writable("--x", str(path), replaced=replaced)
            check_writable("--x", str(tmp_path / "new"), replaced=replaced)
        assert (os.listdir(tmp_path), path.read_text()) == (["old"], "kept")
        check_writable("--x", "/dev/null")

    @pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
    def test_a_folder_without_the_right_to_write(self, capsys, tmp_path):
        (tmp_path / "old.safetensors").touch()
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        status, _, err = run(capsys, "train", *SMALL, "--checkpoint", str(tmp_path / "old.safetensors"))
        assert status == 2
        assert "--checkpoint: cannot write" in err

    @pytest.mark.parametrize("suffix", [".pt", ".PTH", ".npz", ".pkl", ".h5", ".ckpt", ".json", ".onnx"])
    def test_a_name_that_promises_another_format(self, capsys, tmp_path, suffix):
        path = str(tmp_path / f"run{suffix}")
        status, out, err = run(capsys, "train", *SMALL, "--checkpoint", path)
        assert (status, out) == (2, "")
        assert f"--checkpoint: expected a name that ends in .safetensors, got {path!r}" in err

    @pytest.mark.parametrize(("name", "told"), [("run.safetensors", 0), ("run.st", 0), ("run", 0), ("run.best", 1)])
    def test_other_names_are_kept_knowingly(self, capsys, tmp_path, name, told):
        status, _, err = run(capsys, "train", *SMALL, "--checkpoint", str(tmp_path / name))
        assert status == 0
        assert err.count("will be of the safetensors format, whatever .best says") == told
        assert fs.load_checkpoint(tmp_path / name).params

    def test_a_file_each_however_it_is_called(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run(capsys, "train", *SMALL, "--checkpoint", "run")[0] == 0
        before = (tmp_path / "run").read_bytes()
        for pair in (["--json", "./a", "--checkpoint", "a"], ["--json", str(tmp_path / "run"), "--resume", "run"]):
            status, _, err = run(capsys, "train", *pair)
            assert status == 2
            assert "expected a file each" in err
        assert (tmp_path / "run").read_bytes() == before


class TestInterruption:
    def start(self, path, *options):
        command = [sys.executable, "-u", "-m", "fusedstep", "train", "--epochs", "4000", "--hidden", "8"]
        command += ["--checkpoint", str(path)] if path else []
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                return process
        raise AssertionError(process.stderr.read())

    @pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
    def test_it_saves_and_says_how_to_go_on(self, tmp_path, name):
        path = tmp_path / "a run.safetensors"
        process = self.start(path)
        process.send_signal(getattr(signal, name))
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + getattr(signal, name)
        assert f"to go on: fusedstep train --resume '{path}' --checkpoint '{path}'" in out
        assert len(fs.load_checkpoint(path).metadata["record"]["steps"]) >= 2 * 23

    def test_a_terminal_that_is_gone(self, tmp_path):
        """Nothing can be printed any more: what was computed is saved all the same."""
        path = tmp_path / "run.safetensors"
        process = self.start(path)
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=120) == 1
        assert len(fs.load_checkpoint(path).metadata["record"]["steps"]) >= 2 * 23

    def test_without_a_checkpoint(self):
        process = self.start(None)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
        assert "nothing was saved; with --checkpoint FILE the run could go on" in out

    def test_a_hang_up_that_is_ignored(self, tmp_path):
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            process = self.start(tmp_path / "run.safetensors")
        finally:
            signal.signal(signal.SIGHUP, handler)
        process.send_signal(signal.SIGHUP)
        line = next(line for line in process.stdout if line.startswith("epoch 9/"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert line
        assert process.returncode == 128 + signal.SIGTERM


class TestOptions:
    def test_weight_decay_and_momentum(self, capsys):
        def losses(*options):
            status, out, err = run(capsys, "train", *SMALL, "--json", "-", *options)
            assert status == 0, err
            return json.loads(out)["steps"]

        assert losses() == losses("--weight-decay", "0.01") != losses("--weight-decay", "0.5")
        plain = losses("--optimizer", "sgd")
        assert plain == losses("--optimizer", "sgd", "--momentum", "0", "--weight-decay", "0")
        assert plain != losses("--optimizer", "sgd", "--momentum", "0.9")
        assert losses("--optimizer", "momentum", "--momentum", "0.5") != losses("--optimizer", "momentum")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--momentum", "0.9"], "--momentum: adamw has none; these have: lars, momentum, rmsprop, sgd"),
            (["--optimizer", "rprop", "--weight-decay", "0"], "--weight-decay: rprop has none; these have: adadelta"),
            (["--weight-decay", "-1"], "weight_decay: expected"),
            (["--optimizer", "sgd", "--momentum", "nan"], "momentum: expected"),
            (["--batch-size", "1"], "--batch-size: no batch of at least two rows with 1, which batch norm wants"),
        ],
    )
    def test_errors(self, capsys, options, message):
        status, _, err = run(capsys, "train", *SMALL, *options)
        assert status == 2
        assert message in err

    def test_batches_of_one_row(self, capsys):
        options = ["--batch-size", "1", "--no-batch-norm", "--epochs", "1", "--hidden", "8", "--json", "-"]
        assert len(json.loads(run(capsys, "train", *options)[1])["steps"]) == 1437
        # 1,437 rows by 4: the last batch is of one row.
        for norm, count in (("--no-batch-norm", 360), ("--batch-norm", 359)):
            out = run(capsys, "train", "--batch-size", "4", norm, "--epochs", "1", "--hidden", "8", "--json", "-")[1]
            assert len(json.loads(out)["steps"]) == count

    @pytest.mark.parametrize("command", ["train", "doctor", "bench", "gallery", "info"])
    def test_an_option_that_there_is_not(self, capsys, command):
        status, _, err = run(capsys, command, "--lrr", "3")
        assert status == 2
        assert f"usage: fusedstep {command} " in err
        assert f"fusedstep {command}: error: " in err
        assert "unrecognized arguments: --lrr" in err

    def test_early_stopping_names_its_epoch(self, capsys):
        options = ["--epochs", "60", "--early-stop", "2", "--lr", "0.05", "--hidden", "32", "--json", "-"]
        _, out, err = run(capsys, "train", *options)
        record = json.loads(out)
        held_out = [entry["held_out_loss"] for entry in record["epochs"]]
        best = int(np.argmin(held_out))
        assert record["early_stopping"] == {"best_epoch": best + 1, "best_loss": held_out[best], "stopped": True}
        assert f"best epoch         {best + 1} of {len(held_out)} (stopped early)" in err

    def test_an_explosion_is_told_without_warnings(self, tmp_path):
        options = ["--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm", "--hidden", "8", "--epochs", "2"]
        process = called("train", *options, "--plot", str(tmp_path / "run.png"), "--doctor")
        assert process.returncode == 0
        assert process.stderr == b""
        assert b"the loss is not finite" in process.stdout

    def test_warnings_have_no_path(self, capsys, monkeypatch):
        from fusedstep.apps.cli import info

        monkeypatch.setattr(info, "collect", lambda: warnings.warn("so it is", RuntimeWarning, stacklevel=1) or {})
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            main(["info", "--json"])
        assert capsys.readouterr().err == "fusedstep info: warning: so it is\n"


class TestMoreEpochs:
    def test_a_longer_run_has_the_bits_of_one_that_was_as_long(self, capsys, tmp_path):
        first, longer, whole = (str(tmp_path / name) for name in ("a", "b", "c"))
        options = ["--hidden", "8", "--dropout", "0.1", "--ema", "0.9", "--optimizer", "sgd", "--momentum", "0.9"]
        assert run(capsys, "train", *options, "--epochs", "2", "--checkpoint", first)[0] == 0
        status, out, _ = run(capsys, "train", "--resume", first, "--epochs", "5", "--checkpoint", longer)
        assert status == 0
        assert "epoch 3/5" in out
        assert run(capsys, "train", *options, "--epochs", "5", "--checkpoint", whole)[0] == 0
        a, b = fs.load_checkpoint(longer), fs.load_checkpoint(whole)
        assert {k: v.tobytes() for k, v in a.params.items()} == {k: v.tobytes() for k, v in b.params.items()}
        assert a.metadata["run"] == b.metadata["run"]
        assert a.metadata["record"]["steps"] == b.metadata["record"]["steps"]
        # And it can be taken up as what it is now.
        assert run(capsys, "train", "--resume", longer, "--epochs", "5")[0] == 0
        assert "has 5, got 4" in run(capsys, "train", "--resume", longer, "--epochs", "4")[2]

    def test_the_rate_is_that_of_the_longer_run(self, capsys, tmp_path):
        path = str(tmp_path / "a")
        assert run(capsys, "train", *SMALL, "--schedule", "cosine", "--checkpoint", path)[0] == 0
        _, out, err = run(capsys, "train", "--resume", path, "--epochs", "4", "--json", "-")
        assert "from here on the rate is that of cosine over 4 epochs" in err
        rates = json.loads(out)["telemetry"]["lr"]
        cosine = fs.schedules.cosine(1e-3, 4 * 23)
        assert rates[2 * 23 :] == [cosine(step) for step in range(2 * 23, 4 * 23)]
        assert json.loads(out)["options"]["epochs"] == 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--snapshots", "2"], "over which its snapshots are spread"),
            (["--early-stop", "1"], "has ended at its best weights"),
            (["--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm"], "its loss is not finite"),
        ],
    )
    def test_where_it_would_be_another_run(self, capsys, tmp_path, options, message):
        path = str(tmp_path / "a")
        run(capsys, "train", *SMALL, *options, "--checkpoint", path)
        status, _, err = run(capsys, "train", "--resume", path, "--epochs", "9")
        assert status == 2
        assert message in err


class TestPicture:
    """What is drawn, by matplotlib's own account of it."""

    @pytest.fixture
    def drawn(self, monkeypatch):
        pyplot = pytest.importorskip("matplotlib.pyplot")
        figures = []
        monkeypatch.setattr(pyplot, "close", figures.append)

        def draw(tmp_path, *options):
            assert main(["train", "--hidden", "8", *options, "--plot", str(tmp_path / "run.png")]) == 0
            return {axes.get_title(): axes for axes in figures[-1].axes}

        yield draw
        monkeypatch.undo()
        pyplot.close("all")

    @staticmethod
    def labels(axes):
        return axes.get_legend_handles_labels()[1]

    def test_smoothed_losses_are_called_so(self, drawn, tmp_path):
        axes = drawn(tmp_path, "--epochs", "3", "--label-smoothing", "0.1", "--dropout", "0.2", "--ema", "0.9")
        assert self.labels(axes["Loss"]) == [
            "train, each batch",
            "train (targets smoothed by 0.1, dropout 0.2)",
            "test (targets as they are)",
        ]
        assert "test, averaged weights" in self.labels(axes["Accuracy"])
        (line,) = drawn(tmp_path, "--epochs", "3", "--schedule", "cosine")["Learning rate"].lines
        expected = [fs.schedules.cosine(1e-3, 69)(step) for step in range(69)]
        np.testing.assert_array_equal(line.get_ydata(), expected)

    def test_snapshots(self, drawn, tmp_path):
        axes = drawn(tmp_path, "--epochs", "4", "--snapshots", "2")
        for name in ("Loss", "Accuracy", "Learning rate"):
            marks = [line.get_xdata()[0] for line in axes[name].lines if line.get_linestyle() == ":"]
            assert {2.0, 4.0} <= set(marks)
            assert self.labels(axes[name]).count("snapshot") == 1
        assert any(label.startswith("test, snapshots together: ") for label in self.labels(axes["Accuracy"]))

    def test_the_stop(self, drawn, tmp_path):
        axes = drawn(tmp_path, "--epochs", "60", "--early-stop", "1", "--lr", "0.1")
        assert "stopped early" in self.labels(axes["Loss"])
        assert any(label.startswith("best epoch: ") for label in self.labels(axes["Loss"]))

    def test_an_explosion_leaves_no_empty_legend(self, drawn, tmp_path):
        axes = drawn(tmp_path, "--epochs", "2", "--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm")
        for name in ("Loss", "Accuracy", "Learning rate", "Size of the steps"):
            legend = axes[name].get_legend()
            lines = [line for line in axes[name].lines if np.isfinite(line.get_ydata()).any()]
            assert len(lines) == len(axes[name].lines)
            assert legend is None or len(legend.texts) == len(lines)


def test_a_resumed_run_keeps_its_hyper_parameters(tmp_path):
    options = Options(optimizer="sgd", momentum=0.5, weight_decay=0.01, hidden=(8,), epochs=1)
    Training(options).save(tmp_path / "a.st")
    resumed = Training.resume(tmp_path / "a.st", {})
    group = resumed.optimizer.param_groups[0]
    assert (resumed.options, group["momentum"], group["weight_decay"]) == (options, 0.5, 0.01)


def test_a_file_without_a_run_is_told_in_words(capsys, tmp_path):
    path = str(tmp_path / "other.st")
    fs.save_checkpoint(path, [np.zeros(2, np.float32)])
    err = run(capsys, "train", "--resume", path)[2]
    assert f"--resume: {path} holds no run of fusedstep train (no 'run' in it)" in err
    assert "KeyError" not in err
