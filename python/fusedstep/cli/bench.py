"""`fusedstep bench`: side-by-side timings on this machine."""

import argparse
import sys
from typing import Any

from fusedstep import _core, runtime
from fusedstep.cli.common import (
    add_runtime_options,
    check_writable,
    positive_int,
    positive_seconds,
    require,
    use_runtime,
    write_json,
)


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="time the kernels beside torch and the memory's roof",
        description="Times each subject beside a loop that moves the same bytes (the roof) and beside torch where it "
        "is installed: one process, the sides in turn, results compared first, the same number of threads.",
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="beginnings of names (default: all)")
    parser.add_argument("--list", action="store_true", help="list the subjects")
    parser.add_argument("--rounds", type=positive_int, default=51, metavar="N", help="rounds per subject (default: 51)")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=20.0, help="at most so long per subject (default: 20)"
    )
    add_runtime_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures ('-': to standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from fusedstep.bench import harness, subjects

    if options.list:
        print("\n".join(subjects.subjects()))
        return 0
    require("rich", "bench")
    if options.json is not None and options.json != "-":
        check_writable("--json", options.json)
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console.width = 120
    reports: list[dict[str, Any]] = []
    with use_runtime(options):
        if runtime.isa() == "numpy":
            raise ValueError("--isa: the reference is not for timing; choose a native set")
        torch = harness.torch_or_none()
        makers = list(subjects.select(options.subjects))
        with console.status("") as status:
            for k, make in enumerate(makers):
                subject = make()
                status.update(f"{k + 1}/{len(makers)} {subject.name}")
                reports.append(harness.report(subject, harness.measure(subject, options.rounds, options.seconds)))
                if not console.is_terminal:
                    print(subject.name, file=sys.stderr, flush=True)
        machine = {
            "version": _core.version,
            "isa": runtime.isa(),
            "threads": runtime.num_threads(),
            "torch": None if torch is None else torch.__version__,
        }
    table = Table(
        title="fusedstep {version} on {isa}, {threads} threads, torch {torch}".format(**machine),
        caption="medians in µs (quartiles); a ratio is the other side's time over ours",
    )
    for column in ("subject", "fusedstep", "beside", "its time", "ratio", "goal"):
        table.add_column(column, justify="left" if column in ("subject", "beside") else "right", no_wrap=True)
    for entry in reports:
        for row, (name, ratio) in enumerate(entry["ratio"].items()):
            table.add_row(
                "" if row else entry["subject"],
                "" if row else _cell(entry["us"]["fusedstep"]),
                name,
                _cell(entry["us"][name]),
                *_verdict(entry, name, ratio),
            )
    means = harness.means(reports)
    for entry in means:
        for row, (name, ratio) in enumerate(entry["ratio"].items()):
            table.add_row(
                "" if row else entry["group"], "" if row else "geometric mean", name, "", *_verdict(entry, name, ratio)
            )
    console.print(table)
    if options.json:
        write_json({**machine, "subjects": reports, "means": means}, options.json)
    return 0


def _cell(timing: dict[str, Any]) -> str:
    low, high = timing["quartiles"]
    digits = 2 if timing["median"] < 100 else 0
    return f"{timing['median']:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def _verdict(entry: dict[str, Any], side: str, ratio: float) -> tuple[str, str]:
    """The ratio, and whether it is what it should be."""
    goal = entry["goal"].get(side)
    return f"{ratio:.2f}", "" if goal is None else f"{goal:g} {'✓' if ratio >= goal else '✗'}"
