"""`fusedstep train`: trains the example network, and shows what the fused kernels are worth."""

import argparse
import os
import shlex
import signal
import sys
import threading
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

import fusedstep as fs
from fusedstep import runtime
from fusedstep._common.extras import require
from fusedstep.apps.cli import doctor
from fusedstep.apps.cli.common import (
    add_runtime_options,
    check_different,
    check_writable,
    positive_int,
    share,
    use_runtime,
    whole,
    write_json,
)
from fusedstep.apps.cli.comparison import Comparison
from fusedstep.apps.cli.train_report import Progress, plot, summary
from fusedstep.apps.examples.training import OPTIMIZERS, SCHEDULES, Options
from fusedstep.doctor import Doctor

if TYPE_CHECKING:
    from fusedstep.apps.examples.training import Training

#: Steps that are also run on the reference, to compare time and bits.
COMPARED_STEPS = 20
DEFAULTS = Options()
#: Suffixes that name other formats.
_OTHERS = {
    *(".bin", ".ckpt", ".csv", ".gz", ".h5", ".hdf5", ".json", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pdf"),
    *(".pickle", ".pkl", ".png", ".pt", ".pth", ".py", ".svg", ".tar", ".txt", ".yaml", ".yml", ".zip"),
}
#: Windows has no hang-up.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train the example network on handwritten digits",
        description="Trains a multilayer perceptron with batch norm on scikit-learn's handwritten digits, a fifth of "
        "them held out for testing. Some steps are run on the NumPy reference too, to compare time and bits.",
    )
    model = parser.add_argument_group("the run", "what its weights depend on; a run that is resumed has its own")

    def add(name: str, text: str, **how: Any) -> None:
        default = getattr(DEFAULTS, name.replace("-", "_"))
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        told = "" if default is None or default is False else f" (default: {default})"
        model.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text + told, **how)

    add("optimizer", "which rule updates: " + ", ".join(OPTIMIZERS), choices=OPTIMIZERS, metavar="NAME")
    add("lr", "learning rate (default: the optimizer's)", type=float)
    add("weight-decay", "pull of the weights towards 0 (default: the optimizer's)", type=float, metavar="W")
    add("momentum", "part of the last step that goes on, of optimizers that have it", type=float, metavar="M")
    add("schedule", "how it changes: " + ", ".join(SCHEDULES), choices=list(SCHEDULES), metavar="NAME")
    add("warmup", "steps in which it rises", type=whole, metavar="N")
    add("batch-size", "rows of a batch", type=positive_int, metavar="N")
    add("epochs", "passes over the data; a run that is resumed can be given more", type=positive_int, metavar="N")
    add("hidden", "sizes of hidden layers", type=_sizes, metavar="N,N,...")
    add("batch-norm", "normalize the layers", action=argparse.BooleanOptionalAction)
    add("dropout", "drop hidden activations with this probability", type=share, metavar="P")
    add("label-smoothing", "spread so much of each target over all classes", type=share, metavar="S")
    add("ema", "keep a running average of the weights, with this decay", type=share, metavar="DECAY")
    add("snapshots", "restart the rate so often, and average what the cycles end with", type=whole, metavar="N")
    add("early-stop", "stop after N epochs without a better loss on held-out rows", type=whole, metavar="N")
    add("seed", "of the split, the weights, the batches and dropout", type=int)
    add_runtime_options(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw loss and accuracy (.png, .svg or .pdf)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured ('-': to standard output)")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the run, at its end or when it is interrupted, in the safetensors format (.safetensors, .st)",
    )
    parser.add_argument("--resume", metavar="FILE", help="go on with a saved run: its weights will have the same bits")
    parser.add_argument("--doctor", action="store_true", help="say what is wrong with the run, as soon as it shows")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains, reports, writes what was asked for."""
    require("sklearn", "train")
    require("rich", "train")
    if options.checkpoint or options.resume:
        require("safetensors", "train")
    if options.plot:
        require("matplotlib", "train")
        if not options.plot.lower().endswith((".png", ".svg", ".pdf")):
            raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {options.plot!r}")
    check_different({f"--{name}": getattr(options, name) for name in ("json", "plot", "checkpoint")})
    check_different({f"--{name}": getattr(options, name) for name in ("json", "plot", "resume")})
    for option in ("json", "plot", "checkpoint"):
        path = getattr(options, option)
        if path is not None and not (option == "json" and path == "-"):
            check_writable(f"--{option}", path, replaced=option == "checkpoint")
    if options.checkpoint is not None:
        _check_suffix(options.checkpoint)
    # A run that explodes says so in words of its own.
    with use_runtime(options), Interruption() as interruption, np.errstate(all="ignore"):
        training = start(options)
        try:
            record = train(training, options, interruption)
        finally:
            # Before anything is printed, which fails where the terminal is gone; not in the middle of a step.
            if options.checkpoint and training.between_steps:
                training.save(options.checkpoint)
    out = sys.stderr if options.json == "-" else sys.stdout
    print(summary(record), file=out)
    if record["interrupted"]:
        print(_how_to_go_on(options), file=out)
    if options.doctor:
        seen = Doctor.from_record(record)
        print(doctor.report(seen, seen.diagnose()), file=out)
    if options.json:
        write_json(record, options.json)
    if options.plot:
        with np.errstate(all="ignore"):
            plot(record, options.plot)
    return interruption.status


def _check_suffix(path: str) -> None:
    """Refuses a name that promises another format; any other that is unusual is kept, and said."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _OTHERS:
        raise ValueError(
            f"--checkpoint: expected a name that ends in .safetensors, got {path!r}, which promises another format"
        )
    if suffix not in ("", ".safetensors", ".st"):
        print(f"fusedstep train: {path} will be of the safetensors format, whatever {suffix} says", file=sys.stderr)


def _how_to_go_on(options: argparse.Namespace) -> str:
    if not options.checkpoint:
        return "nothing was saved; with --checkpoint FILE the run could go on"
    path = shlex.quote(options.checkpoint)
    return f"to go on: fusedstep train --resume {path} --checkpoint {path}"


def start(options: argparse.Namespace) -> "Training":
    """A new run, or one that was saved."""
    from fusedstep.apps.examples.training import Training

    given = {name: getattr(options, name) for name in vars(DEFAULTS) if hasattr(options, name)}
    if not 0 <= given.get("seed", 0) < 2**32:
        raise ValueError(f"--seed: expected a number in [0, 2^32), got {given['seed']}")
    if options.resume is not None:
        training = Training.resume(options.resume, given)
        if training.extended and training.options.schedule != "constant":
            print(
                f"--epochs: from here on the rate is that of {training.options.schedule} over "
                f"{training.options.epochs} epochs",
                file=sys.stderr,
            )
        return training
    return Training(Options(**given))


def train(training: "Training", options: argparse.Namespace, interruption: "Interruption") -> dict[str, Any]:
    """Goes on to the run's end, or until it is interrupted; gives everything that was measured, ready for JSON."""
    compare_every = max(1, training.total // COMPARED_STEPS)
    comparison, live = Comparison(), doctor.Live()
    record: dict[str, Any] = {
        "version": fs.__version__,
        **training.record,
        "isa": runtime.isa(),
        "threads": runtime.num_threads(),
        "interrupted": False,
    }
    begin = perf_counter()
    with Progress(training.options.epochs, quiet=options.json == "-") as progress:
        while not training.finished and not record["interrupted"]:
            for x, y in training.batches():
                if interruption.status:
                    record["interrupted"] = True
                    break

                def step(model: Any, optimizer: Any, call: Any, x: Any = x, y: Any = y) -> tuple[float, float]:
                    return training.loss_step(model, optimizer, x, y, call)

                compared = len(record["steps"]) % compare_every == 0 and runtime.isa() != "numpy"
                training.took(*comparison.step(step, training.model, training.optimizer, compared))
            else:
                progress.show(training.end_epoch())
                if options.doctor:
                    live.look(record, training.epoch, quiet=options.json == "-")
    record["seconds"] = perf_counter() - begin
    record["snapshots"] = training.record["snapshots"]
    record["snapshot_steps"] = training.snapshot_steps()
    record["finished"] = training.finished
    if training.stopping is not None:
        record["early_stopping"] = {
            "best_epoch": training.stopping.best_step,
            "best_loss": training.stopping.best,
            "stopped": training.stopping.bad_observations >= training.stopping.patience,
        }
    record["test_accuracy"] = training.test_accuracy()
    record["kernels"] = comparison.result()
    return record


class Interruption:
    """Ctrl-C, a termination or the end of the terminal ends a run between two steps, where it can be saved.

    A second one ends it at once. A hang-up that the caller has ignored (nohup) stays ignored.
    """

    def __init__(self) -> None:
        #: The exit status: 0 as long as nothing came.
        self.status = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.status:
            raise KeyboardInterrupt
        self.status = 128 + number


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(positive_int(part) for part in text.split(","))
