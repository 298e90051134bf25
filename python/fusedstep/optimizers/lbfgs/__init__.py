"""L-BFGS: a quasi-Newton method for smooth losses whose gradient is exact.

A step is a loop of moves (`moves`): a direction (`direction`), how far along it (`line_search`), and what is kept of
both (`state`); `problem` shows the parameters as one vector and calls the closure.
"""

from fusedstep.optimizers.lbfgs.optimizer import LBFGS
from fusedstep.optimizers.lbfgs.report import LBFGSReport

__all__ = ["LBFGS", "LBFGSReport"]
