"""Parameters and gradients for all optimizers of `fusedstep.torch.optim`."""

import torch

from cases import CASES
from fusedstep.torch import optim

RULES = sorted(optim.REGISTRY)
#: Those of torch's own, but for the orthogonalization, which torch computes in bfloat16.
TORCHS = [rule for rule in RULES if CASES[rule].torch and rule != "muon"]
SHAPES = [(7,), (3, 5), (2, 3, 4)]


def shapes_of(rule):
    return [(7, 3), (3, 5)] if rule == "muon" else SHAPES


def parameters(rule, seed=0, dtype=torch.float64, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes_of(rule) if shapes is None else shapes
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def gradient(rule, param, step):
    """That of a quadratic, moved a little from step to step; of some rows where the rule takes no other."""
    grad = (param.detach() - 0.3) * (1 + 0.1 * (step % 3)) + 0.05
    if rule != "sparse_adam":
        return grad
    rows = torch.arange(param.shape[0])[torch.arange(param.shape[0]).add(step) % 3 > 0]
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=True)


def take(rule, optimizer, params, steps, first=0):
    """Steps with gradients that follow from the parameters and the step."""
    for step in range(first, first + steps):
        for param in params:
            param.grad = gradient(rule, param, step)
        optimizer.step()


def made(rule, params, **arguments):
    return optim.REGISTRY[rule](params, **arguments)


def peer(rule, params, **arguments):
    """Torch's own optimizer."""
    return getattr(torch.optim, CASES[rule].torch)(params, **arguments)


def distance(params, others):
    """The largest difference, relative to the largest number of its tensor."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(params, others, strict=True)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if a.numel())
