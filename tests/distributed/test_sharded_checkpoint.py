"""`torch.distributed.checkpoint` of sharded optimizers: saved by so many ranks, loaded by others."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from shards_of import ELEMENTWISE, Weights, bits, close, full, give_grads, here, local, pair, same
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fusedstep.reference.codec import decode_8bit
from fusedstep.torch import optim

NARROW = {"state_dtype": "bfloat16", "master_weights": True, "ema_decay": 0.9}
EIGHT_BITS = {"state_dtype": "8bit", "min_8bit_size": 256}
LARGE = [(50, 33), (9,), (1, 700), (1030,)]
CASES = [
    ("adamw", torch.float32, {}, False),
    ("adamw", torch.bfloat16, NARROW, True),
    ("schedule_free_adamw", torch.float32, {}, True),
    ("sgd", torch.float32, {"momentum": 0.9}, True),
    ("prodigy", torch.float64, {}, True),
    ("lamb", torch.float64, {"max_grad_norm": 0.5}, False),
]


def groups_of(model):
    """Two groups with hyper-parameters of their own."""
    named = list(model.named_parameters())
    return [{"params": named[:2], "weight_decay": 0.1}, {"params": named[2:]}]


def sharded(rule, mesh, dtype, seed=0, **options):
    model = Weights([(7,), (3, 5), (2, 3, 4), (1,)], dtype, seed)
    fully_shard(model, mesh=mesh)
    return model, optim.REGISTRY[rule](groups_of(model), **options)


def unsharded(rule, dtype, **options):
    model = Weights([(7,), (3, 5), (2, 3, 4), (1,)], dtype)
    return model, optim.REGISTRY[rule](groups_of(model), **options)


def train(whole, parts, optimizers, first, count):
    for step in range(first, first + count):
        give_grads(whole, parts, step)
        for optimizer in optimizers:
            optimizer.step()


def states(model, optimizer, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    weights, state = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": state}


def check_save(rank, world, folder):
    mesh = init_device_mesh("cpu", (world,))
    for number, (rule, dtype, options, flat) in enumerate(CASES):
        whole, opt_whole = unsharded(rule, dtype, **options)
        parts, opt_parts = sharded(rule, mesh, dtype, **options)
        train(whole, parts, [opt_whole, opt_parts], 0, 2)
        opt_parts.param_groups[1]["lr"] = opt_whole.param_groups[1]["lr"] = 0.25
        dcp.save(states(parts, opt_parts, flat), checkpoint_id=str(folder / str(number)))


def check_load(rank, world, folder):
    mesh = init_device_mesh("cpu", (world,))
    for number, (rule, dtype, options, flat) in enumerate(CASES):
        whole, opt_whole = unsharded(rule, dtype, **options)
        parts, opt_parts = sharded(rule, mesh, dtype, seed=5, **options)
        found = states(parts, opt_parts, flat)
        dcp.load(found, checkpoint_id=str(folder / str(number)))
        set_state_dict(
            parts,
            opt_parts,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
            options=StateDictOptions(flatten_optimizer_state_dict=flat),
        )
        train(whole, parts, [opt_whole], 0, 2)
        opt_whole.param_groups[1]["lr"] = 0.25
        assert opt_parts.param_groups[1]["lr"] == 0.25
        compare = bits if rule in ELEMENTWISE else close(1e-12)
        same(whole, parts, opt_whole, opt_parts, compare)
        train(whole, parts, [opt_whole, opt_parts], 2, 2)
        same(whole, parts, opt_whole, opt_parts, compare)


def test_two_ranks_save_and_others_load(processes, tmp_path):
    processes.run(check_save, 2, tmp_path, tmp_path)
    for world in (3, 1):
        processes.run(check_load, world, tmp_path, tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # it is said to load so
def test_one_process_without_a_group_loads(processes, tmp_path):
    """Plain tensors from a checkpoint of shards."""
    processes.run(check_save, 2, tmp_path, tmp_path)
    for number, (rule, dtype, options, flat) in enumerate(CASES):
        whole, opt_whole = unsharded(rule, dtype, **options)
        for step in range(2):
            give_grads(whole, None, step)
            opt_whole.step()
        other, opt_other = unsharded(rule, dtype, **options)
        found = states(other, opt_other, flat)
        dcp.load(found, checkpoint_id=str(tmp_path / str(number)), no_dist=True)
        set_state_dict(
            other,
            opt_other,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
            options=StateDictOptions(flatten_optimizer_state_dict=flat),
        )
        opt_whole.param_groups[1]["lr"] = 0.25
        same(whole, other, opt_whole, opt_other, bits if rule in ELEMENTWISE else close(1e-12))


def check_full(rank, world):
    """Whole tensors on every rank, and back; also from the first rank alone."""
    mesh = init_device_mesh("cpu", (world,))
    for broadcast in (False, True):
        whole, opt_whole = unsharded("adamw", torch.float32)
        parts, opt_parts = sharded("adamw", mesh, torch.float32)
        train(whole, parts, [opt_whole, opt_parts], 0, 2)
        found = get_optimizer_state_dict(parts, opt_parts, options=StateDictOptions(full_state_dict=True))
        for name, param in whole.named_parameters():
            for key, value in opt_whole.state[param].items():
                bits(found["state"][name][key], value, f"{name}: {key}")
        other, opt_other = sharded("adamw", mesh, torch.float32)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        set_optimizer_state_dict(other, opt_other, {} if broadcast and rank else found, options=options)
        for (name, one), two in zip(parts.named_parameters(), other.parameters(), strict=True):
            for key, value in opt_parts.state[one].items():
                bits(local(opt_other.state[two][key]), local(value), f"{name}: {key}")
    for opt, from_other, expected in ((opt_other, opt_whole, "a DTensor"), (opt_whole, opt_other, "a plain tensor")):
        with pytest.raises(TypeError, match=rf"\['exp_avg'\]: expected {expected}, as its parameter is"):
            opt.load_state_dict(from_other.state_dict())


def check_trials(rank, world):
    """A fresh optimizer of shards is asked, and nothing has happened; a first step of warm-up has."""
    mesh = init_device_mesh("cpu", (world,))
    for rule in [*ELEMENTWISE, "lamb", "lars", "prodigy"]:
        options = {"momentum": 0.9, "dampening": 0.5} if rule in ("sgd", "lars") else {}
        whole, opt_whole, parts, opt_parts = pair(rule, mesh, **options)
        before = [local(p).clone() for p in parts.parameters()]
        found = get_optimizer_state_dict(parts, opt_parts)
        assert all(torch.equal(a, local(b)) for a, b in zip(before, parts.parameters(), strict=True))
        assert all(isinstance(v, DTensor) for v in found["state"]["w1"].values() if v.ndim)
        for step in range(2):
            give_grads(whole, parts, step)
            opt_whole.step()
            opt_parts.step()
        same(whole, parts, opt_whole, opt_parts, bits if rule in ELEMENTWISE else close(1e-6))
    # The only element is the first rank's: the others must not take its gradient for the trial's.
    whole, opt_whole, parts, opt_parts = pair("adamw", mesh, shapes=[(1,)], lr=0.0)
    give_grads(whole, parts, 0)
    opt_parts.step()
    assert float(opt_parts.state[parts.w0]["step"]) == 1


def check_8bit(rank, world, folder):
    """Float32 in state dicts, and the same codes from it."""
    mesh = init_device_mesh("cpu", (world,))
    for rule in ("adamw", "lion"):
        whole, _, parts, opt = pair(rule, mesh, shapes=LARGE, **EIGHT_BITS)
        for step in range(3):
            give_grads(whole, parts, step)
            opt.step()
        coded = {name: opt.state[p] for name, p in parts.named_parameters()}
        large = [name for name, p in parts.named_parameters() if local(p).numel() >= 256]
        assert "w0" in large
        assert "w1" not in large
        found = get_optimizer_state_dict(parts, opt, options=StateDictOptions(flatten_optimizer_state_dict=True))
        assert not any(name.endswith("_scale") for name in found)
        for name, param in parts.named_parameters():
            for state in coded[name].keys() - {"step"}:
                if state.endswith("_scale"):
                    continue
                value = found[f"state.{name}.{state}"]
                assert value.dtype == torch.float32
                assert value.placements == param.placements
                if name in large:
                    signed = state != "exp_avg_sq"
                    codes, scales = local(coded[name][state]), coded[name][f"{state}_scale"]
                    expected = decode_8bit(codes.numpy().reshape(-1), scales.numpy(), signed)
                    assert torch.equal(local(value).reshape(-1), torch.from_numpy(expected))
        dcp.save(found, checkpoint_id=str(folder / rule))
        _, _, others, opt_others = pair(rule, mesh, shapes=LARGE, **EIGHT_BITS)
        flat = StateDictOptions(flatten_optimizer_state_dict=True)
        target = get_optimizer_state_dict(others, opt_others, options=flat)
        dcp.load(target, checkpoint_id=str(folder / rule))
        set_optimizer_state_dict(others, opt_others, target, options=flat)
        for name, param in others.named_parameters():
            assert opt_others.state[param].keys() == coded[name].keys()
            for key, value in coded[name].items():
                bits(local(opt_others.state[param][key]), local(value), f"{rule}: {name}: {key}")
        # As a state dict of one optimizer for another, too.
        opt_others.load_state_dict(opt.state_dict())
        for name, param in others.named_parameters():
            for key, value in coded[name].items():
                bits(local(opt_others.state[param][key]), local(value), f"{rule}: {name}: {key}")


def check_codes(rank, world):
    """Numbers of any block that a step leaves are stored exactly again, whatever its largest was rounded to."""
    mesh = init_device_mesh("cpu", (world,))
    # The largest number of a block takes the last code but the last 16 or so, which half the scale would do for.
    largest = torch.arange(15, -1, -1)
    _, _, parts, opt = pair("adamw", mesh, shapes=[(world, 16 * 256)], **EIGHT_BITS)
    parts.w0.grad = torch.ones_like(parts.w0)
    opt.step()
    generator = torch.Generator().manual_seed(rank)
    for state, last, signs in (("exp_avg", 127, 128), ("exp_avg_sq", 255, 0)):
        codes, scales = local(opt.state[parts.w0][state]).view(16, 256), opt.state[parts.w0][f"{state}_scale"]
        tops = (last - largest)[:, None]
        codes[:] = (torch.rand(16, 256, generator=generator) * (tops + 1)).floor().clamp(min=1 if signs == 0 else 0)
        codes[:, :1] = tops.to(torch.uint8)
        codes += torch.randint(0, 2, (16, 256), generator=generator).mul(signs).to(torch.uint8)
        scales[:] = 2.0 ** torch.randint(-40, 40, (16,), generator=generator)
    _, _, others, opt_others = pair("adamw", mesh, shapes=[(world, 16 * 256)], **EIGHT_BITS)
    opt_others.load_state_dict(opt.state_dict())
    for state, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        values = []
        for entry in (opt.state[parts.w0], opt_others.state[others.w0]):
            assert local(entry[state]).dtype == torch.uint8
            values.append(decode_8bit(local(entry[state]).numpy().reshape(-1), entry[f"{state}_scale"].numpy(), signed))
        bits(*map(torch.from_numpy, reversed(values)), state)


def check_8bit_elsewhere(rank, world, folder):
    """Other ranks have other blocks: numbers are the nearest that their scales allow."""
    mesh = init_device_mesh("cpu", (world,))
    _, _, parts, opt = pair(
        "adamw", mesh, shapes=[(50, 33), (9,), (1, 700), (1030,)], state_dtype="8bit", min_8bit_size=256
    )
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    target = get_optimizer_state_dict(parts, opt, options=flat)
    dcp.load(target, checkpoint_id=str(folder / "adamw"))
    saved = {name: full(value) if isinstance(value, DTensor) else value for name, value in target.items()}
    set_optimizer_state_dict(parts, opt, target, options=flat)
    for name, param in parts.named_parameters():
        if local(param).numel() < 256:
            continue
        for state, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            codes, scales = local(opt.state[param][state]), opt.state[param][f"{state}_scale"]
            got = torch.from_numpy(decode_8bit(codes.numpy().reshape(-1), scales.numpy(), signed))
            expected = here(saved[f"state.{name}.{state}"], param).reshape(-1)
            # Half a unit of 4 bits of mantissa, of the number with the offset added.
            offset = scales.repeat_interleave(256)[: got.numel()] * (2.0**-7 if signed else 2.0**-15)
            assert ((got - expected).abs() <= (expected.abs() + offset) * 2.0**-5 * 1.001).all()


@pytest.mark.parametrize("world", [2, 3])
def test_trials(processes, tmp_path, world):
    processes.run(check_trials, world, tmp_path)


def test_full_state_dicts(processes, tmp_path):
    processes.run(check_full, 3, tmp_path)


def test_8_bits(processes, tmp_path):
    processes.run(check_codes, 2, tmp_path)
    processes.run(check_8bit, 2, tmp_path, tmp_path)
    processes.run(check_8bit_elsewhere, 3, tmp_path, tmp_path)
