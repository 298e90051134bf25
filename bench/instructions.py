"""Instructions per element of the hot loops, counted by valgrind, beside what is stored: noise cannot touch them.

A vector that goes through the stack, or lanes moved one by one, show at once, on any machine. Run it as

    python bench/instructions.py build/werror/fusedstep_instructions

and with --update to store what was counted. The exit status is 1 where a loop grew by more than the tolerance.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STORED = Path(__file__).with_suffix(".json")
#: A release of a compiler moves a count by a few in a hundred; a pack that goes through the stack, by more.
TOLERANCE = 0.08
#: What valgrind runs: it knows no AVX-512.
SETS = ["baseline", "avx2"]


def count(program: str) -> dict[str, float]:
    """Instructions per element by "set/loop"."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--toggle-collect=counted"]
        command += ["--zero-before=counted", "--dump-after=counted", program, *SETS]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{ran.stderr}")
        counted = {}
        for k, line in enumerate(ran.stdout.splitlines(), 1):
            isa, name, elements = line.split()
            totals = re.search(r"^(?:totals|summary): (\d+)", Path(f"{folder}/out.{k}").read_text(), re.MULTILINE)
            assert totals, f"no dump of {name}"
            counted[f"{isa}/{name}"] = round(int(totals[1]) / int(elements), 3)
        return counted


def main() -> int:
    """Counts, compares and says what grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="the built fusedstep_instructions")
    parser.add_argument("--update", action="store_true", help="store what was counted")
    arguments = parser.parse_args()
    counted = count(arguments.program)
    if arguments.update:
        STORED.write_text(json.dumps(counted, indent=1) + "\n")
        return 0
    stored = json.loads(STORED.read_text())
    print(f"{'instructions per element':<58} {'stored':>8} {'now':>8}")
    grown = 0
    for name in sorted(stored.keys() | counted.keys()):
        before, now = stored.get(name), counted.get(name)
        bad = before is None or now is None or now > before * (1 + TOLERANCE)
        grown += bad
        show = [f"{value:8.3f}" if value is not None else "       -" for value in (before, now)]
        print(f"{name:<58} {' '.join(show)}{'  GREW' if bad else ''}")
    if grown:
        print(f"{grown} loops grew, appeared or vanished; --update stores what was counted", file=sys.stderr)
    return int(grown > 0)


if __name__ == "__main__":
    sys.exit(main())
