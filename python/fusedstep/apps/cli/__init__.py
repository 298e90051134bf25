"""The command line: `fusedstep info | train | bench | bench scaling | doctor | gallery`."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

import fusedstep as fs
from fusedstep._common.extras import MissingExtraError
from fusedstep.apps.cli import bench, doctor, gallery, info, scaling, train
from fusedstep.apps.cli.common import any_terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status."""
    with any_terminal():
        options = _parse(arguments)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: print(
                    f"fusedstep {options.command}: warning: {message}", file=sys.stderr
                )
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


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fusedstep",
        description="Optimizer steps and batch normalization on the CPU, as fast as the memory allows.",
    )
    parser.add_argument("--version", action="version", version=f"fusedstep {fs.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (info, train, bench, scaling, doctor, gallery):
        command.add_parser(commands)
    options, unknown = parser.parse_known_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if unknown:
        # By the command's own usage: the first one's lists no options.
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def _joined(arguments: Sequence[str]) -> list[str]:
    """With the words of a command of two words as one."""
    two = " ".join(arguments[:2])
    return [two, *arguments[2:]] if two == scaling.COMMAND else list(arguments)
