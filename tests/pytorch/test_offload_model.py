"""`HostOffload` in training: a Transformer beside a plain loop with masters, threads, a part of the parameters."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import offload_cases as c
import pytest
import torch

import fusedstep as fs
from fusedstep.torch import HostOffload, optim
from fusedstep.torch.offload import threads

ROOT = Path(__file__).parents[2]
STEPS = int(os.environ.get("FUSEDSTEP_OFFLOAD_STEPS", "12"))


def transformer():
    spec = importlib.util.spec_from_file_location("char_transformer", ROOT / "examples/char_transformer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Masters:
    """Float32 copies, stepped by the NumPy reference, and rounded by PyTorch into the parameters."""

    def __init__(self, params, **arguments):
        self.params = list(params)
        self.masters = [p.detach().float().numpy() for p in self.params]
        self.optimizer = fs.AdamW(self.masters, **arguments)

    def step(self):
        with fs.runtime.use_isa("numpy"), torch.no_grad():
            self.optimizer.step([p.grad.float().numpy() for p in self.params])
            for p, master in zip(self.params, self.masters, strict=True):
                p.copy_(torch.from_numpy(master))

    def zero_grad(self):
        for p in self.params:
            p.grad = None


def losses(example, model, optimizer, steps):
    text = torch.tensor([example.LETTERS.index(letter) for letter in example.TEXT])
    generator = torch.Generator().manual_seed(1)
    criterion = torch.nn.CrossEntropyLoss()
    for _ in range(steps):
        starts = torch.randint(0, len(text) - example.CONTEXT, (4, 1), generator=generator)
        window = text[starts + torch.arange(example.CONTEXT + 1)]
        for half in (window[:2], window[2:]):
            loss = criterion(model(half[:, :-1]).flatten(0, 1).float(), half[:, 1:].flatten()) / 2
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


@pytest.mark.parametrize("way", [{"slots": 3, "slot_elements": 8192}, {}], ids=["slots", "direct"])
def test_transformer(way):
    """In bfloat16, two backward passes a step, clipped: the bits of masters and weights."""
    example = transformer()
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(example.Transformer(torch.nn.Identity()).bfloat16())
    arguments = {"lr": 3e-3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    plain = Masters(models[0].parameters(), **arguments)
    offloaded = HostOffload(models[1].named_parameters(), optim.AdamW, **way, **arguments)
    curves = [list(losses(example, *pair, STEPS)) for pair in zip(models, (plain, offloaded), strict=True)]
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0]
    for p, q, master in zip(models[0].parameters(), models[1].parameters(), plain.masters, strict=True):
        assert torch.equal(c.bits(p), c.bits(q))
        assert torch.equal(c.bits(torch.from_numpy(master)), c.bits(offloaded.state[q]["master"]))


class TestFraction:
    @pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
    @pytest.mark.parametrize("fraction", [0.01, 0.9])
    @pytest.mark.parametrize("rule", ["adamw", "sgd", "rmsprop"])
    def test_the_rest_is_stepped_by_torch(self, rule, fraction, options):
        """On masters: what all on the host gives, but for rounding."""
        momentum = {"momentum": 0.9} if rule == "sgd" else {}
        plan = {"slots": 2, "slot_elements": 4096, "offload_fraction": fraction}
        plain, offloaded = c.both(rule, torch.bfloat16, offloaded=plan, lr=0.01, **momentum, **options)
        c.take((plain, offloaded), 3)
        params = c.params_of(offloaded)
        assert [p in offloaded._native.staying(offloaded.param_groups) for p in params] == [
            *(fraction < 0.5 for _ in range(4)),
            *(True for _ in range(2)),
        ]
        for p, q in zip(c.params_of(plain), params, strict=True):
            torch.testing.assert_close(offloaded.state[q]["master"], plain.state[p]["master"], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(q, p, rtol=2**-7, atol=1e-6)
        if options:
            assert offloaded.report.grad_norm == pytest.approx(plain.report.grad_norm, rel=1e-6)
        assert offloaded.report.step == 3
        state = offloaded.state_dict()
        offloaded.load_state_dict(state)
        for optimizer in (plain, offloaded):
            with torch.no_grad():
                for p in c.params_of(optimizer):
                    p.fill_(0.5)
        c.take((plain, offloaded), 1, first=3)
        for p, q in zip(c.params_of(plain), params, strict=True):
            torch.testing.assert_close(offloaded.state[q]["master"], plain.state[p]["master"], rtol=1e-5, atol=1e-7)

    def test_skips(self):
        plan = {"slots": 1, "slot_elements": 4096, "offload_fraction": 0.9}
        _, offloaded = c.both("adamw", torch.bfloat16, offloaded=plan, skip_nonfinite=True)
        params = c.params_of(offloaded)
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.ones_like(p)
        params[-1].grad[0, 0, 0] = float("inf")
        offloaded.step()
        assert offloaded.report.skipped
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert not offloaded.state

    @pytest.mark.parametrize(
        ("kind", "given", "message"),
        [
            (optim.Lion, {}, "offload_fraction: expected 1 with Lion, which torch.optim does not have"),
            (optim.AdamW, {"ema_decay": 0.9}, "ema_decay: expected None with offload_fraction < 1, got 0.9"),
            (optim.AdamW, {"state_dtype": "8bit"}, "state_dtype: expected 'float32' with offload_fraction < 1"),
            (optim.AdamW, {"offload_fraction": 0}, r"offload_fraction: expected a number in \(0, 1\], got 0"),
        ],
    )
    def test_refuses(self, kind, given, message):
        with pytest.raises(ValueError, match=message):
            HostOffload(c.parameters(torch.bfloat16), kind, **{"offload_fraction": 0.5, "slots": 2, **given})


class TestThreads:
    @pytest.fixture(autouse=True)
    def eight(self, monkeypatch):
        """A machine of 8 processors, and nothing that torchrun sets."""
        for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "FUSEDSTEP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(threads._core, "usable_processors", lambda: 8)
        monkeypatch.setattr(threads, "num_threads", lambda: 1)
        monkeypatch.setattr(threads, "_is_bound", lambda: False)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    @pytest.mark.parametrize(("ranks", "expected"), [("2", 4), ("3", 2), ("8", 1), ("64", 1), ("", None), ("x", None)])
    def test_shared_out(self, monkeypatch, ranks, expected):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert threads.budget() == expected

    def test_bound_by_the_launcher(self, monkeypatch):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        monkeypatch.setattr(threads, "_is_bound", lambda: True)
        assert threads.budget() == 8

    def test_chosen_by_somebody(self, monkeypatch):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setattr(threads, "num_threads", lambda: 3)
        assert threads.budget() is None
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert threads.budget() is None
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(threads, "num_threads", lambda: 1)
        assert threads.budget() == 4
        monkeypatch.setenv("FUSEDSTEP_NUM_THREADS", "1")
        assert threads.budget() is None

    def test_without_torchruns_threads(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert threads.budget() is None
        monkeypatch.setattr(threads, "num_threads", lambda: 8)
        assert threads.budget() == 4


def test_threads_of_a_step():
    """As torchrun starts it: the step takes what OMP_NUM_THREADS=1 would not give, and gives it back."""
    code = """
import torch
from fusedstep import runtime
from fusedstep.torch import HostOffload, optim
from fusedstep.torch.offload import step, threads
threads._core.usable_processors = lambda: 6
seen = []
whole = step.OffloadStep._whole
step.OffloadStep._whole = lambda self, *a: (seen.append(runtime.num_threads()), whole(self, *a))[1]
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
HostOffload([weight], optim.AdamW).step()
print(seen, runtime.num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name != "FUSEDSTEP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split("\n")[0] == "[3] 1"


def test_new_memory_is_untouched():
    """The threads of the first step touch it first: before, its pages are not there."""
    code = """
import os
import torch
from fusedstep.torch.offload.states import untouched
def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
row = untouched(16 << 20, torch.float32)
made = resident()
row.add_(1.0)
print(made - before, resident() - made)
"""
    # A process of its own: in this one the memory may be what other tests have touched, and freed.
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    made, touched = map(int, ran.stdout.split())
    assert made < 16 << 20
    assert touched > 48 << 20
