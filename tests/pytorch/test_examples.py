"""The examples: with torch's parts and with ours they learn the same."""

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in ROOT.glob("*.py"))
STEPS = 12


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
class TestCurves:
    def test_in_float64(self, name):
        """To rounding, which these steps multiply by less than a thousand."""
        train = example(name).train
        ours, theirs = (train(parts, STEPS, dtype=torch.float64) for parts in ("fusedstep", "torch"))
        assert ours[-1] < ours[0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)

    def test_in_float32(self, name):
        """As near to one of torch's two implementations as these are to each other: to twice of it."""
        train = example(name).train
        ours = np.array(train("fusedstep", STEPS))
        foreach, fused = (np.array(train("torch", STEPS, **{kind: True})) for kind in ("foreach", "fused"))
        allowed = 2 * np.abs(foreach - fused).max() + 2e-6
        assert min(np.abs(ours - theirs).max() for theirs in (foreach, fused)) <= allowed

    @pytest.mark.parametrize("parts", ["torch", "fusedstep"])
    def test_from_the_command_line(self, name, parts, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", [name, "--parts", parts, "--steps", "20"])
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        assert capsys.readouterr().out.splitlines()[-1].startswith("  20  ")

    def test_short(self, name):
        lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 80
        assert max(map(len, lines)) <= 120
