"""Sharded optimizers beside unsharded ones, in a process of a group."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fusedstep.torch import optim

#: With 2 and 3 ranks: even and uneven parts, and ranks that have nothing.
SHAPES = [(7,), (3, 5), (2, 3, 4), (1,), (6, 2)]
#: Rules whose update of an element depends on nothing but that element.
ELEMENTWISE = sorted(optim.REGISTRY.keys() - {"muon", "sparse_adam", "adafactor", "lamb", "lars", "prodigy"})


class Weights(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, shapes, dtype, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for k, shape in enumerate(shapes):
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(f"w{k}", nn.Parameter(values))


def pair(rule, mesh, dtype=torch.float32, shapes=SHAPES, shard=fully_shard, **options):
    """The same optimizer of whole weights and of shards, with the modules."""
    whole, parts = (Weights(shapes, dtype) for _ in range(2))
    shard(parts, mesh=mesh)
    made = [(m, optim.REGISTRY[rule](m.named_parameters(), **options)) for m in (whole, parts)]
    return *made[0], *made[1]


def give_grads(whole, parts, step, scale=1.0):
    """Both the same gradients; `parts` may be None."""
    generator = torch.Generator().manual_seed(100 + step)
    for name, one in whole.named_parameters():
        grad = torch.randn(one.shape, generator=generator, dtype=torch.float64).mul_(scale).to(one.dtype)
        one.grad = grad
        if parts is None:
            continue
        other = parts.get_parameter(name)
        other.grad = distribute_tensor(grad.clone(), other.device_mesh, other.placements, src_data_rank=None)


def full(tensor):
    """All of a tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def here(whole, like):
    """The part of a whole tensor that a DTensor has here; the tensor itself beside a plain one."""
    if not isinstance(like, DTensor):
        return whole.detach()
    return distribute_tensor(whole.detach(), like.device_mesh, like.placements, src_data_rank=None).to_local()


def local(tensor):
    """What is here of a tensor."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def same(whole, parts, opt_whole, opt_parts, compare):
    """Compares parameters and states, each rank its part of them."""
    for name, one in whole.named_parameters():
        other = parts.get_parameter(name)
        compare(local(other), here(one, other), name)
        for key, value in opt_whole.state[one].items():
            theirs = opt_parts.state[other][key]
            assert theirs.dtype == value.dtype, f"{name}: {key}: {theirs.dtype} {value.dtype}"
            assert isinstance(theirs, DTensor) == (isinstance(other, DTensor) and value.ndim > 0), f"{name}: {key}"
            compare(local(theirs), here(value, theirs), f"{name}: {key}")


def bits(got, expected, name):
    """Compares them bit by bit."""
    assert got.shape == expected.shape, f"{name}: {got.shape}, {expected.shape}"
    if not torch.equal(got, expected):
        different = got != expected
        raise AssertionError(f"{name}: {int(different.sum())} differ: {got[different][:5]} {expected[different][:5]}")


def close(tolerance):
    """Compares to a relative tolerance of the largest number."""

    def compare(got, expected, name):
        largest = float(expected.double().abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            got.double(),
            expected.double(),
            rtol=tolerance,
            atol=tolerance * largest,
            msg=lambda text: f"{name}: {text}",
        )

    return compare
