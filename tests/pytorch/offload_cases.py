"""What the tests of `HostOffload` share: parameters that do not fit into a slot, and comparisons of bits."""

import torch

from fusedstep.torch import HostOffload, optim

ELEMENTWISE = sorted(optim.REGISTRY.keys() - {"lamb", "lars", "prodigy", "adafactor", "muon", "sparse_adam"})
#: More than a slot of 4,096 elements, less, none and one.
SHAPES = [(9, 1000), (3, 5), (0,), (), (4096,), (2, 3, 4)]
GRANULE = 4096


def parameters(dtype, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def gradients(params, seed):
    """The same for the same seed and shapes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]


def both(rule, dtype, shapes=SHAPES, offloaded=None, **options):
    """An optimizer of the library with float32 masters, and the same offloaded."""
    kind = optim.REGISTRY[rule]
    masters = {"master_weights": not options.get("stochastic_rounding", False)}
    plain = kind(parameters(dtype, shapes), **masters, **options)
    offloaded = {"slots": 2, "slot_elements": GRANULE} if offloaded is None else offloaded
    return plain, HostOffload(parameters(dtype, shapes), kind, **offloaded, **options)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def take(optimizers, steps, first=0):
    """Steps of both with the same gradients."""
    for step in range(first, first + steps):
        for optimizer in optimizers:
            params = params_of(optimizer)
            for p, grad in zip(params, gradients(params, step), strict=True):
                p.grad = grad
            optimizer.step()


def bits(tensor):
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.detach().contiguous().view(-1).view(words)


def assert_same(plain, offloaded):
    """The same bits in parameters and states, under the same names."""
    for k, (p, q) in enumerate(zip(params_of(plain), params_of(offloaded), strict=True)):
        assert p.dtype == q.dtype
        assert torch.equal(bits(p), bits(q)), f"parameter {k}"
        mine, theirs = offloaded.state.get(q, {}), plain.state.get(p, {})
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name].dtype == value.dtype
            assert mine[name].shape == value.shape
            assert torch.equal(bits(mine[name]), bits(value)), f"{name} of parameter {k}"
