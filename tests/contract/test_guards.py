"""What the compiler and the linker made of it: reads the built library, so that a silent change is noticed."""

import re
import shutil
import subprocess

import pytest

import fusedstep as fs
from fusedstep import _core

SETS = ["baseline", "avx2", "avx512", "neon"]
# Rules, their variants, and the same with a cautious mask.
# Those of AdamW are Adam's.
LOOPS = sum(
    len(rule["variants"]) * (1 + rule["cautious"])
    for name, rule in _core.rules().items()
    if rule["native"] and name != "adamw"
)
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


def is_wide(body):
    """Whether a function has an instruction that only AVX and later know: they all begin with v."""
    return re.search(r"^\s+[0-9a-f]+:\s+v[a-z]", body, re.MULTILINE) is not None


@x86
def test_wide_code_stays_in_its_namespace(symbols, functions):
    """The linker keeps one of several weak namesakes: one compiled for a wide set must not be among them.

    So every function that holds an AVX instruction is in the namespace of a wide set, and no function outside, inline
    or not, can have come from a wide object. The same for zmm registers and AVX-512.
    """
    kinds = {name: kind for _, kind, name in symbols}
    wide = [name for name, body in functions.items() if is_wide(body)]
    assert len([name for name in wide if set_of(name) == "avx2"]) > 10
    assert len([name for name in wide if set_of(name) == "avx512"]) > 10
    for name in wide:
        assert set_of(name) in ("avx2", "avx512"), f"{name} ({kinds.get(name)}) holds AVX instructions"
    for name in functions:
        if re.search(r"%zmm\d", functions[name]):
            assert set_of(name) == "avx512", f"{name} uses zmm"


def test_our_own_functions_are_in_a_known_namespace(symbols):
    """A header of rules/ or kernels/ that forgets FUSEDSTEP_SET defines one function for all sets.

    Of such a function the linker keeps one copy, harmless or not; `.ci/run` looks at the objects themselves too.
    """
    ours = [name for _, kind, name in symbols if kind in "tTwW" and re.match(r"(\w+ )*fusedstep::", name)]
    allowed = r"fusedstep::(%s)::" % "|".join([*SETS, "host", "runtime", "bind"])  # noqa: UP031
    assert len(ours) > 100
    assert [name for name in ours if not re.search(allowed, name)] == []


def test_each_set_has_the_same_functions(symbols):
    """What a set lacks it would borrow from another."""
    by_set = {}
    for _, kind, name in symbols:
        owner = set_of(name)
        if owner and kind in "tTwW" and "[clone" not in name:
            by_set.setdefault(owner, set()).add(name.replace(f"fusedstep::{owner}::", ""))
    loops = {owner: {name for name in names if "_loop<" in name} for owner, names in by_set.items()}
    assert loops
    assert len({frozenset(names) for names in loops.values()}) == 1
    names = next(iter(loops.values()))
    # For each dtype an update, with and without telemetry; of float32 those that are fused with 8 bits and bfloat16.
    assert len([name for name in names if "update_loop" in name or "telemetry_loop" in name]) == 2 * 2 * LOOPS
    assert LOOPS < len([name for name in names if "fused_loop" in name]) < 2 * LOOPS


@x86
@pytest.mark.parametrize(("isa", "register"), WIDE.items())
@pytest.mark.parametrize(("dtype", "suffix"), [("float", "ps"), ("double", "pd")])
def test_loops_are_packed(dtype, suffix, isa, register, functions):
    """A loop that is no longer vectorized keeps its bits and loses its speed.

    Every step multiplies in full registers, and where it divides or takes roots one by one, in the loop's remainder, it
    does so in full registers too.
    """
    prefixes = tuple(f"void fusedstep::{isa}::{kind}_loop<" for kind in ("update", "telemetry"))
    loops = {name: body for name, body in functions.items() if name.startswith(prefixes) and f", {dtype}>(" in name}
    assert len(loops) == 2 * LOOPS
    divided = 0
    for name, body in loops.items():
        assert re.search(rf"vmul{suffix}\s.*%{register}\d", body), name
        for operation in ("sqrt", "div"):
            if re.search(rf"v{operation}(ss|sd|ps|pd)\s", body):
                assert re.search(rf"v{operation}{suffix}\s.*%{register}\d", body), f"{name}: no packed {operation}"
                divided += 1
    assert divided >= 4  # Adam and AdamW, root and division
    for name, body in functions.items():
        if name.startswith(f"void fusedstep::{isa}::measure_loop<"):
            assert re.search(rf"%{register}\d", body), name


@x86
@pytest.mark.parametrize("isa", WIDE)
def test_no_contraction(isa, functions):
    """A fused multiply-add rounds once where NumPy rounds twice.

    But a product of two floats is exact in double, and what rounding takes from a product of doubles is exact by it.
    """
    bodies = {name: body for name, body in functions.items() if set_of(name) == isa}
    assert bodies
    sums = re.compile(r"::(dot|gradient_sums|measure_sums)<float>|::telemetry_loop<.*, float>")
    remainders = re.compile(r"::(plane_statistics|row_statistics|forward_planes|forward_group)<")
    for name, body in bodies.items():
        fused = re.findall(r"\bvfn?m(?:add|sub)\d+(\w\w)", body)
        allowed = {"pd"} if sums.search(name) else {"sd"} if remainders.search(name) else set()
        assert set(fused) <= allowed, name
