"""FSDP2's shards against whole tensors, with the same gradients."""

import pytest
import torch
from shards_of import ELEMENTWISE, SHAPES, bits, close, full, give_grads, pair, same
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from fusedstep.torch import optim

NARROW = {"state_dtype": "bfloat16", "stochastic_rounding": True, "ema_decay": 0.9}
#: Rules whose states are not stored in fewer bits.
EXACT = ("asgd",)
MASTERS = {"state_dtype": "bfloat16", "master_weights": True}
#: Rules and options that add up something over whole tensors, or over all of them.
SUMS = [
    ("lamb", {"weight_decay": 0.1}),
    ("lars", {"weight_decay": 0.1}),
    ("prodigy", {}),
    ("adamw", {"cautious": True}),
    ("lion", {"cautious": True, "max_grad_norm": 0.5}),
    ("adamw", {"max_grad_norm": 0.5, "skip_nonfinite": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "max_grad_norm": 0.5, "telemetry": True}),
    ("lamb", {"telemetry": True}),
]


MEASURED = (
    "grad_norm",
    "update_norm",
    "param_norm",
    "update_ratio",
    "grad_momentum_cosine",
    "nonfinite",
    "clip_coefficient",
)


def steps(whole, parts, opt_whole, opt_parts, count=3, scale=1.0):
    for step in range(count):
        give_grads(whole, parts, step, scale)
        opt_whole.step()
        opt_parts.step()


def check_elementwise(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for rule in ELEMENTWISE:
        cases = [(torch.float32, {}), (torch.float64, {"ema_decay": 0.9}), (torch.bfloat16, NARROW)]
        if rule in ("adamw", "sgd"):
            cases.append((torch.float16, MASTERS))
        for dtype, options in cases:
            if rule in EXACT:
                options = {name: value for name, value in options.items() if name != "state_dtype"}
            whole, opt_whole, parts, opt_parts = pair(rule, mesh, dtype, **options)
            assert all(isinstance(p, DTensor) for p in parts.parameters())
            steps(whole, parts, opt_whole, opt_parts)
            try:
                same(whole, parts, opt_whole, opt_parts, bits)
            except AssertionError as error:
                raise AssertionError(f"{rule} {dtype} {options}: {error}") from None


def check_sums(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for rule, options in SUMS:
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
            whole, opt_whole, parts, opt_parts = pair(rule, mesh, dtype, **options)
            steps(whole, parts, opt_whole, opt_parts)
            same(whole, parts, opt_whole, opt_parts, close(tolerance))
            ours, theirs = opt_whole.report, opt_parts.report
            rel = 1e-12 if dtype.itemsize == 8 else 1e-6
            pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in MEASURED]
            for one, other in zip(ours.tensors or (), theirs.tensors or (), strict=True):
                pairs += zip(MEASURED[:-1], one, other, strict=True)
            for name, expected, got in pairs:
                assert (expected is None) == (got is None), name
                assert expected is None or got == pytest.approx(expected, rel=rel), name
            digests = [None] * world
            torch.distributed.all_gather_object(digests, repr((theirs.grad_norm, opt_parts.param_groups[0].get("d"))))
            assert len(set(digests)) == 1, digests


def check_norms_beyond_doubles(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    whole, opt_whole, parts, opt_parts = pair("adamw", mesh, torch.float64, max_grad_norm=1.0)
    steps(whole, parts, opt_whole, opt_parts, scale=1e300)
    assert opt_whole.report.grad_norm > 1e299
    assert opt_parts.report.grad_norm == pytest.approx(opt_whole.report.grad_norm, rel=1e-14)
    same(whole, parts, opt_whole, opt_parts, close(1e-13))


def check_skips(rank, world):
    """A NaN in the shard of one rank keeps all from stepping."""
    mesh = init_device_mesh("cpu", (world,))
    whole, opt_whole, parts, opt_parts = pair("adamw", mesh, skip_nonfinite=True)
    steps(whole, parts, opt_whole, opt_parts, 1)
    before = [full(p).clone() for p in parts.parameters()]
    give_grads(whole, parts, 1)
    if rank == 0:
        next(parts.parameters()).grad.to_local()[0] = torch.nan
    opt_parts.step()
    assert opt_parts.report.skipped
    assert opt_parts.report.nonfinite == 1
    assert all(torch.equal(a, full(b)) for a, b in zip(before, parts.parameters(), strict=True))


def check_mixed(rank, world):
    """Plain tensors and replicas count once; gradients that lie elsewhere are brought."""
    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(1)
    values, grads = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    whole = [value.clone().requires_grad_() for value in values]
    mixed = [
        values[0].clone().requires_grad_(),
        distribute_tensor(values[1], mesh, [Replicate()], src_data_rank=None).requires_grad_(),
        distribute_tensor(values[2], mesh, [Shard(0)], src_data_rank=None).requires_grad_(),
    ]
    opts = [optim.LAMB(params, lr=0.1, max_grad_norm=0.1) for params in (whole, mixed)]
    for param, grad in zip(whole, grads, strict=True):
        param.grad = grad
    mixed[0].grad = grads[0].clone()
    share = grads[1] / world if rank else grads[1] - grads[1] / world * (world - 1)
    mixed[1].grad = DTensor.from_local(share, mesh, [Partial()])
    mixed[2].grad = distribute_tensor(grads[2], mesh, [Replicate()], src_data_rank=None)
    for opt in opts:
        opt.step()
    for one, other in zip(whole, mixed, strict=True):
        close(1e-13)(full(other), one.detach(), "")
    assert "_grads" not in opts[1].param_groups[0]
    mixed[2].grad = None
    mixed[2].grad = grads[2].clone()
    with pytest.raises(TypeError, match=r"grads\[2\]: expected a DTensor like its parameter, got a plain tensor"):
        opts[1].step()


def check_muon_is_refused(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    for rule in ("muon", "adafactor"):
        shards = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)], src_data_rank=None).requires_grad_()
        with pytest.raises(ValueError, match=rf"params\[0\]: expected a whole parameter for {rule}"):
            optim.REGISTRY[rule]([shards])
        copies = distribute_tensor(torch.ones(6, 4), mesh, [Replicate()], src_data_rank=None).requires_grad_()
        opt = optim.REGISTRY[rule]([copies], lr=0.1)
        copies.grad = torch.ones_like(copies)
        opt.step()
        assert not torch.equal(full(copies), torch.ones(6, 4))
    with pytest.raises(TypeError, match=r"params\['weight'\]: expected a plain tensor in Muon for a whole network"):
        optim.Muon(
            [("weight", copies), ("bias", torch.ones(3, requires_grad=True))], use_muon=lambda name, p: p.ndim > 1
        )


def check_refusals(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    columns = distribute_tensor(torch.ones(2, 6, dtype=torch.bfloat16), mesh, [Shard(1)], src_data_rank=None)
    columns.requires_grad_()
    for name, options in (("state_dtype", {"state_dtype": "bfloat16"}), ("stochastic_rounding", NARROW)):
        given = {**options, "state_dtype": "float32"} if name != "state_dtype" else options
        with pytest.raises(ValueError, match=rf"{name}: expected no random rounding with params\[0\]"):
            optim.AdamW([columns], **given)
    opt = optim.AdamW([columns])
    columns.grad = torch.ones_like(columns)
    opt.step()
    opt.param_groups[0]["stochastic_rounding"] = True
    with pytest.raises(ValueError, match="stochastic_rounding: expected no random rounding"):
        opt.step()
    partial = DTensor.from_local(torch.ones(3), mesh, [Partial()]).requires_grad_()
    with pytest.raises(ValueError, match=r"params\[0\]: expected a parameter that is sharded or replicated"):
        optim.AdamW([partial])
    with pytest.raises(ValueError, match="in_backward: expected False with sharded parameters"):
        optim.AdamW([columns], in_backward=True)


def check_rank_without_gradient(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    lacking = world - 1
    _, _, parts, opt = pair("adamw", mesh, max_grad_norm=1.0)
    for param in parts.parameters():
        param.grad = torch.ones_like(param)
    if rank == lacking:
        parts.w1.grad = None
    with pytest.raises(ValueError, match=rf"grads\['w1'\]: rank {lacking} has none, rank 0 has one"):
        opt.step()
    if rank == lacking:
        opt.zero_grad()
    with pytest.raises(ValueError, match=rf"grads\['w0'\]: rank {lacking} has none, rank 0 has one"):
        opt.step()
    opt.zero_grad()
    opt.step()
    assert not opt.state


def check_disagreement(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    last = world - 1
    for options, error in (
        ({"lr": 0.01 if rank == last else 0.02}, rf"param_groups\[0\]\['lr'\]: rank {last} has 0.01, rank 0 has 0.02"),
        ({"cautious": rank == last}, rf"param_groups\[0\]\['cautious'\]: rank {last} has True, rank 0 has False"),
    ):
        whole, _, parts, opt = pair("adamw", mesh, **options)
        give_grads(whole, parts, 0)
        before = [full(p).clone() for p in parts.parameters()]
        with pytest.raises(ValueError, match=error):
            opt.step()
        assert all(torch.equal(a, full(b)) for a, b in zip(before, parts.parameters(), strict=True))
    shapes = SHAPES if rank == last else [*SHAPES[:-1], (6, 3)]
    whole, _, parts, opt = pair("adamw", mesh, shapes=shapes)
    give_grads(whole, parts, 0)
    with pytest.raises(ValueError, match=rf"params\['w4'\]: rank {last} has float32 of shape \(6, 2\), rank 0 has"):
        opt.step()


ALL = [
    check_elementwise,
    check_sums,
    check_norms_beyond_doubles,
    check_skips,
    check_mixed,
    check_muon_is_refused,
    check_refusals,
    check_rank_without_gradient,
    check_disagreement,
]


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_three_ranks(processes, tmp_path, check):
    processes.run(check, 3, tmp_path)


@pytest.mark.parametrize("check", [check_elementwise, check_sums], ids=lambda check: check.__name__)
def test_two_ranks(processes, tmp_path, check):
    processes.run(check, 2, tmp_path)


def check_two_dimensions(rank, world):
    """Replicas of shards, and rows by columns, on a mesh of 2 by 2."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for rule, options, compare in (
        ("adamw", {}, bits),
        ("adamw", {"max_grad_norm": 0.1, "cautious": True}, close(1e-13)),
        ("lamb", {}, close(1e-13)),
    ):
        whole, opt_whole, parts, opt_parts = pair(rule, mesh, torch.float64, shard=fully_shard, **options)
        assert parts.w0.placements == (Replicate(), Shard(0))
        steps(whole, parts, opt_whole, opt_parts)
        same(whole, parts, opt_whole, opt_parts, compare)
    whole, opt_whole, parts, opt_parts = pair("adamw", mesh, torch.bfloat16, shard=fully_shard, **NARROW)
    steps(whole, parts, opt_whole, opt_parts)
    same(whole, parts, opt_whole, opt_parts, bits)

    # One rank of four: all hear of it, those too that are in no line with it.
    _, _, parts, opt = pair("adamw", mesh, lr=0.5 if rank == 1 else 0.25)
    for param in parts.parameters():
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['lr'\]: rank \d has 0.2?5, rank \d has 0.2?5"):
        opt.step()

    # As FSDP2 shards what tensor parallelism has sharded already.
    for placements in ([_StridedShard(0, split_factor=2), Shard(0)], [Shard(0), Shard(1)]):
        for options, compare in (({}, bits), ({"max_grad_norm": 0.1}, close(1e-13))):
            generator = torch.Generator().manual_seed(1)
            values, grad = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
            one = values.clone().requires_grad_()
            other = distribute_tensor(values, mesh, placements, src_data_rank=None).requires_grad_()
            one.grad, other.grad = grad, distribute_tensor(grad, mesh, placements, src_data_rank=None)
            for param in (one, other):
                optim.AdamW([param], lr=0.1, **options).step()
            compare(full(other), one.detach(), str(placements))


def test_two_dimensions(processes, tmp_path):
    processes.run(check_two_dimensions, 4, tmp_path)
