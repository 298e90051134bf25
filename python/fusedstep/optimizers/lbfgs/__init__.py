"""L-BFGS: a quasi-Newton method for smooth losses whose gradient is exact.

A step is a loop of moves (`_moves`): a direction (`_direction`), how far along it (`_line_search`), and what is kept of
both (`_state`); `_problem` shows the parameters as one vector and calls the closure.
"""

from fusedstep.optimizers.lbfgs._optimizer import LBFGS
from fusedstep.optimizers.lbfgs._report import LBFGSReport

__all__ = ["LBFGS", "LBFGSReport"]
