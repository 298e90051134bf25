"""A rule is in every place that CONTRIBUTING.md lists, or a test here says which one is missing."""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import fusedstep as fs
import generate
from cases import CASES
from fusedstep import _core, optimizers
from fusedstep.optimizers import REGISTRY, Optimizer
from fusedstep.optimizers.base.options import Arguments, Options
from fusedstep.reference.rules import RULES as EQUATIONS

ROOT = Path(__file__).parents[2]
RULES = _core.rules()
SECTIONS = ["Args:", "Raises:", "Examples:", "Reference:"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def places():
    """What each place that CONTRIBUTING.md lists knows of, in its order."""
    named = {optimizer.__name__: rule for rule, optimizer in REGISTRY.items()}
    files = {path.stem for path in (ROOT / "cpp/rules").glob("*.h")} - {"rule", "list"}
    # L-BFGS is no rule of one step: it asks for gradients as it goes.
    modules = {path.stem for path in (ROOT / "python/fusedstep/optimizers").glob("*.py")} - {"__init__", "exports"}
    listed = set(re.findall(r"^RULE\((\w+), \w+\)$", read("cpp/rules/list.h"), re.MULTILINE))
    return {
        "1. cpp/rules/NAME.h": files,
        "2. cpp/rules/list.h": listed,
        "2. cpp/rules/list.h, as built": set(RULES),
        "3. python/fusedstep/reference/rules/NAME.py": set(EQUATIONS),
        "4. python/fusedstep/optimizers/NAME.py": modules,
        "5. python/fusedstep/optimizers/exports.py": {named.get(name) for name in optimizers.NAMES} - {None},
        "6. tests/cases.py": set(CASES),
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


def shown_signature(thing):
    """Without the modules that types come from."""
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", str(inspect.signature(thing)))
    return re.sub(r"\*<class '(\w+)'>", r"*\1", text)


def test_signatures_are_those_that_users_know():
    """Recorded when every constructor was written out: names, order, types and defaults."""
    for line in read("tests/data/signatures.txt").splitlines():
        name = line.partition("(")[0]
        assert name + shown_signature(getattr(optimizers, name)) == line


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
            assert doc.count(f"\n{section}\n") == 1
        assert "no float32, float64, float16 or bfloat16 array" in doc
        for name in RULES[rule]["hypers"]:
            assert f"\n    {name}: " in doc

    def test_cases_reach_every_variant(self, rule):
        used = {
            _core.variant(rule, REGISTRY[rule](np.ones((1, 1)), **hypers).param_groups[0], axes)
            for hypers in CASES[rule].valid
            for axes in (1, 2)
        }
        assert used == set(range(len(RULES[rule]["variants"])))
        assert CASES[rule].torch or CASES[rule].oracle
        assert set(CASES[rule].random) <= set(RULES[rule]["hypers"])
        named = {message.split(":")[0] for _, _, message in CASES[rule].errors}
        assert set(RULES[rule]["hypers"]) <= named


@pytest.mark.parametrize(("path", "text"), generate.files().items())
def test_what_is_generated_is_not_stale(path, text):
    assert read(path) == text, f"{path} is stale: python tests/generate.py"


def test_public_names_are_documented():
    for name in fs.__all__:
        thing = getattr(fs, name)
        if inspect.isfunction(thing):
            assert "Examples:" in thing.__doc__, name
    for name in fs.runtime.__all__:
        assert getattr(fs.runtime, name).__doc__, name
    for method in ("step", "ema", "add_param_group", "state_dict", "load_state_dict"):
        assert inspect.getdoc(getattr(Optimizer, method)), method


class TestFields:
    """A class of fields is an optimizer with a constructor of its own."""

    def test_the_constructor_is_a_function(self):
        """So that a wrong call reads as everywhere in Python."""
        p = np.ones(2)
        assert fs.Adam.__init__.__qualname__ == "Adam.__init__"
        assert fs.Adam.__init__.__module__ == "fusedstep.optimizers.adam"
        assert fs.Adam(p, 0.1, (0.5, 0.7), 1e-6, 0.2, True).param_groups[0]["amsgrad"] is True
        with pytest.raises(TypeError, match=r"Adam\.__init__\(\) missing 1 required positional argument: 'params'"):
            fs.Adam()
        with pytest.raises(TypeError, match=r"Adam\.__init__\(\) got multiple values for argument 'lr'"):
            fs.Adam(p, 0.1, lr=0.1)
        with pytest.raises(TypeError, match=r"takes from 2 to 8 positional arguments but 9 were given"):
            fs.Adam(p, 0.1, (0.5, 0.7), 1e-6, 0.2, True, False, True)
        with pytest.raises(TypeError, match="rate: not a hyper-parameter of Adam"):
            fs.Adam(p, rate=0.1)

    def test_a_subclass_may_declare_another_default(self):
        class Slow(fs.Adam):
            lr: float = 1e-5
            note: str = "an attribute like any other"

        p = np.ones(2)
        assert (Slow(p).lr, Slow(p).betas, Slow(p, 0.5).lr, fs.Adam(p).lr) == (1e-5, (0.9, 0.999), 0.5, 1e-3)
        assert list(inspect.signature(Slow).parameters) == list(inspect.signature(fs.Adam).parameters)
        optimizer = Slow(p)
        optimizer.lr = 0.25
        assert (optimizer.param_groups[0]["lr"], optimizer.note) == (0.25, "an attribute like any other")

    def test_a_subclass_may_have_a_constructor(self):
        class Fixed(fs.AdamW):
            def __init__(self, params):
                super().__init__(params, 0.5, weight_decay=0.0, cautious=True)

        p = np.ones(2)
        assert Fixed(p).step(p.copy()).lr == 0.5
        assert Fixed(p).param_groups[0]["cautious"] is True

    @pytest.mark.parametrize("wrong", [{"momentum": float}, {"lr": float, "speed": float}, {}])
    def test_fields_are_those_of_the_rule(self, wrong):
        """Name for name; the C++ rule says which there are."""
        body = {"rule": "lion", "__annotations__": wrong, **dict.fromkeys(wrong, 0.5)}
        with pytest.raises(TypeError, match=r"Wrong: expected fields with defaults, \['lr', 'betas', 'weight_decay'\]"):
            type("Wrong", (Optimizer,), body)

    def test_options_are_told_to_type_checkers_once(self):
        """As fields of the base and as a TypedDict, which say the same."""
        hints = get_type_hints(Arguments)
        assert hints.pop("params").type is Any
        assert hints == get_type_hints(Options)
        assert list(hints) == list(optimizers.OPTIONS)
        assert not set(hints) & set(vars(Optimizer))
