"""`HostOffload` with parameters on an accelerator: none of this has run yet."""

import offload_cases as c
import pytest
import torch

from fusedstep.torch import HostOffload, optim

pytestmark = [
    pytest.mark.needs_accelerator,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs_accelerator: there is none here"),
]
SLOTS = {"slots": 3, "slot_elements": 4096}


def device():
    return torch.accelerator.current_accelerator()


def pair(dtype, rule="adamw", plan=SLOTS, **options):
    """On the CPU, and on the accelerator."""
    kind = optim.REGISTRY[rule]
    plain = kind(c.parameters(dtype), master_weights=True, **options)
    moved = [torch.nn.Parameter(p.detach().to(device())) for p in c.parameters(dtype)]
    return plain, HostOffload(moved, kind, **plan, **options)


def take(plain, offloaded, steps, busy=False):
    for step in range(steps):
        grads = c.gradients(c.params_of(plain), step)
        for optimizer in (plain, offloaded):
            params = c.params_of(optimizer)
            here = [grad.to(p.device) for p, grad in zip(params, grads, strict=True)]
            if busy and params[0].device.type != "cpu":
                # The gradients are late: behind work that takes a while.
                matrix = torch.randn(4096, 4096, device=params[0].device)
                for _ in range(20):
                    matrix = matrix @ matrix
                here = [grad + 0 * matrix[0, 0].nan_to_num(0, 0, 0).to(grad.dtype) for grad in here]
            sum((p * grad).sum() for p, grad in zip(params, here, strict=True)).backward()
            optimizer.step()
            optimizer.zero_grad()


def assert_same(plain, offloaded):
    torch.accelerator.synchronize()
    for p, q in zip(c.params_of(plain), c.params_of(offloaded), strict=True):
        assert q.device.type == device().type
        assert torch.equal(c.bits(p), c.bits(q.cpu()))
        for name, value in plain.state[p].items():
            assert offloaded.state[q][name].device.type == "cpu"
            assert torch.equal(c.bits(offloaded.state[q][name]), c.bits(value))


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"state_dtype": "8bit"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_same_bits(dtype, options, busy):
    plain, offloaded = pair(dtype, **options)
    take(plain, offloaded, 4, busy)
    assert_same(plain, offloaded)


def test_the_ring_is_pinned():
    _, offloaded = pair(torch.bfloat16)
    assert offloaded.ring_bytes == 3 * 4096 * 4
    assert all(memory.is_pinned() for slot in offloaded._native.ring.slots for memory in slot._memory)


def test_gradients_are_freed_while_they_are_copied():
    plain, offloaded = pair(torch.bfloat16, plan={"slots": 8, "slot_elements": 8192})
    for _ in range(50):
        take(plain, offloaded, 1)
    assert_same(plain, offloaded)


def test_changed_weights_count():
    plain, offloaded = pair(torch.bfloat16)
    take(plain, offloaded, 2)
    for optimizer in (plain, offloaded):
        with torch.no_grad():
            for p in c.params_of(optimizer):
                p.mul_(0.5)
    take(plain, offloaded, 2)
    assert_same(plain, offloaded)


@pytest.mark.parametrize("fraction", [0.01, 0.9])
def test_a_fraction(fraction):
    plain, offloaded = pair(torch.bfloat16, plan={**SLOTS, "offload_fraction": fraction}, max_grad_norm=0.5)
    take(plain, offloaded, 3)
    for p, q in zip(c.params_of(plain), c.params_of(offloaded), strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=2**-7, atol=1e-6)


def test_state_dicts():
    plain, offloaded = pair(torch.bfloat16)
    take(plain, offloaded, 2)
    offloaded.load_state_dict(plain.state_dict())
    plain.load_state_dict(offloaded.state_dict())
    take(plain, offloaded, 2)
    assert_same(plain, offloaded)


def test_gradient_scaler():
    _, offloaded = pair(torch.float32)
    scaler = torch.amp.GradScaler(device().type, init_scale=1024.0)
    plain = optim.AdamW(c.parameters(torch.float32))
    for step in range(3):
        grads = c.gradients(c.params_of(plain), step)
        for p, grad in zip(c.params_of(plain), grads, strict=True):
            p.grad = grad
        plain.step()
        params = c.params_of(offloaded)
        loss = sum((p * grad.to(p.device)).sum() for p, grad in zip(params, grads, strict=True))
        scaler.scale(loss).backward()
        if step == 1:
            scaler.unscale_(offloaded)
        scaler.step(offloaded)
        scaler.update()
        offloaded.zero_grad()
    assert_same(plain, offloaded)


def test_without_slots():
    params = [("w", torch.nn.Parameter(torch.ones(3, device=device())))]
    with pytest.raises(ValueError, match=r"slots: expected at least 1 with params\['w'\] on"):
        HostOffload(params, optim.AdamW, slots=0)
