"""Trains a small ResNet on scikit-learn's digits. `--parts torch` or `fusedstep` selects the library.

Two lines differ: the import of `optim`, and `convert_batch_norm(model)`.
"""

import argparse
from typing import Any

import sklearn.datasets
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output; if the number of channels changes, it has half the height and width."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.around(x))


def network(width: int = 16) -> nn.Module:
    """A ResNet of seven convolutions."""
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Block(width, width), Block(width, 2 * width), Block(2 * width, 4 * width)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 16×16, and their digits."""
    data = sklearn.datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return F.interpolate(images, scale_factor=2, mode="bilinear"), torch.tensor(data.target)


def train(parts: str, steps: int, *, dtype: torch.dtype = torch.float32, **options: Any) -> list[float]:
    """The loss of every step; `options` go to the optimizer."""
    torch.manual_seed(0)
    model = network().to(dtype)
    if parts == "fusedstep":
        from fusedstep.torch import convert_batch_norm, optim

        print(convert_batch_norm(model))
    else:
        from torch import optim
    optimizer = optim.AdamW(model.parameters(), lr=2e-3, **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2))
    images, labels = digits()
    losses = []
    for _ in range(steps):
        rows = torch.randint(0, len(labels), (64,))
        loss = F.cross_entropy(model(images[rows].to(dtype)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", choices=["torch", "fusedstep"], default="fusedstep")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    for step, value in enumerate(train(given.parts, given.steps), 1):
        if step % 20 == 0:
            print(f"{step:4d}  {value:.4f}")
