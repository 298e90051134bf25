"""The examples: with torch's parts and with ours they learn the same."""

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2] / "examples"
#: Those with the parts of either library, but for those of trainers, which are tested in tests/distributed.
NAMES = ["char_transformer", "resnet_digits"]
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

    @pytest.mark.parametrize("parts", ["torch", "fusedstep"])
    def test_in_float32(self, name, parts):
        """Near to the curve in float64, on every processor, until a ReLU takes a number within rounding of 0.

        From then on the distance is of the processor's rounding: 1e-4 after 12 steps with some of PyTorch's kernels.
        """
        train = example(name).train
        exact = train("torch", STEPS, dtype=torch.float64)
        np.testing.assert_allclose(train(parts, STEPS)[:5], exact[:5], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("parts", ["torch", "fusedstep"])
    def test_from_the_command_line(self, name, parts, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", [name, "--parts", parts, "--steps", "20"])
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        assert capsys.readouterr().out.splitlines()[-1].startswith("  20  ")

    def test_short(self, name):
        lines = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 80
        assert max(map(len, lines)) <= 120
