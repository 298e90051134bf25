"""A rule is in every place that CONTRIBUTING.md lists, or a test here says which one is missing."""

import inspect
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core, optimizers
from fusedstep.optimizers import REGISTRY, Optimizer

ROOT = Path(__file__).parents[1]
RULES = _core.rules()
SECTIONS = ["Args:", "Raises:", "Examples:", "Reference:"]


def test_native_python_and_cases_know_the_same_rules():
    files = {path.stem for path in (ROOT / "cpp/rules").glob("*.h")} - {"rule", "list", "maths", "power"}
    modules = {path.stem for path in (ROOT / "python/fusedstep/optimizers").glob("*.py")} - {"__init__", "_base"}
    assert files == modules == set(RULES) == set(REGISTRY) == set(CASES)


@pytest.mark.parametrize("rule", RULES)
class TestEveryRule:
    def test_is_exported(self, rule):
        name = REGISTRY[rule].__name__
        assert name in optimizers.__all__
        assert name in fs.__all__
        assert getattr(fs, name) is REGISTRY[rule]
        assert REGISTRY[rule].rule == rule
        assert callable(getattr(fs.functional, rule))

    def test_hyper_parameters_have_the_native_names(self, rule):
        parameters = list(inspect.signature(REGISTRY[rule]).parameters)
        assert parameters == ["params", *RULES[rule]["hypers"], "options"]

    def test_reference_takes_the_native_states(self, rule):
        update = list(inspect.signature(REGISTRY[rule].update).parameters)
        assert update == ["h", "c", "g", "p", *RULES[rule]["states"]]
        assert list(inspect.signature(REGISTRY[rule].coefficients).parameters) == ["h", "step", "first"]

    def test_is_documented(self, rule):
        doc = inspect.getdoc(REGISTRY[rule])
        for section in SECTIONS:
            assert section in doc
        for name in RULES[rule]["hypers"]:
            assert f"\n    {name}: " in doc
        assert f"`fs.{REGISTRY[rule].__name__}`" in (ROOT / "README.md").read_text(encoding="utf-8")

    def test_cases_reach_every_variant(self, rule):
        used = set()
        for hypers in CASES[rule].valid:
            optimizer = REGISTRY[rule](np.ones(1), **hypers)
            optimizer.step(np.ones(1))
            used.add(sum(isinstance(value, np.ndarray) for value in optimizer.state[0].values()))
        assert used == set(RULES[rule]["states_used"])
        assert set(CASES[rule].random) <= set(RULES[rule]["hypers"])
        named = {message.split(":")[0] for _, _, message in CASES[rule].errors}
        assert set(RULES[rule]["hypers"]) <= named | {"nesterov"}


def test_public_names_are_documented():
    for name in fs.__all__:
        thing = getattr(fs, name)
        if inspect.isfunction(thing):
            assert "Examples:" in thing.__doc__, name
    for name in fs.runtime.__all__:
        assert getattr(fs.runtime, name).__doc__, name
    for method in ("step", "ema", "add_param_group", "state_dict", "load_state_dict"):
        assert inspect.getdoc(getattr(Optimizer, method)), method
