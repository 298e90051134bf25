"""Checkpoints: whole or not at all."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import fusedstep as fs
from helpers import assert_same_bits

F = np.float32


def trained(rng, **options):
    params = {"w": np.asfortranarray(rng.standard_normal((3, 4)).astype(F)), "b": np.ones(4)}
    optimizer = fs.AdamW([{"params": params, "lr": 0.1}], **options)
    for _ in range(3):
        optimizer.step([{"w": rng.standard_normal((3, 4)).astype(F), "b": None}])
    return params, optimizer


def test_round_trip(tmp_path, rng):
    """A resumed run has the bits of the uninterrupted one, Fortran order included."""
    params, optimizer = trained(rng, ema_decay=0.9)
    path = tmp_path / "run.safetensors"
    fs.save_checkpoint(path, params, optimizer, epoch=3, note="π")
    loaded = fs.load_checkpoint(path)
    assert loaded.metadata == {"epoch": 3, "note": "π"}
    fresh = {name: loaded.params[name].copy(order="K") for name in params}
    resumed = fs.AdamW([{"params": fresh}], ema_decay=0.9)
    resumed.load_state_dict(loaded.optimizer)
    grads = [{"w": rng.standard_normal((3, 4)).astype(F), "b": np.ones(4)}]
    assert optimizer.step(grads) == resumed.step(grads)
    for name, value in params.items():
        assert_same_bits(fresh[name], value)
    assert [resumed.state[k]["step"] for k in (0, 1)] == [4, 1]


def test_lists_and_no_optimizer(tmp_path):
    fs.save_checkpoint(tmp_path / "a", [np.zeros(2, F), np.ones(3)])
    loaded = fs.load_checkpoint(tmp_path / "a")
    assert list(loaded.params) == ["0", "1"]
    assert loaded.optimizer is None


def test_a_schedule_is_left_to_the_caller(tmp_path):
    p = np.ones(1)
    optimizer = fs.SGD(p, lr=lambda taken: 0.5**taken)
    for _ in range(3):
        optimizer.step(np.ones(1))
    fs.save_checkpoint(tmp_path / "a", [p], optimizer)
    resumed = fs.SGD(p, lr=lambda taken: 0.5**taken)
    resumed.load_state_dict(fs.load_checkpoint(tmp_path / "a").optimizer)
    assert resumed.step(np.ones(1)) == (4, 0.125)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "run"
    fs.save_checkpoint(path, [np.zeros(2)])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        fs.save_checkpoint(path, [np.ones(2)], bad=object())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_damaged_and_foreign_files_are_refused(tmp_path, rng):
    path = tmp_path / "run"
    params, optimizer = trained(rng)
    fs.save_checkpoint(path, params, optimizer)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[:20], b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file, or a damaged one"):
            fs.load_checkpoint(path)
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="no checkpoint of fusedstep"):
        fs.load_checkpoint(path)
    save_file({"a": np.zeros(1)}, path, metadata={"fusedstep": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="format 99 is newer"):
        fs.load_checkpoint(path)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fusedstep\[checkpoint\]'"):
        fs.save_checkpoint(tmp_path / "a", [np.zeros(1)])
