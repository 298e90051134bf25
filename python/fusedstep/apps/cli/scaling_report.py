"""How `fusedstep bench scaling` shows what it found."""

from collections.abc import Iterator, Sequence
from typing import Any

from fusedstep.apps.bench.scaling.forecast import ADVICE, Forecast
from fusedstep.apps.bench.scaling.machine import Machine
from fusedstep.apps.bench.scaling.measure import AGREES, Constants
from fusedstep.apps.bench.scaling.plots import size
from fusedstep.apps.bench.scaling.traffic import Traffic

#: How many times longer an element may take with many processes of one thread than with one process of all threads.
MOST_BESIDE = 1.3


def measured(found: dict[str, Any], traffic: Traffic) -> Iterator[Any]:
    """Tables of the constants, of predicted and measured steps, and of many processes beside one."""
    yield _constants(found["constants"], traffic)
    yield _steps(found)
    if found["beside"] is not None:
        yield _beside(found["beside"], bool(found["loaded"]))


def agrees(entry: dict[str, Any], loaded: bool) -> bool | None:
    """Whether a prediction is near enough; None on a loaded machine, which shows nothing."""
    return None if loaded else bool(1 / AGREES <= entry["ratio"] <= AGREES)


def plain(found: dict[str, Any], traffic: Traffic) -> dict[str, Any]:
    """Ready for JSON."""
    constants: Constants = found["constants"]
    exchanges = {
        str(ranks): {kind: vars(line) for kind, line in lines.items()} for ranks, lines in constants.exchanges.items()
    }
    loaded = found["loaded"]
    return {
        "constants": {**vars(constants), "exchanges": exchanges, "efficiency": constants.efficiency(traffic)},
        "steps": [{**entry, "agrees": agrees(entry, bool(loaded))} for entry in found["steps"]],
        "beside": found["beside"],
        "loaded": loaded,
    }


def forecasts(entries: Sequence[Forecast], machine: Machine, traffics: dict[str, Traffic]) -> Any:
    """A row a forecast."""
    moved = ", ".join(f"{mode} {traffic.moved:g}" for mode, traffic in traffics.items())
    table = _table(
        f"Other machines, assumed: {machine.host_gbs:g} GB/s of a host's memory, {machine.network_gbs:g} GB/s and "
        f"{machine.latency_us:g} µs of the network, {machine.link_gbs:g} GB/s of a link\nbytes an element: {moved}",
        ("parameters", "nodes", "host GB", "accelerator GB", "gradients s", "optimizer adds s", "breaks first"),
        left=("parameters", "breaks first"),
    )
    before: tuple[str, int] | None = None
    for entry in entries:
        if before is None or entry.mode != before[0]:
            table.add_section()
            table.add_row(entry.mode, style="bold")
        new = before != (entry.mode, entry.elements)
        before = entry.mode, entry.elements
        table.add_row(
            size(entry.elements) if new else "",
            f"{entry.nodes:,}",
            f"{entry.host_gb:,.1f}",
            f"{entry.accelerator_gb:,.1f}" if entry.accelerator_gb else "",
            f"{entry.gradients:,.3g}",
            f"{entry.exposed:,.3g}",
            _breaks(entry),
        )
    return table


def advice(entries: Sequence[Forecast]) -> Iterator[str]:
    """What to set where something breaks, a line for each that does."""
    for what in dict.fromkeys(entry.breaks for entry in entries):
        if what is not None:
            yield f"{what}: {ADVICE[what]}"


def _breaks(entry: Forecast) -> str:
    if entry.fits:
        return entry.breaks or ""
    return f"{entry.breaks}" + (f", fits from {entry.fits_from:,} nodes" if entry.fits_from else "")


def _constants(constants: Constants, traffic: Traffic) -> Any:
    table = _table("Measured on this machine", ("constant", "value"), left=("constant",))
    for name, value in (
        ("processors", f"{constants.cores}"),
        ("memory, all threads", f"{constants.bandwidth / 1e9:.1f} GB/s"),
        ("memory, one thread", f"{constants.bandwidth_of_one / 1e9:.1f} GB/s"),
        (f"step, all threads ({traffic.moved:g} bytes an element)", f"{constants.step_on_all * 1e9:.3f} ns an element"),
        ("step, one thread", f"{constants.step * 1e9:.3f} ns an element"),
        ("norm, one thread", f"{constants.norm * 1e9:.3f} ns an element"),
        ("part of the memory's bandwidth that the step reaches", f"{constants.efficiency(traffic):.2f}"),
    ):
        table.add_row(name, value)
    for ranks, lines in constants.exchanges.items():
        for kind, line in lines.items():
            speed = f"{1e-9 / line.per_byte:.2f} GB/s of the array" if line.per_byte else "any size"
            table.add_row(f"{kind} of {ranks}", f"{line.start * 1e6:,.0f} µs, {speed}")
    return table


def _steps(found: dict[str, Any]) -> Any:
    table = _table(
        "Steps on this machine, from gradients to parameters",
        ("way", "processes", "predicted ms", "measured ms", "ratio", f"within {AGREES - 1:.0%}".replace("%", " %")),
        left=("way",),
    )
    for entry in found["steps"]:
        verdict = {None: "?", True: "✓", False: "✗"}[agrees(entry, bool(found["loaded"]))]
        times = (f"{1e3 * entry[name]:,.2f}" for name in ("predicted", "measured"))
        table.add_row(entry["mode"], str(entry["ranks"]), *times, f"{entry['ratio']:.2f}", verdict)
    return table


def _beside(beside: dict[str, Any], loaded: bool) -> Any:
    table = _table("Steps of many processes", ("processes", "ns an element", "ratio", "at most 1.3"), left=())
    table.add_row("1, all threads", f"{beside['seconds_of_one'] * 1e9:.3f}")
    verdict = "?" if loaded else "✓" if beside["ratio"] <= MOST_BESIDE else "✗"
    table.add_row(
        f"{beside['processes']}, a thread each", f"{beside['seconds'] * 1e9:.3f}", f"{beside['ratio']:.2f}", verdict
    )
    return table


def _table(title: str, columns: Sequence[str], *, left: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table
