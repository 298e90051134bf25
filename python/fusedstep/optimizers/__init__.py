"""The optimizers: one file each, with its hyper-parameters and documentation."""

from fusedstep.optimizers._base import Optimizer
from fusedstep.optimizers._options import OPTIONS, Options
from fusedstep.optimizers.adadelta import Adadelta
from fusedstep.optimizers.adafactor import Adafactor
from fusedstep.optimizers.adagrad import Adagrad
from fusedstep.optimizers.adam import Adam
from fusedstep.optimizers.adamax import Adamax
from fusedstep.optimizers.adamw import AdamW
from fusedstep.optimizers.adan import Adan
from fusedstep.optimizers.ademamix import AdEMAMix
from fusedstep.optimizers.adopt import ADOPT
from fusedstep.optimizers.asgd import ASGD
from fusedstep.optimizers.lamb import LAMB
from fusedstep.optimizers.lars import LARS
from fusedstep.optimizers.lbfgs import LBFGS, LBFGSReport
from fusedstep.optimizers.lion import Lion
from fusedstep.optimizers.momentum import Momentum
from fusedstep.optimizers.muon import Muon
from fusedstep.optimizers.nadam import NAdam
from fusedstep.optimizers.prodigy import Prodigy
from fusedstep.optimizers.radam import RAdam
from fusedstep.optimizers.rmsprop import RMSprop
from fusedstep.optimizers.rprop import Rprop
from fusedstep.optimizers.schedule_free_adamw import ScheduleFreeAdamW
from fusedstep.optimizers.sgd import SGD
from fusedstep.optimizers.sparse_adam import SparseAdam

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "OPTIONS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "LBFGSReport",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "Optimizer",
    "Options",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "SparseAdam",
]

#: Every optimizer that is a rule of one step, by the name of the rule.
REGISTRY: dict[str, type[Optimizer]] = {
    optimizer.rule: optimizer
    for optimizer in (
        SGD,
        Momentum,
        Adagrad,
        RMSprop,
        Adadelta,
        Adam,
        AdamW,
        Adamax,
        NAdam,
        RAdam,
        SparseAdam,
        ASGD,
        Rprop,
        Adafactor,
        Muon,
        Lion,
        LAMB,
        LARS,
        AdEMAMix,
        Adan,
        ADOPT,
        ScheduleFreeAdamW,
        Prodigy,
    )
}
