"""Processes that measure together, and end together."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from fusedstep.apps.bench.process import MeasurementError

#: A worker takes over where the package was found: its own working directory must not come before.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fusedstep.apps.bench.scaling import worker; worker.serve()"
)


class Team:
    """Workers that get the same requests at once.

    Args:
        ranks: How many.
        threads: Of each.
        group: Whether they are a group of `torch.distributed`.
        timeout: Seconds that a request may take; then all are ended.
        **settings: What else `Worker` needs.
    """

    def __init__(self, ranks: int, threads: int, *, group: bool, timeout: float, **settings: Any) -> None:
        self._timeout = timeout
        self._late = threading.Event()
        self._folder = tempfile.TemporaryDirectory()
        meeting = str(Path(self._folder.name) / "meeting") if group else None
        common = {"ranks": ranks, "threads": threads, "meeting": meeting, "timeout": timeout, **settings}
        # Libraries that torch calls start threads of their own.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        self._environment = environment
        self._commands = [
            [sys.executable, "-c", _START, path, json.dumps({**common, "rank": rank})] for rank in range(ranks)
        ]
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Team":
        try:
            for command in self._commands:
                # A session of its own: Ctrl-C is for the parent, which ends the workers.
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=self._environment,
                    text=True,
                    start_new_session=True,
                )
                self._workers.append(worker)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._end()
        for worker in self._workers:
            with contextlib.suppress(BrokenPipeError), worker:
                pass
        self._folder.cleanup()

    def ask(self, what: str, **request: Any) -> list[Any]:
        """The answers of all, by rank.

        Raises:
            MeasurementError: One of them failed or ended, or they took too long.
        """
        watch = threading.Timer(self._timeout, self._too_late)
        watch.start()
        try:
            for worker in self._workers:
                assert worker.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.write(json.dumps({"what": what, **request}) + "\n")
                    worker.stdin.flush()
            return [self._answer(worker, what) for worker in self._workers]
        finally:
            watch.cancel()

    def _answer(self, worker: "subprocess.Popen[str]", what: str) -> Any:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if self._late.is_set():
            raise MeasurementError(f"{what}: no answer within {self._timeout:g} s")
        if not line:
            raise MeasurementError(f"{what}: a measuring process ended with {worker.wait()}")
        content = json.loads(line)
        if "error" in content:
            raise MeasurementError(f"{what}: {content['error']}")
        return content["answer"]

    def _too_late(self) -> None:
        self._late.set()
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
