"""The command line: `fusedstep info | train | bench | doctor | gallery`."""

import argparse
import os
import sys
from collections.abc import Sequence

from fusedstep import _core
from fusedstep.cli import bench, doctor, gallery, info, train
from fusedstep.cli.common import MissingExtraError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="fusedstep",
        description="Optimizer steps and batch normalization on the CPU, as fast as the memory allows.",
    )
    parser.add_argument("--version", action="version", version=f"fusedstep {_core.version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (info, train, bench, doctor, gallery):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        print(f"fusedstep {options.command}: error: not enough memory for that size", file=sys.stderr)
        return 2
    except (MissingExtraError, ValueError, OSError) as error:
        print(f"fusedstep {options.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fusedstep {options.command}: interrupted", file=sys.stderr)
        return 130
    return status
