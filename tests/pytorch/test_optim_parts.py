"""Steps of parts of tensors, as the native step takes them: the same bits as of the whole."""

import pytest
import torch

import fusedstep as fs
from fusedstep.torch import optim

ROWS, ROW = 17, 33
SIZE = 40 * ROW


def both(rule, dtype, **options):
    """The optimizer of a whole tensor, and that of its two parts, with what stands for the other process."""
    generator = torch.Generator().manual_seed(3)
    values, grads = (torch.randn(40, ROW, generator=generator).to(dtype) for _ in range(2))
    whole = torch.nn.Parameter(values.clone())
    whole.grad = grads
    parts = [torch.nn.Parameter(part.clone()) for part in (values[:ROWS], values[ROWS:])]
    for part, grad in zip(parts, (grads[:ROWS], grads[ROWS:]), strict=True):
        part.grad = grad.clone()
    return optim.REGISTRY[rule]([whole], lr=0.01, **options), optim.REGISTRY[rule](parts, lr=0.01, **options)


def added(places, sums):
    """The sums of all parts, for each of them."""
    assert places == [0, 1]
    totals = [(sum(value for value, _ in pairs), 0) for pairs in zip(*sums, strict=True)]
    return [totals, totals]


def step_parts(opt, **given):
    """A step of the two parts, as a process with one of them would take it."""
    places = [(0, 0, SIZE, True), (0, ROWS * ROW, SIZE, True)]
    return opt._native.step(opt.param_groups, opt.state, 1.0, parts=places, add=added, **given)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("adamw", {"stochastic_rounding": True, "state_dtype": "bfloat16"}),
        ("adamw", {"cautious": True}),
        ("lion", {"cautious": True, "master_weights": True}),
        ("lamb", {}),
        ("lars", {"state_dtype": "bfloat16"}),
        ("prodigy", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_same_bits(isa, rule, options, dtype):
    if dtype == torch.float64:
        options = {name: value for name, value in options.items() if name == "cautious"}
    whole, parts = both(rule, dtype, **options)
    with fs.runtime.use_isa(isa):
        for _ in range(3):
            whole.step()
            step_parts(parts)
    after = torch.cat([p.detach() for p in parts.param_groups[0]["params"]])
    expected = whole.param_groups[0]["params"][0].detach()
    if rule in ("lamb", "lars") or (rule == "prodigy" and dtype == torch.float64):
        # Their sums are added in another order.
        torch.testing.assert_close(after, expected, rtol=1e-14 if dtype == torch.float64 else 2**-8, atol=0)
    else:
        assert torch.equal(after, expected)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
def test_norms_beyond_doubles(isa):
    whole, parts = both("lamb", torch.float64)
    for opt in (whole, parts):
        for group in opt.param_groups:
            for param in group["params"]:
                param.data.mul_(1e200)
                param.grad.mul_(1e160)
    with fs.runtime.use_isa(isa):
        before = whole.param_groups[0]["params"][0].detach().clone()
        whole.step()
        opt, places = parts, [(0, 0, SIZE, True), (0, ROWS * ROW, SIZE, True)]

        def add(_, sums):
            totals = []
            for pairs in zip(*sums, strict=True):
                top = max(exponent for _, exponent in pairs)
                totals.append((sum(value * 2.0 ** (exponent - top) for value, exponent in pairs), top))
            return [totals, totals]

        opt._native.step(opt.param_groups, opt.state, 1.0, parts=places, add=add)
    after = torch.cat([p.detach() for p in parts.param_groups[0]["params"]])
    expected = whole.param_groups[0]["params"][0].detach()
    assert not torch.equal(expected, before)
    torch.testing.assert_close(after, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
def test_known_norm(isa):
    """A norm that was taken before is not taken again."""
    with fs.runtime.use_isa(isa):
        usual, told = (both("adamw", torch.float32, max_grad_norm=0.1)[0] for _ in range(2))
        usual.step()
        squares = told._native.measure(told.param_groups)
        grad = told.param_groups[0]["params"][0].grad
        assert squares[0][0] == pytest.approx(float(grad.double().square().sum()), rel=1e-14)
        told._native.step(told.param_groups, told.state, 1.0, measured=squares[0])
    assert told.report.grad_norm == usual.report.grad_norm
    assert torch.equal(told.param_groups[0]["params"][0], usual.param_groups[0]["params"][0])


@pytest.mark.parametrize("isa", fs.runtime.available_isas())
def test_not_followed(isa):
    """What lies in a narrow parameter that is only written does not matter; its gradient may come beside it."""
    with fs.runtime.use_isa(isa):
        usual, written = (both("adamw", torch.bfloat16, master_weights=True)[0] for _ in range(2))
        for opt in (usual, written):
            opt.step()
        param = written.param_groups[0]["params"][0]
        param.data.fill_(float("nan"))
        group = {**written.param_groups[0], "_grads": [param.grad]}
        param.grad = None
        written._native.step([group], written.state, 1.0, parts=[(0, 0, -1, False)])
        usual.step()
    assert torch.equal(param, usual.param_groups[0]["params"][0])
