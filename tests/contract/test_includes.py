"""The folders of the C++ core know those below them, and no others: reads every include."""

import re
from pathlib import Path

import pytest

CPP = Path(__file__).resolve().parents[2] / "cpp"
#: From the lowest to the highest. Folders of one line do not know each other.
LAYERS = [
    ["maths"],
    ["rules"],
    ["kernels/abi"],
    ["kernels/pack"],
    ["kernels/codec"],
    ["kernels/array", "kernels/batch_norm", "kernels/dropout", "kernels/loss", "kernels/roof", "kernels/step"],
    ["kernels"],
    ["runtime"],
    ["bind"],
]
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
#: What CMakeLists.txt writes.
GENERATED = {"rules/all.h"}


def folder_of(name):
    """The folder of LAYERS that a file is in: kernels/step/step.h is in kernels/step, bind/step/run.cpp in bind."""
    parts = name.split("/")[:-1]
    return next(("/".join(parts[:n]) for n in (2, 1) if "/".join(parts[:n]) in LEVEL), None)


def includes():
    """(file, what it includes), of our own files."""
    for path in sorted([*CPP.rglob("*.h"), *CPP.rglob("*.cpp")]):
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            yield path.relative_to(CPP).as_posix(), included


INCLUDES = list(includes())


def test_every_file_is_in_a_layer():
    files = [path.relative_to(CPP).as_posix() for path in [*CPP.rglob("*.h"), *CPP.rglob("*.cpp")]]
    assert [name for name in files if folder_of(name) is None] == []
    assert {folder_of(name) for name in files} == set(LEVEL)


def test_every_include_is_there():
    """Each begins at cpp/, so that it shows the folder."""
    assert [
        (name, included) for name, included in INCLUDES if not ((CPP / included).is_file() or included in GENERATED)
    ] == []


@pytest.mark.parametrize("folder", LEVEL)
def test_includes_run_one_way(folder):
    mine = [(name, included) for name, included in INCLUDES if folder_of(name) == folder]
    assert mine or folder == "maths"
    upward = [
        f"{name} includes {included}"
        for name, included in mine
        if folder_of(included) != folder and LEVEL[folder_of(included)] >= LEVEL[folder]
    ]
    assert upward == []


@pytest.mark.parametrize("folder", ["runtime", "bind"])
def test_only_plain_structs_of_kernels_are_seen(folder):
    """A function of an instruction set in another object is one that the linker may take for all."""
    seen = {included for name, included in INCLUDES if folder_of(name) == folder and included.startswith("kernels/")}
    assert seen
    assert {folder_of(included) for included in seen} == {"kernels/abi"}
    assert "kernels/abi/set.h" not in seen
