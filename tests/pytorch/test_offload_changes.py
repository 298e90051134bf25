"""`HostOffload` where a program changes parameters and gradients between backward pass and step."""

import offload_cases as c
import pytest
import torch

SLOTS = {"slots": 3, "slot_elements": 4096}


def test_another_order_of_a_parameter_after_the_backward_pass():
    """The hook has brought the gradient in the order that the parameter had then."""
    plain, optimizer = c.both("adamw", torch.float32, [(6, 8), (2, 3, 4, 5)], SLOTS)
    for either in (plain, optimizer):
        params = c.params_of(either)
        sum((p * g).sum() for p, g in zip(params, c.gradients(params, 0), strict=True)).backward()
        params[0].data = params[0].detach().t().contiguous().t()
        params[1].data = params[1].detach().to(memory_format=torch.channels_last)
        either.step()
    c.assert_same(plain, optimizer)


def test_gradients_of_inference_mode():
    plain, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS, max_grad_norm=0.5)
    for step in range(2):
        for either in (plain, optimizer):
            params = c.params_of(either)
            with torch.inference_mode():
                grads = [grad.clone() for grad in c.gradients(params, step)]
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
            either.step()
    c.assert_same(plain, optimizer)


@pytest.mark.parametrize("prefetch", [True, False])
def test_compiled_around(prefetch):
    """The graph breaks at the step, and at the hooks of its backward pass."""
    plain, optimizer = c.both("adamw", torch.bfloat16, [(5000,), (3, 4)], SLOTS | {"prefetch": prefetch})

    def train(optimizer, factors):
        optimizer.zero_grad()
        sum((p * factor).sum() for p, factor in zip(c.params_of(optimizer), factors, strict=True)).backward()
        optimizer.step()

    compiled = torch.compile(train, backend="eager")
    for step in range(2):
        factors = c.gradients(c.params_of(plain), step)
        train(plain, factors)
        compiled(optimizer, factors)
    c.assert_same(plain, optimizer)
