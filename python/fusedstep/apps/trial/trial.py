"""Runs the doctor on every scripted case and counts its verdicts."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from fusedstep.apps.trial import healthy
from fusedstep.apps.trial.cases import CASES
from fusedstep.doctor import Doctor

#: Seeds of the runs with a problem. The thresholds of the doctor were chosen on seeds 100 to 199.
SEEDS = range(10)


def trial(tell: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Runs every scripted case with every seed, and the healthy runs, run k with seed k.

    Args:
        tell: Called with a name before each group of runs.

    Returns:
        For each case: how often its verdict came first, how often it was among the verdicts, and the counts of all
        first verdicts. For the healthy runs: how many got the verdict "healthy", the verdicts of all other runs,
        and how many had another verdict at the end of some epoch.
    """
    return {"cases": [_case(case, tell) for case in CASES], "healthy": _healthy(tell)}


def _case(case: Any, tell: Callable[[str], None]) -> dict[str, Any]:
    tell(case.name)
    said = [[verdict.name for verdict in case.run(seed).diagnose()] for seed in SEEDS]
    return {
        "name": case.name,
        "verdict": case.verdict,
        "runs": len(said),
        "first": sum(names[:1] == [case.verdict] for names in said),
        "among": sum(case.verdict in names for names in said),
        "said_first": dict(Counter(names[0] for names in said)),
    }


def _healthy(tell: Callable[[str], None]) -> dict[str, Any]:
    alarms, during, accuracies = {}, 0, []
    for index in range(healthy.COUNT):
        tell(f"healthy run {index + 1}/{healthy.COUNT}")
        early: list[list[str]] = []

        def look(doctor: Doctor, early: list[list[str]] = early) -> None:
            early.append([verdict.name for verdict in doctor.diagnose()])

        doctor = healthy.run(index, index, look)
        during += any(names not in ([], ["healthy"]) for names in early)
        if early[-1] != ["healthy"]:
            alarms[index] = early[-1]
        accuracies.append(doctor.run.evaluations[-1]["test_accuracy"])
    return {
        "runs": healthy.COUNT,
        "healthy": healthy.COUNT - len(alarms),
        "alarms": alarms,
        "alarm_at_some_epoch": during,
        "lowest_accuracy": min(accuracies),
    }
