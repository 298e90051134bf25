"""What the compiler and the linker made of it: reads the built library, so that a silent change is noticed."""

import re
import shutil
import subprocess

import pytest

import fusedstep as fs
from fusedstep import _core

SETS = ["baseline", "avx2", "avx512", "neon"]
WIDE = {"avx2": "ymm", "avx512": "zmm"}
x86 = pytest.mark.skipif("baseline" not in fs.runtime.available_isas(), reason="x86-64 only")


def tool(*command):
    assert shutil.which(command[0]), f"{command[0]} (binutils) is needed"
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def symbols():
    """(address, kind, demangled name) of every symbol."""
    lines = tool("nm", "--demangle", _core.__file__).splitlines()
    found = [re.match(r"([0-9a-f]*)\s+(\S) (.*)", line.strip()) for line in lines]
    return [match.groups() for match in found if match]


@pytest.fixture(scope="module")
def functions():
    """The disassembly of every function of a wide set, by name."""
    text = tool("objdump", "--disassemble", "--no-show-raw-insn", "--demangle", _core.__file__)
    bodies = {}
    for block in text.split("\n\n"):
        header = re.match(r"[0-9a-f]+ <(.*)>:", block.strip())
        if header:
            bodies[header.group(1)] = block
    return bodies


def set_of(name):
    """The instruction set whose namespace a demangled name is in."""
    match = re.search(rf"fusedstep::({'|'.join(SETS)})::", name)
    return match.group(1) if match else None


def uses(body, register):
    return re.search(rf"%{register}\d", body) is not None


def test_wide_code_stays_in_its_namespace(symbols, functions):
    """A weak symbol is merged with its namesakes: one compiled for a wide set must not have any.

    Every function that uses a wide register is in the namespace of a set that has it, so that no other code can call
    the copy of an inline function that only newer processors can run.
    """
    kinds = {name: kind for _, kind, name in symbols}
    seen = {"ymm": 0, "zmm": 0}
    for name, body in functions.items():
        for register, sets in (("ymm", {"avx2", "avx512"}), ("zmm", {"avx512"})):
            if uses(body, register):
                assert set_of(name) in sets, f"{name} ({kinds.get(name)}) uses {register}"
                seen[register] += 1
    if "baseline" in fs.runtime.available_isas():
        assert all(count > 10 for count in seen.values())


def test_each_set_has_the_same_functions(symbols):
    """What a set lacks it would borrow from another."""
    by_set = {}
    for _, kind, name in symbols:
        owner = set_of(name)
        if owner and kind in "tTwW" and "[clone" not in name:
            by_set.setdefault(owner, set()).add(name.replace(f"fusedstep::{owner}::", ""))
    steps = {owner: {name for name in names if " step<" in name} for owner, names in by_set.items()}
    assert steps
    assert len({frozenset(names) for names in steps.values()}) == 1
    assert len(next(iter(steps.values()))) == 2 * sum(len(rule["states_used"]) for rule in _core.rules().values())


@x86
@pytest.mark.parametrize(("isa", "register"), WIDE.items())
@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
@pytest.mark.parametrize(("dtype", "suffix"), [("float", "ps"), ("double", "pd")])
def test_divisions_and_roots_are_packed(rule, dtype, suffix, isa, register, functions):
    """A loop that is no longer vectorized keeps its bits and loses its speed."""
    name = f"void fusedstep::{isa}::step<fusedstep::{isa}::{rule}, 0, {dtype}>"
    body = next(body for function, body in functions.items() if function.startswith(name))
    for operation in (f"vsqrt{suffix}", f"vdiv{suffix}"):
        assert re.search(rf"{operation}\s.*%{register}\d", body), f"no {operation} on {register}"


@x86
@pytest.mark.parametrize("isa", WIDE)
def test_no_contraction(isa, functions):
    """A fused multiply-add rounds once where NumPy rounds twice."""
    bodies = [body for name, body in functions.items() if set_of(name) == isa]
    assert bodies
    assert not any(re.search(r"\bvf(n?m(add|sub))\d", body) for body in bodies)
