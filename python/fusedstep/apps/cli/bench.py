"""`fusedstep bench`: side-by-side timings on this machine."""

import argparse
import sys
from typing import Any

import fusedstep as fs
from fusedstep import runtime
from fusedstep._common.extras import require
from fusedstep.apps.cli.common import (
    add_runtime_options,
    check_writable,
    positive_int,
    positive_seconds,
    use_runtime,
    write_json,
)
from fusedstep.apps.cli.info import processor

#: A wider set that takes this much longer than a narrower one is at fault, and not the machine's drift.
SLOWER = 1.03


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="time the kernels beside torch and the memory's roof",
        description="Times each subject beside a loop that moves the same bytes (the roof) and beside torch where it "
        "is installed: one process, the sides in turn, results compared first, the same number of threads, and torch "
        "held to the instruction set that we run.",
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="beginnings of names (default: all)")
    parser.add_argument("--list", action="store_true", help="list the subjects")
    parser.add_argument("--sets", action="store_true", help="run every instruction set, and show them side by side")
    parser.add_argument("--rounds", type=positive_int, default=51, metavar="N", help="rounds per subject (default: 51)")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=20.0, help="at most so long per subject (default: 20)"
    )
    add_runtime_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures ('-': to standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    from fusedstep.apps.bench import harness, process, subjects

    if options.list:
        print("\n".join(subjects.subjects()))
        return 0
    require("rich", "bench")
    if options.json is not None and options.json != "-":
        check_writable("--json", options.json)
    from rich.console import Console

    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console.width = 160 if options.sets else 120
    isas = _isas(options, process.sets())
    names = subjects.select(options.subjects)
    with use_runtime(argparse.Namespace(isa=None, threads=options.threads)):
        threads = runtime.num_threads()
    reports: dict[str, list[dict[str, Any]]] = {isa: [] for isa in isas}
    try:
        with (
            process.measurers(isas, threads, options.rounds, options.seconds) as children,
            console.status("") as status,
        ):
            machines = [child.machine() for child in children]
            for k, name in enumerate(names):
                # Set after set of one subject, as a machine's speed drifts.
                for isa, child in zip(isas, children, strict=True):
                    status.update(f"{k + 1}/{len(names)} {name} {isa}")
                    reports[isa].append(child.measure(name))
                if not console.is_terminal:
                    print(name, file=sys.stderr, flush=True)
    except process.MeasurementError as error:
        print(f"fusedstep bench: error: {error}", file=sys.stderr)
        return 1
    results = [
        {**machine, "processor": processor(), "subjects": reports[isa], "means": harness.means(reports[isa])}
        for isa, machine in zip(isas, machines, strict=True)
    ]
    for result in results:
        console.print(_table(result))
    if not options.sets:
        content = results[0]
    else:
        found = slower(results)
        console.print(_side_by_side(results, found))
        for entry in found:
            console.print("slower: {subject} on {set} has {ratio:.2f} of the speed of {than}".format(**entry))
        content = {"version": fs.__version__, "processor": processor(), "sets": results, "slower": found}
    if options.json:
        write_json(content, options.json)
    return 0


def _isas(options: argparse.Namespace, native: list[str]) -> list[str]:
    """The sets to run."""
    valid = ", ".join(map(repr, native))
    active = runtime.isa()
    if options.sets:
        if options.isa is not None:
            raise ValueError("--sets: it runs every set; leave --isa out")
        return native
    isa = active if options.isa is None else options.isa
    if isa == "numpy":
        raise ValueError(f"--isa: the reference is not for timing; choose a native set: {valid}")
    if isa not in native:
        raise ValueError(f"--isa: {isa!r} is not a native instruction set of this processor; valid: {valid}")
    return [isa]


def slower(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The subjects in which a wider set takes longer than a narrower one; `results` go from narrow to wide."""
    found = []
    for k, wide in enumerate(results):
        for narrow in results[:k]:
            for mine, other in zip(wide["subjects"], narrow["subjects"], strict=True):
                share = other["us"]["fusedstep"]["median"] / mine["us"]["fusedstep"]["median"]
                if share * SLOWER < 1:
                    entry = {"subject": mine["subject"], "set": wide["isa"], "than": narrow["isa"], "ratio": share}
                    found.append(entry)
    return found


def _table(result: dict[str, Any]) -> Any:
    """Every figure of one set."""
    from rich.table import Table

    title = "fusedstep {version}, set {isa}, {threads} threads; ".format(**result)
    title += "no torch" if result["torch"] is None else "torch {torch}, set {torch_isa}".format(**result)
    table = Table(
        title=f"{title}\n{result['processor']}",
        caption="medians in µs (quartiles); a ratio is the other side's time over ours",
    )
    # What people read comes first; where the table is too wide, the quartiles behind it are cut.
    for column in ("subject", "beside"):
        table.add_column(column, no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True, min_width=6)
    for column in ("fusedstep", "its time"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["subjects"]:
        for row, (name, ratio) in enumerate(entry["ratio"].items()):
            table.add_row(
                "" if row else entry["subject"],
                name,
                f"{ratio:.2f}",
                "" if row else _cell(entry["us"]["fusedstep"]),
                _cell(entry["us"][name]),
            )
    for entry in result["means"]:
        for row, (name, ratio) in enumerate(entry["ratio"].items()):
            table.add_row("" if row else entry["group"], name, f"{ratio:.2f}", "" if row else "geometric mean", "")
    return table


def _side_by_side(results: list[dict[str, Any]], found: list[dict[str, Any]]) -> Any:
    """Per subject our times and the ratios on every set."""
    from rich.table import Table

    table = Table(
        title="Every set side by side\n" + results[0]["processor"],
        caption="our medians in µs, and the other side's time over ours; ✗: slower than on a narrower set",
    )
    table.add_column("subject", no_wrap=True)
    for result in results:
        table.add_column(f"{result['isa']} µs", justify="right", no_wrap=True)
    table.add_column("beside", no_wrap=True)
    for result in results:
        table.add_column(result["isa"], justify="right", no_wrap=True)
    flagged = {(entry["subject"], entry["set"]) for entry in found}
    for entries in zip(*(result["subjects"] for result in results), strict=True):
        name = entries[0]["subject"]
        times = [
            _median(entry["us"]["fusedstep"]) + (" ✗" if (name, result["isa"]) in flagged else "")
            for entry, result in zip(entries, results, strict=True)
        ]
        for row, side in enumerate(entries[0]["ratio"]):
            ratios = [f"{entry['ratio'][side]:.2f}" for entry in entries]
            table.add_row(*(["" for _ in range(len(times) + 1)] if row else [name, *times]), side, *ratios)
    return table


def _median(timing: dict[str, Any]) -> str:
    return f"{timing['median']:,.{2 if timing['median'] < 100 else 0}f}"


def _cell(timing: dict[str, Any]) -> str:
    low, high = timing["quartiles"]
    digits = 2 if timing["median"] < 100 else 0
    return f"{timing['median']:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"
