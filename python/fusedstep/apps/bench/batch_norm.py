"""Batch norm: forward, backward, evaluation, and fused with a residual and relu."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import _core
from fusedstep.apps.bench.harness import Subject, torch_or_none

Shape = tuple[int, ...]

PLANES: tuple[Shape, ...] = (
    (32, 64, 56, 56),
    (32, 256, 56, 56),
    (32, 128, 28, 28),
    (32, 512, 7, 7),
    (64, 512, 4, 4),
    (8, 64, 112, 112),
)
#: Seen as (N, C, H, W), the channels last in memory.
CHANNELS_LAST: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 128, 28, 28))
ROWS: Shape = (4096, 1024)
#: The shape whose time is compared with the roof's.
ROOF: Shape = (32, 256, 56, 56)


def subjects() -> Iterator[tuple[str, Callable[[], Subject]]]:
    """Every subject by name, with fresh outputs and into given ones."""
    for fresh in (True, False):
        end = "" if fresh else "-out"
        for part, goal in (("forward", 5.0), ("backward", 2.0)):
            for shape in PLANES:
                yield _named(f"batch-norm-{part}", shape, end, part, fresh=fresh, goal=goal)
            for shape in CHANNELS_LAST:
                yield _named(f"batch-norm-{part}-nhwc", shape, end, part, fresh=fresh, goal=1.4, last=True)
        yield _named("batch-norm-both", ROWS, end, "both", fresh=fresh, goal=1.3)
        for shape in PLANES:
            yield _named("batch-norm-residual-relu", shape, end, "both", fresh=fresh, goal=3.0, fused=True)
            yield _named("batch-norm-evaluation", shape, end, "evaluation", fresh=fresh, goal=1.0)


def _named(
    group: str, shape: Shape, end: str, part: str, *, fresh: bool, goal: float, last: bool = False, fused: bool = False
) -> tuple[str, Callable[[], Subject]]:
    name = f"{group}-{'x'.join(map(str, shape))}{end}"

    def make() -> Subject:
        sides = Sides.of(shape, fresh, last, fused)
        others = {"roof": getattr(sides, f"roof_{part}")}
        torch = torch_or_none()
        peers = None if torch is None else Peers.of(torch, sides)
        if peers is not None:
            others["torch"] = getattr(peers, part)
        goals = {"roof": 0.8} if shape == ROOF and not fused and part in ("forward", "backward") else {}
        ours = getattr(sides, part)
        return Subject(
            name, ours, others, lambda: _check(ours, others.get("torch")), goals, group + end, {"torch": goal}
        )

    return name, make


@dataclass
class Sides:
    """Our side: the arrays, and what is done with them."""

    x: Any
    dy: Any
    residual: Any
    parameters: tuple[Any, Any]
    running: tuple[Any, Any]
    outputs: dict[str, Any]
    saved: Any
    target: Any

    @classmethod
    def of(cls, shape: Shape, fresh: bool, last: bool, fused: bool) -> "Sides":
        """Random arrays of a shape."""
        rng = np.random.default_rng(0)
        channels = shape[1]

        def random() -> Any:
            if not last:
                return rng.standard_normal(shape, np.float32)
            return np.moveaxis(rng.standard_normal((shape[0], *shape[2:], channels), np.float32), -1, 1)

        x, dy = random(), random()
        residual = random() if fused else None
        parameters = rng.standard_normal(channels, np.float32), rng.standard_normal(channels, np.float32)
        running = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        outputs = {} if fresh else {name: np.zeros_like(x) for name in ("y", "dx", "dresidual")}
        sides = cls(x, dy, residual, parameters, running, outputs, None, np.zeros(x.size, np.float32))
        sides.forward()
        return sides

    def forward(self) -> Any:
        """In training."""
        y, self.saved = fs.batch_norm(
            self.x,
            *self.parameters,
            *self.running,
            training=True,
            activation=None if self.residual is None else "relu",
            residual=self.residual,
            out=self.outputs.get("y"),
        )
        return (y,)

    def backward(self) -> Any:
        """Of the last forward pass."""
        dresidual = None if self.residual is None else self.outputs.get("dresidual")
        return fs.batch_norm_backward(self.dy, self.saved, out=self.outputs.get("dx"), residual_out=dresidual)

    def both(self) -> Any:
        """Forward and backward."""
        return *self.forward(), *self.backward()

    def evaluation(self) -> Any:
        """With the running statistics."""
        y, _ = fs.batch_norm(self.x, *self.parameters, *self.running, training=False, out=self.outputs.get("y"))
        return (y,)

    def roof_forward(self) -> None:
        """Reads x and writes y once; and the residual."""
        added = None if self.residual is None else self.residual.reshape(-1)
        _core.roof_map(_flat(self.x), added, self.target)

    roof_evaluation = roof_forward

    def roof_backward(self) -> None:
        """Reads x and dy and writes dx once; and dresidual."""
        _core.roof_map(_flat(self.x), _flat(self.dy), self.target)
        if self.residual is not None:
            _core.roof_map(_flat(self.dy), None, self.target)

    def roof_both(self) -> None:
        """Of both."""
        self.roof_forward()
        self.roof_backward()


@dataclass
class Peers:
    """The same in torch."""

    torch: Any
    x: Any
    dy: Any
    residual: Any
    parameters: tuple[Any, Any]
    running: tuple[Any, Any]
    y: Any

    @classmethod
    def of(cls, torch: Any, sides: Sides) -> "Peers":
        """Copies in the same memory order."""

        def tensor(array: Any) -> Any:
            return torch.from_numpy(array.copy(order="K")).requires_grad_()

        peers = cls(
            torch,
            tensor(sides.x),
            torch.from_numpy(sides.dy),
            None if sides.residual is None else tensor(sides.residual),
            (tensor(sides.parameters[0]), tensor(sides.parameters[1])),
            _copies(torch, sides.running),
            None,
        )
        peers.forward()
        peers.running = _copies(torch, sides.running)  # both sides evaluate with the same
        return peers

    def forward(self) -> Any:
        """In training; three operations with a residual and relu."""
        y = self.torch.nn.functional.batch_norm(self.x, *self.running, *self.parameters, training=True)
        self.y = y if self.residual is None else self.torch.relu(y + self.residual)
        return (self.y,)

    def backward(self) -> Any:
        """Of the last forward pass."""
        inputs = [self.x, *self.parameters, *([] if self.residual is None else [self.residual])]
        return self.torch.autograd.grad(self.y, inputs, self.dy, retain_graph=True)

    def both(self) -> Any:
        """Forward and backward."""
        return *self.forward(), *self.backward()

    def evaluation(self) -> Any:
        """With the running statistics."""
        with self.torch.no_grad():
            return (self.torch.nn.functional.batch_norm(self.x, *self.running, *self.parameters, training=False),)


def _copies(torch: Any, arrays: tuple[Any, Any]) -> tuple[Any, Any]:
    return torch.from_numpy(arrays[0].copy()), torch.from_numpy(arrays[1].copy())


def _flat(array: Any) -> Any:
    """A dense array of four axes as one run of memory."""
    return (array if array.flags.c_contiguous else np.moveaxis(array, 1, -1)).reshape(-1)


def _check(ours: Callable[[], Any], theirs: Callable[[], Any] | None) -> None:
    if theirs is None:
        return
    for mine, other in zip(ours(), theirs(), strict=True):
        # Where relu's argument is 0 but for rounding, either side is right; one such value shows in a parameter's
        # gradient, which float32 sums of 10^5 terms make uncertain anyway.
        expected = other.detach().numpy()
        bound = (2e-2 if mine.ndim == 1 else 2e-3) * np.abs(expected).max()
        differing = np.count_nonzero(np.abs(mine - expected) > bound)
        if differing > 1e-5 * mine.size:
            raise AssertionError(f"{differing} of {mine.size} values differ from torch's")
