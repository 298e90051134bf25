"""What the commands share."""

import argparse
import importlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from fusedstep import runtime


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


def positive_int(text: str) -> int:
    """An argparse type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return value


def write_json(content: dict[str, Any], target: str) -> None:
    """Writes to a file, or to standard output for '-'."""
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
