"""Steps of `HostOffload` on bfloat16 parameters, compared with PyTorch's operations on float32 masters and the roof."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep.apps.bench.harness import Subject, torch_or_none

KI, MI = 1024, 1024 * 1024

#: Number of elements of the model, and of each of its tensors.
SIZE, EACH = 64 * MI, 4 * MI
#: Bytes per element that a step moves: it reads a bfloat16 gradient, and reads and writes the parameter and float32
#: master and moments. Through slots it only writes the parameter, and both gradient and parameter are copied.
BYTES = {"direct": 30, "slots": 36}
#: Bytes per element for the norm, which reads every gradient once more.
AGAIN = {"direct": 2, "slots": 6}
#: How many times as fast as PyTorch's operations a step should be, without and with a clip.
GOALS = {False: 1.4, True: 1.6}
ROOF = 0.9


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name, where torch is; calling one makes its tensors."""
    if torch_or_none() is None:
        return {}
    makers: dict[str, Callable[[], Subject]] = {}
    for clips in GOALS:
        for way in BYTES:
            makers[name_of(way, clips)] = lambda way=way, clips=clips: offload(way, clips)  # type: ignore[misc]
    return makers


def name_of(way: str, clips: bool) -> str:
    """The name of a subject."""
    return f"offload-{'clip' if clips else 'adamw'}{'-slots' if way == 'slots' else ''}-64Mi"


def offload(way: str, clips: bool, size: int = SIZE, each: int = EACH) -> Subject:
    """One step of AdamW, with the gradient's norm clipped or not."""
    torch: Any = torch_or_none()
    from fusedstep.torch import HostOffload, optim

    ours, theirs = _parameters(torch, size, each), _parameters(torch, size, each)
    slots = 4 if way == "slots" else 0
    optimizer = HostOffload(ours, optim.AdamW, slots=slots, max_grad_norm=1.0 if clips else None)
    sequence, masters = _sequence(torch, theirs, clips, lambda params: torch.optim.AdamW(params, fused=True))

    def check() -> None:
        for _ in range(2):
            optimizer.step()
            sequence()
        for p, master in zip(ours, masters, strict=True):
            torch.testing.assert_close(optimizer.state[p]["master"], master.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(p.detach().float(), master.detach(), rtol=2**-8, atol=1e-6)

    # The loop reads one array, and reads and writes three: 28 bytes per element.
    bytes_each = BYTES[way] + (AGAIN[way] if clips else 0)
    arrays = [np.zeros(size * bytes_each // 28, np.float32) for _ in range(4)]
    goal = {"torch": GOALS[clips]} if way == "direct" else {}
    if way == "direct" and not clips:
        goal["roof"] = ROOF
    others = {"torch": sequence, "roof": lambda: _core.roof_step(arrays[0], arrays[1:])}
    if way == "direct" and not clips and find_spec("deepspeed") is not None:
        cpu_adam = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
        params = _parameters(torch, size, each)
        others["deepspeed"], _ = _sequence(torch, params, clips, lambda masters: cpu_adam(masters, weight_decay=1e-2))
    return Subject(name_of(way, clips), optimizer.step, others, check, goal)


def _sequence(torch: Any, params: list[Any], clips: bool, make: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    """Gradients to float32, the step of an optimizer's on float32 masters, these to bfloat16; and the masters."""
    masters = [p.detach().float().requires_grad_() for p in params]
    for master in masters:
        master.grad = torch.empty_like(master)
    peer = make(masters)

    @torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
    def sequence() -> None:
        for p, master in zip(params, masters, strict=True):
            master.grad.copy_(p.grad)
        if clips:
            torch.nn.utils.clip_grad_norm_(masters, 1.0)
        peer.step()
        for p, master in zip(params, masters, strict=True):
            p.copy_(master)

    return sequence, masters


def _parameters(torch: Any, size: int, each: int) -> list[Any]:
    """Parameters with gradients; the same numbers in every call."""
    torch.manual_seed(0)
    params = [torch.randn(each).bfloat16().requires_grad_() for _ in range(size // each)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params
