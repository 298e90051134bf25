"""How `fusedstep train` shows a run: while it goes on, in a few lines, and as a picture."""

import math
import sys
from typing import Any

import numpy as np

from fusedstep._common.brief import plural
from fusedstep._common.files import save_figure
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
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # rich 13 ends a bar that it has not shown with an empty line.
        if self.live:
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
        lines.append(f"interrupted after {plural(len(record['epochs']), 'epoch')}")
    if record["test_accuracy"] is not None:
        if not math.isfinite(record["epochs"][-1]["test_loss"]):
            lines.append("the loss is not finite: the learning rate is too large")
        lines.append(f"test accuracy      {record['test_accuracy']:.2%}")
    stopping = record.get("early_stopping")
    if stopping is not None and stopping["best_epoch"] is not None:
        how = "stopped early" if stopping["stopped"] else "not stopped early"
        lines.append(
            f"best epoch         {stopping['best_epoch']} of {len(record['epochs'])} ({how}), by a loss of "
            f"{stopping['best_loss']:.4f} on held-out rows"
        )
    if record["epochs"] and "average_test_accuracy" in record["epochs"][-1]:
        lines.append(f"averaged weights   {record['epochs'][-1]['average_test_accuracy']:.2%}")
    if record.get("snapshots"):
        single = record["snapshots"]["test_accuracies"]
        together, asked = record["snapshots"]["ensemble_test_accuracy"], record["options"]["snapshots"]
        kept = plural(asked, "snapshot") if len(single) == asked else f"{len(single)} of {asked} snapshots"
        said = "not finite" if together is None else f"{together:.2%} together"
        lines.append(f"{kept:<19}{said}, {min(single):.2%}–{max(single):.2%} alone")
    kernels = record["kernels"]
    if kernels["compared_steps"]:
        native, reference = kernels["compared_us_per_step"], kernels["numpy_us_per_step"]
        lines.append(
            f"fused kernels      {native:,.0f} µs per step on {record['isa']}, {reference:,.0f} µs on numpy "
            f"({reference / native:.1f} times; medians of the same {kernels['compared_steps']} steps, "
            f"{kernels['steps_with_equal_bits']} of them with the same bits)"
        )
    lines.append(
        f"{plural(len(record['steps']), 'step')} of {record['parameters']:,} parameters with "
        f"{record['options']['optimizer']} in {record['seconds']:.1f} s on {plural(record['threads'], 'thread')}"
    )
    return "\n".join(lines)


def plot(record: dict[str, Any], path: str) -> None:
    """Loss, accuracy and learning rate over the epochs, and the size of the steps; with what happened when."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    figure, ((losses, accuracies), (rates, sizes)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    scale = record["epochs"][0]["step"] if record["epochs"] else max(1, len(record["steps"]))
    _plot_losses(record, losses, scale)
    _plot_accuracies(record, accuracies)
    _curve(rates, _epochs_of_steps(record, scale), record["telemetry"]["lr"], color="#0072B2", label="learning rate")
    rates.set(xlabel="epoch", ylabel="learning rate", title="Learning rate", ylim=(0, None))
    _mark(record, (losses, accuracies, rates), scale)
    for axes in (losses, accuracies, rates):
        axes.set_xlim(0, 1.02 * max(1.0, len(record["steps"]) / scale))
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        _finish(axes)
    plot_update_ratios(record["telemetry"], ax=sizes)
    options = record["options"]
    norm = "batch norm" if options["batch_norm"] else "no batch norm"
    changes = "" if options["schedule"] == "constant" else f" {options['schedule']}"
    figure.suptitle(
        f"Digits: {options['optimizer']}, lr {options['lr']:g}{changes}, batches of {options['batch_size']}, {norm}"
    )
    save_figure(figure, path, dpi=150)
    plt.close(figure)


def _plot_losses(record: dict[str, Any], axes: Any, scale: int) -> None:
    options, epochs = record["options"], [entry["epoch"] for entry in record["epochs"]]
    # What is added to the training loss alone makes the two curves no measure of overfitting.
    added = [f"targets smoothed by {options['label_smoothing']:g}"] * bool(options.get("label_smoothing"))
    added += [f"dropout {options['dropout']:g}"] * bool(options.get("dropout"))
    train = f"train ({', '.join(added)})" if added else "train"
    test = "test (targets as they are)" if options.get("label_smoothing") else "test"
    _curve(axes, _epochs_of_steps(record, scale), record["steps"], color="0.8", lw=0.6, label="train, each batch")
    # Colours of Okabe and Ito, told apart with any colour vision; lines differ in style too.
    for label, name, colour, style in ((train, "train_loss", "#0072B2", "-"), (test, "test_loss", "#D55E00", "--")):
        _curve(axes, epochs, [entry[name] for entry in record["epochs"]], color=colour, ls=style, label=label)
    if epochs and "held_out_loss" in record["epochs"][0]:
        values = [entry["held_out_loss"] for entry in record["epochs"]]
        _curve(axes, epochs, values, color="#009E73", ls="-.", label="held out, to stop by")
    axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    if axes.lines:
        axes.set_yscale("log")


def _plot_accuracies(record: dict[str, Any], axes: Any) -> None:
    epochs = [entry["epoch"] for entry in record["epochs"]]
    for label, name, colour, style in (
        ("train", "train_accuracy", "#0072B2", "-"),
        ("test", "test_accuracy", "#D55E00", "--"),
        ("test, averaged weights", "average_test_accuracy", "#CC79A7", "-."),
    ):
        if epochs and name in record["epochs"][0]:
            values = [100 * entry[name] for entry in record["epochs"]]
            _curve(axes, epochs, values, color=colour, ls=style, label=label)
    together = (record.get("snapshots") or {}).get("ensemble_test_accuracy")
    if together is not None:
        axes.axhline(100 * together, color="#000000", ls=":", lw=1.0, label=f"test, snapshots together: {together:.2%}")
    if record["test_accuracy"] is not None and math.isfinite(record["epochs"][-1]["test_loss"]):
        axes.plot(
            [(record.get("early_stopping") or {}).get("best_epoch") or epochs[-1]],
            [100 * record["test_accuracy"]],
            color="#D55E00",
            marker="D",
            ls="",
            label=f"test, at the end: {record['test_accuracy']:.2%}",
        )
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy")


def _mark(record: dict[str, Any], panels: tuple[Any, ...], scale: int) -> None:
    """Where a snapshot was taken, which epoch was best, and where the run stopped or was interrupted."""
    stopping = record.get("early_stopping") or {}
    marks: list[tuple[float, str, Any, str]] = [
        (step / scale, "0.6", ":", "snapshot") for step in record.get("snapshot_steps", ())
    ]
    if stopping.get("best_epoch") is not None:
        marks.append((stopping["best_epoch"], "#009E73", (0, (1, 1)), f"best epoch: {stopping['best_epoch']}"))
    if stopping.get("stopped"):
        marks.append((record["epochs"][-1]["epoch"], "#000000", "--", "stopped early"))
    if record["interrupted"]:
        marks.append((len(record["steps"]) / scale, "#000000", (0, (7, 2)), "interrupted"))
    for axes in panels:
        named = set()
        for at, colour, style, label in marks:
            axes.axvline(at, color=colour, ls=style, lw=0.9, label=None if label in named else label)
            named.add(label)


def _epochs_of_steps(record: dict[str, Any], scale: int) -> Any:
    return np.arange(1, len(record["steps"]) + 1) / scale


def _curve(axes: Any, x: Any, values: Any, **look: Any) -> None:
    """Draws the finite values; without any, neither a line nor a legend."""
    shown = np.array(values, dtype=float)
    shown[~np.isfinite(shown)] = np.nan
    known = np.isfinite(shown)
    if known.any():
        # A line joins neighbours; a number between lost ones would not be seen.
        alone = not (known[1:] & known[:-1]).any()
        axes.plot(x, shown, marker="o" if alone or len(shown) < 3 else None, **look)


def _finish(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        # On white: curves and marks go through every corner.
        axes.legend(fontsize="small", facecolor="white", edgecolor="none", framealpha=0.85)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing finite was measured", transform=axes.transAxes, ha="center", color="0.4")
    axes.spines[["top", "right"]].set_visible(False)
