"""`fusedstep bench scaling`: what the optimizer's part of a step costs on this machine, and would on many."""

import argparse
import sys
from dataclasses import fields
from typing import Any

import fusedstep as fs
from fusedstep._common.extras import require
from fusedstep.apps.cli.common import (
    check_different,
    check_writable,
    parsed,
    positive_int,
    positive_seconds,
    whole,
    write_json,
)
from fusedstep.apps.cli.info import processor

COMMAND = "bench scaling"

#: The hardware of the machines that the forecast is for, and the unit of each number.
HARDWARE = {
    "host_gbs": ("GB/s", "bandwidth of a host's memory, all sockets together"),
    "host_gb": ("GB", "memory of a host"),
    "network_gbs": ("GB/s", "what one rank sends over the network"),
    "latency_us": ("US", "latency of one message, in microseconds"),
    "link_gbs": ("GB/s", "between an accelerator and its host, each way"),
    "accelerator_gb": ("GB", "memory of an accelerator"),
    "accelerator_tflops": ("TFLOPS", "what an accelerator computes in training"),
    "host_tflops": ("TFLOPS", "what a host computes in training where it has no accelerators"),
}

positive = parsed(float, lambda value: 0 < value < float("inf"), "a finite number > 0")


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    from fusedstep.apps.bench.scaling.collectives import ALGORITHMS
    from fusedstep.apps.bench.scaling.traffic import DTYPES

    parser: argparse.ArgumentParser = commands.add_parser(
        COMMAND,
        help="what a step costs on this machine's processes, and on 8 to 4,096 nodes",
        description="Measures the memory, a step and the collectives of 1, 2 and 3 processes, predicts from them what "
        "data-parallel and sharded steps take here, and takes those steps. Then it says what steps would take on other "
        "machines, whose hardware is assumed (docs/scaling.md).",
    )
    what = parser.add_argument_group("the step")
    what.add_argument("--rule", default="adamw", metavar="NAME", help="of the optimizer, such as adamw (default), lion")
    what.add_argument("--dtype", choices=DTYPES, default="float32", help="of parameters and gradients")
    what.add_argument("--state-dtype", default="float32", metavar="DTYPE", help="float32 (default), bfloat16 or 8bit")
    what.add_argument("--master-weights", action="store_true", help="keep float32 copies of bfloat16 parameters")
    what.add_argument("--clip", action=argparse.BooleanOptionalAction, default=True, help="clip by the global norm")
    what.add_argument("--bucket-mib", type=positive, default=25.0, metavar="MIB", help="of a collective (default: 25)")
    here = parser.add_argument_group("this machine")
    here.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help="measure (needs torch)")
    here.add_argument(
        "--elements", type=positive_int, default=32 << 20, metavar="N", help="of the model (default: 32 Mi)"
    )
    here.add_argument(
        "--processes",
        type=whole,
        default=8,
        metavar="N",
        help="time a step of N processes with one thread each beside one process with all (default: 8; 0: leave out)",
    )
    here.add_argument("--rounds", type=positive_int, default=9, metavar="N", help="of every measurement (default: 9)")
    here.add_argument("--seconds", type=positive_seconds, default=2.0, help="of every rate (default: 2)")
    here.add_argument("--timeout", type=positive_seconds, default=120.0, help="of every measurement (default: 120)")
    _add_forecast(parser.add_argument_group("the forecast", "whose defaults are assumptions"), ALGORITHMS)
    parser.add_argument("--plot", metavar="FILE", help="draw the figures (.png, .svg or .pdf)")
    parser.add_argument("--json", metavar="FILE", help="write the figures ('-': to standard output)")
    parser.set_defaults(run=run)


def _add_forecast(group: Any, algorithms: tuple[str, ...]) -> None:
    from fusedstep.apps.bench.scaling.forecast import Setting
    from fusedstep.apps.bench.scaling.machine import Machine

    group.add_argument("--nodes", type=_counts, default=(8, 64, 512, 4096), metavar="N,N,...", help="(8,64,512,4096)")
    group.add_argument(
        "--billions",
        type=_sizes,
        default=(1.0, 10.0, 100.0, 1000.0),
        metavar="B,B,...",
        help="of parameters (1,10,100,1000)",
    )
    for name, (unit, text) in HARDWARE.items():
        default = getattr(Machine, name)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=positive, default=default, metavar=unit, help=f"{text} (default: {default:g})")
    group.add_argument(
        "--accelerators", type=positive_int, default=Machine.accelerators, metavar="N", help="of a node (8)"
    )
    group.add_argument("--algorithm", choices=algorithms, default=Machine.algorithm, help="of the collectives")
    group.add_argument(
        "--tokens", type=positive_int, default=Setting.tokens, metavar="N", help="of a rank's step (4096)"
    )
    group.add_argument(
        "--slots", type=positive_int, default=Setting.slots, metavar="N", help="on the host at a time (4)"
    )
    group.add_argument("--slot-mib", type=positive, default=8.0, metavar="MIB", help="gradients of a slot (8)")


def run(options: argparse.Namespace) -> int:
    """Measures, forecasts, prints and writes."""
    from fusedstep.apps.bench.process import MeasurementError
    from fusedstep.apps.bench.scaling import traffic

    require("rich", "bench")
    check_different({"--json": options.json, "--plot": options.plot})
    for option, path in (("--json", options.json), ("--plot", options.plot)):
        if path is not None and not (option == "--json" and path == "-"):
            check_writable(option, path)
    if options.plot:
        require("matplotlib", "gallery")
    stored = {"state_dtype": options.state_dtype}
    if options.master_weights:
        stored["master_weights"] = True
    here = traffic.traffic(options.rule, options.dtype, clip=options.clip, **stored)
    found = None
    if options.measure:
        require("torch", "torch", "measuring collectives needs torch")
        try:
            found = _measure(options, here, stored)
        except MeasurementError as error:
            print(f"fusedstep {COMMAND}: error: {error}", file=sys.stderr)
            return 1
    _report(options, here, found)
    return 0


def _measure(options: argparse.Namespace, traffic: Any, stored: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console

    from fusedstep.apps.bench.scaling import measure

    console = Console(stderr=True)
    plan = measure.Plan(
        rule=options.rule,
        dtype=options.dtype,
        options=stored,
        clip=options.clip,
        elements=options.elements,
        bucket=max(1, int(options.bucket_mib * 2**20) // traffic.grad),
        beside=options.processes,
        rounds=options.rounds,
        seconds=options.seconds,
        timeout=options.timeout,
    )
    with console.status("") as status:

        def say(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        return measure.measure(plan, traffic, say)


def _report(options: argparse.Namespace, here: Any, found: dict[str, Any] | None) -> None:
    from rich.console import Console

    from fusedstep.apps.bench.scaling import forecast, plots
    from fusedstep.apps.cli import scaling_report as report

    machine, setting = _assumed(options, found, here)
    traffics = forecast.traffics(options.rule, options.dtype, options.clip, options.state_dtype, options.master_weights)
    forecasts = forecast.grid(
        options.nodes, [round(1e9 * count) for count in options.billions], machine, traffics, setting
    )
    console = Console(stderr=options.json == "-")
    if not console.is_terminal:
        console.width = 150
    if found is not None:
        for table in report.measured(found, here):
            console.print(table)
        if found["loaded"]:
            console.print(
                f"This machine is loaded, so the figures show nothing: {'; '.join(found['loaded'])}.", style="bold"
            )
    console.print(report.forecasts(forecasts, machine, traffics))
    for line in report.advice(forecasts):
        console.print(line, highlight=False)
    content = {
        "version": fs.__version__,
        "processor": processor(),
        "rule": options.rule,
        "bytes": {"moved": here.moved, "kept": here.kept},
        "measured": None if found is None else report.plain(found, here),
        "assumed": {**vars(machine), **vars(setting)},
        "forecasts": forecast.rows(forecasts),
    }
    if options.json:
        write_json(content, options.json)
    if options.plot:
        plots.save(forecasts, [] if found is None else found["steps"], options.plot)


def _assumed(options: argparse.Namespace, found: dict[str, Any] | None, here: Any) -> tuple[Any, Any]:
    """Other machines and their settings; how near a step comes to the memory's bandwidth is as measured here."""
    from fusedstep.apps.bench.scaling.forecast import Setting
    from fusedstep.apps.bench.scaling.machine import Machine

    given = {entry.name: getattr(options, entry.name) for entry in fields(Machine) if hasattr(options, entry.name)}
    if found is not None:
        given["efficiency"] = found["constants"].efficiency(here)
    setting = Setting(
        tokens=options.tokens,
        bucket_bytes=int(options.bucket_mib * 2**20),
        slot_bytes=int(options.slot_mib * 2**20),
        slots=options.slots,
        clip=options.clip,
    )
    return Machine(**given), setting


def _counts(text: str) -> tuple[int, ...]:
    return tuple(positive_int(part) for part in text.split(","))


def _sizes(text: str) -> tuple[float, ...]:
    return tuple(positive(part) for part in text.split(","))
