"""Data-parallel training on scikit-learn's digits with NumPy and MPI.

On three processes:

    mpiexec -n 3 python -m mpi4py examples/mpi_digits.py

It also runs without `-m mpi4py`, but then an exception on one rank does not end the other ranks, which wait for it.
Each rank takes a part of each batch. Batch norm uses the statistics of the whole batch. Gradients are added over ranks,
and every rank takes the same step. So the losses are those of one process, up to rounding.
"""

import argparse
from typing import Any

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits

import fusedstep as fs

COMM = MPI.COMM_WORLD


class Network:
    """Two linear layers, with batch norm and ReLU between."""

    def __init__(self, dtype: Any) -> None:
        rng = np.random.default_rng(0)  # the same on all ranks
        self.norm = fs.mpi.BatchNorm(64, COMM, activation="relu", dtype=dtype)
        self.params = {
            "w1": (rng.standard_normal((64, 64)) / 8).astype(dtype),
            "w2": (rng.standard_normal((64, 10)) / 8).astype(dtype),
            "gamma": self.norm.weight,
            "beta": self.norm.bias,
        }

    def loss(self, x: Any, labels: Any, share: float) -> tuple[float, dict[str, Any]]:
        """The contribution of this rank's part to the loss of the whole batch, and its gradients."""
        z = self.norm.forward(x @ self.params["w1"], training=True)
        logits = z @ self.params["w2"]
        loss, dlogits = fs.softmax_cross_entropy(logits, labels) if len(labels) else (0.0, np.zeros_like(logits))
        dlogits *= share
        dz = self.norm.backward(dlogits @ self.params["w2"].T)
        grads = {"w1": x.T @ dz, "w2": z.T @ dlogits, "gamma": self.norm.dweight, "beta": self.norm.dbias}
        return loss * share, grads

    def predict(self, x: Any) -> Any:
        """The digit of every row."""
        z = self.norm.forward(x @ self.params["w1"], training=False)
        return (z @ self.params["w2"]).argmax(axis=1)


def train(steps: int, dtype: Any = np.float32) -> list[float]:
    """The loss of every step."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(dtype)
    network = Network(dtype)
    opt = fs.AdamW(network.params, lr=3e-3)
    rng = np.random.default_rng(1)
    losses = []
    for _ in range(steps):
        rows = rng.permutation(len(labels))[:100]  # three ranks get 34, 33 and 33 of the 100
        part = np.array_split(rows, COMM.size)[COMM.rank]
        loss, grads = network.loss(images[part], labels[part], len(part) / len(rows))
        fs.mpi.reduce_gradients(grads, COMM, average=False)
        opt.step(grads)
        losses.append(COMM.allreduce(loss))
    if COMM.rank == 0:
        print(f"{(network.predict(images) == labels).mean():.1%} of the digits are right")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    for step, value in enumerate(train(parser.parse_args().steps), 1):
        if COMM.rank == 0 and step % 20 == 0:
            print(f"{step:4d}  {value:.6f}")
