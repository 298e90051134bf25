"""A process that measures: it steps, moves bytes, and exchanges with others of its group.

It reads requests, a line of JSON each, and answers with a line of JSON. `team` starts it.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from time import perf_counter, process_time
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import _core, runtime
from fusedstep._common.arrays import bfloat16_dtype
from fusedstep.apps.bench.scaling.traffic import USUAL
from fusedstep.optimizers import REGISTRY
from fusedstep.reference.codec import narrowed

#: What gradients are before every exchange, which adds them up.
GRADIENT = 1e-3
#: Exchanges that are timed together.
MOST_ARRAYS = 16
#: Arrays that the roof's loop reads and writes, beside one that it reads: those of AdamW.
ROOF_ARRAYS = 3


class Worker:
    """One process, alone or of a group.

    Args:
        settings: `rank`, `ranks`, `threads`, `meeting` (a file, or None for no group), `timeout`, `rule`, `dtype`,
            `options` of the optimizer.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.ranks = settings["ranks"]
        self.narrow = settings["dtype"] == "bfloat16"
        self.torch: Any = None
        self.side: Callable[[], Any] = lambda: None
        self.elements = 0
        if settings["meeting"] is not None:
            import torch
            import torch.distributed

            self.torch = torch
            torch.set_num_threads(settings["threads"])
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{settings['meeting']}",
                rank=settings["rank"],
                world_size=self.ranks,
                timeout=timedelta(seconds=settings["timeout"]),
            )

    def prepare(self, side: str, elements: int) -> None:
        """Makes the arrays of a side, so that all workers begin at once when they are asked for its rate."""
        self.side, self.elements = getattr(self, f"_{side}")(elements), elements
        self.side()

    def rate(self, seconds: float) -> dict[str, float]:
        """Calls of that side that fit into a time, at least two.

        Returns:
            Seconds an element, by the median call (`typical`) and by the whole time (`mean`), and the share of that
            time on a processor.
        """
        calls, cpu, start = [perf_counter()], process_time(), perf_counter()
        while calls[-1] - start < seconds or len(calls) < 3:
            self.side()
            calls.append(perf_counter())
        wall = calls[-1] - start
        return {
            "typical": float(np.median(np.diff(calls))) / self.elements,
            "mean": wall / (len(calls) - 1) / self.elements,
            "on_processor": (process_time() - cpu) / wall,
        }

    def collective(self, kind: str, nbytes: int, elements: int, rounds: int) -> list[float]:
        """Seconds an exchange of arrays of so many bytes, one after the other, up to so many elements in all."""
        distributed = self.torch.distributed
        part = max(1, nbytes // (2 if self.narrow else 4) // self.ranks)
        count = min(MOST_ARRAYS, max(1, elements // (part * self.ranks)))
        wholes = self._tensors([self._array(part * self.ranks, GRADIENT) for _ in range(count)])
        owns = self._tensors([self._array(part, GRADIENT) for _ in range(count)])
        call: Callable[[Any, Any], Any] = {
            "all_reduce": lambda whole, own: distributed.all_reduce(whole),
            "reduce_scatter": lambda whole, own: distributed.reduce_scatter_single(own, whole),
            "all_gather": lambda whole, own: distributed.all_gather_single(whole, own),
        }[kind]

        def run() -> None:
            for whole, own in zip(wholes, owns, strict=True):
                call(whole, own)

        def prepare() -> None:
            for whole in wholes:
                whole.fill_(GRADIENT)

        return [seconds / count for seconds in self._timed(run, prepare, rounds)]

    def loop(self, mode: str, buckets: list[int], clip: bool, rounds: int) -> list[float]:
        """Seconds of each step in a way of training, without a backward pass: the gradients are there."""
        sharded = mode == "sharded"
        parts = [-(-size // self.ranks) for size in buckets] if sharded else buckets
        params, grads = ([self._array(size, value) for size in parts] for value in (1.0, GRADIENT))
        own_params, own_grads = self._tensors(params), self._tensors(grads)
        optimizer = self._optimizer(params)
        wholes = [[self._array(size * self.ranks, GRADIENT) for size in parts] for _ in range(2 * sharded)]
        whole_params, whole_grads = map(self._tensors, wholes) if sharded else (own_params, own_grads)
        distributed = self.torch.distributed

        def run() -> None:
            for whole, own in zip(whole_grads, own_grads, strict=True):
                if sharded:
                    distributed.reduce_scatter_single(own, whole)
                else:
                    distributed.all_reduce(whole)
            norm = self._norm_of(own_grads, sharded) if clip else 0.0
            # Clipped to 1: the step divides by what is above.
            optimizer.step(grads, grad_scale=max(1.0, norm))
            for whole, own in zip(whole_params, own_params, strict=True) if sharded else ():
                distributed.all_gather_single(whole, own)

        def prepare() -> None:
            for whole in whole_grads:
                whole.fill_(GRADIENT)

        return self._timed(run, prepare, rounds)

    def _timed(self, run: Callable[[], Any], prepare: Callable[[], Any], rounds: int) -> list[float]:
        """Of `rounds` calls after one that is not timed; the ranks begin together."""
        seconds = []
        for _ in range(rounds + 1):
            prepare()
            self.torch.distributed.barrier()
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
        return seconds[1:]

    def _norm_of(self, grads: list[Any], sharded: bool) -> float:
        norms = [self.torch.linalg.vector_norm(grad.float()) for grad in grads]
        square = self.torch.stack(norms).double().square().sum()
        if sharded:
            self.torch.distributed.all_reduce(square)
        return math.sqrt(square)

    def _step(self, elements: int) -> Callable[[], Any]:
        grad = self._array(elements, GRADIENT)
        optimizer = self._optimizer([self._array(elements, 1.0)])
        return lambda: optimizer.step([grad])

    def _roof(self, elements: int) -> Callable[[], Any]:
        read, *others = (np.ones(elements, np.float32) for _ in range(1 + ROOF_ARRAYS))
        return lambda: _core.roof_step(read, others)

    def _norm(self, elements: int) -> Callable[[], Any]:
        grads = self._tensors([self._array(elements, GRADIENT)])
        return lambda: self._norm_of(grads, False)

    def _array(self, elements: int, value: float) -> Any:
        array = np.full(elements, value, np.float32)
        return narrowed(array, bfloat16_dtype()) if self.narrow else array

    def _tensors(self, arrays: list[Any]) -> list[Any]:
        """The same memory."""
        if not self.narrow:
            return [self.torch.from_numpy(array) for array in arrays]
        return [self.torch.from_numpy(array.view(np.uint16)).view(self.torch.bfloat16) for array in arrays]

    def _optimizer(self, params: list[Any]) -> fs.optimizers.Optimizer:
        rule = self.settings["rule"]
        return REGISTRY[rule](params, **USUAL.get(rule, {}), **self.settings["options"])


def serve() -> None:
    """Answers until there are no more requests."""
    # What others print does not belong between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[2])
    with runtime.threads(settings["threads"]):
        try:
            worker = Worker(settings)
            for line in sys.stdin:
                request = json.loads(line)
                answer = getattr(worker, request.pop("what"))(**request)
                print(json.dumps({"answer": answer}), file=answers, flush=True)
        except BrokenPipeError:
            os._exit(1)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"rank {settings['rank']}: {error!r}"}), file=answers, flush=True)
            # Without waiting for others of the group.
            os._exit(1)
    os._exit(0)
