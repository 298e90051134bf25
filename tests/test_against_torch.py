"""Every rule that torch has, against torch in float64, its defaults included."""

import numpy as np
import pytest
import torch

from cases import CASES
from fusedstep.optimizers import REGISTRY

PROBLEMS = [(rule, hypers) for rule, case in CASES.items() if case.torch for hypers in case.valid]


@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS)
def test_thirty_steps(rule, hypers, native, rng):
    """Thirty steps of a random least-squares problem per tensor: relative difference at most 1e-12."""
    shapes = [(7,), (3, 5), (2, 3, 4)]
    matrices = [rng.standard_normal((np.prod(s), np.prod(s))) / np.sqrt(np.prod(s)) for s in shapes]
    params = [rng.standard_normal(s) for s in shapes]
    peers = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    optimizer = REGISTRY[rule](params, **hypers)
    peer = getattr(torch.optim, CASES[rule].torch)(peers, **hypers)
    for _ in range(30):
        grads = []
        for matrix, param in zip(matrices, peers, strict=True):
            flat = param.detach().numpy().ravel()
            grads.append((matrix.T @ (matrix @ flat - 1.0)).reshape(param.shape))
        for param, grad in zip(peers, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step(grads)
        peer.step()
    for mine, theirs in zip(params, peers, strict=True):
        theirs = theirs.detach().numpy()
        assert np.abs(mine - theirs).max() <= 1e-12 * np.abs(theirs).max()


@pytest.mark.parametrize(("rule", "hypers"), PROBLEMS)
def test_state_names(rule, hypers, rng):
    """The state arrays are torch's, by name and value."""
    param, grad = rng.standard_normal((2, 10))
    peer_param = torch.nn.Parameter(torch.from_numpy(param.copy()))
    peer_param.grad = torch.from_numpy(grad.copy())
    optimizer = REGISTRY[rule](param, **hypers)
    peer = getattr(torch.optim, CASES[rule].torch)([peer_param], **hypers)
    optimizer.step(grad)
    peer.step()
    theirs = {k: v.numpy() for k, v in peer.state[peer_param].items() if k != "step" and v is not None}
    mine = {k: v for k, v in optimizer.state[0].items() if k != "step"}
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-13)


def test_torch_tensors_are_updated_in_place():
    """A torch tensor is a parameter, and a torch tensor a gradient, without a copy."""
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = REGISTRY["sgd"](param, lr=0.5)
    optimizer.step(torch.full((4,), 2.0))
    assert param.detach().tolist() == [0.0] * 4
