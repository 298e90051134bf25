"""Modules that have moved are found under their old names too, and are not loaded twice."""

import base64
import importlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _moved

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def old():
    """Objects that were pickled when the modules had their old names."""
    pickles = json.loads((DATA / "pickles.json").read_text())
    return {name: pickle.loads(base64.b64decode(text)) for name, text in pickles.items()}


@pytest.mark.parametrize("old", _moved.MOVED)
def test_the_old_name_is_the_module(old):
    module = importlib.import_module(f"fusedstep.{old}")
    assert module is importlib.import_module(f"fusedstep.{_moved.MOVED[old]}")
    assert module.__name__ == module.__spec__.name == f"fusedstep.{_moved.MOVED[old]}"


def test_what_lies_within_moved_too():
    old = importlib.import_module("fusedstep.bench.harness")
    assert old is sys.modules["fusedstep.apps.bench.harness"]


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"fusedstep\.nowhere"):
        importlib.import_module("fusedstep.nowhere")
    assert _moved.new_name("other.bench") is None


def test_public_names_of_thin_modules():
    from fusedstep.apps.gallery import FIGURES
    from fusedstep.averaging import EMA
    from fusedstep.gallery import FIGURES as DOCUMENTED

    assert DOCUMENTED is FIGURES
    assert EMA is fs.averaging.EMA


class TestPickles:
    def test_an_average(self, old):
        # The mean of [1, 2] and [2, 3], of [1] and [1].
        assert {name: list(array) for name, array in old["EMA"].params.items()} == {"w": [1.5, 2.5], "b": [1.0]}
        old["EMA"].update()

    def test_an_average_of_a_tree(self, old):
        np.testing.assert_array_equal(old["SWA"].params["a"]["w"], [1, 2])

    def test_snapshots(self, old):
        assert [list(array) for (array,) in old["SnapshotEnsemble"].members()] == [[1, 2]]

    def test_early_stopping(self, old):
        assert old["EarlyStopping"].best == 0.5

    def test_rows(self, old):
        assert old["RowSparse"].shape == (3, 2)

    def test_an_optimizer_goes_on(self, old):
        fresh = {"a": {"w": np.array([1, 2], np.float32)}, "b": [np.array([1], np.float32)]}
        opt = fs.Adam(fresh, lr=fs.schedules.warmup(fs.schedules.cosine(0.1, 10), 2))
        grads = {"a": {"w": np.array([1, 2], np.float32)}, "b": [np.array([1], np.float32)]}
        opt.step(grads)
        assert old["Adam"].step(grads) == opt.step(grads)

    def test_a_layer(self, old):
        np.testing.assert_allclose(old["BatchNorm"].running_mean, [0.2, 0.3])

    @pytest.mark.parametrize("name", ["Spectrum", "CriticalPoint", "Hessian", "NewtonStep", "Escape", "Smoothness"])
    def test_curvature(self, old, name):
        assert type(old[name]) is getattr(fs.curvature, name)

    def test_batches(self, old):
        assert type(old["Batches"]) is fs.data.Batches

    def test_the_rest(self, old):
        gradient, checkpoint, curvature = map(type, old["errors"])
        assert gradient is fs.curvature.GradientError
        assert checkpoint is fs.CheckpointError
        assert curvature is fs.curvature.NoNegativeCurvatureError
        assert old["schedules"][0] == fs.schedules.cosine(0.1, 10)
        assert old["Doctor"] == fs.doctor.Thresholds()
