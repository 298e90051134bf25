"""Runs of an optimizer: the problem that each gets, and all that a step of it may change, as something to compare."""

import numpy as np

import fusedstep as fs
from cases import CASES
from helpers import gradient_for

# Every state and every kind of decay, in the direction of descent.
HYPERS = {rule: case.valid[1] for rule, case in CASES.items()} | {"sgd": CASES["sgd"].valid[3]}
DENSE = sorted(rule for rule in CASES if rule != "sparse_adam")
# Those that torch has, to the tolerance of float64.
TORCH = [rule for rule in DENSE if CASES[rule].torch and rule != "muon"]
FROZEN = 1  # the parameter that never has a gradient


def params_for(rule, rng, dtype=np.float64):
    """Four parameters, the last longer than a chunk and in an order of axes of its own."""
    shapes = [(7, 3), (2, 2), (3, 5), (95, 90)] if rule == "muon" else [(7,), (2, 2), (2, 3, 4), (95, 90)]
    params = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    if rule in DENSE:
        params[3] = np.asfortranarray(params[3])
    return params


def groups_of(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]


def average_of(rule):
    """The option; row-sparse gradients go without, for it would move the other rows."""
    return {"ema_decay": 0.9} if rule in DENSE else {}


def grads_for(rule, params, rng):
    return [None if k == FROZEN else gradient_for(rule, p, rng) for k, p in enumerate(params)]


def mapped(function, grads):
    """The gradients with `function` applied to their numbers."""

    def one(grad):
        if isinstance(grad, fs.RowSparse):
            return fs.RowSparse(grad.indices, function(grad.values), grad.shape)
        return None if grad is None else function(grad)

    return [one(grad) for grad in grads]


def bits(value):
    """Something that is equal where `value` is the same to the last bit, layout in memory included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.strides, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(entry) for entry in value]
    return value.hex() if isinstance(value, float) else value


def snapshot(optimizer):
    """All that a step may change: parameters, state, scalars of groups, counts, what would be saved."""
    return bits([optimizer.param_groups, optimizer.state, optimizer.state_dict()])
