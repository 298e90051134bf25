"""What the ranks of the tests of SyncBatchNorm do."""

import copy
import pickle
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.tensor
import torch.fx.experimental.proxy_tensor
import torch.utils.flop_counter

from fusedstep.torch import SyncBatchNorm, convert_sync_batch_norm
from fusedstep.torch import nn as ours


def plain(tensor):
    """A tensor as an array; of 16 bits in float32, which holds it."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return (tensor.float() if tensor.element_size() == 2 else tensor).contiguous().numpy().copy()


def collectives():
    """How many have been called in the group of all ranks."""
    return dist.group.WORLD._get_sequence_number_for_group()


def layer_of(channels, options, state):
    layer = SyncBatchNorm(channels, **options)
    layer.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    return layer


def tensor_of(array, dtype, last):
    x = torch.from_numpy(array).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def passes(
    rank, size, batches, state, options, dtype="float64", last=False, residual=False, training=True, frozen=False
):
    """Some passes over this rank's parts: outputs, gradients and state, and the collectives of each."""
    kind = getattr(torch, dtype)
    channels = batches[0][0][0].shape[1]
    layer = layer_of(channels, options, state).train(training)
    found = {"y": [], "dx": [], "dweight": [], "dbias": [], "dresidual": [], "calls": [], "strides": []}
    for parts in batches:
        x, r, dy = (tensor_of(array, kind, last) for array in parts[rank])
        x.requires_grad_(not frozen)
        r = r.requires_grad_() if residual else None
        layer.zero_grad()
        before = collectives()
        y = layer(x, r)
        between = collectives()
        y.backward(dy)
        found["calls"].append((between - before, collectives() - between))
        found["y"].append(plain(y))
        found["dx"].append(plain(x.grad))
        found["dweight"].append(plain(layer.weight.grad) if layer.affine else None)
        found["dbias"].append(plain(layer.bias.grad) if layer.affine else None)
        found["dresidual"].append(plain(r.grad) if residual else None)
        found["strides"].append((y.stride() == x.stride(), y.dtype == x.dtype, frozen or x.grad.dtype == x.dtype))
    found["state"] = {name: plain(value) for name, value in layer.state_dict().items()}
    return found


def disagreeing(rank, size, layers, inputs):
    """A pass of a layer and an input of each rank's own; then one that all agree about."""
    arguments, change = layers[rank], inputs[rank]
    layer = SyncBatchNorm(**arguments)
    x = torch.ones(change.get("shape", (2, 3)), dtype=getattr(torch, change.get("dtype", "float32")))
    x = x.requires_grad_(change.get("gradient", True))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    try:
        layer(x.to_sparse() if change.get("sparse") else x)
        text = None
    except (TypeError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
    kept = all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    again = SyncBatchNorm(3)
    y = again(torch.full((1, 3), float(rank)))
    return text, kept, plain(y), plain(again.running_mean)


def subgroup(rank, size, members):
    """A layer over some of the ranks."""
    group = dist.new_group(members)
    layer = SyncBatchNorm(2, process_group=group)
    x = torch.full((1, 2), float(rank))
    if rank in members:
        return plain(layer(x))
    layer.eval()
    layer(x)
    layer.train()
    return plain(layer(x))


def alone(rank, size):
    """A group of this rank only, and one in evaluation."""
    groups = [dist.new_group([k]) for k in range(size)]
    layer, plain_layer = SyncBatchNorm(2, process_group=groups[rank]), ours.BatchNorm1d(2)
    x = torch.randn(4, 2)
    before = collectives()
    same = torch.equal(layer(x), plain_layer(x)) and torch.equal(layer.running_var, plain_layer.running_var)
    layer.process_group = None
    return same and torch.equal(layer.eval()(x), plain_layer.eval()(x)), collectives() - before


def wrong_group(rank, size):
    """What is no group."""
    return SyncBatchNorm(2, process_group=[0, 1])(torch.ones(2, 2))


def without_group(rank, size):
    """Without torch.distributed."""
    layer, plain_layer = SyncBatchNorm(2), ours.BatchNorm1d(2)
    x = torch.randn(4, 2)
    return torch.equal(layer(x), plain_layer(x)), torch.equal(layer.running_var, plain_layer.running_var)


def second_derivative(rank, size):
    """A gradient with create_graph, and its derivative."""
    layer = SyncBatchNorm(2)
    x = torch.randn(3, 2, dtype=torch.float32).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    wanted = torch.autograd.grad(layer(x).square().sum(), x)[0]
    same = torch.equal(dx, wanted)
    try:
        dx.sum().backward()
    except RuntimeError as error:
        return same, str(error)
    return same, ""


def overwritten(rank, size):
    """A backward pass whose input one rank has changed since."""
    layer = SyncBatchNorm(2)
    x = torch.randn(3, 2).requires_grad_()
    h = x * 1.0
    y = layer(h)
    if rank == 1:
        with torch.no_grad():
            h.zero_()
    y.sum().backward()


def copies(rank, size):
    """A copy of a layer with a group of its own, and its pickle."""
    group = dist.new_group([0, 1])
    layer = SyncBatchNorm(2, process_group=group)
    shared = copy.deepcopy(layer).process_group is group and copy.copy(layer).process_group is group
    y = copy.deepcopy(layer)(torch.full((1, 2), float(rank)))
    try:
        pickle.dumps(layer)
    except TypeError as error:
        return shared, plain(y), str(error)
    return shared, plain(y), None


def missing(rank, size):
    """A rank that does not come, and a time-out."""
    if rank != 1:
        dist.group.WORLD.get_group_store().set_timeout(timedelta(seconds=0.3))
        SyncBatchNorm(2)(torch.ones(2, 2))


def over_tcp(rank, size, port):
    """With a store at a port, as torchrun gives one."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size,
                            timeout=timedelta(seconds=20))  # fmt: skip
    try:
        return plain(SyncBatchNorm(2)(torch.full((1, 2), float(rank))))
    finally:
        dist.destroy_process_group()


def tracers(rank, size):
    """What looks on, and what it is told."""
    layer, x = SyncBatchNorm(2), torch.randn(3, 2)
    wanted = plain(layer(x))
    proxies = torch.fx.experimental.proxy_tensor
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (size,))
    dtensor = torch.distributed.tensor.distribute_tensor(x, mesh, [torch.distributed.tensor.Replicate()])

    def fake():
        with torch._subclasses.FakeTensorMode():
            layer(torch.randn(3, 2))

    calls = {
        "make_fx": lambda: proxies.make_fx(layer)(x),
        "make_fx_fake": lambda: proxies.make_fx(layer, tracing_mode="fake")(x),
        "jit": lambda: torch.jit.trace(layer, x),
        "grad": lambda: torch.func.grad(lambda x: layer(x).sum())(x),
        "vmap": lambda: torch.vmap(layer)(x[None]),
        "fake": fake,
        "dtensor": lambda: layer(dtensor),
    }
    heard = {}
    for name, call in calls.items():
        try:
            call()
            heard[name] = None
        except (RuntimeError, TypeError) as error:
            heard[name] = f"{type(error).__name__}: {error}"
    # Who only counts is no tracer.
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        counted = plain(layer(x))
    compiled = torch.compile(layer.eval(), backend="aot_eager", fullgraph=True)
    meta = SyncBatchNorm(2, device="meta")(torch.randn(3, 2, device="meta"))
    return heard, np.array_equal(wanted, counted), torch.equal(compiled(x), layer(x)), tuple(meta.shape)


def residuals(rank, size, parts):
    """Residuals that are not like the input."""
    x = torch.from_numpy(parts[rank])
    layer = SyncBatchNorm(3, activation="relu", dtype=torch.float64)
    found = [plain(layer(x, torch.full((3,), -0.25))), plain(layer(x, 0.5)), plain(layer(x, x.float()))]
    try:
        layer(x, torch.ones(7))
    except ValueError as error:
        return found, str(error)
    return found, None


def network():
    """A small one, with two layers to convert."""
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3, bias=False),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(36, 3),
    )


def batches_of(steps, dtype):
    """Inputs and labels of every step, and where each of up to three ranks' part begins; some parts are empty."""
    source = torch.Generator().manual_seed(5)
    for step in range(steps):
        x = torch.randn(9, 2, 7, 7, generator=source, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, 3, (9,), generator=source)
        yield x, labels, {2: (0, 4 + step % 3, 9), 3: (0, 3, 3 + 3 * (step % 2), 9)}


def mean_loss(model, x, labels, share):
    """The sum over this part's samples, of which `share` is the mean over all."""
    return torch.nn.functional.cross_entropy(model(x), labels, reduction="sum") * share


def train(rank, size, engine, steps, dtype="float64", checkpoint=False, each=False):
    """Parameters and buffers after some steps on this rank's parts."""
    kind = getattr(torch, dtype)
    model = convert_sync_batch_norm(network().to(kind))
    if engine == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    elif engine == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (size,))
        for layer in [layer for layer in model if each and list(layer.parameters())]:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    else:
        wrapped = torch.compile(torch.nn.parallel.DistributedDataParallel(model), backend="eager")
    opt = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    for x, labels, cuts in batches_of(steps, kind):
        part = slice(*cuts[size][rank : rank + 2])
        call = wrapped
        if checkpoint:
            call = lambda x: torch.utils.checkpoint.checkpoint(wrapped, x, use_reentrant=False)  # noqa: E731
        opt.zero_grad()
        # Engines average over ranks.
        mean_loss(call, x[part], labels[part], size / len(x)).backward()
        opt.step()
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in
             model.state_dict().items()}  # fmt: skip
    return {name: plain(value) for name, value in whole.items()}
