"""`fusedstep info`: what this installation is and what it runs on."""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep import _core, runtime

#: What each extra lets one import.
EXTRAS = {
    "checkpoint": ("safetensors",),
    "train": ("sklearn", "matplotlib", "rich", "safetensors"),
    "curvature": ("scipy",),
    "gallery": ("sklearn", "scipy", "matplotlib", "rich"),
    "bench": ("rich", "torch"),
}


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("info", help="version, processor, instruction sets, threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints what collect gives."""
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    sets = ", ".join(f"{name} (active)" if name == facts["isa"] else name for name in facts["available_isas"])
    extras = ", ".join(f"{name} ({'installed' if there else 'missing'})" for name, there in facts["extras"].items())
    for label, value in (
        ("fusedstep", facts["version"]),
        ("processor", f"{facts['processor']} ({facts['machine']})"),
        ("instruction sets", sets),
        ("threads", facts["threads"]),
        ("compiler", facts["compiler"]),
        ("python", facts["python"]),
        ("numpy", facts["numpy"]),
        ("extras", extras),
    ):
        print(f"{label:<18}{value}")
    return 0


def collect() -> dict[str, Any]:
    """The facts, ready for JSON."""
    return {
        "version": fs.__version__,
        "processor": processor(),
        "machine": platform.machine(),
        "available_isas": runtime.available_isas(),
        "isa": runtime.isa(),
        "threads": runtime.num_threads(),
        "compiler": _core.compiler(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "extras": {
            name: all(importlib.util.find_spec(module) is not None for module in modules)
            for name, modules in EXTRAS.items()
        },
    }


def processor() -> str:
    """The model's name, with the numbers that tell generations of one name apart."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        text = ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    name = facts.get("model name", platform.processor() or "unknown")
    return f"{name}, family {facts['cpu family']}, model {facts['model']}" if "cpu family" in facts else name
