"""`fusedstep train`: trains the example network, and shows what the fused kernels are worth."""

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedstep import _core, runtime
from fusedstep._checkpoint import save_checkpoint
from fusedstep.cli import doctor
from fusedstep.cli.common import add_runtime_options, check_writable, positive_int, require, use_runtime, write_json
from fusedstep.doctor import Doctor, RunRecorder, dead_part
from fusedstep.optimizers import REGISTRY, ScheduleFreeAdamW

if TYPE_CHECKING:
    from fusedstep.examples.digits import MLP
    from fusedstep.optimizers import Optimizer

#: Steps that are also run on the reference, to compare time and bits.
COMPARED_STEPS = 20
#: Learning rates that suit the example, where the optimizer's default does not.
LEARNING_RATES = {"asgd": 0.1, "rmsprop": 1e-3, "sgd": 0.1}
#: Those that update arrays of any shape from dense gradients.
OPTIMIZERS = sorted(set(REGISTRY) - {"muon", "sparse_adam"})


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train the example network on handwritten digits",
        description="Trains a multilayer perceptron with batch norm on scikit-learn's handwritten digits, a fifth of "
        "them held out for testing. Some steps are run on the NumPy reference too, to compare time and bits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        metavar="NAME",
        help="which rule updates: " + ", ".join(OPTIMIZERS),
    )
    parser.add_argument("--lr", type=float, default=argparse.SUPPRESS, help="learning rate (default: the optimizer's)")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="rows of a batch", metavar="N")
    parser.add_argument("--epochs", type=positive_int, default=40, help="passes over the data", metavar="N")
    parser.add_argument("--hidden", type=_sizes, default=[256, 128], metavar="N,N,…", help="sizes of hidden layers")
    parser.add_argument(
        "--batch-norm", action=argparse.BooleanOptionalAction, default=True, help="normalize the layers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the batches")
    add_runtime_options(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw loss and accuracy (.png, .svg or .pdf)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured ('-': to standard output)")
    parser.add_argument("--checkpoint", metavar="FILE", help="save parameters and optimizer at the end (.safetensors)")
    parser.add_argument("--doctor", action="store_true", help="say what is wrong with the run, as soon as it shows")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains, reports, writes what was asked for."""
    require("sklearn", "train")
    require("rich", "train")
    if options.checkpoint:
        require("safetensors", "train")
    if options.plot:
        require("matplotlib", "train")
        if not options.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {options.plot!r}")
    for option in ("json", "plot", "checkpoint"):
        path = getattr(options, option)
        if path is not None and not (option == "json" and path == "-"):
            check_writable(f"--{option}", path)
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed: expected a number in [0, 2^32), got {options.seed}")
    with use_runtime(options):
        record, model, optimizer = train(options)
    out = sys.stderr if options.json == "-" else sys.stdout
    print(summary(record), file=out)
    if options.doctor:
        seen = Doctor.from_record(record)
        print(doctor.report(seen, seen.diagnose()), file=out)
    if options.json:
        write_json(record, options.json)
    if options.plot:
        plot(record, options.plot)
    if options.checkpoint:
        save_checkpoint(
            options.checkpoint,
            model.params,
            optimizer,
            options=record["options"],
            epochs=len(record["epochs"]),
            test_accuracy=record["test_accuracy"],
            buffers={name: value.tolist() for name, value in model.buffers().items()},
        )
    return 130 if record["interrupted"] else 0


def train(options: argparse.Namespace) -> tuple[dict[str, Any], "MLP", "Optimizer"]:
    """Gives everything that was measured, ready for JSON, with the model and its optimizer."""
    from fusedstep.examples import digits

    train_x, train_y, test_x, test_y = digits.load(options.seed)
    model = digits.MLP([64, *options.hidden, 10], options.batch_norm, options.seed)
    lr = getattr(options, "lr", LEARNING_RATES.get(options.optimizer))
    rates: dict[str, Any] = {"telemetry": True} | ({} if lr is None else {"lr": lr})
    optimizer: Any = REGISTRY[options.optimizer](model.params, **rates)

    steps_per_epoch = sum(1 for _ in digits.batches(len(train_x), options.batch_size, options.seed, 0))
    if steps_per_epoch == 0:
        raise ValueError(f"--batch-size: no batch of at least two rows with {options.batch_size}")
    compare_every = max(1, options.epochs * steps_per_epoch // COMPARED_STEPS)
    comparison, recorder, live = Comparison(), RunRecorder(optimizer), doctor.Live()
    record: dict[str, Any] = {
        "version": _core.version,
        "options": {
            "optimizer": options.optimizer,
            "lr": optimizer.param_groups[0]["lr"],
            "batch_size": options.batch_size,
            "hidden": options.hidden,
            "batch_norm": options.batch_norm,
            "seed": options.seed,
        },
        "isa": runtime.isa(),
        "threads": runtime.num_threads(),
        "parameters": sum(p.size for p in model.params.values()),
        "chance_loss": math.log(10),
        "epochs": [],
        "steps": [],
        "telemetry": recorder.telemetry,
        "interrupted": False,
    }
    start = perf_counter()
    with Progress(options.epochs, quiet=options.json == "-") as progress:
        try:
            for epoch in range(options.epochs):
                losses, hits = [], []
                for rows in digits.batches(len(train_x), options.batch_size, options.seed, epoch):
                    x, y = train_x[rows], train_y[rows]

                    def step(model: Any, optimizer: Any, call: Any, x: Any = x, y: Any = y) -> tuple[float, float]:
                        return digits.train_step(model, optimizer, x, y, recorder.through(call))

                    compared = len(record["steps"]) % compare_every == 0 and runtime.isa() != "numpy"
                    loss, accuracy = comparison.step(step, model, optimizer, compared)
                    losses.append(loss)
                    hits.append(accuracy * len(rows))
                    record["steps"].append(loss)
                with evaluation_weights(optimizer):
                    test_loss, test_accuracy = model.evaluate(test_x, test_y)
                record["epochs"].append(
                    {
                        "epoch": epoch + 1,
                        "step": len(record["steps"]),
                        "train_loss": float(np.mean(losses)),
                        "train_accuracy": sum(hits) / len(train_x),
                        "test_loss": test_loss,
                        "test_accuracy": test_accuracy,
                        "dead_units": dead_part(model.activations()),
                    }
                )
                progress.show(record["epochs"][-1])
                if options.doctor:
                    live.look(record, epoch + 1, quiet=options.json == "-")
                if not math.isfinite(test_loss):
                    break
        except KeyboardInterrupt:
            record["interrupted"] = True
    recorder.cut(len(record["steps"]))
    record["seconds"] = perf_counter() - start
    record["test_accuracy"] = record["epochs"][-1]["test_accuracy"] if record["epochs"] else None
    record["kernels"] = comparison.result()
    return record, model, optimizer


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """Some optimizers train at other weights than those to evaluate."""
    if not isinstance(optimizer, ScheduleFreeAdamW):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


class Comparison:
    """Times the fused kernels of every step, and of some steps on the reference too, from the same state."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.native: list[float] = []
        self.reference: list[float] = []
        self.equal = 0

    def step(
        self, step: Callable[..., tuple[float, float]], model: "MLP", optimizer: "Optimizer", compared: bool
    ) -> tuple[float, float]:
        """One step of training; on the reference with copies first, where compared."""
        if compared:
            other, other_optimizer = copy.deepcopy((model, optimizer))
            clock = Clock()
            with runtime.use_isa("numpy"):
                step(other, other_optimizer, clock.call)
            self.reference.append(clock.seconds)
        clock = Clock()
        result = step(model, optimizer, clock.call)
        self.all.append(clock.seconds)
        if compared:
            self.native.append(clock.seconds)
            mine, theirs = {**model.params, **model.buffers()}, {**other.params, **other.buffers()}
            self.equal += all(value.tobytes() == theirs[name].tobytes() for name, value in mine.items())
        return result

    def result(self) -> dict[str, Any]:
        """Medians per step in microseconds."""

        def median(seconds: list[float]) -> float | None:
            return float(np.median(seconds)) * 1e6 if seconds else None

        return {
            "us_per_step": median(self.all),
            "compared_steps": len(self.reference),
            "compared_us_per_step": median(self.native),
            "numpy_us_per_step": median(self.reference),
            "steps_with_equal_bits": self.equal,
        }


class Clock:
    """Adds up the time spent in the calls that go through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls and keeps the time."""
        start = perf_counter()
        result = function(*args, **kwargs)
        self.seconds += perf_counter() - start
        return result


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
    """Loss and accuracy over the epochs."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    epochs = [entry["epoch"] for entry in record["epochs"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    per_epoch = len(record["steps"]) / max(1, len(epochs))
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
    options = record["options"]
    norm = "batch norm" if options["batch_norm"] else "no batch norm"
    figure.suptitle(f"Digits: {options['optimizer']}, lr {options['lr']:g}, batches of {options['batch_size']}, {norm}")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _sizes(text: str) -> list[int]:
    return [positive_int(part) for part in text.split(",")]
