"""Schedules as names and arguments, for checkpoints; and back, from a fixed list of names."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from fusedstep._common.arguments import shown, whole
from fusedstep.schedules.base import Schedule
from fusedstep.schedules.combinators import join, scale, warmup
from fusedstep.schedules.cycles import cosine_warm_restarts, cyclic, one_cycle, warmup_stable_decay
from fusedstep.schedules.decay import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    multi_step,
    polynomial,
    step_decay,
    transformer,
)
from fusedstep.schedules.plateau import ReduceOnPlateau

#: All that a file can name.
REGISTRY: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        constant,
        cosine,
        cosine_warm_restarts,
        cyclic,
        exponential,
        inverse_sqrt,
        join,
        linear,
        multi_step,
        one_cycle,
        polynomial,
        scale,
        step_decay,
        transformer,
        warmup,
        warmup_stable_decay,
        ReduceOnPlateau,
    )
}

#: The most schedules of an optimizer, each counted as often as another one holds it.
_MOST = 1_000_000


def can_save(value: Any) -> bool:
    """Whether it and all schedules within it are of this library."""
    return type(value) in REGISTRY.values() and all(can_save(part) for _, parts in _parts(value) for part in parts)


class Table:
    """One row for each schedule, after the rows of those within it. A schedule that two others share is one row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}
        self._counts: list[int] = []
        self._total = 0

    def add(self, schedule: Schedule) -> int:
        """The number of its row."""
        if id(schedule) in self._places:
            return self._places[id(schedule)]
        within = {name: [self.add(part) for part in parts] for name, parts in _parts(schedule)}
        self._counts.append(1 + sum(self._counts[place] for places in within.values() for place in places))
        self._total = _check_total(self._total + self._counts[-1])
        arguments = {
            field.name: getattr(schedule, field.name)
            for field in fields(schedule)  # type: ignore[arg-type]
            if field.init and field.name not in within
        }
        state = schedule.state_dict() if isinstance(schedule, ReduceOnPlateau) else None
        name = type(schedule).__name__
        self.rows.append({"name": name, "arguments": arguments, "schedules": within, "state": state})
        self._places[id(schedule)] = len(self.rows) - 1
        return len(self.rows) - 1


def assemble(rows: Any) -> list[Schedule]:
    """The schedules that the rows of a table describe; ValueError for anything else."""
    made: list[Schedule] = []
    counts: list[int] = []
    total = 0
    for k, row in enumerate(rows):
        try:
            made.append(_assemble_row(row, made))
            counts.append(1 + sum(counts[place] for places in row["schedules"].values() for place in places))
            total = _check_total(total + counts[-1])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"damaged: schedule {k}: {error}") from error
    return made


def _assemble_row(row: Any, made: list[Schedule]) -> Schedule:
    if not isinstance(row, dict) or set(row) != {"name", "arguments", "schedules", "state"}:
        raise ValueError(f"got {shown(row)}")
    if not isinstance(row["name"], str) or row["name"] not in REGISTRY:
        raise ValueError(f"name: expected one of {', '.join(REGISTRY)}, got {shown(row['name'])}")
    kind = REGISTRY[row["name"]]
    arguments = dict(row["arguments"])
    for name, places in row["schedules"].items():
        parts = [made[whole(place, name)] for place in places]
        if name not in ("schedule", "schedules") or (name == "schedule" and len(parts) != 1):
            raise ValueError(f"{name}: got {shown(places)}")
        arguments[name] = parts[0] if name == "schedule" else parts
    expected = {field.name for field in fields(kind) if field.init}
    if set(arguments) != expected:
        raise ValueError(f"arguments of {row['name']}: expected {sorted(expected)}, got {sorted(arguments)}")
    schedule: Schedule = kind(**arguments)
    if isinstance(schedule, ReduceOnPlateau):
        schedule.load_state_dict(row["state"])
    elif row["state"] is not None:
        raise ValueError(f"state: {row['name']} has none")
    return schedule


def _check_total(count: int) -> int:
    """Refuses a table whose schedules take too long to walk through."""
    if count > _MOST:
        raise ValueError(f"schedules: expected at most {_MOST} that stand in each other, got more")
    return count


class ScheduleLoader:
    """Loads saved schedules into the objects in use, because the training loop may hold a `ReduceOnPlateau` too.

    `adopt` gives the schedules to use, and changes nothing. `finish` writes the saved states into them.
    """

    def __init__(self) -> None:
        self._taken: dict[int, tuple[ReduceOnPlateau, ReduceOnPlateau]] = {}
        self._copies: dict[int, ReduceOnPlateau] = {}

    def adopt(self, current: Any, saved: Any) -> Any:
        """The saved schedule, with the objects of the current one if they correspond, else with copies."""
        mine, theirs = list(plateaus(current)), list(plateaus(saved))
        pairs = dict(self._taken)
        agree = [pairs.setdefault(id(a), (a, b))[1] is b for a, b in zip(mine, theirs, strict=False)]
        if len(mine) != len(theirs) or not all(agree):
            mine = [self._copies.setdefault(id(b), replace(b)) for b in theirs]
        self._taken |= {id(a): (a, b) for a, b in zip(mine, theirs, strict=True)}
        return _rebuilt(saved, {id(b): a for a, b in zip(mine, theirs, strict=True)})

    def finish(self) -> None:
        """Writes arguments and states."""
        for mine, saved in self._taken.values():
            if mine is not saved:
                for field in fields(saved):
                    setattr(mine, field.name, getattr(saved, field.name))


def _parts(schedule: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """The schedules within one, by the name of the argument."""
    if isinstance(schedule, join):
        yield "schedules", schedule.schedules
    elif isinstance(schedule, warmup | scale):
        yield "schedule", [schedule.schedule]


def plateaus(schedule: Any) -> Iterator[ReduceOnPlateau]:
    """The objects of this kind within a schedule."""
    if isinstance(schedule, ReduceOnPlateau):
        yield schedule
    for _, parts in _parts(schedule):
        for part in parts:
            yield from plateaus(part)


def _rebuilt(schedule: Any, others: dict[int, ReduceOnPlateau]) -> Any:
    """The same schedule with other objects in it."""
    if id(schedule) in others:
        return others[id(schedule)]
    for name, parts in _parts(schedule):
        new = [_rebuilt(part, others) for part in parts]
        if any(a is not b for a, b in zip(new, parts, strict=True)):
            return replace(schedule, **{name: new[0] if name == "schedule" else new})
    return schedule
