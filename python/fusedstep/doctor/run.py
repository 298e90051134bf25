"""The record of a run: what was observed, and the documented form of it in a file."""

import math
from array import array
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep._common.arguments import real, whole
from fusedstep._common.brief import brief_repr

#: Lists per step that a record's `telemetry` may hold.
TELEMETRY = (
    "lr",
    "grad_norm",
    "update_norm",
    "param_norm",
    "update_ratio",
    "largest_update_ratio",
    "grad_momentum_cosine",
    "grad_cosine",
    "nonfinite",
)
#: Numbers that an entry of a record's `epochs` may hold beside `step`.
EVALUATION = ("test_loss", "train_accuracy", "test_accuracy", "dead_units")

Doubles = NDArray[np.float64]


@dataclass(slots=True)
class Run:
    """What was observed of a run; NaN stands for what is missing or not finite.

    Args:
        losses: The training loss before every step.
        telemetry: A list per step of each of `TELEMETRY` that was measured.
        evaluations: For each evaluation how many steps had been taken (`step`), and `EVALUATION`.
        optimizer: The name of its rule, as in `fusedstep train --optimizer`; None where it is not known.
        batch_size: Rows of a batch; None where it is not known.
        batch_norm: Whether there is batch norm; None where it is not known.
        chance_loss: The loss of the best constant prediction; None where it is not known.
    """

    losses: MutableSequence[float] = field(default_factory=list)
    telemetry: dict[str, MutableSequence[float]] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    optimizer: str | None = None
    batch_size: int | None = None
    batch_norm: bool | None = None
    chance_loss: float | None = None

    __repr__ = brief_repr

    def add_step(self, loss: float, measured: Mapping[str, float]) -> None:
        """One more step; what was not measured before is NaN there."""
        for name in measured:
            self.telemetry.setdefault(name, [math.nan] * len(self.losses))
        for name, values in self.telemetry.items():
            values.append(finite(measured.get(name, math.nan)))
        self.losses.append(finite(loss))

    def add_evaluation(self, measured: Mapping[str, float]) -> None:
        """An evaluation after the steps so far."""
        entry = {name: finite(measured.get(name, math.nan)) for name in EVALUATION}
        self.evaluations.append({"step": len(self.losses), **entry})

    def steps(self, name: str) -> Doubles | None:
        """A list of the telemetry; None where nothing in it is a number."""
        values = np.asarray(self.telemetry.get(name, ()), np.float64)
        return values if np.isfinite(values).any() else None

    def evaluated(self, name: str) -> Doubles:
        """The finite values of one of `EVALUATION`."""
        values = np.array([entry[name] for entry in self.evaluations], np.float64)
        return values[np.isfinite(values)]

    def to_record(self) -> dict[str, Any]:
        """The documented form; None for what is missing or not finite."""
        options = {"optimizer": self.optimizer, "batch_size": self.batch_size, "batch_norm": self.batch_norm}
        start, epochs = 0, []
        for number, entry in enumerate(self.evaluations, 1):
            end = int(entry["step"])
            losses = [loss for loss in self.losses[start:end] if math.isfinite(loss)]
            values = {name: _null(entry[name]) for name in EVALUATION}
            epochs.append(
                {"epoch": number, "step": end, "train_loss": float(np.mean(losses)) if losses else None, **values}
            )
            start = end
        return {
            "options": {name: value for name, value in options.items() if value is not None},
            "chance_loss": self.chance_loss,
            "steps": [_null(loss) for loss in self.losses],
            "epochs": epochs,
            "telemetry": {name: [_null(value) for value in values] for name, values in self.telemetry.items()},
        }

    @classmethod
    def from_record(cls, record: Any) -> "Run":
        """Reads the documented form.

        Raises:
            TypeError: A field of another kind.
            ValueError: A field is missing or does not fit the others.
        """
        record = _object(record, "record")
        if "steps" not in record:
            raise ValueError("record: no 'steps'")
        losses = _numbers(record["steps"], "record['steps']", least=0)
        if "epochs" not in record:
            raise ValueError("record: no 'epochs'")
        if not isinstance(record["epochs"], list):
            raise TypeError(f"record['epochs']: expected a list, got {_kind(record['epochs'])}")
        telemetry = {}
        for name, values in _optional(record, "telemetry").items():
            if name not in TELEMETRY:
                continue
            least = -math.inf if name.endswith("cosine") else 0
            telemetry[name] = _numbers(values, f"record['telemetry'][{name!r}]", least=least)
            if len(telemetry[name]) != len(losses):
                raise ValueError(
                    f"record['telemetry'][{name!r}]: expected {len(losses)} numbers, as record['steps'] has, "
                    f"got {len(telemetry[name])}"
                )
        options = _optional(record, "options")
        return cls(
            losses,
            telemetry,
            _evaluations(record["epochs"], len(losses)),
            _name(options.get("optimizer"), "record['options']['optimizer']"),
            batch_size(options.get("batch_size"), "record['options']['batch_size']"),
            batch_norm(options.get("batch_norm"), "record['options']['batch_norm']"),
            chance_loss(record.get("chance_loss"), "record['chance_loss']"),
        )


def finite(value: float) -> float:
    """The number as a double; NaN where it is not finite."""
    return float(value) if math.isfinite(value) else math.nan


def number(value: object, name: str) -> float:
    """A number, which need not be finite.

    Raises:
        TypeError: It is something else.
    """
    return real(value, name, got=_kind)


def batch_size(value: Any, name: str) -> int | None:
    """Rows of a batch, or None."""
    return None if value is None else whole(value, name, least=1, most=None, got=_kind)


def batch_norm(value: Any, name: str) -> bool | None:
    """Whether there is batch norm, or None."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {_kind(value)}")
    return value


def chance_loss(value: Any, name: str) -> float | None:
    """The loss of the best constant prediction, or None."""
    if value is None:
        return None
    if not 0 < number(value, name) < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
    return float(value)


def _evaluations(epochs: list[Any], steps: int) -> list[dict[str, float]]:
    evaluations: list[dict[str, float]] = []
    for index, given in enumerate(epochs):
        name = f"record['epochs'][{index}]"
        entry = _object(given, name)
        if "test_loss" not in entry:
            raise ValueError(f"{name}: no 'test_loss'")
        # If epochs do not say after which step they ended, all are of the same length.
        step = number(entry.get("step", (index + 1) * steps // len(epochs)), f"{name}['step']")
        before = evaluations[-1]["step"] if evaluations else 0
        if not (before <= step <= steps and step == int(step)):
            raise ValueError(f"{name}['step']: expected a whole number in [{before}, {steps}], got {step:g}")
        values = {
            key: _nullable(entry.get(key), f"{name}[{key!r}]", least=0, most=math.inf if key.endswith("loss") else 1)
            for key in EVALUATION
        }
        evaluations.append({"step": int(step), **values})
    return evaluations


def _name(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {_kind(value)}")
    return value


def _numbers(values: Any, name: str, least: float) -> MutableSequence[float]:
    # `stream` has checked the numbers of a file. It keeps them as an array: a list would take much more memory.
    if isinstance(values, array) and values.typecode == "d":
        return values
    if not isinstance(values, list):
        raise TypeError(f"{name}: expected a list, got {_kind(values)}")
    given: list[float] = numbers(values, name, least).tolist()
    return given


def numbers(values: list[Any], name: str, least: float, *, first: int = 0) -> Doubles:
    """Numbers, null among them, as doubles; NaN for null and what is not finite.

    Args:
        values: What was given.
        name: What to call it in an error.
        least: The least that is allowed.
        first: The place of the first one.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of range.
    """
    if set(map(type, values)) <= {int, float, type(None)}:
        try:
            doubles = np.array(values, np.float64)
        except OverflowError:
            doubles = None
        if doubles is not None:
            doubles[~np.isfinite(doubles)] = np.nan
            if not (doubles < least).any():
                return doubles
    return np.array([_nullable(v, f"{name}[{first + k}]", least=least) for k, v in enumerate(values)], np.float64)


def _nullable(value: object, name: str, least: float, most: float = math.inf) -> float:
    if value is None:
        return math.nan
    given = finite(number(value, name))
    if given < least or given > most:
        raise ValueError(f"{name}: expected a number in [{least:g}, {most:g}], got {given:g}")
    return given


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected an object, got {_kind(value)}")
    return value


def _optional(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return {} if record.get(key) is None else _object(record[key], f"record[{key!r}]")


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r:.40}"


def _null(value: float) -> float | None:
    return value if math.isfinite(value) else None
