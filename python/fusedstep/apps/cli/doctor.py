"""`fusedstep doctor`: says what is wrong with a run that was written down."""

import argparse
import json
import sys
from typing import Any

from fusedstep import runtime
from fusedstep._common.extras import require
from fusedstep.apps.cli.common import check_writable, write_json
from fusedstep.doctor import Doctor, Verdict
from fusedstep.doctor.stream import read_record


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="say what is wrong with a training run, and what mends it",
        description="Reads what `fusedstep train --json` wrote, or any file of that form (docs/doctor.md), and names "
        "what it sees, with the evidence and the remedy.",
    )
    parser.add_argument("run_file", nargs="?", metavar="RUN.json", help="the run")
    parser.add_argument(
        "--trial", action="store_true", help="train scripted sick and healthy runs, and print how often it is right"
    )
    parser.add_argument("--json", metavar="FILE", help="write the result ('-': to standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the verdicts, or the table of the trial."""
    if options.trial == (options.run_file is not None):
        raise ValueError("expected either a file RUN.json or --trial")
    if options.json is not None and options.json != "-":
        check_writable("--json", options.json)
    if options.trial:
        return _trial(options)
    doctor = read(options.run_file)
    verdicts = doctor.diagnose()
    print(report(doctor, verdicts), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        entries = [
            {"name": v.name, "evidence": v.evidence, "remedy": v.remedy, "page": v.page, "numbers": dict(v.numbers)}
            for v in verdicts
        ]
        write_json({"steps": len(doctor.run.losses), "verdicts": entries}, options.json)
    return 0


def read(path: str) -> Doctor:
    """The doctor of the run in a file.

    Raises:
        ValueError: It is not JSON, or a field is missing or of another kind; the message names file and field.
        OSError: It cannot be read.
    """
    try:
        return Doctor.from_record(read_record(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON, or not all of it: {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def report(doctor: Doctor, verdicts: list[Verdict]) -> str:
    """The verdicts in words."""
    if verdicts:
        return "\n".join(str(verdict) for verdict in verdicts)
    needed = doctor.thresholds.min_steps
    return f"nothing can be said of {len(doctor.run.losses)} steps; a diagnosis takes {needed}"


class Live:
    """Prints the verdicts on a growing record whenever they are others than before."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def look(self, record: dict[str, Any], epoch: int, quiet: bool) -> None:
        """Prints to standard error where standard output is taken."""
        verdicts = Doctor.from_record(record).diagnose()
        names = [verdict.name for verdict in verdicts]
        if names != self._names:
            self._names = names
            for verdict in verdicts:
                text = f"doctor, epoch {epoch}: {verdict.name}: {verdict.evidence}"
                print(text, file=sys.stderr if quiet else sys.stdout, flush=True)


def _trial(options: argparse.Namespace) -> int:
    require("sklearn", "train")
    require("rich", "train")
    from rich.console import Console
    from rich.table import Table

    from fusedstep.apps.trial.trial import trial

    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console.width = 120

    with console.status("") as status, runtime.threads(1):

        def tell(name: str) -> None:
            status.update(name)
            if not console.is_terminal:
                print(name, file=sys.stderr, flush=True)

        result = trial(tell)
    table = Table(title="what the doctor says of scripted runs", caption="seeds 0 to 9; thresholds set on 100 to 199")
    for column in ("run", "its state", "said first", "said"):
        table.add_column(column, justify="right" if column.startswith("said") else "left", no_wrap=True)
    for case in result["cases"]:
        of = case["runs"]
        table.add_row(case["name"], case["verdict"], f"{case['first']}/{of}", f"{case['among']}/{of}")
    well = result["healthy"]
    right = f"{well['healthy']}/{well['runs']}"
    table.add_row(f"{well['runs']} settings", "healthy", right, right)
    console.print(table)
    console.print(
        f"healthy runs: test accuracy at least {well['lowest_accuracy']:.1%}; "
        f"{well['alarm_at_some_epoch']} of {well['runs']} with an alarm at the end of some epoch"
    )
    for index, names in well["alarms"].items():
        console.print(f"healthy run {index}: {', '.join(names)}")
    if options.json:
        write_json(result, options.json)
    return 0
