"""DDP, ZeRO and FSDP2 on several ranks against one process with the whole batch."""

import pytest
import torch
from shards_of import bits, close, full
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fusedstep.torch import optim

ROWS = 12
STEPS = 20
#: Relative to the largest number of a tensor. Gradients are summed in another order, which 20 steps make 1.5e-6 of in
#: float32.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


def network(dtype):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7, bias=False), nn.Tanh(), nn.Linear(7, 1)).to(dtype)


def batch(dtype, step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(ROWS, n, generator=generator, dtype=torch.float64).to(dtype) for n in (5, 1))
    return x.chunk(world)[rank], y.chunk(world)[rank]


def train(model, optimizer, dtype, rank=0, world=1, steps=STEPS):
    for step in range(steps):
        x, y = batch(dtype, step, rank, world)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def data_parallel(dtype, mesh, kind, **options):
    model = DistributedDataParallel(network(dtype))
    optimizer = getattr(optim, kind)(model.parameters(), **options)
    optim.check_ranks(optimizer)
    return model, optimizer


def redundancy_free(*arguments, **options):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # it warns as it is imported

    return ZeroRedundancyOptimizer(*arguments, **options)


def zero(dtype, mesh, kind, **options):
    model = DistributedDataParallel(network(dtype))
    made = redundancy_free(
        model.parameters(), optimizer_class=getattr(optim, kind), parameters_as_bucket_view=kind == "AdamW", **options
    )
    optim.check_ranks(made)
    return model, made


def sharded(dtype, mesh, kind, **options):
    model = network(dtype)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, getattr(optim, kind)(model.parameters(), **options)


ENGINES = {
    data_parallel: [("AdamW", {"lr": 0.01, "max_grad_norm": 0.5}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("LAMB", {})],
    zero: [("AdamW", {"lr": 0.01}), ("SGD", {"lr": 0.1, "momentum": 0.9}), ("LAMB", {})],
    sharded: [
        ("AdamW", {"lr": 0.01, "max_grad_norm": 0.5}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("LAMB", {}),
        ("Prodigy", {"d0": 0.01}),
    ],
}


def check_engines(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for engine, optimizers in ENGINES.items():
        for kind, options in optimizers:
            for dtype, bound in BOUND.items():
                alone = network(dtype)
                train(alone, getattr(optim, kind)(alone.parameters(), **options), dtype)
                model, optimizer = engine(dtype, mesh, kind, **options)
                train(model, optimizer, dtype, rank, world)
                for (name, expected), got in zip(alone.named_parameters(), model.parameters(), strict=True):
                    where = f"{engine.__name__} {kind} {dtype} {name}"
                    close(bound)(full(got), expected.detach(), where)
                    assert not torch.equal(expected, network(dtype).get_parameter(name)), where


@pytest.mark.parametrize("world", [2, 3])
def test_as_one_process(processes, tmp_path, world):
    processes.run(check_engines, world, tmp_path)


def check_zero(rank, world):
    """More ranks than parameters, states that are brought together, and what each rank would take for the whole."""
    model = DistributedDataParallel(nn.Linear(5, 1))
    made = redundancy_free(model.parameters(), optimizer_class=optim.AdamW, lr=0.1)
    alone = nn.Linear(5, 1)
    alone.load_state_dict(model.module.state_dict())
    own = optim.AdamW(alone.parameters(), lr=0.1)
    for step in range(3):
        for pair in zip(model.parameters(), alone.parameters(), strict=True):
            for param in pair:
                param.grad = torch.full_like(param, 0.1 + step)
        made.step()
        own.step()
    for got, expected in zip(model.parameters(), alone.parameters(), strict=True):
        bits(got.detach(), expected.detach(), "")
    made.consolidate_state_dict(to=0)
    if rank == 0:
        found = made.state_dict()
        for place, param in enumerate(alone.parameters()):
            for key, value in own.state[param].items():
                bits(found["state"][place][key], value, key)

    def refused(kind=optim.AdamW, **options):
        return redundancy_free(model.parameters(), optimizer_class=kind, **options)

    for options in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}, {"telemetry": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected .* within ZeroRedundancyOptimizer"):
            refused(**options)
    with pytest.raises(
        ValueError, match="optimizer_class: expected an optimizer other than Prodigy within ZeroRedundancyOptimizer"
    ):
        refused(optim.Prodigy)
    made.param_groups[0]["max_grad_norm"] = 1.0
    with pytest.raises(ValueError, match=r"max_grad_norm: .* call torch.nn.utils.clip_grad_norm_ before step\(\)"):
        made.step()
    with pytest.raises(
        ValueError, match="optimizer_class: expected an optimizer other than LBFGS within ZeroRedundancyOptimizer"
    ):
        refused(optim.LBFGS)
    # Beside it, an optimizer has all parameters.
    optim.AdamW(model.parameters(), max_grad_norm=1.0)


def check_what_ranks_tell(rank, world):
    last = world - 1
    params = [torch.zeros(2, 3 if rank == last else 2, requires_grad=True)]
    same = optim.AdamW([torch.zeros(2, requires_grad=True)])
    optim.check_ranks(same, torch.distributed.group.WORLD)
    with pytest.raises(ValueError, match=rf"params\[0\]: rank {last} has float32 of shape \(2, 3\), rank 0 has"):
        optim.check_ranks(optim.AdamW(params))
    kind = optim.Lion if rank == last else optim.AdamW
    with pytest.raises(ValueError, match=f"optimizer: rank {last} has Lion, rank 0 has AdamW"):
        optim.check_ranks(kind([torch.zeros(2, requires_grad=True)]))
    with pytest.raises(ValueError, match=rf"param_groups\[0\]\['betas'\]: rank {last} has \(0.8, 0.9\), rank 0 has"):
        optim.check_ranks(torch.optim.Adam([torch.zeros(2)], betas=(0.8, 0.9) if rank == last else (0.9, 0.999)))
    with pytest.raises(TypeError, match=r"optimizer: expected one of torch[.]optim, got int"):
        optim.check_ranks(1)
    with pytest.raises(TypeError, match=r"process_group: expected a torch[.]distributed[.]ProcessGroup, got str"):
        optim.check_ranks(same, "gloo")
    first = torch.distributed.new_group([0, 1])
    if rank < 2:
        optim.check_ranks(same, first)
    else:
        with pytest.raises(ValueError, match="process_group: rank 2 is not one of its members"):
            optim.check_ranks(same, first)


def check_cpu_offload(rank, world):
    """FSDP2's own policy; without an accelerator it moves nothing."""
    mesh = init_device_mesh("cpu", (world,))
    found = []
    for policy in ({"offload_policy": CPUOffloadPolicy(pin_memory=False)}, {}):
        model = network(torch.float32)
        fully_shard(model, mesh=mesh, **policy)
        train(model, optim.AdamW(model.parameters(), max_grad_norm=0.5), torch.float32, rank, world, steps=3)
        found.append([full(p) for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def check_flat_parameters(rank, world):
    """FullyShardedDataParallel's pieces: element by element they are right, and nothing else is taken."""
    dtype, cpu = torch.float64, torch.device("cpu")
    alone = network(dtype)
    train(alone, optim.AdamW(alone.parameters(), lr=0.01), dtype, steps=5)
    for original in (True, False):
        model = FullyShardedDataParallel(network(dtype), device_id=cpu, use_orig_params=original)
        train(model, optim.AdamW(model.parameters(), lr=0.01), dtype, rank, world, steps=5)
        with FullyShardedDataParallel.summon_full_params(model):
            for expected, got in zip(alone.parameters(), model.module.parameters(), strict=True):
                close(1e-12)(got.detach(), expected.detach(), f"{original}")
        with pytest.raises(
            ValueError, match=r"max_grad_norm: expected None with flat pieces of parameters, got params\[0\]"
        ):
            optim.AdamW(model.parameters(), max_grad_norm=1.0)
        with pytest.raises(ValueError, match="params: expected whole tensors for lamb"):
            optim.LAMB(model.parameters())


@pytest.mark.parametrize(
    "check",
    [check_zero, check_what_ranks_tell, check_cpu_offload, check_flat_parameters],
    ids=lambda check: check.__name__,
)
def test_three_ranks(processes, tmp_path, check):
    processes.run(check, 3, tmp_path)


def test_ranks_need_a_group():
    with pytest.raises(RuntimeError, match=r"process_group: torch[.]distributed is not initialized"):
        optim.check_ranks(optim.AdamW([torch.zeros(2, requires_grad=True)]))
