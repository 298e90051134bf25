"""All schedules."""

from typing import Any

import numpy as np

from fusedstep import schedules
from fusedstep.apps.gallery import looks
from fusedstep.apps.gallery.drawing import Data

TITLE = "Learning rates over time"

_STEPS = 200


def courses(steps: int) -> dict[str, Any]:
    """One of each, with a highest rate of 1."""
    quarter = steps // 4
    return {
        "constant": schedules.constant(1.0),
        "step_decay": schedules.step_decay(1.0, quarter, 0.5),
        "multi_step": schedules.multi_step(1.0, [quarter, 3 * quarter], 0.3),
        "exponential": schedules.exponential(1.0, 0.02 ** (1 / steps)),
        "polynomial": schedules.polynomial(1.0, steps, 2.0),
        "linear": schedules.linear(1.0, steps),
        "cosine": schedules.cosine(1.0, steps),
        "inverse_sqrt": schedules.inverse_sqrt(1.0, steps // 10),
        "transformer": schedules.transformer(512, steps // 10, (512 * (steps // 10)) ** 0.5),
        "one_cycle": schedules.one_cycle(1.0, steps),
        "cyclic": schedules.cyclic(0.1, 1.0, steps // 10),
        "cosine_warm_restarts": schedules.cosine_warm_restarts(1.0, steps // 7, 2),
        "warmup_stable_decay": schedules.warmup_stable_decay(1.0, steps, steps // 10, quarter),
        "warmup": schedules.warmup(schedules.cosine(1.0, steps), steps // 5),
        "join": schedules.join([schedules.constant(0.3), schedules.linear(1.0, steps - 2 * quarter)], [2 * quarter]),
        "scale": schedules.scale(schedules.cosine(1.0, steps), 0.5),
    }


def plateau(steps: int) -> Any:
    """The rate of ReduceOnPlateau where a metric falls, and stays, by turns."""
    schedule = schedules.ReduceOnPlateau(1.0, factor=0.4, patience=steps // 20)
    rates, metric = [], 1.0
    for step in range(steps + 1):
        rates.append(schedule(step))
        if (5 * step // steps) % 2 == 0:
            metric *= 0.99
        schedule.observe(metric)
    return np.array(rates)


def compute(seed: int = 0, quick: bool = False) -> Data:
    """The rate of every step."""
    steps = _STEPS
    rates = {name: np.array([schedule(step) for step in range(steps + 1)]) for name, schedule in courses(steps).items()}
    rates["ReduceOnPlateau"] = plateau(steps)
    return {
        "steps": steps,
        "rates": rates,
        "claims": {
            name: {"first": course[0], "highest": course.max(), "highest_at": int(course.argmax()), "last": course[-1]}
            for name, course in rates.items()
        },
    }


def caption(data: Data) -> str:
    """What to see."""
    return (
        f"The learning rate over {data['steps']} steps, relative to the highest, for every schedule in fs.schedules. "
        "warmup, join and scale change or combine other schedules. ReduceOnPlateau watches a metric, which does not "
        "change in the shaded steps."
    )


def draw(data: Data) -> Any:
    """A small plot of each."""
    names = list(data["rates"])
    rows = -(-len(names) // 4)
    figure, axes = looks.new(1.15 * rows + 0.3, rows, 4, sharex=True, sharey=True)
    for ax, name in zip(axes, names, strict=False):
        ax.plot(data["rates"][name], color=looks.BLUE)
        ax.set_title(name)
        ax.set(ylim=(0, 1.08), xticks=[0, data["steps"] // 2, data["steps"]], yticks=[0, 0.5, 1])
        if name == "ReduceOnPlateau":
            for k in (1, 3):
                ax.axvspan(k * data["steps"] / 5, (k + 1) * data["steps"] / 5, color="0.9", lw=0)
    for k, ax in enumerate(axes):
        ax.set_visible(k < len(names))
        ax.tick_params(labelbottom=len(names) - 4 <= k)
    note = axes[len(names)]
    note.set_visible(True)
    note.axis("off")
    note.text(0, 0.5, "shaded: its metric\nstands still", transform=note.transAxes, va="center")
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("learning rate / highest", fontsize=8)
    return figure
