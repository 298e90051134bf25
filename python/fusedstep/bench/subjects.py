"""What is measured. Peers take part where they are installed; the roof always does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import _core
from fusedstep.bench.harness import Subject

KI, MI = 1024, 1024 * 1024

#: Elements, and how many times faster than torch's fused step it should be.
ADAMW = {1 * KI: 20.0, 16 * KI: 6.0, 256 * KI: 2.0, 64 * MI: 0.97}
BATCH_NORM = ((32, 64, 56, 56), (32, 128, 28, 28))


def torch_or_none() -> Any:
    """PyTorch on as many threads as we use, or None."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    torch.set_num_threads(fs.runtime.num_threads())
    return torch


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name; calling one allocates its arrays."""
    makers: dict[str, Callable[[], Subject]] = {}
    for n, goal in ADAMW.items():
        makers[f"adamw-{_size(n)}"] = lambda n=n, goal=goal: adamw(n, goal)  # type: ignore[misc]
    for shape in BATCH_NORM:
        for fresh in (True, False):
            name = f"batch-norm-{'x'.join(map(str, shape))}{'' if fresh else '-out'}"
            makers[name] = lambda name=name, shape=shape, fresh=fresh: batch_norm(name, shape, fresh)  # type: ignore[misc]
    return makers


def select(patterns: list[str]) -> Iterator[Callable[[], Subject]]:
    """The subjects whose names begin with one of the patterns; all without patterns."""
    known = subjects()
    for pattern in patterns:
        if not any(name.startswith(pattern) for name in known):
            raise ValueError(f"no subject begins with {pattern!r}; there are: {', '.join(known)}")
    for name, maker in known.items():
        if not patterns or any(name.startswith(pattern) for pattern in patterns):
            yield maker


def adamw(n: int, goal: float) -> Subject:
    """One AdamW step of one float32 array, the whole call from Python."""
    rng = np.random.default_rng(0)
    start, grad = rng.standard_normal((2, n), np.float32)
    param = start.copy()
    optimizer = fs.AdamW(param)
    arrays = [np.zeros(n, np.float32) for _ in range(3)]
    others: dict[str, Callable[[], Any]] = {"roof": lambda: _core.roof_step(grad, arrays)}
    torch = torch_or_none()
    if torch is None:
        return Subject(f"adamw-{_size(n)}", lambda: optimizer.step(grad), others, lambda: None)

    peer = torch.nn.Parameter(torch.from_numpy(start.copy()))
    peer.grad = torch.from_numpy(grad.copy())
    peer_optimizer = torch.optim.AdamW([peer], fused=True)

    def check() -> None:
        for _ in range(3):
            optimizer.step(grad)
            peer_optimizer.step()
        np.testing.assert_allclose(param, peer.detach().numpy(), rtol=1e-5, atol=1e-6)

    others["torch"] = peer_optimizer.step
    return Subject(f"adamw-{_size(n)}", lambda: optimizer.step(grad), others, check, {"torch": goal})


def batch_norm(name: str, shape: tuple[int, int, int, int], fresh: bool) -> Subject:
    """Training forward and backward, with fresh outputs or into given ones."""
    rng = np.random.default_rng(0)
    channels = shape[1]
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(channels).astype(np.float32) for _ in range(2))
    running = [np.zeros(channels, np.float32), np.ones(channels, np.float32)]
    y, dx = (None, None) if fresh else (np.empty_like(x), np.empty_like(x))

    def ours() -> Any:
        out, saved = fs.batch_norm(x, weight, bias, *running, training=True, out=y)
        return out, *fs.batch_norm_backward(dy, saved, out=dx)

    target = np.empty_like(x)

    def roof() -> None:
        _core.roof_map(x, None, target)
        _core.roof_map(x, dy, target)

    others: dict[str, Callable[[], Any]] = {"roof": roof}
    torch = torch_or_none()
    if torch is None:
        return Subject(name, ours, others, lambda: None)

    peer_x, peer_weight, peer_bias = (torch.from_numpy(a.copy()).requires_grad_() for a in (x, weight, bias))
    peer_dy = torch.from_numpy(dy)
    peer_running = [torch.zeros(channels), torch.ones(channels)]

    def peer() -> Any:
        out = torch.nn.functional.batch_norm(peer_x, *peer_running, peer_weight, peer_bias, training=True)
        return out, *torch.autograd.grad(out, (peer_x, peer_weight, peer_bias), peer_dy)

    def check() -> None:
        # float32 sums of some 10^5 terms: the peer's weight gradients are good to about 1e-3.
        for mine, theirs in zip(ours(), peer(), strict=True):
            np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-3, atol=5e-3)

    others["torch"] = peer
    return Subject(name, ours, others, check, {"torch": 2.5})


def _size(n: int) -> str:
    return f"{n // MI}Mi" if n >= MI else f"{n // KI}Ki"
