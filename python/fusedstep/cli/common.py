"""What the commands share."""

import argparse
import importlib
import json
import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from fusedstep import runtime
from fusedstep._files import write_whole


class MissingExtraError(Exception):
    """A command needs packages of an extra that is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an extra; the error says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{error.name} is not installed: pip install 'fusedstep[{extra}]'") from error


def add_runtime_options(parser: argparse.ArgumentParser) -> None:
    """Adds --isa and --threads."""
    parser.add_argument("--isa", metavar="NAME", help="instruction set to compute with (default: the widest)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="number of threads (default: all processors)")


def use_runtime(options: argparse.Namespace) -> ExitStack:
    """Enters what add_runtime_options read."""
    with ExitStack() as stack:
        if options.isa is not None:
            stack.enter_context(runtime.use_isa(options.isa))
        if options.threads is not None:
            stack.enter_context(runtime.threads(options.threads))
        return stack.pop_all()


def positive_seconds(text: str) -> float:
    """An argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """An argparse type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return value


def check_writable(option: str, path: str) -> None:
    """Refuses a path that cannot be written, before the work that would be lost."""
    target = Path(path)
    if not path or target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ValueError(f"{option}: cannot write {path!r}")


def write_json(content: dict[str, Any], target: str) -> None:
    """Writes to a file, or to standard output for '-'. A number that is not finite, which JSON has not, is null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_whole(target, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
