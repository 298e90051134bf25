"""`python -m fusedstep` is the command `fusedstep`."""

import sys

from fusedstep.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
