"""Trains on scikit-learn's digits with Accelerate. `--parts torch` or `fusedstep` selects the optimizer.

On one process: `python examples/accelerate_digits.py`.
On two: `torchrun --nproc-per-node 2 examples/accelerate_digits.py`.
"""

import argparse
from typing import Any

import sklearn.datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def digits(dtype: torch.dtype) -> TensorDataset:
    """Rows of 64 grey values from −1 to 1, and their digits."""
    data = sklearn.datasets.load_digits()
    return TensorDataset(torch.tensor(data.data, dtype=dtype) / 8 - 1, torch.tensor(data.target))


def train(parts: str, steps: int, *, dtype: torch.dtype = torch.float32, **options: Any) -> list[float]:
    """The loss of every step, averaged over all processes; `options` go to the optimizer."""
    if parts == "fusedstep":
        from fusedstep.torch import optim
    else:
        from torch import optim
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
    optimizer = optim.AdamW(model.parameters(), lr=5e-3, **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    loader = DataLoader(digits(dtype), batch_size=64, shuffle=True, drop_last=True)
    # Accelerate would step a prepared schedule once per process; this one counts optimizer steps.
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses: list[float] = []
    summed = torch.zeros((), dtype=dtype)
    while True:
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                summed = summed + accelerator.reduce(loss.detach(), "mean")
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
                losses.append(summed.item() / 2)
                summed = torch.zeros((), dtype=dtype)
                if len(losses) == steps:
                    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", choices=["torch", "fusedstep"], default="fusedstep")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    curve = train(given.parts, given.steps)
    if Accelerator(cpu=True).is_main_process:
        for step, value in enumerate(curve, 1):
            if step % 20 == 0:
                print(f"{step:4d}  {value:.4f}")
