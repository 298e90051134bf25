"""Every example runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fusedstep

MODULES = sorted(
    m.name for m in pkgutil.walk_packages(fusedstep.__path__, "fusedstep.") if not m.name.endswith("__main__")
)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    with_examples = {
        test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples
    }
    assert len(with_examples) >= 10


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda p: p.name)
def test_python_blocks(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(path), "exec"), scope)


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "cpp/README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
