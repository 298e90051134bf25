"""Files are there whole or not at all."""

import json
import os
import stat
import threading

import numpy as np
import pytest

import fusedstep as fs
from fusedstep._common import files
from fusedstep.apps.cli.common import write_json


class InterruptedHereError(Exception):
    pass


@pytest.fixture
def interrupted(monkeypatch):
    """Nothing takes its name: as if the process ended before."""

    def replace(source, target):
        raise InterruptedHereError

    monkeypatch.setattr(os, "replace", replace)


def drawn(path):
    pytest.importorskip("matplotlib")
    fs.schedules.plot(fs.schedules.constant(0.1), steps=5, path=path)


WRITERS = {
    "json": lambda path: write_json({"a": [1.0, float("nan")]}, str(path)),
    "png": lambda path: drawn(path),
    "svg": lambda path: drawn(path),
    "safetensors": lambda path: fs.save_checkpoint(path, [np.ones(2)]),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_old_file_stays_until_the_new_one_is_whole(suffix, tmp_path, interrupted):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(InterruptedHereError):
        WRITERS[suffix](path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_is_written(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"old")
    path.chmod(0o640)
    WRITERS[suffix](path)
    content = path.read_bytes()
    starts = {"json": b"{", "png": b"\x89PNG", "svg": b"<?xml"}
    assert content.startswith(starts.get(suffix, b""))
    assert len(content) > 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == [path.name]
    if suffix == "json":
        assert json.loads(content) == {"a": [1.0, None]}


def test_without_a_suffix(tmp_path):
    drawn(tmp_path / "plot")
    assert os.listdir(tmp_path) == ["plot.png"]


def test_into_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_json({"a": 1}, str(tmp_path / "pipe"))
    reader.join()
    assert json.loads(read[0]) == {"a": 1}
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_in_a_directory_that_takes_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old, and longer")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
