"""A rank that is killed: the others end with an error, and the last checkpoint loads."""

import os
import random
import signal
import time

import pytest
import torch
import torch.distributed.checkpoint as dcp
from shards_of import Weights, close, give_grads
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fusedstep.torch import optim

SHAPES = [(700, 33), (7,), (2, 3, 4)]
#: Seconds of a collective.
WITHIN = 10
#: More of them, of random moments: FUSEDSTEP_KILLS=50 python -m pytest tests/distributed/test_faults.py
KILLS = int(os.environ.get("FUSEDSTEP_KILLS", "3"))


def made(mesh=None):
    model = Weights(SHAPES, torch.float64)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model, optim.AdamW(model.parameters(), max_grad_norm=1.0)


def train_for_ever(rank, world, folder):
    """Steps with a clip, and a checkpoint after every third."""
    model, optimizer = made(init_device_mesh("cpu", (world,)))
    whole = Weights(SHAPES, torch.float64)
    step = 0
    while True:
        give_grads(whole, model, step)
        optimizer.step()
        step += 1
        if step % 3 == 0:
            weights, state = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder / f"{step:04}"))
        (folder / f"rank{rank}").write_text(str(step))


def load_last(folder):
    """The steps of the last checkpoint that is complete, and the model and optimizer that it gives."""
    complete = sorted(path.parent for path in folder.glob("*/.metadata"))
    if not complete:
        return 0, *made()
    model, optimizer = made()
    weights, state = get_state_dict(model, optimizer)
    found = {"model": weights, "optimizer": state}
    dcp.load(found, checkpoint_id=str(complete[-1]), no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    return int(complete[-1].name), model, optimizer


def kill_one(processes, folder, chance):
    """Kills a random rank at a random moment, and looks at what is left."""
    processes.send(train_for_ever, 3, folder, folder, collective=WITHIN)
    started = time.monotonic()
    while len(list(folder.glob("rank*"))) < 3:
        assert time.monotonic() < started + WITHIN + 20, "the ranks do not start"
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.3))
    killed = chance.randrange(3)
    os.kill(processes.processes[killed].pid, signal.SIGKILL)
    answers = processes.receive(3, seconds=WITHIN + 20)
    for rank, answer in enumerate(answers):
        assert (answer is None) == (rank == killed), answers
        assert answer is None or "Error" in answer[1], answer
    steps, model, optimizer = load_last(folder)
    expected, own = made()
    for step in range(steps):
        give_grads(expected, None, step)
        own.step()
    for name, param in expected.named_parameters():
        close(1e-12)(model.get_parameter(name).detach(), param.detach(), name)
        for key, value in own.state[param].items():
            close(1e-12)(optimizer.state[model.get_parameter(name)][key], value, f"{name}: {key}")
    return steps


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # it is said to load so
def test_killed(processes, tmp_path):
    chance, saved = random.Random(20260101), []
    try:
        for number in range(KILLS):
            folder = tmp_path / str(number)
            folder.mkdir()
            saved.append(kill_one(processes, folder, chance))
    except BaseException:
        processes.stop()
        raise
    assert any(saved), "no run came as far as a checkpoint"
