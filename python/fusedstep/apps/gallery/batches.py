"""Small against large batches."""

from time import perf_counter
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.apps.gallery import looks, network
from fusedstep.apps.gallery.drawing import Data

TITLE = "Small and large batches"

_SIZES = [64, 32, 10]
_LR = 0.3
_GOAL = 0.02
_MOST_EPOCHS = 4000
#: The loss over all rows is looked at so often, or each epoch.
_LOOK = 25


def noise(model: digits.MLP, x: Any, y: Any, size: int, rng: np.random.Generator) -> float:
    """Root mean square of ‖gradient of a batch − gradient of all‖, relative to the latter."""

    def gradient(rows: Any) -> Any:
        _, dlogits = fs.softmax_cross_entropy(model.forward(x[rows], training=True), y[rows])
        return np.concatenate([part.ravel() for part in model.backward(dlogits).values()]).astype(np.float64)

    whole = gradient(np.arange(len(x)))
    squares = [((gradient(rng.choice(len(x), size, replace=False)) - whole) ** 2).sum() for _ in range(50)]
    return float(np.sqrt(np.mean(squares)) / np.linalg.norm(whole))


def run(size: int, seed: int, goal: float, products: int) -> dict[str, Any]:
    """Trains until the loss over all training rows is at the goal, and measures where it has come to."""
    train_x, train_y, test_x, test_y = network.load(seed)
    model = digits.MLP(_SIZES, False, seed)
    noise_at_start = noise(model, train_x, train_y, size, np.random.default_rng(seed))
    optimizer = fs.SGD(model.params, lr=_LR)
    updates, seconds, loss = 0, 0.0, np.inf
    for epoch in range(_MOST_EPOCHS):
        start = perf_counter()
        for rows in digits.batches(len(train_x), size, seed, epoch):
            network.step(model, optimizer, train_x[rows], train_y[rows])
            updates += 1
            if updates % _LOOK == 0:
                seconds += perf_counter() - start
                loss = model.evaluate(train_x, train_y)[0]
                start = perf_counter()
                if loss <= goal:
                    break
        seconds += perf_counter() - start
        if loss <= goal:
            break
    rows_seen = updates * size
    grad, _, params = network.in_doubles(model, train_x, train_y)
    top = fs.curvature.spectrum(grad, params, which="largest", max_products=products, seed=seed)
    test_loss, test_accuracy = model.evaluate(test_x, test_y)
    return {
        "noise": noise_at_start,
        "seconds": seconds,
        "epochs": rows_seen / len(train_x),
        "seconds_per_epoch": seconds * len(train_x) / rows_seen,
        "updates": updates,
        "sharpness": float(top.eigenvalues[-1]),
        "train_loss": loss,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Every batch size from several seeds, at one learning rate and to one training loss."""
    goal = 0.1 if quick else _GOAL
    sizes = [8, 64, 1437] if quick else [4, 8, 16, 32, 64, 128, 256, 512, 1437]
    seeds = range(seed, seed + (1 if quick else 5))
    runs = {size: [run(size, number, goal, 20 if quick else 30) for number in seeds] for size in sizes}
    means = {
        size: {name: float(np.mean([one[name] for one in group])) for name in group[0]} for size, group in runs.items()
    }
    return {"runs": runs, "claims": {"lr": _LR, "seeds": len(seeds), "train_loss": goal, "batch_size": means}}


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    by_size = claims["batch_size"]
    small, large = min(by_size), max(by_size)
    few, many = by_size[small], by_size[large]
    tests = [entry["test_loss"] for entry in by_size.values()]
    return (
        f"SGD at a rate of {claims['lr']:g} until the training loss is {claims['train_loss']:g}, means of "
        f"{claims['seeds']} seeds. Batches of {small} take {1e3 * few['seconds_per_epoch']:.2g} ms per epoch and all "
        f"{large} rows at once {1e3 * many['seconds_per_epoch']:.2g} ms, but {few['epochs']:.0f} epochs against "
        f"{many['epochs']:.0f}. Small batches have noisy gradients, and end where the curvature is lower (largest "
        f"eigenvalue of the Hessian {few['sharpness']:.2g} against {many['sharpness']:.2g}). The test loss hardly "
        f"depends on the batch size here ({min(tests):.2g} to {max(tests):.2g})."
    )


def draw(data: Data) -> Any:
    """Time, noise, sharpness and test loss over the size of a batch."""
    figure, axes = looks.new(4.6, 2, 2, sharex=True)
    sizes = list(data["runs"])

    def line(ax: Any, name: str, k: int, label: str | None = None) -> None:
        runs = np.array([[one[name] for one in data["runs"][size]] for size in sizes])
        ax.plot(sizes, runs, ls="none", marker=".", ms=3, color=looks.COLOURS[k], alpha=0.5)
        ax.plot(sizes, runs.mean(axis=1), marker=looks.MARKERS[k], ms=4, label=label, **looks.look(k))

    line(axes[0], "seconds", 0, "to the training loss")
    line(axes[0], "seconds_per_epoch", 1, "an epoch")
    axes[0].set(title="Time", ylabel="seconds", xscale="log", yscale="log")
    axes[0].legend(loc="center right", bbox_to_anchor=(1.0, 0.42))
    line(axes[1], "noise", 0)
    axes[1].set(title="Noise of the gradient at the start", ylabel="error / gradient")
    line(axes[2], "sharpness", 0)
    axes[2].set(title="Sharpness at the end", ylabel="largest eigenvalue of H", ylim=(0, None))
    line(axes[3], "test_loss", 0)
    axes[3].set(title="Loss on held-out digits", ylabel="cross-entropy (nats)")
    axes[0].set_xticks(sizes[::2], [str(size) for size in sizes[::2]], minor=False)
    for ax in axes:
        ax.tick_params(axis="x", which="minor", bottom=False)
    for ax in axes[2:]:
        ax.set_xlabel("rows of a batch")
    return figure
