"""What is measured. Peers take part where they are installed; the roof always does."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep import _core
from fusedstep.apps.bench import batch_norm, kit, narrow, offload, shapes, torch_layers, torch_optim
from fusedstep.apps.bench.harness import Subject, torch_or_none

Array = NDArray[Any]

KI, MI = 1024, 1024 * 1024

#: Elements, and how many times faster than torch's fused step it should be.
ADAMW = {1 * KI: 20.0, 16 * KI: 6.0, 256 * KI: 2.0, 64 * MI: 0.97}
#: Parameter lists, and how many times faster than torch a step, and clipping, a step and an average, should be.
LISTS = {
    "mlp": (8.0, 15.0),
    "256x1024": (12.0, None),
    "lora": (3.0, 5.0),
    "mobilenet-v2": (2.5, 4.0),
    "resnet-50": (1.2, 2.0),
    "gpt2": (0.97, 1.5),
}
#: Optimizers that torch has no fused kernel for, on ResNet-50.
UNFUSED = ("RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop")
#: What telemetry may cost: the time without it over that with it.
TELEMETRY = {256 * KI: 0.8, 16 * MI: 0.95}


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name; calling one allocates its arrays."""
    makers: dict[str, Callable[[], Subject]] = {}
    for n, goal in ADAMW.items():
        makers[f"adamw-{_size(n)}"] = lambda n=n, goal=goal: adamw(n, goal)  # type: ignore[misc]
    for name, (step_goal, whole_goal) in LISTS.items():
        makers[f"list-{name}"] = lambda name=name, goal=step_goal: parameter_list(name, goal)  # type: ignore[misc]
        if whole_goal is not None:
            makers[f"clip-ema-{name}"] = lambda name=name, goal=whole_goal: clip_step_average(name, goal)  # type: ignore[misc]
    for name in UNFUSED:
        makers[f"resnet-50-{name.lower()}"] = lambda name=name: unfused(name)  # type: ignore[misc]
    for n, goal in TELEMETRY.items():
        makers[f"telemetry-{_size(n)}"] = lambda n=n, goal=goal: telemetry(n, goal)  # type: ignore[misc]
    makers.update(narrow.subjects())
    makers.update(batch_norm.subjects())
    makers.update(kit.subjects())
    makers.update(torch_layers.subjects())
    makers.update(torch_optim.subjects())
    makers.update(offload.subjects())
    return makers


def select(patterns: list[str]) -> list[str]:
    """The names of subjects that begin with one of the patterns; all without patterns."""
    known = subjects()
    for pattern in patterns:
        if not any(name.startswith(pattern) for name in known):
            raise ValueError(f"no subject begins with {pattern!r}; there are: {', '.join(known)}")
    return [name for name in known if not patterns or any(name.startswith(pattern) for pattern in patterns)]


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


def _arrays(shapes: Iterator[tuple[int, ...]]) -> tuple[list[Array], list[Array]]:
    """Parameters and gradients."""
    rng = np.random.default_rng(0)
    params = [0.1 * rng.standard_normal(shape, np.float32) for shape in shapes]
    return params, [rng.standard_normal(p.shape, np.float32) for p in params]


def _peers(torch: Any, params: list[Array], grads: list[Array]) -> list[Any]:
    peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    for peer, grad in zip(peers, grads, strict=True):
        peer.grad = torch.from_numpy(grad.copy())
    return peers


def _check_lists(ours: Callable[[], Any], peer: Callable[[], Any], params: list[Array], peers: list[Any]) -> None:
    for _ in range(3):
        ours()
        peer()
    for mine, theirs in zip(params, peers, strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=2e-4, atol=1e-5)


def parameter_list(name: str, goal: float) -> Subject:
    """One AdamW step of a whole network."""
    params, grads = _arrays(shapes.LISTS[name]())
    optimizer = fs.AdamW(params)

    def ours() -> Any:
        return optimizer.step(grads)

    torch = torch_or_none()
    if torch is None:
        return Subject(f"list-{name}", ours, {}, lambda: None)
    peers = _peers(torch, params, grads)
    peer_optimizer = torch.optim.AdamW(peers, fused=True)
    return Subject(
        f"list-{name}",
        ours,
        {"torch": peer_optimizer.step},
        lambda: _check_lists(ours, peer_optimizer.step, params, peers),
        {"torch": goal},
    )


def clip_step_average(name: str, goal: float) -> Subject:
    """Clipping to a global norm, one AdamW step and the average of the weights, of a whole network."""
    params, grads = _arrays(shapes.LISTS[name]())
    optimizer = fs.AdamW(params, max_grad_norm=1.0, ema_decay=0.999)

    def ours() -> Any:
        return optimizer.step(grads)

    torch = torch_or_none()
    if torch is None:
        return Subject(f"clip-ema-{name}", ours, {}, lambda: None)
    peers = _peers(torch, params, grads)
    averages = [peer.detach().clone() for peer in peers]
    values = [peer.detach() for peer in peers]
    peer_optimizer = torch.optim.AdamW(peers, fused=True)

    def peer() -> None:
        torch.nn.utils.clip_grad_norm_(peers, 1.0)
        peer_optimizer.step()
        torch._foreach_lerp_(averages, values, 1.0 - 0.999)

    def check() -> None:
        _check_lists(ours, peer, params, peers)
        for mine, theirs in zip(optimizer.ema, averages, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=2e-4, atol=1e-5)

    return Subject(f"clip-ema-{name}", ours, {"torch": peer}, check, {"torch": goal})


def unfused(name: str) -> Subject:
    """One step of ResNet-50 with an optimizer that torch has not fused, beside both of its implementations."""
    params, grads = _arrays(shapes.resnet50())
    optimizer = getattr(fs, name)(params)

    def ours() -> Any:
        return optimizer.step(grads)

    label = f"resnet-50-{name.lower()}"
    torch = torch_or_none()
    if torch is None:
        return Subject(label, ours, {}, lambda: None)
    sides: dict[str, Callable[[], Any]] = {}
    for how, foreach in (("torch foreach", True), ("torch for-loop", False)):
        peers = _peers(torch, params, grads)
        sides[how] = getattr(torch.optim, name)(peers, foreach=foreach).step
        if foreach:
            first = peers

    def check() -> None:
        _check_lists(ours, sides["torch foreach"], params, first)

    return Subject(label, ours, sides, check, dict.fromkeys(sides, 3.0))


def telemetry(n: int, goal: float) -> Subject:
    """One AdamW step with telemetry, beside one without."""
    rng = np.random.default_rng(0)
    start, grad = rng.standard_normal((2, n), np.float32)
    params = [start.copy(), start.copy()]
    with_it, without = fs.AdamW(params[0], telemetry=True), fs.AdamW(params[1])

    def check() -> None:
        with_it.step(grad)
        without.step(grad)
        np.testing.assert_array_equal(*params)

    return Subject(
        f"telemetry-{_size(n)}",
        lambda: with_it.step(grad),
        {"without": lambda: without.step(grad)},
        check,
        {"without": goal},
    )


def _size(n: int) -> str:
    return f"{n // MI}Mi" if n >= MI else f"{n // KI}Ki"
