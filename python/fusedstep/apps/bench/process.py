"""Benchmarks in a child process, in which all sides use the same instruction set.

Torch reads the allowed instruction set from the environment when it is imported. So a child process gets this
environment. All sides still run in turn in that one process.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import fusedstep as fs
from fusedstep import runtime
from fusedstep.apps.bench import harness, subjects

#: Environment variables that limit the peers to an instruction set: ATen, and the libraries that it calls.
PEERS: dict[str, dict[str, str]] = {
    "baseline": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "neon": {"ATEN_CPU_CAPABILITY": "default"},
}
#: The child gets the import path of the parent; its working directory must not come first.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from fusedstep.apps.bench import process; process.serve()"
)


class MeasurementError(Exception):
    """A subject could not be measured, for example because its sides differ."""


def sets() -> list[str]:
    """The instruction sets of this processor, narrowest first."""
    return [name for name in runtime.available_isas() if name != "numpy"]


def environment(isa: str) -> dict[str, str]:
    """The environment of this process, with the variables that limit the peers to an instruction set."""
    held = {name for variables in PEERS.values() for name in variables}
    return {name: value for name, value in os.environ.items() if name not in held} | PEERS.get(isa, {})


class Measurer:
    """A child process that measures subjects one after the other with one instruction set."""

    def __init__(self, isa: str, threads: int, rounds: int, seconds: float) -> None:
        settings = {"isa": isa, "threads": threads, "rounds": rounds, "seconds": seconds}
        # A new session: Ctrl-C goes to the parent only, which ends the child.
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _START,
                json.dumps([path or os.getcwd() for path in sys.path]),
                json.dumps(settings),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(isa),
            text=True,
            start_new_session=True,
        )

    def machine(self) -> dict[str, Any]:
        """Versions, and the instruction set of each side."""
        return self._ask("")

    def measure(self, subject: str) -> dict[str, Any]:
        """The subject's `harness.report`.

        Raises:
            MeasurementError: The sides differ, or the child has ended.
            MemoryError: The subject's arrays do not fit.
        """
        return self._ask(subject)

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        self._child.kill()
        with contextlib.suppress(BrokenPipeError), self._child:
            pass

    def _ask(self, subject: str) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(subject + "\n")
            self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise MeasurementError(f"{subject or 'start'}: the measuring process ended with {self._child.wait()}")
        content: dict[str, Any] = json.loads(answer)
        if "error" in content:
            raise MemoryError if content["error"] == "memory" else MeasurementError(content["error"])
        return content


@contextlib.contextmanager
def measurers(isas: list[str], threads: int, rounds: int, seconds: float) -> Iterator[list[Measurer]]:
    """One child per instruction set; all end with the block."""
    with contextlib.ExitStack() as stack:
        children = []
        for isa in isas:
            children.append(Measurer(isa, threads, rounds, seconds))
            stack.callback(children[-1].close)
        yield children


def serve() -> None:
    """Runs in the child: reads names of subjects, one per line, and answers each with a line of JSON."""
    # Output of other code goes to stderr, so that stdout has only the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[2])
    known = subjects.subjects()
    with runtime.use_isa(settings["isa"]), runtime.threads(settings["threads"]):
        for line in sys.stdin:
            name = line.strip()
            try:
                if name:
                    subject = known[name]()
                    content = harness.report(subject, harness.measure(subject, settings["rounds"], settings["seconds"]))
                else:
                    content = _machine()
            except MemoryError:
                content = {"error": "memory"}
            except Exception as error:
                traceback.print_exc()
                content = {"error": f"{name}: {error!r}"}
            _answer(answers, content)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    try:
        print(json.dumps(content), file=answers, flush=True)
    except BrokenPipeError:
        os._exit(1)


def _machine() -> dict[str, Any]:
    torch = harness.torch_or_none()
    return {
        "version": fs.__version__,
        "isa": runtime.isa(),
        "threads": runtime.num_threads(),
        "torch": None if torch is None else torch.__version__,
        "torch_isa": None if torch is None else torch.backends.cpu.get_cpu_capability(),
        "peers_held_by": PEERS.get(runtime.isa(), {}),
    }
