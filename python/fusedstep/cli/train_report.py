"""How `fusedstep train` shows a run: while it goes on, in a few lines, and as a picture."""

import math
import sys
from typing import Any

import numpy as np

from fusedstep._files import save_figure
from fusedstep.doctor import plot_update_ratios


class Progress:
    """A live bar on a terminal; a line per epoch elsewhere."""

    def __init__(self, epochs: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=quiet)
        self.epochs = epochs
        self.live = console.is_terminal
        self.stream = sys.stderr if quiet else sys.stdout
        self.bar = Bar(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("", total=epochs)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def show(self, epoch: dict[str, Any]) -> None:
        """One more epoch is done."""
        text = (
            f"train loss {epoch['train_loss']:.4f} accuracy {epoch['train_accuracy']:.2%}"
            f" · test loss {epoch['test_loss']:.4f} accuracy {epoch['test_accuracy']:.2%}"
        )
        short = f"loss {epoch['train_loss']:.4f} · test {epoch['test_loss']:.4f} {epoch['test_accuracy']:.2%}"
        self.bar.update(self.task, completed=epoch["epoch"], description=short)
        if not self.live:
            print(f"epoch {epoch['epoch']}/{self.epochs}  {text}", file=self.stream, flush=True)


def summary(record: dict[str, Any]) -> str:
    """The result in a few lines."""
    lines = []
    if record["interrupted"]:
        lines.append(f"interrupted after {len(record['epochs'])} epochs")
    if record["test_accuracy"] is not None:
        if not math.isfinite(record["epochs"][-1]["test_loss"]):
            lines.append("the loss is not finite: the learning rate is too large")
        lines.append(f"test accuracy      {record['test_accuracy']:.2%}")
    if record["epochs"] and "average_test_accuracy" in record["epochs"][-1]:
        lines.append(f"averaged weights   {record['epochs'][-1]['average_test_accuracy']:.2%}")
    if record.get("snapshots"):
        single = record["snapshots"]["test_accuracies"]
        together = record["snapshots"]["ensemble_test_accuracy"]
        said = "not finite" if together is None else f"{together:.2%} together"
        lines.append(f"{f'{len(single)} snapshots':<19}{said}, {min(single):.2%}–{max(single):.2%} alone")
    kernels = record["kernels"]
    if kernels["compared_steps"]:
        native, reference = kernels["compared_us_per_step"], kernels["numpy_us_per_step"]
        lines.append(
            f"fused kernels      {native:,.0f} µs per step on {record['isa']}, {reference:,.0f} µs on numpy "
            f"({reference / native:.1f} times; medians of the same {kernels['compared_steps']} steps, "
            f"{kernels['steps_with_equal_bits']} of them with the same bits)"
        )
    lines.append(
        f"{len(record['steps'])} steps of {record['parameters']:,} parameters with {record['options']['optimizer']} "
        f"in {record['seconds']:.1f} s on {record['threads']} threads"
    )
    return "\n".join(lines)


def plot(record: dict[str, Any], path: str) -> None:
    """Loss and accuracy over the epochs, and the size of the steps."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    epochs = [entry["epoch"] for entry in record["epochs"]]
    figure, (left, right, last) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    per_epoch = record["epochs"][0]["step"] if epochs else max(1, len(record["steps"]))
    left.plot(np.arange(1, len(record["steps"]) + 1) / per_epoch, record["steps"], color="0.8", lw=0.6, label="batch")
    # Colours of Okabe and Ito, told apart with any colour vision; lines differ in style too.
    for name, colour, style in (("train", "#0072B2", "-"), ("test", "#D55E00", "--")):
        look = {"color": colour, "ls": style, "label": name, "marker": "o" if len(epochs) < 3 else None}
        left.plot(epochs, [entry[f"{name}_loss"] for entry in record["epochs"]], **look)
        right.plot(epochs, [100 * entry[f"{name}_accuracy"] for entry in record["epochs"]], **look)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log", title="Loss")
    right.set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy")
    if record["test_accuracy"] is not None and math.isfinite(record["epochs"][-1]["test_loss"]):
        right.annotate(
            f"test {record['test_accuracy']:.2%}",
            (epochs[-1], 100 * record["test_accuracy"]),
            xytext=(-4, -14),
            textcoords="offset points",
            ha="right",
            va="top",
            color="#D55E00",
        )
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    plot_update_ratios(record["telemetry"], ax=last)
    options = record["options"]
    norm = "batch norm" if options["batch_norm"] else "no batch norm"
    changes = "" if options["schedule"] == "constant" else f" {options['schedule']}"
    figure.suptitle(
        f"Digits: {options['optimizer']}, lr {options['lr']:g}{changes}, batches of {options['batch_size']}, {norm}"
    )
    save_figure(figure, path, dpi=150)
    plt.close(figure)
