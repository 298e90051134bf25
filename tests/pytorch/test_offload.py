"""`HostOffload`: the bits of the plain optimizer with float32 masters, through slots and without."""

import numpy as np
import offload_cases as c
import pytest
import torch

import fusedstep as fs
from cases import CASES
from fusedstep.optimizers import REGISTRY as ARRAYS
from fusedstep.torch import optim

OPTIONS = {
    "plain": {},
    "clip": {"max_grad_norm": 0.5},
    "skip": {"skip_nonfinite": True},
    "ema": {"ema_decay": 0.9, "ema_warmup": True},
    "bfloat16 states": {"state_dtype": "bfloat16"},
    "8-bit states": {"state_dtype": "8bit", "min_8bit_size": 100},
    "stochastic": {"stochastic_rounding": True, "seed": 7},
    "maximize": {"maximize": True},
}
WAYS = {
    "slots": {"slots": 2, "slot_elements": 4096},
    "one slot": {"slots": 1, "slot_elements": 3 * 4096},
    "direct": {},
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def known(rule, options):
    """Whether the optimizer takes the options."""
    try:
        ARRAYS[rule](np.zeros(3, np.float32), **options)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("rule", c.ELEMENTWISE)
def test_same_bits(rule, option, way):
    """Of the optimizer with float32 masters and the same gradients, random rounding included."""
    options = OPTIONS[option]
    if not known(rule, options):
        pytest.skip(f"{rule} has no such option")
    if rule == "sgd":
        options = {**options, "momentum": 0.9, "dampening": 0.1}
    optimizers = c.both(rule, torch.bfloat16, offloaded=WAYS[way], **options)
    c.take(optimizers, 3)
    c.assert_same(*optimizers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", c.ELEMENTWISE)
def test_dtypes(rule, dtype):
    optimizers = c.both(rule, dtype, weight_decay=0.1) if "weight_decay" in fields(rule) else c.both(rule, dtype)
    c.take(optimizers, 3)
    c.assert_same(*optimizers)


def fields(rule):
    return optim.REGISTRY[rule].arguments.parameters


@pytest.mark.parametrize(
    ("rule", "hypers"), [(rule, hypers) for rule in c.ELEMENTWISE for hypers in CASES[rule].valid], ids=str
)
def test_hyper_parameters(rule, hypers):
    optimizers = c.both(rule, torch.bfloat16, shapes=[(5000,), (3,)], **hypers)
    c.take(optimizers, 3)
    c.assert_same(*optimizers)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_instruction_sets(isa, rule):
    """A part is told that its states begin: the first step of SGD's momentum does not dampen."""
    options = {"momentum": 0.9, "dampening": 0.5} if rule == "sgd" else {"max_grad_norm": 0.1}
    with fs.runtime.use_isa(isa):
        optimizers = c.both(rule, torch.bfloat16, lr=0.01, **options)
        c.take(optimizers, 2)
    c.assert_same(*optimizers)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_has_the_bits_of_whole_tensors(dtype, slots, isa):
    plan = {"slots": slots, "slot_elements": 3 * 4096}
    plain, offloaded = c.both("sgd", dtype, [(50000,), (7,), (70000,)], plan, max_grad_norm=1e-3)
    with fs.runtime.use_isa(isa):
        for step in range(4):
            c.take((plain, offloaded), 1, first=step)
            assert offloaded.report == plain.report


def test_clipping_is_reported():
    plain, offloaded = c.both("adamw", torch.float64, max_grad_norm=0.25)
    c.take((plain, offloaded), 2)
    assert offloaded.report.step == plain.report.step == 2
    # In float64 the chunks' squares are added piece by piece, which is another order.
    assert offloaded.report.grad_norm == pytest.approx(plain.report.grad_norm, rel=1e-15)
    norm = torch.cat([p.grad.double().flatten() for p in c.params_of(offloaded)]).norm()
    assert offloaded.report.grad_norm == pytest.approx(float(norm), rel=1e-12)
    assert offloaded.report.clip_coefficient == pytest.approx(0.25 / (float(norm) + 1e-6), rel=1e-12)


@pytest.mark.parametrize("slots", [0, 1, 2, 5])
def test_skips_what_is_not_finite(slots):
    plan = {"slots": slots, "slot_elements": 4096}
    plain, offloaded = c.both("adamw", torch.bfloat16, offloaded=plan, skip_nonfinite=True)
    c.take((plain, offloaded), 1)
    before = [p.detach().clone() for p in c.params_of(offloaded)]
    grads = c.gradients(before, 5)
    grads[0][8, 999] = float("inf")
    for optimizer in (plain, offloaded):
        for p, grad in zip(c.params_of(optimizer), grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        assert optimizer.report.skipped
        assert optimizer.report.nonfinite == 1
    for p, q in zip(c.params_of(offloaded), before, strict=True):
        assert torch.equal(p, q)
    c.take((plain, offloaded), 2, first=1)
    c.assert_same(plain, offloaded)


@pytest.mark.parametrize("way", WAYS)
def test_a_first_step_that_is_skipped_leaves_no_state(way):
    _, offloaded = c.both("adamw", torch.bfloat16, offloaded=WAYS[way], skip_nonfinite=True)
    for p in c.params_of(offloaded):
        p.grad = torch.full_like(p, float("nan"))
    offloaded.step()
    assert offloaded.report.skipped
    assert not offloaded.state
