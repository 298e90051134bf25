"""Runs with a known problem, and the doctor's verdict on each."""

from typing import Any

import numpy as np

from fusedstep._common.extras import require
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data
from fusedstep.apps.trial import cases, healthy
from fusedstep.doctor import Doctor

TITLE = "What the doctor says"

#: Darker than the lines, for letters.
_RED = "#A84300"
#: Which of the fifty healthy runs stand beside the sick ones.
_HEALTHY = (0, 5, 18)
#: Of those that take little time.
_QUICK = ("at_critical_point", "bouncing", "crawling", "exploding", "adagrad_blow_up", "decayed_too_early")


def chosen(quick: bool) -> list[cases.Case]:
    """The first scripted run of each verdict."""
    firsts: dict[str, cases.Case] = {}
    for case in cases.CASES:
        firsts.setdefault(case.verdict, case)
    return [case for verdict, case in firsts.items() if not quick or verdict in _QUICK]


def compute(seed: int = 0, quick: bool = False) -> Data:
    """The losses of each run, and the verdicts, the most important first."""
    require("sklearn", "gallery")
    watched: list[tuple[str, str, Doctor]] = [(case.name, case.verdict, case.run(seed)) for case in chosen(quick)]
    for index in _HEALTHY[: 1 if quick else None]:
        settings = healthy.settings(index)
        name = f"{settings['optimizer'].__name__}, lr {settings['lr']:g}, {settings['schedule']}"
        watched.append((name, "healthy", healthy.run(index, seed)))
    runs, claims = [], []
    for name, expected, doctor in watched:
        verdicts = doctor.diagnose()
        runs.append({"name": name, "losses": np.array(doctor.run.losses), "expected": expected, "said": verdicts})
        claims.append({"run": name, "expected": expected, "said": [verdict.name for verdict in verdicts]})
    right = sum(entry["said"][:1] == [entry["expected"]] for entry in claims)
    return {"runs": runs, "claims": {"runs": claims, "right": right, "of": len(claims)}}


def caption(data: Data) -> str:
    """What to see."""
    return (
        "The training loss over the steps, for runs with a known problem and for some healthy runs. Above each plot "
        "is the name of the run, and below it the doctor's first verdict. It is right about "
        f"{data['claims']['right']} of {data['claims']['of']} runs; fusedstep doctor --trial tests it on ten seeds of "
        "each."
    )


def draw(data: Data) -> Any:
    """A small plot of each run."""
    columns = 3
    rows = -(-len(data["runs"]) // columns)
    figure, axes = looks.new(1.45 * rows + 0.2, rows, columns)
    for ax, run in zip(axes, data["runs"], strict=False):
        said = run["said"][0].name
        well = said == "healthy"
        losses = np.where(run["losses"] > 0, run["losses"], np.nan)
        ax.plot(losses, color=looks.BLUE if well else looks.VERMILION, lw=0.8)
        ax.set_yscale("log")
        if np.nanmax(losses) < 20 * np.nanmin(losses):
            # A curve that hardly moves shall look so.
            middle = float(np.sqrt(np.nanmax(losses) * np.nanmin(losses)))
            ax.set_ylim(middle / 10, middle * 10)
        wrong = "" if said == run["expected"] else f" (it is {run['expected'].replace('_', ' ')})"
        # Room for two lines, which begin above the numbers of the axis, because some are long.
        ax.set_title(" \n ", fontsize=8, pad=5)
        for height, text, colour in (
            (16, run["name"], looks.BLACK),
            (5, "→ " + said.replace("_", " ") + wrong, looks.BLUE if well else _RED),
        ):
            ax.annotate(
                text, (-0.22, 1), (0, height), xycoords="axes fraction", textcoords="offset points", color=colour
            ).set_in_layout(False)
        ax.tick_params(axis="y", which="minor", labelleft=False)
    for ax in axes[len(data["runs"]) :]:
        ax.set_visible(False)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("training loss", fontsize=8)
    return figure
