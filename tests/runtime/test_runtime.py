"""Instruction sets, threads, forks, and what importing must not do."""

import os
import subprocess
import sys

import pytest

import fusedstep as fs


def python(code, **environment):
    """Runs code in a fresh interpreter; gives the process."""
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("FUSEDSTEP_ISA", "FUSEDSTEP_NUM_THREADS", "OMP_NUM_THREADS")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed(code, **environment):
    process = python(code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


class TestIsa:
    def test_reference_first_and_widest_by_default(self):
        sets = fs.runtime.available_isas()
        assert sets[0] == "numpy"
        assert len(sets) >= 2
        assert printed("import fusedstep as fs; print(fs.runtime.isa())") == sets[-1]

    @pytest.mark.parametrize("name", fs.runtime.available_isas())
    def test_environment_chooses(self, name):
        assert printed("import fusedstep as fs; print(fs.runtime.isa())", FUSEDSTEP_ISA=name) == name

    def test_unknown_name_lists_the_valid_ones(self):
        valid = ", ".join(f"'{name}'" for name in fs.runtime.available_isas())
        before = fs.runtime.isa()
        with pytest.raises(
            ValueError, match=f"isa: 'sse9' is not an instruction set of this processor; valid: {valid}"
        ):
            fs.runtime.set_isa("sse9")
        assert fs.runtime.isa() == before
        code = "import numpy as np, fusedstep as fs; p = np.ones(2); fs.SGD(p).step(p.copy())"
        process = python(code, FUSEDSTEP_ISA="sse9")
        assert process.returncode == 1
        assert "ValueError: FUSEDSTEP_ISA: 'sse9' is not an instruction set" in process.stderr

    def test_use_isa_restores(self):
        before = fs.runtime.isa()
        with pytest.raises(KeyError), fs.runtime.use_isa("numpy"):
            assert fs.runtime.isa() == "numpy"
            raise KeyError
        assert fs.runtime.isa() == before


class TestThreads:
    CODE = "import fusedstep as fs; print(fs.runtime.num_threads())"

    def test_processors_by_default(self):
        assert int(printed(self.CODE)) == len(os.sched_getaffinity(0))
        pinned = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        assert printed(pinned + self.CODE) == "1"

    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({"OMP_NUM_THREADS": "3"}, "3"),
            ({"OMP_NUM_THREADS": "4,2"}, "4"),
            ({"FUSEDSTEP_NUM_THREADS": "5", "OMP_NUM_THREADS": "3"}, "5"),
        ],
    )
    def test_environment(self, environment, expected):
        assert printed(self.CODE, **environment) == expected

    @pytest.mark.parametrize("value", ["0", "-2", "two", "3x"])
    def test_bad_environment(self, value):
        process = python(self.CODE, FUSEDSTEP_NUM_THREADS=value)
        assert f"ValueError: FUSEDSTEP_NUM_THREADS: expected a positive number, got '{value}'" in process.stderr

    def test_set_and_restore(self):
        before = fs.runtime.num_threads()
        with fs.runtime.threads(3):
            assert fs.runtime.num_threads() == 3
        assert fs.runtime.num_threads() == before
        with pytest.raises(ValueError, match="num_threads: expected 1 to 4096, got 0"):
            fs.runtime.set_num_threads(0)
        with pytest.raises(TypeError, match="num_threads: expected a whole number, got '2'"):
            fs.runtime.set_num_threads("2")
        with pytest.raises(TypeError, match="isa: expected a name, got NoneType"):
            fs.runtime.set_isa(None)
        with pytest.raises(ValueError, match="num_threads: expected 1 to 4096, got 200000"):
            fs.runtime.set_num_threads(200_000)


STEPS = """
import os, sys, hashlib, numpy as np, fusedstep as fs
from fusedstep import _core
_core.testing.force_parallel(True)
fs.runtime.set_num_threads(3)
def run():
    p = np.arange(100_000, dtype=np.float32)
    fs.AdamW(p).step(p + 1)
    return hashlib.sha256(p.tobytes()).hexdigest()
before = run()
"""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestForks:
    def test_a_child_steps_on(self):
        """A fork after a parallel step neither hangs nor changes a bit."""
        code = STEPS + (
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    ok = run() == before and fs.runtime.num_threads() == 1\n"
            "    try: fs.runtime.set_num_threads(2)\n"
            "    except RuntimeError as error: ok = ok and 'forked' in str(error)\n"
            "    else: ok = False\n"
            "    os._exit(0 if ok else 1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), run() == before, fs.runtime.num_threads())"
        )
        assert printed(code) == "0 True 3"

    def test_multiprocessing(self):
        code = STEPS + (
            "import multiprocessing\n"
            "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
            "    print(set(pool.map(lambda_free, range(4))) == {before})"
        )
        code = code.replace("before = run()", "def lambda_free(_): return run()\nbefore = run()")
        assert printed(code) == "True"


class TestImport:
    def test_floating_point_environment_is_left_alone(self):
        """Neither flush-to-zero nor a trap is set by the import or by a step, on any thread."""
        code = STEPS + (
            "import ctypes, threading\n"
            "libm = ctypes.CDLL('libm.so.6')\n"
            "tiny = np.array([1e-40], np.float32)\n"
            "def check():\n"
            "    assert (tiny * np.float32(0.5))[0] != 0 and libm.fegetexcept() == 0 and libm.fegetround() == 0\n"
            "check()\n"
            "worker = threading.Thread(target=check); worker.start(); worker.join()\n"
            # On the parallel team: subnormal times a half, elementwise on every thread.
            "p = np.full(100_000, 1e-40, np.float32)\n"
            "fs.SGD(p, lr=0.5).step(p.copy())\n"
            "assert (p == tiny * np.float32(0.5)).all()\n"
            "print('fine')"
        )
        assert printed(code) == "fine"

    def test_core_needs_numpy_alone(self):
        code = (
            "import sys, fusedstep\n"
            "extras = {'torch', 'sklearn', 'scipy', 'matplotlib', 'rich', 'safetensors'}\n"
            "print(sorted(extras & set(sys.modules)))"
        )
        assert printed(code) == "[]"


def test_a_second_thread_is_refused_and_harms_nothing():
    """From the first step on, when the states are being made; the step that runs ends as if it were alone."""
    code = STEPS + (
        "import threading\n"
        "g = np.ones(30_000_000, np.float32); alone = np.zeros_like(g)\n"
        "fs.AdamW(alone).step(g)\n"
        "for _ in range(3):\n"
        "    p = np.zeros_like(g); optimizer = fs.AdamW([p]); done = []; refused = 0\n"
        "    worker = threading.Thread(target=lambda: done.append(optimizer.step([g])))\n"
        "    worker.start()\n"
        "    while worker.is_alive():\n"
        "        try: optimizer.step([None])\n"
        "        except RuntimeError as error: refused += 1; assert 'in the middle of a step' in str(error)\n"
        "    worker.join()\n"
        "    assert refused and done and (p == alone).all() and optimizer.state[0]['step'] == 1\n"
        "print('fine')"
    )
    assert printed(code) == "fine"
