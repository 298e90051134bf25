"""A run of the digits example: all that `fusedstep train` trains, step by step, and can save and take up again."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fusedstep as fs
from fusedstep import schedules
from fusedstep.apps.examples import digits
from fusedstep.apps.examples.saved import NoRun, read_buffers, read_model, read_options, read_progress, read_record
from fusedstep.averaging import EMA, SnapshotEnsemble, ensemble_predict
from fusedstep.doctor import RunRecorder, dead_part
from fusedstep.optimizers import REGISTRY, ScheduleFreeAdamW

#: Learning rates that suit the example, where the optimizer's default does not.
LEARNING_RATES = {"asgd": 0.1, "rmsprop": 1e-3, "sgd": 0.1}
#: Those that update arrays of any shape from dense gradients.
OPTIMIZERS = sorted(set(REGISTRY) - {"muon", "sparse_adam"})

Schedule = Callable[[float, int, int], schedules.Schedule]
#: From learning rate, steps of the run and steps of warm-up. Two rise by themselves, inverse-sqrt from 0.
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda lr, total, rise: _risen(schedules.constant(lr), rise),
    "step": lambda lr, total, rise: _risen(schedules.step_decay(lr, max(1, math.ceil(total / 3))), rise),
    "exponential": lambda lr, total, rise: _risen(schedules.exponential(lr, 0.01 ** (1 / total)), rise),
    "polynomial": lambda lr, total, rise: _risen(schedules.polynomial(lr, total, power=2.0), rise),
    "linear": lambda lr, total, rise: _risen(schedules.linear(lr, total), rise),
    "cosine": lambda lr, total, rise: _risen(schedules.cosine(lr, total), rise),
    "cyclic": lambda lr, total, rise: _risen(schedules.cyclic(lr / 10, lr, max(1, total // 8)), rise),
    "restarts": lambda lr, total, rise: _risen(_restarts(lr, total, 4), rise),
    "inverse-sqrt": lambda lr, total, rise: schedules.inverse_sqrt(lr, rise or max(1, total // 20)),
    "one-cycle": lambda lr, total, rise: schedules.one_cycle(lr, total, rise / total if rise else 0.3),
    "stable-decay": lambda lr, total, rise: _risen(
        schedules.warmup_stable_decay(lr, total, 0, math.ceil(total / 5)), rise
    ),
}


def _risen(schedule: schedules.Schedule, steps: int) -> schedules.Schedule:
    """Not from 0: a step without a rate would be lost."""
    return schedules.warmup(schedule, steps, start_factor=1 / (steps + 1)) if steps else schedule


def _restarts(lr: float, total: int, cycles: int) -> schedules.Schedule:
    """So many cycles, the first ones longer by a step where they cannot all be of the same length."""
    period, longer = divmod(total, cycles)
    if longer == 0 or period == 0:
        return schedules.cosine_warm_restarts(lr, max(1, period))
    first, rest = (schedules.cosine_warm_restarts(lr, length) for length in (period + 1, period))
    return schedules.join([first, rest], [longer * (period + 1)])


@dataclass(frozen=True)
class Options:
    """The options of a run: two runs with the same options give the same weights.

    Attributes:
        optimizer: A name in `fusedstep.optimizers.REGISTRY`.
        lr: The learning rate; None for the one that suits.
        weight_decay: None for the optimizer's.
        momentum: None for the optimizer's; of those that have it.
        batch_size: Rows of a batch.
        epochs: Passes over the data.
        hidden: Sizes of the hidden layers.
        batch_norm: Whether they are normalized.
        dropout: The probability to drop, in hidden layers.
        label_smoothing: See `softmax_cross_entropy`.
        schedule: A name in `SCHEDULES`.
        warmup: Steps of it.
        ema: The decay of an average of the weights.
        snapshots: Cycles of the rate, each of which ends with a snapshot; 0 for none.
        early_stop: Epochs without a better loss on held-out rows after which to stop; 0 for never.
        seed: Of the split, the weights, the batches and dropout.
    """

    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    batch_size: int = 64
    epochs: int = 40
    hidden: tuple[int, ...] = (256, 128)
    batch_norm: bool = True
    dropout: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    ema: float | None = None
    snapshots: int = 0
    early_stop: int = 0
    seed: int = 0

    def check(self, total: int) -> None:
        """ValueError for what does not go together, in the words of the command line; `total` steps are to be taken."""
        if self.warmup > total:
            raise ValueError(f"--warmup: expected at most the {total} steps of the run, got {self.warmup}")
        if self.snapshots > total:
            raise ValueError(f"--snapshots: expected at most one a step, {total}, got {self.snapshots}")
        if self.snapshots and self.schedule != "constant":
            raise ValueError("--schedule: --snapshots has one of its own, cosine cycles")
        averaged = self.ema is not None or self.snapshots or self.early_stop
        if averaged and REGISTRY[self.optimizer] is ScheduleFreeAdamW:
            raise ValueError(
                f"--optimizer: {self.optimizer} averages itself; not with --ema, --snapshots, --early-stop"
            )


class Training:
    """The model, its optimizer and all that belongs to them, at some step of a run.

    Args:
        options: What the run is made of.

    Attributes:
        record: What was measured so far, ready for JSON: the documented form of docs/doctor.md.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.train_x, self.train_y, self.test_x, self.test_y = digits.load(options.seed)
        self.held_out: tuple[digits.Floats, digits.Labels] | None = None
        if options.early_stop:
            self.train_x, self.train_y, x, y = digits.split(self.train_x, self.train_y, options.seed)
            self.held_out = x, y
        rows, size = len(self.train_x), options.batch_size
        # Batch norm has no statistics of one row.
        self._least = 2 if options.batch_norm else 1
        self._per_epoch = rows // size + (rows % size >= self._least)
        if min(size, rows) < self._least:
            raise ValueError(f"--batch-size: no batch of at least two rows with {size}, which batch norm wants")
        self.total = options.epochs * self._per_epoch
        options.check(self.total)

        self.model = digits.MLP([64, *options.hidden, 10], options.batch_norm, options.seed, dropout=options.dropout)
        kind = REGISTRY[options.optimizer]
        base = options.lr
        if base is None:
            base = LEARNING_RATES.get(options.optimizer, inspect.signature(kind).parameters["lr"].default)
        self.lr = float(base)
        lr = self._rate()
        build: Any = kind
        self.optimizer: Any = build(self.model.params, lr=lr, telemetry=True, **self._hypers(kind))
        self.recorder = RunRecorder(self.optimizer)

        weights = {**self.model.params, **self.model.buffers()}
        self.average = None if options.ema is None else EMA(weights, options.ema)
        self.snapshots = SnapshotEnsemble(weights, lr, max_snapshots=options.snapshots) if options.snapshots else None
        self.stopping = fs.EarlyStopping(options.early_stop, params=weights) if options.early_stop else None

        self.epoch = 0
        self.batch = 0
        self.finished = False
        self.extended = False
        #: Whether model and optimizer are as some whole number of steps left them.
        self.between_steps = True
        self.record: dict[str, Any] = {
            "options": {**asdict(options), "hidden": list(options.hidden), "lr": self.lr},
            "schedule": repr(lr) if callable(lr) else None,
            "parameters": sum(p.size for p in self.model.params.values()),
            "chance_loss": math.log(10),
            "epochs": [],
            "steps": [],
            "accuracies": [],
            "telemetry": self.recorder.telemetry,
            "snapshots": None,
        }

    def _rate(self) -> Any:
        """The schedule, or the number where it does not change."""
        options = self.options
        if options.snapshots:
            return _risen(_restarts(self.lr, self.total, options.snapshots), options.warmup)
        if options.schedule == "constant" and not options.warmup:
            return self.lr
        try:
            return SCHEDULES[options.schedule](self.lr, self.total, options.warmup)
        except ValueError as error:
            if str(error).startswith("lr"):
                raise
            raise ValueError(
                f"--schedule: {options.schedule} does not fit {self.total} steps, {options.warmup} of them warm-up "
                f"({error})"
            ) from error

    def _hypers(self, kind: Any) -> dict[str, float]:
        """Those that were named beside the learning rate; ValueError for one that the optimizer does not have."""
        given = {"weight_decay": self.options.weight_decay, "momentum": self.options.momentum}
        named = {name: value for name, value in given.items() if value is not None}
        for name in named:
            if name not in inspect.signature(kind).parameters:
                have = [rule for rule in OPTIMIZERS if name in inspect.signature(REGISTRY[rule]).parameters]
                raise ValueError(
                    f"--{name.replace('_', '-')}: {self.options.optimizer} has none; these have: {', '.join(have)}"
                )
        return named

    def batches(self) -> Iterator[tuple[digits.Floats, digits.Labels]]:
        """Those of this epoch that are left; each is valid until the next one is asked for."""
        data, options = (self.train_x, self.train_y), self.options
        every = fs.data.batches(
            data, options.batch_size, seed=options.seed, epoch=self.epoch, start=self.batch, reuse=True
        )
        for x, y in every:
            if len(x) >= self._least:
                yield x, y

    def loss_step(
        self, model: digits.MLP, optimizer: Any, x: digits.Floats, y: digits.Labels, call: digits.Call
    ) -> tuple[float, float]:
        """The update of one batch, of any copy of model and optimizer at this step; gives loss and accuracy."""
        self.between_steps = False
        return digits.train_step(
            model,
            optimizer,
            x,
            y,
            self.recorder.through(call),
            step=len(self.record["steps"]),
            label_smoothing=self.options.label_smoothing,
        )

    def took(self, loss: float, accuracy: float) -> None:
        """After `loss_step` of the run's own model: what stands around a step moves on."""
        self.record["steps"].append(loss)
        self.record["accuracies"].append(accuracy)
        self.batch += 1
        if self.average is not None:
            self.average.update()
        if self.snapshots is not None:
            self.snapshots.observe(len(self.record["steps"]))
        self.between_steps = True

    def end_epoch(self) -> dict[str, Any]:
        """Evaluates; gives the epoch's entry of the record."""
        begun = len(self.record["steps"]) - self.batch
        self.between_steps = False
        with evaluation_weights(self.optimizer):
            test_loss, test_accuracy = self.model.evaluate(self.test_x, self.test_y)
            dead = dead_part(self.model.activations())
        entry: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": len(self.record["steps"]),
            "train_loss": float(np.mean(self.record["steps"][begun:])),
            "train_accuracy": float(np.mean(self.record["accuracies"][begun:])),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "dead_units": dead,
        }
        if self.average is not None:
            with self.average.swap():
                entry["average_test_accuracy"] = self.model.evaluate(self.test_x, self.test_y)[1]
        stop = not math.isfinite(test_loss)
        if self.stopping is not None:
            assert self.held_out is not None
            entry["held_out_loss"] = self.model.evaluate(*self.held_out)[0]
            stop = self.stopping.observe(entry["held_out_loss"], self.epoch + 1) or stop
        self.record["epochs"].append(entry)
        self.epoch, self.batch = self.epoch + 1, 0
        if stop or self.epoch == self.options.epochs:
            self._finish()
        self.between_steps = True
        return entry

    def _finish(self) -> None:
        self.finished = True
        if self.stopping is not None and self.stopping.best is not None:
            self.stopping.restore()
        if self.snapshots is not None and len(self.snapshots):
            self.record["snapshots"] = self._members()

    def _members(self) -> dict[str, Any]:
        assert self.snapshots is not None

        def probabilities() -> NDArray[np.float32]:
            return fs.softmax(self.model.forward(self.test_x, training=False))

        def accuracy(p: NDArray[np.float32]) -> float:
            return float((p.argmax(axis=1) == self.test_y).mean())

        single, finite = [], True
        for k in range(len(self.snapshots)):
            with self.snapshots.use(k):
                p = probabilities()
            finite = finite and bool(np.isfinite(p).all())
            single.append(accuracy(p))
        together = accuracy(ensemble_predict(probabilities, self.snapshots)) if finite else None
        return {"test_accuracies": single, "ensemble_test_accuracy": together}

    def snapshot_steps(self) -> list[int]:
        """After which steps the snapshots that are kept were taken."""
        if self.snapshots is None or self.snapshots.schedule is None:
            return []
        taken = [k for k in range(1, len(self.record["steps"]) + 1) if self.snapshots.schedule._ends_cycle(k)]
        return taken[-len(self.snapshots) :] if len(self.snapshots) else []

    def test_accuracy(self) -> float | None:
        """As the last epoch's end measured it, or of the best weights where those are back; None before the first."""
        if not self.record["epochs"]:
            return None
        if self.stopping is None or not self.finished:
            return float(self.record["epochs"][-1]["test_accuracy"])
        return self.model.evaluate(self.test_x, self.test_y)[1]

    def save(self, path: str | Path) -> None:
        """Writes all of it into a checkpoint, from which `resume` goes on to the same bits."""
        count = len(self.record["steps"])
        self.recorder.cut(count)
        fs.save_checkpoint(
            path,
            self.model.params,
            self.optimizer,
            options=self.record["options"],
            run=asdict(self.options),
            epochs=self.epoch,
            test_accuracy=self.test_accuracy(),
            buffers=self.model.buffers(),
            progress={"epoch": self.epoch, "batch": self.batch, "finished": self.finished},
            record={name: self.record[name] for name in ("epochs", "steps", "accuracies", "telemetry", "snapshots")},
            **{name: part.state_dict() for name, part in self._around().items()},
        )

    def _around(self) -> dict[str, Any]:
        parts = {"average": self.average, "snapshots": self.snapshots, "early_stopping": self.stopping}
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def resume(cls, path: str | Path, given: Mapping[str, Any]) -> "Training":
        """The run of a checkpoint, where it was.

        Args:
            path: What `save` wrote.
            given: Options that were named. They must be those of the run; only the epochs may be more.

        Raises:
            ValueError: The file is damaged or holds no run, or an option differs.
            OSError: It cannot be read.
        """
        loaded = fs.load_checkpoint(path)
        saved = loaded.metadata
        try:
            options = read_options(saved["run"], Options, {"optimizer": OPTIMIZERS, "schedule": list(SCHEDULES)})
            read_model(loaded.params, [64, *options.hidden, 10])
            run = cls(options)
            for name, value in given.items():
                own = run.lr if name == "lr" else getattr(options, name)
                if own != value and not (name == "epochs" and value > own):
                    raise ValueError(
                        f"--{name.replace('_', '-')}: the run in {path} has {_text(own)}, got {_text(value)}"
                    )
            run._load(loaded)
        except KeyError as error:
            raise ValueError(
                f"--resume: {path} holds no run of fusedstep train (no {error.args[0]!r} in it)"
            ) from error
        except (AttributeError, NoRun, TypeError) as error:
            raise ValueError(f"--resume: {path} holds no run of fusedstep train ({error})") from error
        if given.get("epochs", 0) > options.epochs:
            run._extend(given["epochs"], path)
        return run

    def _extend(self, epochs: int, path: str | Path) -> None:
        """More epochs than at the start; from here on the rate is that of a run of this length."""
        if self.snapshots is not None:
            raise ValueError(
                f"--epochs: the run in {path} has {self.options.epochs}, over which its snapshots are spread"
            )
        if self.finished and self.stopping is not None:
            raise ValueError(f"--epochs: the run in {path} has ended at its best weights (--early-stop), not its last")
        if self.finished and self.epoch < self.options.epochs:
            raise ValueError(f"--epochs: the run in {path} has ended after {self.epoch}: its loss is not finite")
        self.options = replace(self.options, epochs=epochs)
        self.total = epochs * self._per_epoch
        self.finished, self.extended = False, True
        self.record["options"]["epochs"] = epochs
        lr = self._rate()
        self.record["schedule"] = repr(lr) if callable(lr) else None
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _load(self, loaded: fs.Checkpoint) -> None:
        saved = loaded.metadata
        per_epoch = self.total // self.options.epochs
        self.epoch, self.batch, self.finished = read_progress(saved["progress"], self.options.epochs, per_epoch)
        parts = ["average_test_accuracy"] * (self.average is not None) + ["held_out_loss"] * (self.stopping is not None)
        record = read_record(saved["record"], self.epoch, self.batch, per_epoch, list(self.recorder.telemetry), parts)
        arrays = {**self.model.params, **self.model.buffers()}
        found = {**loaded.params, **read_buffers(saved["buffers"])}
        for name in sorted(arrays.keys() | found.keys()):
            mine, other = arrays.get(name), found.get(name)
            if mine is None or other is None or mine.shape != other.shape or mine.dtype != other.dtype:
                raise ValueError(f"--resume: it holds another model ({name})")
            mine[...] = other
        if loaded.optimizer is None:
            raise NoRun("optimizer: none")
        # Hyper-parameters follow from the options.
        self.optimizer.load_state_dict(loaded.optimizer, hypers=False)
        for name, part in self._around().items():
            part.load_state_dict(saved[name])
        for name, values in self.recorder.telemetry.items():
            values[:] = record["telemetry"][name]
        self.record |= {name: record[name] for name in ("epochs", "steps", "accuracies", "snapshots")}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
