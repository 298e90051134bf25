"""A rule is in every place that CONTRIBUTING.md lists, or a test here says which one is missing."""

import ast
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedstep as fs
from cases import CASES
from fusedstep import _core, optimizers
from fusedstep.optimizers import REGISTRY, Optimizer
from fusedstep.reference.rules import RULES as EQUATIONS

ROOT = Path(__file__).parents[1]
RULES = _core.rules()
SECTIONS = ["Args:", "Raises:", "Examples:", "Reference:"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def places():
    """What each place that CONTRIBUTING.md lists knows of, in its order."""
    named = {optimizer.__name__: rule for rule, optimizer in REGISTRY.items()}
    files = {path.stem for path in (ROOT / "cpp/rules").glob("*.h")} - {"rule", "list", "maths", "power"}
    # L-BFGS is no rule of one step: it asks for gradients as it goes.
    modules = {path.stem for path in (ROOT / "python/fusedstep/optimizers").glob("[a-z]*.py")} - {"lbfgs"}
    included = set(re.findall(r'#include "rules/(\w+)\.h"', read("cpp/rules/list.h"))) - {"rule"}
    rows = re.findall(r"^\| `fs\.(\w+)`", read("README.md"), re.MULTILINE)
    changes = re.findall(r"`(\w+)`", read("CHANGELOG.md"))
    return {
        "1. cpp/rules/NAME.h": files,
        "2. cpp/rules/list.h, its include": included,
        "2. cpp/rules/list.h, the list": set(RULES),
        "3. python/fusedstep/reference/rules/NAME.py": set(EQUATIONS),
        "3. python/fusedstep/optimizers/NAME.py": modules,
        "4. python/fusedstep/optimizers/__init__.py, REGISTRY": set(REGISTRY),
        "4. python/fusedstep/optimizers/__init__.py, __all__": {named.get(name) for name in optimizers.__all__}
        - {None},
        "4. python/fusedstep/__init__.py": {named.get(name) for name in fs.__all__} - {None},
        "5. tests/cases.py": set(CASES),
        "6. README.md, the table": {named.get(name) for name in rows} - {None},
        "6. CHANGELOG.md": {named.get(name) for name in changes} - {None},
    }


def test_every_rule_is_in_every_place():
    known = places()
    every = set.union(*known.values())
    missing = [
        f"{rule}: not in {place}" for rule in sorted(every) for place, rules in known.items() if rule not in rules
    ]
    assert not missing, "\n".join(missing)


def test_rules_have_names_of_their_own():
    classes = [
        c for c in vars(optimizers).values() if inspect.isclass(c) and issubclass(c, Optimizer) and c is not Optimizer
    ]
    assert len({optimizer.rule for optimizer in classes}) == len(classes) == len(REGISTRY)


def test_classes_have_no_equations():
    """They are the reference's, and no public names."""
    shown = {name: set(dir(optimizer)) - set(dir(Optimizer)) for name, optimizer in REGISTRY.items()}
    equations = {name for module in EQUATIONS.values() for name, value in vars(module).items() if callable(value)}
    assert equations >= {"coefficients", "direction", "update", "measure", "settle", "share", "weigh", "rate"}
    assert {name: names & equations for name, names in shown.items() if names & equations} == {}


def test_the_reference_imports_numpy_and_what_all_share():
    """It is the specification: whoever reads it needs nothing of the library around it."""
    allowed = {*sys.stdlib_module_names, "numpy"}
    packages = ("fusedstep.reference", "fusedstep._common")
    imported = set()
    for path in (ROOT / "python/fusedstep/reference").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert [name for name in imported if name.split(".")[0] not in allowed and not name.startswith(packages)] == []
    assert any(name.startswith("fusedstep._common") for name in imported)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule in REGISTRY and rule in CASES])
class TestEveryRule:
    def test_is_exported(self, rule):
        assert getattr(fs, REGISTRY[rule].__name__) is REGISTRY[rule]
        assert callable(getattr(fs.functional, rule))

    def test_hyper_parameters_have_the_native_names(self, rule):
        parameters = list(inspect.signature(REGISTRY[rule]).parameters)
        assert parameters == ["params", *RULES[rule]["hypers"], "options"]

    def test_reference_takes_the_native_states_and_scalars(self, rule):
        reference = EQUATIONS[rule]
        update = getattr(reference, "direction", None) or reference.update
        assert list(inspect.signature(update).parameters) == ["h", "c", "g", "p", *RULES[rule]["states"]]
        scalars = ["scalars"] if RULES[rule]["scalars"] else []
        assert list(inspect.signature(reference.coefficients).parameters) == ["h", "step", "first", *scalars]

    def test_is_documented(self, rule):
        doc = inspect.getdoc(REGISTRY[rule])
        for section in SECTIONS:
            assert section in doc
        for name in RULES[rule]["hypers"]:
            assert f"\n    {name}: " in doc

    def test_cases_reach_every_variant(self, rule):
        used = {
            _core.variant(rule, REGISTRY[rule](np.ones((1, 1)), **hypers).param_groups[0], axes)
            for hypers in CASES[rule].valid
            for axes in (1, 2)
        }
        assert used == set(range(len(RULES[rule]["variants"])))
        assert set(CASES[rule].random) <= set(RULES[rule]["hypers"])
        named = {message.split(":")[0] for _, _, message in CASES[rule].errors}
        assert set(RULES[rule]["hypers"]) <= named


def test_the_stub_of_the_functions_is_made_anew():
    """`python -m fusedstep.functional > python/fusedstep/functional.pyi`."""
    assert Path(fs.functional.__file__).with_suffix(".pyi").read_text(encoding="utf-8") == fs.functional.stub()


def test_public_names_are_documented():
    for name in fs.__all__:
        thing = getattr(fs, name)
        if inspect.isfunction(thing):
            assert "Examples:" in thing.__doc__, name
    for name in fs.runtime.__all__:
        assert getattr(fs.runtime, name).__doc__, name
    for method in ("step", "ema", "add_param_group", "state_dict", "load_state_dict"):
        assert inspect.getdoc(getattr(Optimizer, method)), method
