"""`HostOffload` of FSDP2's shards: the bits of the plain optimizer of whole tensors, and checkpoints."""

import copy

import pytest
import torch
from shards_of import SHAPES, Weights, bits, close, full, give_grads, same
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fusedstep.torch import HostOffload, optim

#: A whole tensor of several pieces, and parts of it that end within one.
LARGE = [*SHAPES, (3000, 5)]
WAYS = {"slots": {"slots": 2, "slot_elements": 4096}, "direct": {}}
CASES = [
    ("adamw", torch.bfloat16, {}),
    ("adamw", torch.float32, {"ema_decay": 0.9}),
    ("sgd", torch.bfloat16, {"momentum": 0.9, "dampening": 0.5}),
    ("schedule_free_adamw", torch.float16, {}),
    ("adamw", torch.bfloat16, {"state_dtype": "bfloat16"}),
]


def pair(mesh, rule, dtype, way, shapes=LARGE, **options):
    """Whole weights with the plain optimizer, and shards of the same, offloaded."""
    whole, parts = (Weights(shapes, dtype) for _ in range(2))
    fully_shard(parts, mesh=mesh)
    kind = optim.REGISTRY[rule]
    plain = kind(whole.named_parameters(), master_weights=True, **options)
    return whole, plain, parts, HostOffload(parts.named_parameters(), kind, **WAYS[way], **options)


def steps(whole, parts, plain, offloaded, count, first=0):
    for step in range(first, first + count):
        give_grads(whole, parts, step)
        plain.step()
        offloaded.step()


def check_bits(rank, world, way):
    mesh = init_device_mesh("cpu", (world,))
    for rule, dtype, options in CASES:
        whole, plain, parts, offloaded = pair(mesh, rule, dtype, way, **options)
        steps(whole, parts, plain, offloaded, 3)
        same(whole, parts, plain, offloaded, bits)


def check_clip(rank, world, way):
    mesh = init_device_mesh("cpu", (world,))
    whole, plain, parts, offloaded = pair(mesh, "adamw", torch.float32, way, max_grad_norm=0.5, skip_nonfinite=True)
    steps(whole, parts, plain, offloaded, 3)
    same(whole, parts, plain, offloaded, close(1e-6))
    assert offloaded.report.grad_norm == pytest.approx(plain.report.grad_norm, rel=1e-12)
    norms = [None] * world
    torch.distributed.all_gather_object(norms, offloaded.report.grad_norm)
    assert len(set(norms)) == 1
    # One rank's gradient is not finite: no rank steps.
    before = [full(p).clone() for p in parts.parameters()]
    give_grads(whole, parts, 9)
    if rank == world - 1:
        next(reversed(list(parts.parameters()))).grad.to_local()[0] = float("nan")
    offloaded.step()
    assert offloaded.report.skipped
    for p, value in zip(parts.parameters(), before, strict=True):
        assert torch.equal(full(p), value)


def check_backward_and_weights_that_changed(rank, world, way):
    mesh = init_device_mesh("cpu", (world,))
    models = []
    for sharded in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(30, 70), torch.nn.Tanh(), torch.nn.Linear(70, 3)).bfloat16()
        if sharded:
            fully_shard(model, mesh=mesh)
        models.append(model)
    plain = optim.AdamW(models[0].named_parameters(), lr=0.01, master_weights=True)
    offloaded = HostOffload(models[1].named_parameters(), optim.AdamW, lr=0.01, **WAYS[way])
    for step in range(4):
        x = torch.randn(4, 30, generator=torch.Generator().manual_seed(step)).bfloat16()
        for model, optimizer in zip(models, (plain, offloaded), strict=True):
            (model(x) ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(0.5)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # The ranks' gradients are added and divided: of equal numbers that is exact with 2 ranks.
        assert torch.equal(full(q), p.detach())


def check_checkpoint(rank, world, way):
    mesh = init_device_mesh("cpu", (world,))
    for flatten in (False, True):
        options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
        whole, plain, parts, offloaded = pair(mesh, "adamw", torch.bfloat16, way)
        steps(whole, parts, plain, offloaded, 2)
        saved = copy.deepcopy(dcp.get_optimizer_state_dict(parts, offloaded, options=options))
        tensors = saved.values() if flatten else (v for entry in saved["state"].values() for v in entry.values())
        assert any(isinstance(value, DTensor) for value in tensors)
        _, _, others, fresh = pair(mesh, "adamw", torch.bfloat16, way)
        with torch.no_grad():
            for p, q in zip(others.parameters(), parts.parameters(), strict=True):
                p.copy_(q)
        before = [full(p).clone() for p in others.parameters()]
        dcp.get_optimizer_state_dict(others, fresh, options=options)
        assert all(torch.equal(full(p), value) for p, value in zip(others.parameters(), before, strict=True))
        dcp.set_optimizer_state_dict(others, fresh, saved, options=options)
        give_grads(whole, others, 2)
        fresh.step()
        steps(whole, parts, plain, offloaded, 1, first=2)
        same(whole, parts, plain, offloaded, bits)
        same(whole, others, plain, fresh, bits)


def check_missing(rank, world, way):
    """A gradient that one rank has and another lacks: an error that names it, on every rank, before anything moves."""
    mesh = init_device_mesh("cpu", (world,))
    whole, _, parts, offloaded = pair(mesh, "adamw", torch.float32, way, max_grad_norm=1.0)
    give_grads(whole, parts, 0)
    if rank == 1:
        parts.w2.grad = None
    before = [full(p).clone() for p in parts.parameters()]
    with pytest.raises(ValueError, match=r"grads\['w2'\]: rank 1 has none, rank 0 has one"):
        offloaded.step()
    for p, value in zip(parts.parameters(), before, strict=True):
        assert torch.equal(full(p), value)
    assert not offloaded.state


def check_data_parallel(rank, world, way):
    """`DistributedDataParallel`'s hooks see gradients that are not yet added up, in buckets that are written later."""

    def in_place(state, bucket):
        torch.distributed.all_reduce(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    for as_views in (False, True):
        models = [Weights([(9000,), (3, 5)], torch.bfloat16) for _ in range(2)]
        wrapped = []
        for model in models:
            model.forward = lambda x, model=model: sum((p * x).sum() for p in model.parameters())
            wrapped.append(torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=as_views))
            wrapped[-1].register_comm_hook(None, in_place)
        plain = optim.AdamW(models[0].parameters(), lr=0.01, master_weights=True)
        offloaded = HostOffload(models[1].parameters(), optim.AdamW, lr=0.01, **WAYS[way])
        for step in range(4):
            for model, optimizer in zip(wrapped, (plain, offloaded), strict=True):
                optimizer.zero_grad(set_to_none=False)
                model(torch.tensor(1.0 + rank + step, dtype=torch.bfloat16) * (-1) ** step).backward()
                optimizer.step()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(p, q)


def check_zero(rank, world, way):
    """Within `ZeroRedundancyOptimizer`, whose ranks each offload some of the parameters, of replaced memory too."""
    # Only in these processes: its import warns.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for as_views in (False, True):
        models = [Weights([(9000,), (3, 5), (4,)], torch.bfloat16) for _ in range(2)]
        plain = optim.AdamW(models[0].parameters(), lr=0.01, master_weights=True)
        zero = ZeroRedundancyOptimizer(
            models[1].parameters(),
            optimizer_class=HostOffload,
            parameters_as_bucket_view=as_views,
            optimizer=optim.AdamW,
            lr=0.01,
            **WAYS[way],
        )
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
                p.grad = torch.randn(p.shape, generator=generator).bfloat16()
                q.grad = p.grad.clone()
            plain.step()
            zero.step()
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "check",
    [
        check_bits,
        check_clip,
        check_backward_and_weights_that_changed,
        check_checkpoint,
        check_data_parallel,
        check_zero,
    ],
)
def test_two_ranks(processes, tmp_path, check, way):
    processes.run(check, 2, tmp_path, way)


@pytest.mark.parametrize("check", [check_bits, check_missing])
def test_three_ranks(processes, tmp_path, check):
    processes.run(check, 3, tmp_path, "slots")


def test_a_fraction_of_shards_is_refused(processes, tmp_path):
    processes.run(check_fraction, 1, tmp_path)


def check_fraction(rank, world):
    parts = Weights(SHAPES, torch.bfloat16)
    fully_shard(parts, mesh=init_device_mesh("cpu", (world,)))
    with pytest.raises(ValueError, match=r"offload_fraction: expected 1 with a DTensor, which params\['w0'\] is"):
        HostOffload(parts.named_parameters(), optim.AdamW, offload_fraction=0.5, slots=2)
