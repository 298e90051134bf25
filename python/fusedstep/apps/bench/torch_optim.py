"""Steps of `fusedstep.torch.optim`, compared with PyTorch's optimizers on the same lists of parameters."""

from collections.abc import Callable
from typing import Any

from fusedstep.apps.bench import shapes
from fusedstep.apps.bench.harness import Subject, torch_or_none

#: Optimizers that PyTorch has no fused kernel for, on ResNet-50.
UNFUSED = ("RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop")
#: How many times as fast as PyTorch a step on a single list should be.
SINGLE = {"1x64": 6.0, "256x1024": 8.0}
#: The lists whose geometric means count.
LISTS = ("mlp", "lora", "mobilenet-v2", "resnet-50", "gpt2")


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name, where torch is; calling one makes its tensors."""
    if torch_or_none() is None:
        return {}
    makers: dict[str, Callable[[], Subject]] = {}
    for name in (*SINGLE, *LISTS):
        makers[f"torch-adamw-{name}"] = lambda name=name: adamw(name)  # type: ignore[misc]
    for name in LISTS:
        makers[f"torch-clip-ema-{name}"] = lambda name=name: clip_step_average(name)  # type: ignore[misc]
    for kind in UNFUSED:
        makers[f"torch-resnet-50-{kind.lower()}"] = lambda kind=kind: unfused(kind)  # type: ignore[misc]
    return makers


def adamw(name: str) -> Subject:
    """One step of AdamW, compared with `fused=True`."""
    torch: Any = torch_or_none()
    from fusedstep.torch import optim

    ours, theirs = _parameters(torch, name), _parameters(torch, name)
    sides = optim.AdamW(ours).step, torch.optim.AdamW(theirs, fused=True).step
    goal = {"torch": SINGLE.get(name, 1.0)}
    group = None if name in SINGLE else "torch-adamw"
    check = _check(torch, sides, ours, theirs)
    return Subject(f"torch-adamw-{name}", sides[0], {"torch": sides[1]}, check, goal, group, {"torch": 2.0})


def clip_step_average(name: str) -> Subject:
    """A clip by the global norm, a step of AdamW, and an average of the weights."""
    torch: Any = torch_or_none()
    from fusedstep.torch import optim

    ours, theirs = _parameters(torch, name), _parameters(torch, name)
    optimizer = optim.AdamW(ours, max_grad_norm=1.0, ema_decay=0.999)
    peer = torch.optim.AdamW(theirs, fused=True)
    average = [p.detach().clone() for p in theirs]
    weights = [p.detach() for p in theirs]
    originals = [p.grad.clone() for p in theirs]

    def run() -> None:
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        peer.step()
        torch._foreach_lerp_(average, weights, 0.001)

    def check() -> None:
        for _ in range(2):
            # Clipping changes the peer's gradients in place.
            for p, grad in zip(theirs, originals, strict=True):
                p.grad.copy_(grad)
            optimizer.step()
            run()
        for mine, other in ((ours, theirs), (optimizer.ema, average)):
            for a, b in zip(mine, other, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    names = f"torch-clip-ema-{name}"
    return Subject(names, optimizer.step, {"torch": run}, check, {"torch": 1.0}, "torch-clip-ema", {"torch": 3.0})


def unfused(kind: str) -> Subject:
    """One step on ResNet-50, compared with PyTorch's `foreach` and its plain loop."""
    torch: Any = torch_or_none()
    from fusedstep.torch import optim

    lists = [_parameters(torch, "resnet-50") for _ in range(3)]
    mine = getattr(optim, kind)(lists[0]).step
    peers = [
        getattr(torch.optim, kind)(params, foreach=foreach).step
        for params, foreach in zip(lists[1:], (True, False), strict=True)
    ]
    check = _check(torch, (mine, peers[0]), lists[0], lists[1])
    others = {"torch foreach": peers[0], "torch for-loop": peers[1]}
    return Subject(f"torch-resnet-50-{kind.lower()}", mine, others, check, dict.fromkeys(others, 2.5))


def _parameters(torch: Any, name: str) -> list[Any]:
    """Parameters with gradients; the same numbers in every call."""
    torch.manual_seed(0)
    made = [(64,)] if name == "1x64" else list(shapes.LISTS[name]())
    params = [torch.randn(shape).requires_grad_() for shape in made]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def _check(torch: Any, sides: tuple[Any, Any], ours: list[Any], theirs: list[Any]) -> Callable[[], None]:
    def check() -> None:
        for _ in range(3):
            for side in sides:
                side()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    return check
