"""The optimizers under Accelerate, Lightning, Transformers' Trainer and DeepSpeed, beside PyTorch's.

Each is skipped where its package is not installed; `pip install 'fusedstep[engines]'` has all but DeepSpeed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launcher import Processes
from torch import nn

import fusedstep.torch.optim

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What the packages warn of among themselves is not ours to mend; what the library warns of is.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("error:::fusedstep.*"),
]
LIBRARIES = (torch.optim, fusedstep.torch.optim)
#: Has `HostOffload` send parameters of the CPU through slots too.
SLOTS = {"slots": 2, "slot_elements": 4096}


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["accelerate_digits", "lightning_digits"])
def test_examples_are_short(name):
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 120


class TestAccelerate:
    @pytest.fixture(autouse=True)
    def accelerate(self):
        """The package, without what an earlier test has left in it."""
        accelerate = pytest.importorskip("accelerate")
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        return accelerate

    def test_curves(self, accelerate):
        """Accumulated, clipped, scheduled: to rounding those of PyTorch's optimizer."""
        train = example("accelerate_digits").train
        ours = train("fusedstep", 12, dtype=torch.float64)
        accelerate.state.GradientState._reset_state()
        theirs = train("torch", 12, dtype=torch.float64)
        assert ours[-1] < ours[0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)

    def test_two_processes(self, tmp_path):
        """On half of each batch; every process sees the same losses, and other data than one process alone."""
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = [str(EXAMPLES / "accelerate_digits.py"), "--steps", "20"]
        curves = [
            subprocess.run(
                [sys.executable, *command, *script, "--parts", parts],
                capture_output=True,
                text=True,
                timeout=90,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            ).stdout.split()
            for parts in ("fusedstep", "torch")
        ]
        assert [curve[0] for curve in curves] == ["20", "20"]
        assert float(curves[0][1]) == pytest.approx(float(curves[1][1]), abs=2e-4)

    @pytest.mark.parametrize("offloaded", [False, True])
    def test_a_saved_state_goes_on_with_the_same_bits(self, accelerate, tmp_path, offloaded):
        accelerator = accelerate.Accelerator(cpu=True)
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        if offloaded:
            optimizer = fusedstep.torch.HostOffload(model.parameters(), fusedstep.torch.optim.AdamW, lr=0.1, **SLOTS)
        else:
            optimizer = fusedstep.torch.optim.AdamW(model.parameters(), lr=0.1, ema_decay=0.9)
        model, optimizer = accelerator.prepare(model, optimizer)
        x = torch.randn(8, 4)

        def steps(count):
            for _ in range(count):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()

        steps(2)
        accelerator.save_state(str(tmp_path))
        steps(3)
        after = [p.detach().clone() for p in model.parameters()]
        accelerator.load_state(str(tmp_path))
        steps(3)
        assert all(map(torch.equal, after, model.parameters()))
        assert optimizer.optimizer.report.step == 5

    def test_a_skipped_step_is_seen(self, accelerate):
        """Its scheduler waits for the optimizer, whose report says why."""
        accelerator = accelerate.Accelerator(cpu=True)
        param = nn.Parameter(torch.ones(3))
        optimizer = accelerator.prepare(fusedstep.torch.optim.SGD([param], lr=0.1, skip_nonfinite=True))
        param.grad = torch.full((3,), torch.inf)
        optimizer.step()
        assert torch.equal(param, torch.ones(3))
        assert optimizer.optimizer.report.skipped


class TestLightning:
    @pytest.fixture(autouse=True)
    def lightning(self):
        """The package."""
        return pytest.importorskip("lightning")

    def test_curves(self):
        """Lightning hands the backward pass to the optimizer as its closure."""
        train = example("lightning_digits").train
        ours, theirs = (train(parts, 12, dtype=torch.float64) for parts in ("fusedstep", "torch"))
        assert ours[-1] < ours[0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)

    def test_a_checkpoint_goes_on_with_the_same_bits(self, lightning, tmp_path):
        one = torch.utils.data.TensorDataset(torch.ones(4, 64), torch.arange(4))
        batches = torch.utils.data.DataLoader(one, batch_size=4)
        module = example("lightning_digits")

        def trained(steps, path=None):
            lightning.seed_everything(0, verbose=False)
            model = module.Digits("fusedstep", state_dtype="8bit", min_8bit_size=1, amsgrad=True)
            trainer = lightning.Trainer(accelerator="cpu", max_steps=steps, **module.SETTINGS)
            trainer.fit(model, batches, ckpt_path=path, **({"weights_only": False} if path else {}))
            return trainer, [p.detach().clone() for p in model.parameters()]

        trainer, _ = trained(3)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        resumed, whole = trained(7, str(tmp_path / "run.ckpt"))[1], trained(7)[1]
        assert all(map(torch.equal, resumed, whole))

    def test_parameters_of_16_bits(self, lightning):
        """With masters, small steps are not lost."""
        module = example("lightning_digits")
        rows = torch.utils.data.TensorDataset(torch.ones(4, 64, dtype=torch.bfloat16), torch.arange(4))
        model = module.Digits("fusedstep", master_weights=True)
        trainer = lightning.Trainer(accelerator="cpu", max_steps=3, precision="bf16-true", **module.SETTINGS)
        trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=4))
        optimizer = model.optimizers(use_pl_optimizer=False)
        for param in model.parameters():
            assert param.dtype == torch.bfloat16
            assert torch.equal(param, optimizer.state[param]["master"].bfloat16())

    def test_offloaded(self, lightning):
        """With the bits of the optimizer itself, with masters."""
        module = example("lightning_digits")
        rows = torch.utils.data.TensorDataset(torch.ones(4, 64, dtype=torch.bfloat16), torch.arange(4))

        class Offloaded(module.Digits):
            def configure_optimizers(self):
                adamw = fusedstep.torch.optim.AdamW
                return fusedstep.torch.HostOffload(self.layers.named_parameters(), adamw, lr=5e-3, **SLOTS)

        class Kept(module.Digits):
            def configure_optimizers(self):
                return fusedstep.torch.optim.AdamW(self.layers.parameters(), lr=5e-3, master_weights=True)

        found = []
        for kind in (Offloaded, Kept):
            lightning.seed_everything(0, verbose=False)
            model = kind("fusedstep")
            trainer = lightning.Trainer(accelerator="cpu", max_steps=5, precision="bf16-true", **module.SETTINGS)
            trainer.fit(model, torch.utils.data.DataLoader(rows, batch_size=4))
            found.append([p.detach() for p in model.parameters()])
        assert all(map(torch.equal, *found))


class TestTrainer:
    @pytest.fixture(autouse=True)
    def transformers(self, monkeypatch):
        """The package, which must not ask anybody for anything."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("accelerate")
        return pytest.importorskip("transformers")

    def trained(self, transformers, kind, folder, *, resume=None, **more):
        """Losses of six steps, the trainer and its model's parameters."""
        torch.manual_seed(0)
        shape = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        config = transformers.GPT2Config(vocab_size=32, bos_token_id=0, eos_token_id=0, **shape)
        rows = [{"input_ids": (torch.arange(8) + k) % 32, "labels": (torch.arange(8) + k) % 32} for k in range(24)]
        arguments = transformers.TrainingArguments(
            str(folder),
            max_steps=6,
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            save_steps=3,
            weight_decay=0.1,
            learning_rate=0.5,
        )
        trainer = transformers.Trainer(
            transformers.GPT2LMHeadModel(config),
            arguments,
            train_dataset=rows,
            optimizer_cls_and_kwargs=(kind, {"lr": 1e-2, **more}),
        )
        trainer.train(resume_from_checkpoint=resume)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer, [p.detach().clone() for p in trainer.model.parameters()]

    def test_beside_pytorch(self, transformers, tmp_path):
        theirs, ours = (self.trained(transformers, library.AdamW, tmp_path)[0] for library in LIBRARIES)
        assert len(ours) == 6
        assert ours[-1] < ours[0]
        np.testing.assert_allclose([*map(float, ours)], [*map(float, theirs)], atol=2e-3)

    @pytest.mark.parametrize("offloaded", [False, True])
    def test_a_checkpoint_goes_on_with_the_same_bits(self, transformers, tmp_path, offloaded):
        ours, more = fusedstep.torch.optim.AdamW, {"state_dtype": "bfloat16"}
        if offloaded:
            ours, more = fusedstep.torch.HostOffload, {"optimizer": ours, **SLOTS, **more}
        _, trainer, whole = self.trained(transformers, ours, tmp_path, **more)
        assert trainer.optimizer.optimizer.report.step == 6
        groups = trainer.optimizer.param_groups
        assert [(group["weight_decay"], group["state_dtype"]) for group in groups] == [
            (0.1, "bfloat16"),
            (0, "bfloat16"),
        ]
        checkpoint = str(tmp_path / "checkpoint-3")
        resumed = self.trained(transformers, ours, tmp_path, resume=checkpoint, **more)[2]
        assert all(map(torch.equal, whole, resumed))


#: What DeepSpeed is told in each case.
ZERO = {
    "none": {},
    "stage 1": {"zero_optimization": {"stage": 1}, "gradient_clipping": 0.1},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 2, offloaded": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "stage 3, offloaded": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
}
ALLOWED = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def started_deepspeed(rank, ranks):
    """DeepSpeed on the CPU, within a group that is there."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({"DS_ACCELERATOR": "cpu", **{name: str(value) for name, value in place.items()}})
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    return deepspeed


def with_deepspeed(rank, ranks, config, library, steps=5):
    """An engine around a small network, after some steps, and the last loss."""
    deepspeed = started_deepspeed(rank, ranks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = library.AdamW(model.parameters(), lr=1e-2)
    common = {"train_micro_batch_size_per_gpu": 4, "steps_per_print": 10**9, "bf16": {"enabled": True}}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={**common, **config})
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        loss = engine(torch.randn(4, 8, generator=generator).bfloat16()).float().square().mean()
        engine.backward(loss)
        engine.step()
    return engine, loss.item()


def losses(rank, ranks):
    """The last loss of every case, with PyTorch's optimizer and with ours."""
    return {
        name: [with_deepspeed(rank, ranks, {**ALLOWED, **config}, library)[1] for library in LIBRARIES]
        for name, config in ZERO.items()
    }


def refusals(rank, ranks):
    """What DeepSpeed says to an optimizer that it does not know."""
    said = []
    for config in (ZERO["stage 1"], {**ZERO["stage 2, offloaded"], "zero_allow_untested_optimizer": True}):
        try:
            with_deepspeed(rank, ranks, config, fusedstep.torch.optim, 0)
        except Exception as error:
            said.append(str(error))
    return said


def continued(rank, ranks, folder):
    """The parameters after three more steps: from a checkpoint, and at once."""
    config = {**ALLOWED, **ZERO["stage 2"]}
    engine, _ = with_deepspeed(rank, ranks, config, fusedstep.torch.optim)
    engine.save_checkpoint(folder)
    other, _ = with_deepspeed(rank, ranks, config, fusedstep.torch.optim, 1)
    other.load_checkpoint(folder)
    found = []
    for each in (engine, other):
        for k in range(3):
            each.backward(each(torch.full((4, 8), 0.1 * k).bfloat16()).float().square().mean())
            each.step()
        found.append([p.detach().float().tolist() for p in each.module.parameters()])
    return found


def all_of_deepspeed(rank, ranks, folder):
    """In one group, as DeepSpeed keeps the first one that it sees."""
    return losses(rank, ranks), refusals(rank, ranks), continued(rank, ranks, folder)


@pytest.fixture(scope="module")
def deepspeed_said(tmp_path_factory):
    """Of each of two ranks, in processes of their own."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("could not import 'deepspeed'")
    folder, started = tmp_path_factory.mktemp("deepspeed"), Processes()
    try:
        return started.run(all_of_deepspeed, 2, folder, str(folder / "saved"))
    finally:
        started.stop()


class TestDeepSpeed:
    def test_beside_pytorch(self, deepspeed_said):
        for found, _, _ in deepspeed_said:
            assert set(found) == set(ZERO)
            for theirs, ours in found.values():
                assert ours == pytest.approx(theirs, rel=1e-2)  # a unit of bfloat16

    def test_what_it_refuses(self, deepspeed_said):
        for _, (untested, slow), _ in deepspeed_said:
            assert 'Please add <"zero_allow_untested_optimizer": true>' in untested
            assert '"zero_force_ds_cpu_optimizer": false' in slow

    def test_a_checkpoint_goes_on_with_the_same_bits(self, deepspeed_said):
        for _, _, (at_once, loaded) in deepspeed_said:
            assert at_once == loaded
