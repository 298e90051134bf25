"""A ResNet-18 on 32×3×64×64, with torch's batch norm and with this library's: whole passes, and batch norms only."""

import copy
from collections.abc import Callable
from typing import Any

from fusedstep.apps.bench.harness import Subject, torch_or_none

#: The number of batch norms by the shape of their input: with ReLU, with an addition and ReLU, and alone.
NORMS = {
    (32, 64, 32, 32): (1, 0, 0),
    (32, 64, 16, 16): (2, 2, 0),
    (32, 128, 8, 8): (2, 2, 1),
    (32, 256, 4, 4): (2, 2, 1),
    (32, 512, 2, 2): (2, 2, 1),
}


def subjects() -> dict[str, Callable[[], Subject]]:
    """Every subject by name, where torch is; calling one makes its network."""
    if torch_or_none() is None:
        return {}
    return {"torch-resnet-18": whole_pass, "torch-resnet-18-norms": norms}


def whole_pass() -> Subject:
    """Forward and backward pass of the network."""
    torch: Any = torch_or_none()
    from fusedstep.torch import convert_batch_norm

    torch.manual_seed(0)
    theirs = resnet18(torch)
    ours = copy.deepcopy(theirs)
    convert_batch_norm(ours)
    x, target = torch.randn(32, 3, 64, 64), torch.randint(0, 1000, (32,))

    def trained(model: Any) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x), target).backward()

        return run

    sides = trained(ours), trained(theirs)

    def check() -> None:
        for side in sides:
            side()
        gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (ours, theirs)]
        # A few of the ten million inputs of a ReLU are so near 0 that rounding decides their sign.
        if (gradients[0] - gradients[1]).norm() > 1e-2 * gradients[1].norm():
            raise ValueError("the gradients differ")

    return Subject("torch-resnet-18", sides[0], {"torch": sides[1]}, check, {"torch": 1.0})


def norms() -> Subject:
    """All batch norms of the network in sequence, forward and backward, with their additions and ReLUs."""
    torch: Any = torch_or_none()
    from fusedstep.torch import BatchNorm2d

    torch.manual_seed(0)
    calls = []
    for shape, counts in NORMS.items():
        for kind, count in enumerate(counts):
            for _ in range(count):
                x, residual = (torch.randn(shape).requires_grad_() for _ in range(2))
                layers = BatchNorm2d(shape[1], activation="relu" if kind < 2 else None), torch.nn.BatchNorm2d(shape[1])
                calls.append((kind, layers, x, residual if kind == 1 else None, torch.randn(shape)))

    def ours() -> list[Any]:
        found = []
        for _, (layer, _), x, residual, dy in calls:
            inputs = [x, *layer.parameters(), *([] if residual is None else [residual])]
            found += torch.autograd.grad(layer(x, residual), inputs, dy)
        return found

    def theirs() -> list[Any]:
        found = []
        for kind, (_, layer), x, residual, dy in calls:
            inputs = [x, *layer.parameters(), *([] if residual is None else [residual])]
            y = layer(x)
            y = y if residual is None else y.add_(residual)
            found += torch.autograd.grad(y.relu_() if kind < 2 else y, inputs, dy)
        return found

    def check() -> None:
        for mine, other in zip(ours(), theirs(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * max(float(other.abs().max()), 1.0))

    return Subject("torch-resnet-18-norms", ours, {"torch": theirs}, check, {"torch": 2.0})


def resnet18(torch: Any) -> Any:
    """The network, with random weights."""
    nn = torch.nn

    def norm_conv(inputs: int, outputs: int, size: int, stride: int) -> list[Any]:
        return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = norm_conv(inputs, outputs, 3, stride)
            self.conv2, self.bn2 = norm_conv(outputs, outputs, 3, 1)
            self.relu = nn.ReLU(inplace=True)
            self.around = None if inputs == outputs else nn.Sequential(*norm_conv(inputs, outputs, 1, stride))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            y += x if self.around is None else self.around(x)
            return self.relu(y)

    parts = [*norm_conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage in range(4):
        outputs = 64 << stage
        parts += [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
