"""A multilayer perceptron with batch normalization on scikit-learn's handwritten digits.

Matrix products are NumPy's; batch norm with ReLU, loss and optimizer are this library's.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
#: Calls a kernel; `fusedstep train` passes one that keeps the time.
Call = Callable[..., Any]


def load(seed: int) -> tuple[Floats, Labels, Floats, Labels]:
    """1,797 pictures of 8x8 pixels in [0, 1], a fifth of them held out: train_x, train_y, test_x, test_y."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split((x / 16).astype(np.float32), y, test_size=0.2, stratify=y, random_state=seed)
    train_x, test_x, train_y, test_y = parts
    return train_x, train_y.astype(np.int64), test_x, test_y.astype(np.int64)


def split(x: Floats, y: Labels, seed: int) -> tuple[Floats, Labels, Floats, Labels]:
    """A sixth of the rows for validation, by which to stop: x, y of the rest, then x, y of these."""
    from sklearn.model_selection import train_test_split

    rest_x, held_x, rest_y, held_y = train_test_split(x, y, test_size=1 / 6, stratify=y, random_state=seed)
    return rest_x, rest_y, held_x, held_y


class MLP:
    """Linear layers with batch norm, ReLU and dropout between them."""

    def __init__(self, sizes: list[int], batch_norm: bool, seed: int, *, dropout: float = 0.0) -> None:
        self.dropout, self.seed = dropout, seed
        self._dropped: list[dict[str, int]] = []
        rng = np.random.default_rng(seed)
        self.params: dict[str, Floats] = {}
        self.norms: list[fs.BatchNorm] = []
        self.layers = len(sizes) - 1
        for k in range(self.layers):
            inputs, outputs = sizes[k], sizes[k + 1]
            # He initialization: keeps the variance through ReLU.
            self.params[f"w{k}"] = rng.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(np.float32)
            self.params[f"b{k}"] = np.zeros(outputs, np.float32)
            if batch_norm and k + 1 < self.layers:
                norm = fs.BatchNorm(outputs, activation="relu")
                self.norms.append(norm)
                assert norm.weight is not None
                assert norm.bias is not None
                self.params[f"gamma{k}"], self.params[f"beta{k}"] = norm.weight, norm.bias
        self._inputs: list[Floats] = []
        self._active: list[NDArray[np.bool_]] = []

    def buffers(self) -> dict[str, Floats]:
        """The running statistics, which no optimizer updates."""
        named = {}
        for k, norm in enumerate(self.norms):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            named[f"running_mean{k}"], named[f"running_var{k}"] = norm.running_mean, norm.running_var
        return named

    def forward(
        self, x: Floats, *, training: bool, step: int = 0, call: Call = lambda f, *a, **k: f(*a, **k)
    ) -> Floats:
        """The logits; keeps what backward needs. The step says which units dropout drops."""
        self._inputs, self._active, self._dropped = [], [], []
        for k in range(self.layers):
            self._inputs.append(x)
            x = x @ self.params[f"w{k}"] + self.params[f"b{k}"]
            if k + 1 < self.layers and self.norms:
                x = call(self.norms[k].forward, x, training=training)
            elif k + 1 < self.layers:
                self._active.append(x > 0)
                x = x * self._active[-1]
            if k + 1 < self.layers and training and self.dropout > 0:
                # A key per layer, and 2^32 numbers a step.
                self._dropped.append({"seed": self.seed + (k << 32), "offset": step << 32})
                x = call(fs.dropout, x, self.dropout, **self._dropped[-1])
        return x

    def activations(self) -> list[Floats]:
        """What the hidden layers gave in the last forward pass, (rows, units) each."""
        return self._inputs[1:]

    def backward(self, dx: Floats, *, call: Call = lambda f, *a, **k: f(*a, **k)) -> dict[str, Floats]:
        """The gradients of params, from the gradient of the logits."""
        grads: dict[str, Floats] = {}
        for k in reversed(range(self.layers)):
            if k < len(self._dropped):
                dx = call(fs.dropout_backward, dx, self.dropout, **self._dropped[k])
            if k + 1 < self.layers and self.norms:
                dx = call(self.norms[k].backward, dx)
                dgamma, dbeta = self.norms[k].dweight, self.norms[k].dbias
                assert dgamma is not None
                assert dbeta is not None
                grads[f"gamma{k}"], grads[f"beta{k}"] = dgamma, dbeta
            elif k + 1 < self.layers:
                dx = dx * self._active[k]
            grads[f"w{k}"] = self._inputs[k].T @ dx
            grads[f"b{k}"] = dx.sum(axis=0)
            if k > 0:
                dx = dx @ self.params[f"w{k}"].T
        return {name: grads[name] for name in self.params}

    def evaluate(self, x: Floats, y: Labels) -> tuple[float, float]:
        """Mean loss and accuracy, with the running statistics."""
        logits = self.forward(x, training=False)
        return fs.softmax_cross_entropy(logits, y)[0], float((logits.argmax(axis=1) == y).mean())


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch, shuffled anew every epoch; a last batch of one row is left out (batch norm)."""
    for rows in fs.data.batches(np.arange(count), size, seed=seed, epoch=epoch):
        if len(rows) > 1:
            yield rows


def train_step(
    model: MLP,
    optimizer: fs.Optimizer,
    x: Floats,
    y: Labels,
    call: Call,
    *,
    step: int = 0,
    label_smoothing: float = 0.0,
) -> tuple[float, float]:
    """Forward, backward and update; gives loss and accuracy on the batch before the update."""
    logits = model.forward(x, training=True, step=step, call=call)
    loss, dlogits = call(fs.softmax_cross_entropy, logits, y, label_smoothing=label_smoothing)
    call(optimizer.step, model.backward(dlogits, call=call))
    return loss, float((logits.argmax(axis=1) == y).mean())
