"""`HostOffload` among PyTorch's tools: who else writes, hooks, scalers, schedulers and state dicts."""

import copy
import io
import pickle
import random

import offload_cases as c
import pytest
import torch
from torch.optim import lr_scheduler

from fusedstep.torch import HostOffload, optim
from fusedstep.torch.offload import step as steps

SLOTS = {"slots": 3, "slot_elements": 4096}
WAYS = pytest.mark.parametrize("way", [SLOTS, {}], ids=["slots", "direct"])


class LateCopies:
    """Copies that happen as late as they may: when somebody waits for them, or the device goes on, in any order."""

    pinned = False

    def __init__(self):
        self.waiting, self.chance = [], random.Random(0)

    def begin(self, direction, into, source):
        job = [direction, into, source]
        self.waiting.append(job)
        return job

    def bring(self, into, source):
        return self.begin("bring", into, source)

    def give(self, into, source):
        return self.begin("give", into, source)

    def ended(self, job):
        # Those of one direction go one after the other.
        while any(job is other for other in self.waiting):
            self.run(job[0])
        return True

    def run(self, direction):
        first = next(other for other in self.waiting if other[0] == direction)
        self.waiting = [other for other in self.waiting if other is not first]
        with torch.no_grad():
            first[1].copy_(first[2])

    def join(self):
        # What the device does next comes after what it was given.
        while any(direction == "give" for direction, *_ in self.waiting):
            self.run("give")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}], ids=["no clip", "clip"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_waits_for_copies(monkeypatch, slots, options, dtype):
    """No slot, no master and no parameter is used before its copy has ended."""
    late = LateCopies()
    monkeypatch.setattr(steps, "copies_of", lambda device: late)
    plain, offloaded = c.both("adamw", dtype, offloaded={"slots": slots, "slot_elements": 4096}, **options)
    for step in range(4):
        for optimizer in (plain, offloaded):
            params = c.params_of(optimizer)
            backward(params, step)
            if step in (1, 3):
                with torch.no_grad():
                    params[0].mul_(0.5)
            optimizer.step()
            optimizer.zero_grad()
    c.assert_same(plain, offloaded)


def test_parameters_are_read_only_where_they_have_changed(monkeypatch):
    late = LateCopies()
    monkeypatch.setattr(steps, "copies_of", lambda device: late)
    _, offloaded = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    brought = []
    begin = late.begin
    late.begin = lambda direction, *given: brought.append(direction) or begin(direction, *given)
    pieces = 3 + 1 + 1 + 1 + 1 + 1
    for expected in (2 * pieces, pieces, pieces):
        c.take([offloaded], 1)
        assert brought.count("bring") == expected
        assert brought.count("give") == pieces
        brought.clear()


def backward(params, seed):
    """A backward pass, whose hooks bring gradients."""
    sum((p * g).sum() for p, g in zip(params, c.gradients(params, seed), strict=True)).backward()


def test_a_copy_that_does_not_end(monkeypatch):
    class Lost(LateCopies):
        def ended(self, job):
            return job[0] != "bring" and super().ended(job)

    lost = Lost()
    monkeypatch.setattr(steps, "copies_of", lambda device: lost)
    params = [("a.weight", torch.nn.Parameter(torch.ones(3)))]
    optimizer = HostOffload(params, optim.AdamW, timeout=0.01, **SLOTS)
    params[0][1].grad = torch.ones(3)
    with pytest.raises(TimeoutError, match=r"grads\['a.weight'\]: its copy has not ended within 0.01 s"):
        optimizer.step()
    assert torch.equal(params[0][1], torch.ones(3))
    assert not optimizer.state


def test_an_error_midway_stops_further_steps(monkeypatch):
    """Until a state dict is loaded."""

    class Failing(LateCopies):
        left = 3

        def give(self, into, source):
            self.left -= 1
            if not self.left:
                raise RuntimeError("the device is gone")
            return super().give(into, source)

    failing = Failing()
    monkeypatch.setattr(steps, "copies_of", lambda device: failing)
    _, optimizer = c.both("adamw", torch.bfloat16, offloaded=SLOTS)
    kept = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="the device is gone"):
        c.take([optimizer], 1)
    with pytest.raises(RuntimeError, match=r"failed midway \(RuntimeError: the device is gone\): load a state dict"):
        c.take([optimizer], 1)
    optimizer.load_state_dict(kept)
    c.take([optimizer], 1)


@WAYS
class TestOthersWrite:
    def test_in_place_and_load_state_dict(self, way):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded=way)
        for step in range(4):
            c.take((plain, offloaded), 1, first=step)
            for optimizer in (plain, offloaded):
                params = c.params_of(optimizer)
                with torch.no_grad():
                    params[step % 2].add_(0.125)
                    params[4].copy_(torch.full_like(params[4], 3.0))
        c.take((plain, offloaded), 1, first=9)
        c.assert_same(plain, offloaded)

    def test_data_replaced(self, way):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded=way)
        c.take((plain, offloaded), 2)
        for optimizer in (plain, offloaded):
            for p in c.params_of(optimizer):
                p.data = p.data * 2
        c.take((plain, offloaded), 2, first=2)
        c.assert_same(plain, offloaded)

    def test_written_through_data(self, way):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded={**way, "always_read": True})
        c.take((plain, offloaded), 2)
        for optimizer in (plain, offloaded):
            for p in c.params_of(optimizer):
                p.data.mul_(2)
        c.take((plain, offloaded), 2, first=2)
        c.assert_same(plain, offloaded)

    def test_backward_through_changed_weights_is_refused(self, way):
        _, offloaded = c.both("adamw", torch.bfloat16, offloaded=way)
        params = c.params_of(offloaded)
        losses = [(p * p).sum() for p in params if p.numel()]
        c.take([offloaded], 1)
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_backward_through_a_changed_state_is_refused(self, way):
        _, offloaded = c.both("adamw", torch.bfloat16, offloaded={**way}, ema_decay=0.9)
        c.take([offloaded], 1)
        weight = torch.ones((), requires_grad=True)
        states = {k: v for k, v in offloaded.state[c.params_of(offloaded)[0]].items() if k != "step"}
        assert states.keys() == {"exp_avg", "exp_avg_sq", "ema", "master"}
        losses = [(weight * value).sum() for value in states.values()]
        c.take([offloaded], 1, first=1)
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_masters_written_alone(self, way):
        """The parameter counts, as ever where the two differ."""
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded=way)
        c.take((plain, offloaded), 2)
        for optimizer in (plain, offloaded):
            params = c.params_of(optimizer)
            optimizer.state[params[0]]["master"].mul_(0.5)
            optimizer.state[params[1]]["master"] = optimizer.state[params[1]]["master"] * 0.5
        c.take((plain, offloaded), 2, first=2)
        c.assert_same(plain, offloaded)

    def test_state_replaced(self, way):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded=way)
        c.take((plain, offloaded), 2)
        for optimizer in (plain, offloaded):
            for entry in optimizer.state.values():
                entry["exp_avg"] = entry["exp_avg"] * 0.5
                entry["step"] = torch.tensor(7.0)
            del optimizer.state[c.params_of(optimizer)[0]]["master"]
        c.take((plain, offloaded), 2, first=2)
        c.assert_same(plain, offloaded)


@pytest.mark.parametrize("prefetch", [True, False])
class TestGradients:
    def test_accumulated(self, prefetch):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded={**SLOTS, "prefetch": prefetch})
        for step in range(3):
            for optimizer in (plain, offloaded):
                for part in range(3):
                    backward(c.params_of(optimizer), 10 * step + part)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step == 0)
        c.assert_same(plain, offloaded)

    @pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}], ids=["no clip", "clip"])
    def test_changed_after_the_backward_pass(self, prefetch, options):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded={**SLOTS, "prefetch": prefetch}, **options)
        for step in range(3):
            for optimizer in (plain, offloaded):
                params = c.params_of(optimizer)
                backward(params, step)
                torch.nn.utils.clip_grad_norm_(params, 0.1)
                params[1].grad = params[1].grad * 2
                params[5].grad = None
                optimizer.step()
        c.assert_same(plain, offloaded)

    @pytest.mark.parametrize("unscale", [True, False])
    @pytest.mark.parametrize("overflows", [True, False])
    def test_scaler(self, prefetch, unscale, overflows):
        """Its unscale_ changes gradients without their versions."""
        plain, offloaded = c.both("adamw", torch.float32, offloaded={**SLOTS, "prefetch": prefetch}, max_grad_norm=1.0)
        for optimizer in (plain, offloaded):
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            params = c.params_of(optimizer)
            for step in range(3):
                scale = scaler.scale(torch.ones(()))
                sum((scale * p * g).sum() for p, g in zip(params, c.gradients(params, step), strict=True)).backward()
                if overflows and step == 1:
                    params[0].grad[0, 0] = float("inf")
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            assert scaler.get_scale() == (512.0 if overflows else 1024.0)
            assert optimizer.report.step == (2 if overflows else 3)
        c.assert_same(plain, offloaded)

    def test_missing(self, prefetch):
        plain, offloaded = c.both("adamw", torch.bfloat16, offloaded={**SLOTS, "prefetch": prefetch})
        for step in range(4):
            for optimizer in (plain, offloaded):
                params = c.params_of(optimizer)
                backward(params, step)
                params[step].grad = None
                optimizer.step()
                optimizer.zero_grad()
        c.assert_same(plain, offloaded)
        before = [p.detach().clone() for p in c.params_of(offloaded)]
        assert offloaded.step() is None
        assert all(torch.equal(p, q) for p, q in zip(c.params_of(offloaded), before, strict=True))


def test_hooks_bring_what_fits():
    """And no more: the ring stays as large as it was said to be."""
    _, offloaded = c.both("adamw", torch.bfloat16, offloaded={"slots": 2, "slot_elements": 4096})
    assert offloaded.ring_bytes == 2 * 4096 * (2 + 2)
    backward(c.params_of(offloaded), 0)
    ring = offloaded._native.ring
    assert len(ring.filled) == 2
    assert not ring.free
    assert sum(memory.nbytes for slot in ring.slots for memory in slot._memory) == offloaded.ring_bytes
    brought = [load.grad.clone() for slot in ring.filled for load in slot.loads]
    grads = {id(p): p.grad.flatten() for p in c.params_of(offloaded)}
    pieces = [load.piece for slot in ring.filled for load in slot.loads]
    assert sum(piece.size for piece in pieces) > 4096
    for piece, values in zip(pieces, brought, strict=True):
        assert torch.equal(grads[id(piece.param)][piece.start : piece.stop], values)
    offloaded.step()
    assert len(ring.free) == 2
    assert sum(memory.nbytes for slot in ring.slots for memory in slot._memory) == offloaded.ring_bytes


@pytest.mark.parametrize("narrow", [True, False])
def test_ring_bytes(narrow):
    """Values of float32 parameters come from the masters: the ring has room for their gradients alone."""
    dtype = torch.float16 if narrow else torch.float32
    optimizer = HostOffload(c.parameters(dtype), optim.Lion, slots=5, slot_elements=8192)
    assert optimizer.ring_bytes == 5 * 8192 * 4
    assert HostOffload(c.parameters(dtype), optim.Lion).ring_bytes == 0


def test_layouts():
    """Dense in another order than that of the axes; a gradient in another order than its parameter's."""

    def made():
        image = torch.randn(3, 8, 30, 9, generator=torch.Generator().manual_seed(1))
        return [
            torch.nn.Parameter(image.to(torch.bfloat16, memory_format=torch.channels_last)),
            torch.nn.Parameter(image[0, 0].T.to(torch.bfloat16)),
            torch.nn.Parameter(image[:1, :, :1].contiguous()),
        ]

    kind = optim.AdamW
    plain, offloaded = kind(made(), master_weights=True), HostOffload(made(), kind, **SLOTS)
    for step in range(3):
        for optimizer in (plain, offloaded):
            for k, p in enumerate(c.params_of(optimizer)):
                grad = c.gradients([p], 3 * step + k)[0]
                p.grad = grad if step else grad.to(memory_format=torch.preserve_format).contiguous()
                if step == 2:
                    p.grad = torch.full((), 0.5, dtype=p.dtype).expand(p.shape)
            optimizer.step()
    c.assert_same(plain, offloaded)
    assert offloaded.state[c.params_of(offloaded)[0]]["master"].stride() == c.params_of(offloaded)[0].stride()


def test_schedulers_groups_and_closures():
    def run(make):
        params = c.parameters(torch.bfloat16)
        optimizer = make([{"params": params[:2]}, {"params": params[2:4], "lr": 0.01, "weight_decay": 0.3}])
        optimizer.add_param_group({"params": params[4:], "betas": (0.5, 0.9)})
        scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2, 0.3], total_steps=6)
        for step in range(4):

            def closure(step=step):
                optimizer.zero_grad()
                loss = sum((p * g).sum() for p, g in zip(params, c.gradients(params, step), strict=True))
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            assert loss.dtype == torch.bfloat16
            scheduler.step()
        return optimizer

    plain = run(lambda groups: optim.AdamW(groups, master_weights=True))
    offloaded = run(lambda groups: HostOffload(groups, optim.AdamW, **SLOTS))
    c.assert_same(plain, offloaded)
    assert offloaded.report.lr == plain.report.lr


@WAYS
@pytest.mark.parametrize("rule", c.ELEMENTWISE)
def test_state_dicts_go_to_the_plain_optimizer_and_back(rule, way):
    options = {"momentum": 0.9} if rule == "sgd" else {}
    plain, offloaded = c.both(rule, torch.bfloat16, offloaded=way, **options)
    c.take((plain, offloaded), 2)
    saved = {}
    for name, optimizer in (("plain", plain), ("offloaded", offloaded)):
        memory = io.BytesIO()
        torch.save(optimizer.state_dict(), memory)
        memory.seek(0)
        saved[name] = torch.load(memory, weights_only=True)
    plain.load_state_dict(saved["offloaded"])
    offloaded.load_state_dict(saved["plain"])
    c.take((plain, offloaded), 2, first=2)
    c.assert_same(plain, offloaded)


@WAYS
@pytest.mark.parametrize("again", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_copies(way, again):
    plain, offloaded = c.both("nadam", torch.bfloat16, offloaded=way)
    c.take((plain, offloaded), 2)
    other = again(offloaded)
    assert isinstance(other, HostOffload)
    assert other.ring_bytes == offloaded.ring_bytes
    c.take((plain, other), 2, first=2)
    c.assert_same(plain, other)
    assert other.report.step == 4


@pytest.mark.parametrize("flatten", [True, False])
def test_distributed_state_dict(flatten):
    """`torch.distributed.checkpoint`'s, which takes a trial step of a fresh optimizer."""
    from torch.distributed.checkpoint import state_dict as dcp

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(70, 70), torch.nn.Linear(70, 3)).to(torch.bfloat16)

    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
    first = model()
    optimizer = HostOffload(first.parameters(), optim.AdamW, **SLOTS)
    c.take([optimizer], 2)
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(first, optimizer, options=options))
    second = model()
    second.load_state_dict(first.state_dict())
    other = HostOffload(second.parameters(), optim.AdamW, **SLOTS)
    dcp.set_optimizer_state_dict(second, other, saved, options=options)
    c.take((optimizer, other), 2, first=2)
    c.assert_same(optimizer, other)
    fresh = HostOffload(model().parameters(), optim.AdamW, **SLOTS)
    before = [p.detach().clone() for p in c.params_of(fresh)]
    holder = torch.nn.ParameterList(c.params_of(fresh))
    asked = dcp.get_optimizer_state_dict(holder, fresh, options=options)
    assert all(torch.equal(p, q) for p, q in zip(c.params_of(fresh), before, strict=True))
    masters = [asked[f"state.{k}.master"] if flatten else asked["state"][f"{k}"]["master"] for k in range(len(before))]
    assert all(torch.equal(p.float(), master) for p, master in zip(before, masters, strict=True))


@WAYS
@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit", "min_8bit_size": 100}], ids=str)
def test_default_device_and_dtype(way, options):
    """Those of PyTorch for new tensors are the model's: what the host keeps is the CPU's, in its own dtypes."""
    plain, offloaded = c.both("nadam", torch.bfloat16, offloaded=way, **options)
    c.take([plain], 2)
    grads = [c.gradients(c.params_of(offloaded), step) for step in range(2)]
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            for each in grads:
                for p, grad in zip(c.params_of(offloaded), each, strict=True):
                    p.grad = grad
                offloaded.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(c.params_of(plain), c.params_of(offloaded), strict=True):
        assert torch.equal(c.bits(p), c.bits(q))
        assert all(value.device.type == "cpu" for value in offloaded.state[q].values())
        for name in ("exp_avg", "exp_avg_scale", "master"):
            if name in plain.state[p]:
                assert torch.equal(c.bits(offloaded.state[q][name]), c.bits(plain.state[p][name]))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_modes(mode):
    plain, offloaded = c.both("adamw", torch.bfloat16)
    for optimizer in (plain, offloaded):
        for p, grad in zip(c.params_of(optimizer), c.gradients(c.params_of(optimizer), 0), strict=True):
            p.grad = grad
        with mode():
            optimizer.step()
    assert not any(value.is_inference() for entry in offloaded.state.values() for value in entry.values())
    c.take((plain, offloaded), 1)
    c.assert_same(plain, offloaded)
