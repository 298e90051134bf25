"""Processes that run a function together, as the ranks of a process group."""

import importlib
import multiprocessing
import os
import tempfile
from pathlib import Path

#: Seconds after which ranks that have not answered are ended, and the test fails.
TIMEOUT = 60
#: The same for a collective within them.
WITHIN = 20


def _serve(rank, connection):
    """Runs what it is asked for, until the connection ends."""
    import warnings
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # It says that a rank's thread takes part in a barrier; there is no device to name.
    warnings.filterwarnings("ignore", "No device id is provided")
    while True:
        try:
            module, function, size, place, arguments = connection.recv()
        except EOFError:
            return
        if place is not None:
            dist.init_process_group(
                "gloo", init_method=f"file://{place}", rank=rank, world_size=size, timeout=timedelta(seconds=WITHIN)
            )
        torch.manual_seed(20260101)
        try:
            answer = getattr(importlib.import_module(module), function)(rank, size, **arguments)
        except Exception as error:
            answer = Raised(type(error).__name__, str(error))
        finally:
            if place is not None:
                dist.destroy_process_group()
        connection.send(answer)


class Raised:
    """The error of a rank."""

    def __init__(self, kind, text):
        self.kind, self.text = kind, text

    def __repr__(self):
        return f"{self.kind}: {self.text}"


class Ranks:
    """Up to so many processes, which start once: to import torch takes seconds."""

    def __init__(self, most=3):
        context = multiprocessing.get_context("spawn")
        self.processes, self.connections = [], []
        kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")}
        os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
        for rank in range(most):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(mine)
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def ask(self, size, function, *, initialized=True, **arguments):
        """The answers of all ranks, or what they raised."""
        with tempfile.TemporaryDirectory() as folder:
            place = str(Path(folder) / "group") if initialized else None
            for connection in self.connections[:size]:
                connection.send((function.__module__, function.__name__, size, place, arguments))
            answers = []
            for connection in self.connections[:size]:
                if not connection.poll(TIMEOUT):
                    self.end()
                    raise TimeoutError(f"{function.__name__}: a rank has not answered in {TIMEOUT} s")
                answers.append(connection.recv())
        return answers

    def run(self, size, function, **arguments):
        """The answers of all ranks, none of which raised."""
        answers = self.ask(size, function, **arguments)
        for rank, answer in enumerate(answers):
            assert not isinstance(answer, Raised), f"rank {rank}: {answer}"
        return answers

    def end(self):
        """Ends them, whatever they do."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
