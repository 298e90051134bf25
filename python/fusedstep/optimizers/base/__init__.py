"""What all optimizers share: parameters in groups, hyper-parameters as fields, options, states and state dicts."""

from fusedstep.optimizers.base.optimizer import LearningRate, Optimizer, refuse_unknown

__all__ = ["LearningRate", "Optimizer", "refuse_unknown"]
