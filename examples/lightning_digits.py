"""Trains on scikit-learn's digits with Lightning. `--parts torch` or `fusedstep` selects the optimizer.

`configure_optimizers` returns the optimizer; nothing else changes. On two processes: `--processes 2`.
"""

import argparse
from typing import Any

import lightning
import sklearn.datasets
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SETTINGS = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Digits(lightning.LightningModule):
    """A network of one hidden layer; `losses` has the loss of every step."""

    def __init__(self, parts: str, **options: Any) -> None:
        super().__init__()
        self.parts, self.options, self.losses = parts, options, list[float]()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, and a schedule that advances every step."""
        if self.parts == "fusedstep":
            from fusedstep.torch import optim
        else:
            from torch import optim
        optimizer = optim.AdamW(self.layers.parameters(), lr=5e-3, **self.options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches(dtype: torch.dtype) -> DataLoader:
    """Batches of 64 rows of 64 grey values from −1 to 1, and their digits."""
    data = sklearn.datasets.load_digits()
    rows = TensorDataset(torch.tensor(data.data, dtype=dtype) / 8 - 1, torch.tensor(data.target))
    return DataLoader(rows, batch_size=64, shuffle=True, drop_last=True)


def train(
    parts: str, steps: int, *, dtype: torch.dtype = torch.float32, processes: int = 1, **options: Any
) -> list[float]:
    """The loss of every step on this process; `options` go to the optimizer."""
    lightning.seed_everything(0, verbose=False)
    model = Digits(parts, **options)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true" if dtype == torch.float64 else "32-true",
        max_steps=steps,
        gradient_clip_val=1.0,
        **SETTINGS,
    )
    trainer.fit(model, batches(dtype))
    return model.losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", choices=["torch", "fusedstep"], default="fusedstep")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    for step, value in enumerate(train(given.parts, given.steps, processes=given.processes), 1):
        if step % 20 == 0:
            print(f"{step:4d}  {value:.4f}")
