"""The fields of a saved run: `Training.resume` checks all that it reads before it uses any."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from fusedstep._common.arguments import is_number, is_whole, shown


class NoRun(Exception):  # noqa: N818
    """A checkpoint does not hold a run, by the field that says so."""


#: Entries of an epoch, and their largest values; the first also says how many there were.
_EPOCH = {"train_loss": math.inf, "train_accuracy": 1, "test_loss": math.inf, "test_accuracy": 1, "dead_units": 1}
_PARTS = {"average_test_accuracy": 1, "held_out_loss": math.inf}


def read_options(saved: Any, kind: Any, choices: Mapping[str, Sequence[str]]) -> Any:
    """The options of the run, of a dataclass whose annotations say what they are."""
    given = dict(_mapping(saved, "run"))
    options: dict[str, Any] = {}
    for field in fields(kind):
        # What an older version had not is as it was without.
        if field.name in given:
            options[field.name] = _option(given.pop(field.name), f"run[{field.name!r}]", field.type, choices)
    if given:
        raise NoRun(f"run: no such options {sorted(given)}")
    for name, least in (("batch_size", 1), ("epochs", 1)):
        if options.get(name, least) < least:
            raise NoRun(f"run[{name!r}]: expected at least {least}, got {options[name]}")
    for name in ("dropout", "label_smoothing", "ema"):
        if not 0 <= (options.get(name) or 0) < 1:
            raise NoRun(f"run[{name!r}]: expected a number in [0, 1), got {options[name]}")
    return kind(**options)


def read_model(params: Mapping[str, Any], sizes: Sequence[int]) -> None:
    """Layers of other sizes than the file has; before memory is taken for them."""
    for k in range(len(sizes) - 1):
        if getattr(params.get(f"w{k}"), "shape", None) != (sizes[k], sizes[k + 1]):
            raise NoRun(f"another model: w{k}")


def read_buffers(saved: Any) -> dict[str, Any]:
    """The running statistics."""
    buffers = dict(_mapping(saved, "buffers"))
    for name, array in buffers.items():
        if not isinstance(array, np.ndarray):
            raise NoRun(f"buffers[{name!r}]: expected an array, got {type(array).__name__}")
        if name.startswith("running_var") and (array < 0).any():
            raise NoRun(f"buffers[{name!r}]: expected numbers >= 0, got {array.min()}")
    return buffers


def read_progress(saved: Any, epochs: int, per_epoch: int) -> tuple[int, int, bool]:
    """Epochs and batches that are done, and whether the run is."""
    progress = _mapping(saved, "progress")
    epoch = _whole(_get(progress, "epoch", "progress"), "progress['epoch']", epochs)
    batch = _whole(_get(progress, "batch", "progress"), "progress['batch']", per_epoch)
    finished = _get(progress, "finished", "progress")
    if not isinstance(finished, bool):
        raise NoRun(f"progress['finished']: expected True or False, got {shown(finished)}")
    if epoch == epochs and (batch or not finished):
        raise NoRun(f"progress: {epoch} of {epochs} epochs are done, and yet it goes on")
    return epoch, batch, finished


def read_record(
    saved: Any, epoch: int, batch: int, per_epoch: int, telemetry: Sequence[str], parts: Sequence[str]
) -> dict[str, Any]:
    """The measurements so far, in the numbers that progress says."""
    record = _mapping(saved, "record")
    count = epoch * per_epoch + batch

    def numbers(holder: Any, name: str, place: str, most: float, least: float = 0, none: bool = False) -> list[Any]:
        values, label = _get(holder, name, place), f"{place}[{name!r}]"
        if not isinstance(values, list) or len(values) != count:
            raise NoRun(f"{label}: expected a list of {count} numbers, got {shown(values)}")
        return [
            None if none and value is None else _number(value, f"{label}[{k}]", most, least)
            for k, value in enumerate(values)
        ]

    measured = _mapping(_get(record, "telemetry", "record"), "record['telemetry']")
    if set(measured) != set(telemetry):
        raise NoRun(f"record['telemetry']: expected {list(telemetry)}, got {shown(list(measured))}")
    return {
        "steps": numbers(record, "steps", "record", math.inf),
        "accuracies": numbers(record, "accuracies", "record", 1),
        "telemetry": {
            name: numbers(
                measured, name, "record['telemetry']", math.inf, -math.inf if name.endswith("cosine") else 0, none=True
            )
            for name in telemetry
        },
        "epochs": _epochs(_get(record, "epochs", "record"), epoch, per_epoch, parts),
        "snapshots": _snapshots(_get(record, "snapshots", "record")),
    }


def _epochs(saved: Any, epoch: int, per_epoch: int, parts: Sequence[str]) -> list[dict[str, Any]]:
    if not isinstance(saved, list) or len(saved) != epoch:
        raise NoRun(f"record['epochs']: expected a list of {epoch} entries, got {shown(saved)}")
    entries = []
    limits = _EPOCH | {name: _PARTS[name] for name in parts}
    for k, given in enumerate(saved):
        place = f"record['epochs'][{k}]"
        entry = _mapping(given, place)
        if set(entry) != {"epoch", "step", *limits}:
            raise NoRun(f"{place}: expected {['epoch', 'step', *limits]}, got {shown(list(entry))}")
        for name, number in (("epoch", k + 1), ("step", (k + 1) * per_epoch)):
            if not is_whole(entry[name]) or entry[name] != number:
                raise NoRun(f"{place}[{name!r}]: expected {number}, got {shown(entry[name])}")
        checked = {name: _number(entry[name], f"{place}[{name!r}]", most) for name, most in limits.items()}
        entries.append({name: checked.get(name, value) for name, value in entry.items()})
    return entries


def _snapshots(saved: Any) -> dict[str, Any] | None:
    if saved is None:
        return None
    place = "record['snapshots']"
    snapshots = _mapping(saved, place)
    single, together = (_get(snapshots, name, place) for name in ("test_accuracies", "ensemble_test_accuracy"))
    if not isinstance(single, list) or not single or set(snapshots) - {"test_accuracies", "ensemble_test_accuracy"}:
        raise NoRun(f"{place}: got {shown(saved)}")
    return {
        "test_accuracies": [_number(value, f"{place}['test_accuracies'][{k}]", 1) for k, value in enumerate(single)],
        "ensemble_test_accuracy": None if together is None else _number(together, f"{place}['ensemble_…']", 1),
    }


def _option(value: Any, name: str, kind: Any, choices: Mapping[str, Sequence[str]]) -> Any:
    if value is None and kind == float | None:
        return None
    checks: list[tuple[Any, Callable[[], Any]]] = [
        (bool, lambda: value if isinstance(value, bool) else _wrong(value, name, "True or False")),
        (int, lambda: _whole(value, name, 2**31)),
        (str, lambda: _one_of(value, name, choices)),
        (tuple[int, ...], lambda: tuple(_whole(size, name, 2**31) for size in _list(value, name))),
    ]
    for expected, check in checks:
        if kind == expected:
            return check()
    number = _number(value, name, math.inf)
    return number if math.isfinite(number) else _wrong(value, name, "a finite number >= 0")


def _one_of(value: Any, name: str, choices: Mapping[str, Sequence[str]]) -> str:
    known = next(names for option, names in choices.items() if name == f"run[{option!r}]")
    if not isinstance(value, str) or value not in known:
        _wrong(value, name, f"one of {', '.join(known)}")
    return str(value)


def _whole(value: Any, name: str, most: int) -> int:
    if not (is_whole(value) and 0 <= value <= most):
        _wrong(value, name, f"a whole number from 0 to {most}")
    return int(value)


def _number(value: Any, name: str, most: float, least: float = 0) -> float:
    """A number of a run, which may have exploded."""
    if not is_number(value):
        _wrong(value, name, "a number")
    if is_whole(value) and abs(value) > 2**53:
        _wrong(value, name, "a number that a double holds")
    if value < least or value > most or (math.isfinite(most) and not math.isfinite(value)):
        _wrong(value, name, f"a number from {least:g} to {most:g}")
    return float(value)


def _list(value: Any, name: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        _wrong(value, name, "a list")
    return value  # type: ignore[no-any-return]


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        _wrong(value, name, "a dict")
    return value  # type: ignore[no-any-return]


def _get(holder: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in holder:
        raise NoRun(f"{name}: no {key!r}")
    return holder[key]


def _wrong(value: Any, name: str, expected: str) -> None:
    raise NoRun(f"{name}: expected {expected}, got {shown(value)}")
