"""A saved run that somebody changed: refused with one kind of error, or gone on with to its end."""

import copy
import functools
import os
import random

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.apps.cli import main
from fusedstep.apps.cli.train_report import summary
from fusedstep.apps.examples import digits
from fusedstep.apps.examples.training import Options, Training

PARTS = [{"ema": 0.9, "early_stop": 2}, {"snapshots": 3}]
VALUES = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.5, 2**31 + 1, 2**40, 2**63, 10**400, float("nan"), float("inf"), 1e308),
    *(
        "",
        "x",
        "adamw",
        "\ud800",
        [],
        {},
        [1],
        (),
        {"a": 1},
        [None],
        [float("nan")],
        np.ones(2),
        np.ones(2, np.float32),
    ),
]
REMOVED = object()
REPORTED = {
    "interrupted": False,
    "test_accuracy": 0.5,
    "kernels": {"compared_steps": 0, "steps": 0},
    "seconds": 1.0,
    "threads": 1,
    "isa": "numpy",
}


def steps_before_the_end(run, count):
    while not run.finished:
        for x, y in run.batches():
            if len(run.record["steps"]) == run.total - count:
                return run
            run.took(*run.loss_step(run.model, run.optimizer, x, y, lambda f, *a, **k: f(*a, **k)))
        run.end_epoch()
    return run


@pytest.fixture(scope="module", autouse=True)
def quick():
    """The digits are read once, and nothing waits for the disk: hundreds of runs are saved and taken up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "load", functools.cache(digits.load))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", params=PARTS, ids=str)
def saved(request, tmp_path_factory):
    """A run, two steps before its end, and its file."""
    path = tmp_path_factory.mktemp("runs") / "run.st"
    run = Training(Options(epochs=3, hidden=(8,), batch_size=512, **request.param))
    steps_before_the_end(run, 2).save(path)
    return run, fs.load_checkpoint(path)


def places(value, path=()):
    """Where something stands: of lists the ends."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for k in sorted({0, len(value) - 1} - {-1}):
            yield from places(value[k], (*path, k))


def changed(value, path, new):
    if not path:
        return new
    key, *rest = path
    copied = list(value) if isinstance(value, tuple) else copy.copy(value)
    if new is REMOVED and not rest:
        del copied[key]
    else:
        copied[key] = changed(copied[key], rest, new)
    return tuple(copied) if isinstance(value, tuple) else copied


def write(path, run, metadata):
    fs.save_checkpoint(path, run.model.params, run.optimizer, **metadata)


def test_every_field(saved, tmp_path):
    run, loaded = saved
    choose = random.Random(0)
    path = tmp_path / "changed.st"
    taken = refused = 0
    for place in places(loaded.metadata):
        if not place or place[0] in ("options", "epochs", "test_accuracy"):  # for people to read
            continue
        for value in [REMOVED, *choose.sample(VALUES, 2)]:
            write(path, run, changed(loaded.metadata, place, value))
            try:
                other = Training.resume(path, {})
            except ValueError:
                refused += 1
                continue
            # A number in its range; without an option, which had its default, or a snapshot.
            assert isinstance(value, int | float) or value is None or place[0] in ("run", "snapshots"), place
            taken += 1
            with np.errstate(all="ignore"):
                steps_before_the_end(other, 0)
            assert other.finished
            assert summary({**other.record, **REPORTED})
    assert refused > 100
    assert taken < refused / 3


def test_the_command(saved, tmp_path, capsys):
    run, loaded = saved
    path = tmp_path / "changed.st"
    for place, value, message in (
        (("record",), REMOVED, "'record'"),
        (("record",), 3, "record: expected a dict, got 3"),
        (("record", "steps"), REMOVED, "record: no 'steps'"),
        (("record", "steps"), [1.0], r"record['steps']: expected a list of 7 numbers, got [1.0]"),
        (("record", "steps", 0), "x", "record['steps'][0]: expected a number, got 'x'"),
        (("record", "steps", 0), -1.0, "record['steps'][0]: expected a number from 0 to inf, got -1.0"),
        (("record", "steps", 0), 10**400, "record['steps'][0]: expected a number that a double holds"),
        (("record", "accuracies", 1), 1.5, "record['accuracies'][1]: expected a number from 0 to 1, got 1.5"),
        (("record", "accuracies", 1), float("nan"), "record['accuracies'][1]: expected a number from 0 to 1, got nan"),
        (("record", "telemetry", "lr"), None, "record['telemetry']['lr']: expected a list of"),
        (("record", "telemetry"), {}, "record['telemetry']: expected ['lr', "),
        (("record", "epochs"), [], "record['epochs']: expected a list of 2 entries, got []"),
        (("record", "epochs", 0, "test_loss"), REMOVED, "record['epochs'][0]: expected ['epoch', 'step', "),
        (("record", "epochs", 1, "step"), 2, "record['epochs'][1]['step']: expected"),
        (("progress", "epoch"), 3, "progress: 3 of 3 epochs are done, and yet it goes on"),
        (("progress", "batch"), -1, "progress['batch']: expected a whole number from 0 to"),
        (("progress", "finished"), "no", "progress['finished']: expected True or False, got 'no'"),
        (("run", "hidden"), (2**40,), "run['hidden']: expected a whole number from 0 to 2147483648"),
        (("run", "hidden"), (2**31,), "another model: w0"),
        (("run", "optimizer"), "nope", "run['optimizer']: expected one of"),
        (("run", "batch_size"), 0, "run['batch_size']: expected at least 1, got 0"),
        (("run", "dropout"), 1.0, "run['dropout']: expected a number in [0, 1), got 1.0"),
        (("run", "more"), 1, "run: no such options ['more']"),
        (("buffers", "running_var0"), np.full(8, -1, np.float32), "buffers['running_var0']: expected numbers >= 0"),
        (("buffers", "running_var0"), 1.0, "buffers['running_var0']: expected an array, got float"),
    ):
        metadata = (
            {**loaded.metadata, "run": {**loaded.metadata["run"], "more": 0}}
            if place[-1] == "more"
            else loaded.metadata
        )
        message = message.replace("of 7 numbers", f"of {len(run.record['steps'])} numbers")
        write(path, run, changed(metadata, place, value))
        assert main(["train", "--resume", str(path)]) == 2, place
        error = capsys.readouterr().err
        assert f"--resume: {path} holds no run of fusedstep train" in error, place
        assert message in error.replace("\\'", "'"), (place, error)


def test_hyper_parameters_are_those_of_the_options(saved, tmp_path):
    run, loaded = saved
    changed_one = copy.deepcopy(run.optimizer)
    changed_one.param_groups[0].update(telemetry=False, betas=(0.5, 0.5))
    fs.save_checkpoint(tmp_path / "a", run.model.params, changed_one, **loaded.metadata)
    (group,) = Training.resume(tmp_path / "a", {}).optimizer.param_groups
    assert (group["telemetry"], group["betas"]) == (True, (0.9, 0.999))
    fs.save_checkpoint(tmp_path / "a", run.model.params, None, **loaded.metadata)
    with pytest.raises(ValueError, match="optimizer: none"):
        Training.resume(tmp_path / "a", {})
