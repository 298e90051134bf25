"""Trains a small Transformer to learn a text by heart. `--parts torch` or `fusedstep` selects the library.

From fusedstep it takes cross-entropy, dropout, and an AdamW that clips the gradient itself.
"""

import argparse
import codecs
import contextlib
import io
from typing import Any

import torch
from torch import nn

with contextlib.redirect_stdout(io.StringIO()):
    import this

TEXT = codecs.decode(this.s, "rot13")
LETTERS = sorted(set(TEXT))
CONTEXT, WIDTH = 32, 32


class Transformer(nn.Module):
    """Predicts each letter from the letters before it."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        shape = {"nhead": 4, "dim_feedforward": 4 * WIDTH, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, **shape) for _ in range(2))
        self.dropout = dropout
        self.head = nn.Linear(WIDTH, len(LETTERS))
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, CONTEXT, letters)."""
        y = self.dropout(self.letters(x) + self.places)
        for layer in self.layers:
            y = self.dropout(layer(y, src_mask=self.mask.to(y.dtype)))
        return self.head(y)


def train(parts: str, steps: int, *, dropout: float = 0.0, dtype: Any = None, **options: Any) -> list[float]:
    """The loss of every step; `options` go to the optimizer."""
    torch.manual_seed(0)
    ours = parts == "fusedstep"
    if ours:
        from fusedstep.torch import nn, optim

        options["max_grad_norm"] = 1.0
    else:
        from torch import nn, optim
    model = Transformer(nn.Dropout(dropout)).to(dtype or torch.float32)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, **options)
    text = torch.tensor([LETTERS.index(letter) for letter in TEXT])
    losses = []
    for _ in range(steps):
        starts = torch.randint(0, len(text) - CONTEXT, (16, 1))
        window = text[starts + torch.arange(CONTEXT + 1)]
        loss = criterion(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if not ours:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", choices=["torch", "fusedstep"], default="fusedstep")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    for step, value in enumerate(train(given.parts, given.steps, dropout=0.1), 1):
        if step % 20 == 0:
            print(f"{step:4d}  {value:.4f}")
