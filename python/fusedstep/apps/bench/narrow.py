"""Steps with narrow states, compared with float32 states and with other 8-bit optimizers if they are installed."""

from collections.abc import Callable
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep._common.arrays import bfloat16_dtype
from fusedstep.apps.bench.harness import Subject, torch_or_none
from fusedstep.reference.codec import narrowed, widened

KI, MI = 1024, 1024 * 1024

#: By what is narrow: how many times as fast as float32 a step should be on data larger than the caches.
WAYS: dict[str, tuple[dict[str, Any], bool, float]] = {
    "8bit": ({"state_dtype": "8bit"}, False, 1.5),
    "bfloat16-states": ({"state_dtype": "bfloat16"}, False, 1.25),
    "bfloat16-params": ({}, True, 1.15),
    "bfloat16-all": ({"state_dtype": "bfloat16", "stochastic_rounding": True}, True, 1.5),
}
SIZES = {64 * KI: ("64Ki", 0.8), 64 * MI: ("64Mi", None)}


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name; calling one allocates its arrays."""
    makers: dict[str, Callable[[], Subject]] = {}
    for way in WAYS:
        for n in SIZES:
            makers[f"narrow-{way}-{SIZES[n][0]}"] = lambda way=way, n=n: step(way, n)  # type: ignore[misc]
    makers["narrow-8bit-4Mi-peers"] = peers
    return makers


def step(way: str, n: int) -> Subject:
    """One AdamW step of one array, compared with a float32 step."""
    options, narrow, goal = WAYS[way]
    name, in_cache = SIZES[n]
    rng = np.random.default_rng(0)
    start, grad = rng.standard_normal((2, n), np.float32)
    stored, stored_grad = start.copy(), grad
    if narrow:
        stored, stored_grad = (narrowed(values, bfloat16_dtype()) for values in (start, grad))
    full, ours = fs.AdamW(start), fs.AdamW(stored, **options)

    def check() -> None:
        for _ in range(3):
            full.step(grad)
            ours.step(stored_grad)
        apart = np.abs(widened(stored[:10_000]) - start[:10_000]).mean()
        if not apart < (2**-8 if narrow else 1e-4):
            raise ValueError(f"{way}: parameters differ by {apart}")

    return Subject(
        f"narrow-{way}-{name}",
        lambda: ours.step(stored_grad),
        {"float32": lambda: full.step(grad)},
        check,
        {"float32": goal if in_cache is None else in_cache},
    )


def peers() -> Subject:
    """One 8-bit AdamW step of 4 Mi elements, compared with the 8-bit optimizers of other libraries."""
    n = 4 * MI
    rng = np.random.default_rng(0)
    start, grad = rng.standard_normal((2, n), np.float32)
    param = start.copy()
    optimizer = fs.AdamW(param, state_dtype="8bit")
    others: dict[str, Callable[[], Any]] = {}
    tensors: list[Any] = []
    torch = torch_or_none()
    for package in ("bitsandbytes", "torchao") if torch is not None else ():
        try:
            kind: Any = (
                __import__("bitsandbytes").optim.AdamW8bit
                if package == "bitsandbytes"
                else __import__("torchao.optim").optim.AdamW8bit
            )
        except (ImportError, AttributeError):
            continue
        tensor = torch.nn.Parameter(torch.from_numpy(start.copy()))
        tensor.grad = torch.from_numpy(grad.copy())
        tensors.append(tensor)
        others[package] = kind([tensor]).step

    def check() -> None:
        optimizer.step(grad)
        for tensor, run in zip(tensors, others.values(), strict=True):
            run()
            if not np.abs(tensor.detach().numpy() - param).mean() < 1e-3:
                raise ValueError("the parameters differ from the peer's")

    return Subject("narrow-8bit-4Mi-peers", lambda: optimizer.step(grad), others, check, dict.fromkeys(others, 25.0))
