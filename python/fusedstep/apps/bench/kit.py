"""Losses, dropout and batches, compared with PyTorch and NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.bench.harness import Subject, torch_or_none

#: By rows and classes: how many times as fast as torch loss and gradient should be.
CROSS_ENTROPY = {(4096, 1000): 4.0, (256, 50257): 3.0, (8192, 128): 2.0}


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name; calling one allocates its arrays."""
    makers: dict[str, Callable[[], Subject]] = {}
    for rows, classes in CROSS_ENTROPY:
        makers[f"cross-entropy-{rows}x{classes}"] = lambda rows=rows, classes=classes: cross_entropy(rows, classes)  # type: ignore[misc]
    return {**makers, "dropout-4Mi": dropout, "batches-60000x784": batches}


def cross_entropy(rows: int, classes: int) -> Subject:
    """Softmax cross-entropy and its gradient, as a fresh array, beside torch's forward and backward."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((rows, classes), np.float32), rng.integers(0, classes, rows)
    others: dict[str, Callable[[], Any]] = {}
    torch = torch_or_none()
    if torch is not None:
        tensor, wanted = torch.from_numpy(logits.copy()).requires_grad_(), torch.from_numpy(labels)

        def peer() -> Any:
            tensor.grad = None
            loss = torch.nn.functional.cross_entropy(tensor, wanted)
            loss.backward()
            return loss

        others["torch"] = peer

    def check() -> None:
        loss, gradient = fs.softmax_cross_entropy(logits, labels)
        for run in others.values():
            np.testing.assert_allclose(loss, run().item(), rtol=1e-5)
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-3, atol=1e-6 / rows)

    goal = CROSS_ENTROPY[rows, classes]
    name = f"cross-entropy-{rows}x{classes}"
    return Subject(name, lambda: fs.softmax_cross_entropy(logits, labels), others, check, {"torch": goal})


def dropout() -> Subject:
    """Dropout of 4 Mi elements into a fresh array."""
    x = np.ones(4 << 20, np.float32)
    others: dict[str, Callable[[], Any]] = {}
    torch = torch_or_none()
    if torch is not None:
        tensor = torch.from_numpy(x)
        others["torch"] = lambda: torch.nn.functional.dropout(tensor, 0.5, True)

    def check() -> None:
        for y in (fs.dropout(x, 0.5, seed=1), *(np.asarray(run()) for run in others.values())):
            if set(np.unique(y).tolist()) != {0.0, 2.0} or abs(float(y.mean()) - 1) > 0.01:
                raise ValueError("dropout: expected zeros and twos with mean 1")

    return Subject("dropout-4Mi", lambda: fs.dropout(x, 0.5, seed=1), others, check, {"torch": 15.0})


def batches() -> Subject:
    """An epoch of shuffled batches of 256 rows, beside NumPy's indexing in the same order."""
    rows, size = 60_000, 256
    x = np.random.default_rng(0).standard_normal((rows, 784), np.float32)
    epoch = fs.data.batches(x, size, seed=0, epoch=0, reuse=True)

    def ours() -> None:
        for _ in epoch:
            pass

    def indexed() -> None:
        order = np.random.default_rng((0, 0)).permutation(rows)
        for start in range(0, rows, size):
            x[order[start : start + size]]

    def check() -> None:
        order = np.random.default_rng((0, 0)).permutation(rows)
        for k, batch in enumerate(epoch):
            np.testing.assert_array_equal(batch, x[order[k * size : (k + 1) * size]])

    return Subject("batches-60000x784", ours, {"indexing": indexed}, check, {"indexing": 1.5})
