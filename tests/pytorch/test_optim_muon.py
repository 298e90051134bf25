"""Muon beside torch's own, which orthogonalizes in bfloat16."""

import inspect

import optim_cases as c
import pytest
import torch

from cases import CASES
from fusedstep.torch import optim

WAYS = [hypers for hypers in CASES["muon"].valid if "maximize" not in hypers]
torchs = pytest.importorskip("torch.optim._muon")


def exactly(grad, ns_coefficients, ns_steps, eps):
    """Torch's iteration, without its rounding to bfloat16."""
    x = grad.T if len(grad) > grad.shape[1] else grad
    x = x / x.norm().clamp(min=eps)
    a, b, c = ns_coefficients
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if len(grad) > grad.shape[1] else x


def both(steps, **hypers):
    mine, theirs = c.parameters("muon"), c.parameters("muon")
    optimizer, other = optim.Muon(mine, **hypers), torch.optim.Muon(theirs, **hypers)
    for step in range(steps):
        for a, b in zip(mine, theirs, strict=True):
            b.grad = c.gradient("muon", b, step)
            a.grad = b.grad.clone()
        optimizer.step()
        other.step()
        yield (mine, optimizer), (theirs, other)


@pytest.mark.parametrize("hypers", WAYS, ids=str)
class TestAgainstTorch:
    def test_thirty_steps(self, hypers, monkeypatch):
        monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", exactly)
        for (mine, _), (theirs, _) in both(30, **hypers):
            assert c.distance(mine, theirs) <= 1e-12

    def test_as_it_rounds(self, hypers):
        for (mine, _), (theirs, _) in both(3, **hypers):
            assert c.distance(mine, theirs) <= CASES["muon"].tolerance

    def test_states_move_both_ways_in_mid_run(self, hypers, monkeypatch):
        monkeypatch.setattr(torchs, "_zeropower_via_newtonschulz", exactly)
        ((mine, optimizer), (theirs, other)) = list(both(4, **hypers))[-1]
        changed, back = optim.Muon(theirs, **hypers), torch.optim.Muon(mine, **hypers)
        changed.load_state_dict(other.state_dict())
        back.load_state_dict(optimizer.state_dict())
        for step in range(4, 8):
            for a, b in zip(mine, theirs, strict=True):
                b.grad = c.gradient("muon", b, step)
                a.grad = b.grad.clone()
            changed.step()
            back.step()
            assert c.distance(theirs, mine) <= 1e-12
        assert [sorted(entry) for entry in changed.state.values()] == [["momentum_buffer"]] * 2


def test_arguments_are_torchs():
    ours = list(inspect.signature(optim.Muon).parameters.values())
    theirs = list(inspect.signature(torch.optim.Muon).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
