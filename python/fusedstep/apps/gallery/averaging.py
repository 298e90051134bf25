"""Averaged weights and a snapshot ensemble against the last iterate."""

from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.apps.gallery import looks, network
from fusedstep.apps.gallery.drawing import Data

TITLE = "Averages and ensembles"

_SIZES = [64, 64, 10]
_LR = 0.3
_CYCLES = 5


def loss_of(probabilities: Any, labels: Any) -> float:
    """Cross-entropy of probabilities."""
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


def averaged(seed: int, epochs: int) -> dict[str, Any]:
    """One run at a constant rate, too large to settle; its average of weights from half-way on, and an EMA."""
    train_x, train_y, test_x, test_y = network.load(seed)
    model = digits.MLP(_SIZES, True, seed)
    optimizer = fs.SGD(model.params, lr=_LR, momentum=0.9)
    swa, ema = fs.averaging.SWA(model.params), fs.averaging.EMA(model.params, 0.99)
    chunks = np.array_split(train_x, 10)

    def recomputed() -> tuple[float, float]:
        fs.averaging.recompute_batch_norm(model.norms, chunks, lambda x: model.forward(x, training=True))
        return model.evaluate(test_x, test_y)

    courses: dict[str, list[tuple[float, float]]] = {"last iterate": [], "EMA": [], "SWA": []}
    for epoch in range(epochs):
        for rows in digits.batches(len(train_x), 32, seed, epoch):
            network.step(model, optimizer, train_x[rows], train_y[rows])
            ema.update()
        if epoch >= epochs // 2:
            swa.update()
        kept = {name: value.copy() for name, value in model.buffers().items()}
        courses["last iterate"].append(model.evaluate(test_x, test_y))
        with ema.swap():
            courses["EMA"].append(recomputed())
        if swa.updates:
            with swa.swap():
                courses["SWA"].append(recomputed())
        for name, value in model.buffers().items():
            value[...] = kept[name]
    return {name: np.array(course) for name, course in courses.items()}


def snapshots(seed: int, epochs: int) -> dict[str, Any]:
    """A cyclic rate, a snapshot at the end of each cycle, and what they predict together."""
    train_x, train_y, test_x, test_y = network.load(seed)
    model = digits.MLP(_SIZES, True, seed)
    per_epoch = sum(1 for _ in digits.batches(len(train_x), 32, seed, 0))
    schedule = fs.schedules.cosine_warm_restarts(_LR, per_epoch * (epochs // _CYCLES))
    optimizer = fs.SGD(model.params, lr=schedule, momentum=0.9)
    ensemble = fs.averaging.SnapshotEnsemble(model.params | model.buffers(), schedule, max_snapshots=_CYCLES)
    course, members, together = [], [], []

    def predict() -> Any:
        return fs.softmax(model.forward(test_x, training=False))

    for epoch in range(epochs):
        for rows in digits.batches(len(train_x), 32, seed, epoch):
            _, dlogits = fs.softmax_cross_entropy(model.forward(train_x[rows], training=True), train_y[rows])
            if ensemble.observe(optimizer.step(model.backward(dlogits)).step):
                members.append(loss_of(predict(), test_y))
                together.append(loss_of(fs.averaging.ensemble_predict(predict, ensemble), test_y))
        course.append(model.evaluate(test_x, test_y)[0])
    return {"course": np.array(course), "members": np.array(members), "ensemble": np.array(together)}


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Both runs from several seeds."""
    epochs, seeds = (15, range(seed, seed + 2)) if quick else (40, range(seed, seed + 5))
    constant = [averaged(number, epochs) for number in seeds]
    cyclic = [snapshots(number, epochs) for number in seeds]
    courses = {name: np.mean([run[name][:, 0] for run in constant], axis=0) for name in constant[0]}
    tail = max(1, epochs // 4)
    members = np.array([run["members"] for run in cyclic])
    together = np.array([run["ensemble"] for run in cyclic])
    return {
        "courses": courses,
        "cyclic": np.mean([run["course"] for run in cyclic], axis=0),
        "members": members.mean(axis=0),
        "ensemble": together.mean(axis=0),
        "claims": {
            "epochs": epochs,
            "seeds": len(seeds),
            "loss_in_the_last_quarter": {name: course[-tail:].mean() for name, course in courses.items()},
            "mean_snapshot": members.mean(),
            "best_snapshot": members.mean(axis=0).min(),
            "last_snapshot": members[:, -1].mean(),
            "ensemble": together[:, -1].mean(),
        },
    }


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    loss = claims["loss_in_the_last_quarter"]
    return (
        f"Loss on held-out digits, means of {claims['seeds']} seeds. Left: at a constant rate of {_LR:g} SGD does not "
        f"settle. In the last quarter of the run its loss is {loss['last iterate']:.2g}. The averaged weights have a "
        f"loss of {loss['EMA']:.2g} (exponential average) and {loss['SWA']:.2g} (equal average over the second half). "
        f"Right: the rate falls to 0 in each of {_CYCLES} cycles. The snapshots at the ends of the cycles have a loss "
        f"of {claims['mean_snapshot']:.2g} on average, and their ensemble has {claims['ensemble']:.2g}."
    )


def draw(data: Data) -> Any:
    """Losses over the epochs."""
    figure, (left, right) = looks.new(3.1, 1, 2, sharey=True)
    epochs = np.arange(1, len(data["cyclic"]) + 1)
    for k, (name, course) in enumerate(data["courses"].items()):
        left.plot(epochs[-len(course) :], course, label=name, **looks.look(k))
    left.set(title="Constant rate", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    ends = epochs[-1] // _CYCLES * np.arange(1, _CYCLES + 1)
    right.plot(epochs, data["cyclic"], label="last iterate", **looks.look(0))
    right.plot(ends, data["members"], ls="none", marker="s", ms=5, color=looks.ORANGE, label="snapshot")
    right.plot(ends, data["ensemble"], marker="*", ms=9, label="snapshots so far, together", **looks.look(3))
    right.set(title=f"Cyclic rate, {_CYCLES} cycles", xlabel="epoch", yscale="log")
    ticks = [0.05, 0.07, 0.1, 0.2, 0.3]
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_yticks([], minor=True)
    for ax in (left, right):
        ax.legend(loc="upper right")
    return figure
