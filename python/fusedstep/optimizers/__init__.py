"""The optimizers: one file each, with its hyper-parameters, documentation and NumPy reference."""

from fusedstep.optimizers._base import OPTIONS, Optimizer, Options
from fusedstep.optimizers.adam import Adam
from fusedstep.optimizers.adamw import AdamW
from fusedstep.optimizers.rmsprop import RMSprop
from fusedstep.optimizers.sgd import SGD

__all__ = ["OPTIONS", "SGD", "Adam", "AdamW", "Optimizer", "Options", "RMSprop"]

#: Every optimizer by the name of its rule.
REGISTRY: dict[str, type[Optimizer]] = {optimizer.rule: optimizer for optimizer in (SGD, Adam, AdamW, RMSprop)}
