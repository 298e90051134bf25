"""Processes of a `torch.distributed` group: started once, for as many tests as ask for them."""

import os
import pickle
import time
import traceback
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import wait

#: Seconds: of a collective, and of all that a test asks of its processes.
COLLECTIVE, CALL = 20, 90


class RankError(Exception):
    """What a process raised."""


class Processes:
    """As many ranks as were asked for at once, which call functions of test modules."""

    def __init__(self, threads=1):
        self._threads = threads
        self._calls = 0
        self.processes, self._pipes = [], []

    def _start(self, rank):
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        try:
            process.start()
        finally:
            del os.environ["OMP_NUM_THREADS"]
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        there.close()
        if rank < len(self.processes):
            self.processes[rank], self._pipes[rank] = process, here
        else:
            self.processes.append(process)
            self._pipes.append(here)

    def send(self, function, world, folder, *args, collective=COLLECTIVE):
        """Has `world` ranks call `function(rank, world, *args)` within a group of theirs."""
        new = [rank for rank in range(world) if rank >= len(self.processes) or not self.processes[rank].is_alive()]
        for rank in new:
            self._start(rank)
        # They import what others have already: no collective's time is spent on it.
        for rank in new:
            self._pipes[rank].send_bytes(pickle.dumps((function, None)))
        for rank in new:
            assert self._pipes[rank].poll(CALL), f"rank {rank} does not start"
            self._pipes[rank].recv_bytes()
        self._calls += 1
        store = str(folder / f"store{os.getpid()}-{self._calls}")
        for rank in range(world):
            self._pipes[rank].send_bytes(pickle.dumps((function, (rank, world, store, collective, args))))

    def receive(self, world, seconds=CALL):
        """(True, result), or (False, traceback), of each rank that has answered; None of those that died."""
        answers, deadline = {}, time.monotonic() + seconds
        while len(answers) < world:
            waiting = {self._pipes[rank]: rank for rank in range(world) if rank not in answers}
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop()
                raise AssertionError(f"ranks {sorted(waiting.values())} did not answer; others: {answers}")
            for pipe in ready:
                try:
                    answers[waiting[pipe]] = pickle.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    answers[waiting[pipe]] = None
        return [answers[rank] for rank in range(world)]

    def run(self, function, world, folder, *args, **options):
        """The results of all ranks; the first error of any is raised."""
        self.send(function, world, folder, *args, **options)
        answers = self.receive(world)
        for rank, answer in enumerate(answers):
            if answer is None or not answer[0]:
                self.stop()
                raise RankError(f"rank {rank} of {world}: {answer and answer[1]}")
        return [result for _, result in answers]

    def stop(self):
        """Ends all of them; the next call starts new ones."""
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self.processes, self._pipes = [], []


def _serve(pipe):
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, call = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        answer = (True, None) if call is None else _answer(function, *call)
        pipe.send_bytes(pickle.dumps(answer))


def _answer(function, rank, world, store, collective, args):
    import torch

    within = timedelta(seconds=collective)
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=within
        )
        return True, function(rank, world, *args)
    except BaseException:
        return False, traceback.format_exc()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
