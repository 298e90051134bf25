"""The one list of optimizers, by their public names; `fusedstep` and `fusedstep.optimizers` export what is here."""

from fusedstep.optimizers.adadelta import Adadelta as Adadelta
from fusedstep.optimizers.adafactor import Adafactor as Adafactor
from fusedstep.optimizers.adagrad import Adagrad as Adagrad
from fusedstep.optimizers.adam import Adam as Adam
from fusedstep.optimizers.adamax import Adamax as Adamax
from fusedstep.optimizers.adamw import AdamW as AdamW
from fusedstep.optimizers.adan import Adan as Adan
from fusedstep.optimizers.ademamix import AdEMAMix as AdEMAMix
from fusedstep.optimizers.adopt import ADOPT as ADOPT
from fusedstep.optimizers.asgd import ASGD as ASGD
from fusedstep.optimizers.lamb import LAMB as LAMB
from fusedstep.optimizers.lars import LARS as LARS
from fusedstep.optimizers.lbfgs import LBFGS as LBFGS
from fusedstep.optimizers.lbfgs import LBFGSReport as LBFGSReport
from fusedstep.optimizers.lion import Lion as Lion
from fusedstep.optimizers.momentum import Momentum as Momentum
from fusedstep.optimizers.muon import Muon as Muon
from fusedstep.optimizers.nadam import NAdam as NAdam
from fusedstep.optimizers.prodigy import Prodigy as Prodigy
from fusedstep.optimizers.radam import RAdam as RAdam
from fusedstep.optimizers.rmsprop import RMSprop as RMSprop
from fusedstep.optimizers.rprop import Rprop as Rprop
from fusedstep.optimizers.schedule_free_adamw import ScheduleFreeAdamW as ScheduleFreeAdamW
from fusedstep.optimizers.sgd import SGD as SGD
from fusedstep.optimizers.sparse_adam import SparseAdam as SparseAdam
