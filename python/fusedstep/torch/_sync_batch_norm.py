"""Batch norm over the ranks of a process group: one collective in the forward pass, one in the backward pass."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fusedstep import _core
from fusedstep.normalization import shared
from fusedstep.torch._batch_norm import running_written, view
from fusedstep.torch._calls import (
    DTYPES,
    check_added,
    check_beside,
    check_input,
    fits,
    is_plain,
    is_traced,
    ordered_as,
    refusal,
    wide,
    without_gaps,
)


class Met:
    """The layers of a group that this rank has compared with the other ranks, each with its number."""

    def __init__(self) -> None:
        self.numbers: Any = weakref.WeakKeyDictionary()
        self.tried = 0


_GROUPS: Any = weakref.WeakKeyDictionary()


class Call(NamedTuple):
    """The arguments of a pass that are no tensors."""

    group: Any
    layer: int  # its number in the group
    text: bytes  # what must be equal on all ranks
    momentum: float
    eps: float
    relu: bool
    gradient: bool  # whether all ranks will exchange sums in the backward pass


def group_of(given: Any) -> Any:
    """The group to exchange statistics with; None if there is no other rank.

    Raises:
        TypeError: `given` is no process group.
        ValueError: This rank is not a member of the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = dist.group.WORLD if given is None else given
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"process_group: rank {dist.get_rank()} is not one of its members")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"process_group: expected a torch.distributed.ProcessGroup, got {type(group).__qualname__}")
    return group if group.size() > 1 else None


def batch_norm(
    layer: torch.nn.Module,
    group: Any,
    input: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    momentum: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """`functional.batch_norm` in training, with the statistics of all ranks; `layer` has the rest.

    Raises:
        TypeError: As `functional.batch_norm`; only on the rank whose argument is wrong.
        ValueError: As `functional.batch_norm`; on all ranks, if one refuses its input or ranks differ. Nothing is
            written.
        RuntimeError: The call is traced; a rank does not call the layer.
    """
    if is_traced():
        raise RuntimeError(
            "SyncBatchNorm of fusedstep.torch exchanges statistics, which torch.func, a tracer or FakeTensorMode "
            "cannot follow. In evaluation it does not."
        )
    number = _meet(layer, group)
    weight, bias, channels = layer.weight, layer.bias, int(layer.num_features)  # type: ignore[arg-type]
    try:
        _check(input, channels, activation, weight=weight, bias=bias, running_mean=running[0], running_var=running[1])
        if not isinstance(layer.eps, float | int) or not 0 < layer.eps < float("inf"):
            raise ValueError(f"eps: expected a finite number > 0, got {layer.eps!r}")
        if running[0] is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum: expected a number in [0, 1], got {momentum!r}")
        x = without_gaps(input)
        # A residual of another shape or dtype is added as torch does, in a separate pass.
        added = ordered_as(residual, x) if residual is not None and fits(residual, input) else None
        if residual is not None and added is None:
            check_added(residual, input)
    except (TypeError, ValueError) as error:
        # The other ranks wait for this one: they raise its error.
        _exchange(group, shared.forward_message(channels, shared.refused(error), None))
        raise
    gradient = torch.is_grad_enabled() and x.requires_grad
    text = shared.described(
        layer=number, channels=channels, dtype=x.dtype, activation=activation, eps=layer.eps,
        momentum=None if running[0] is None else momentum, weight=getattr(weight, "dtype", None),
        running_mean=getattr(running[0], "dtype", None), gradient=gradient,
    )  # fmt: skip
    relu = activation is not None and (residual is None or added is not None)
    call = Call(group, number, text, momentum, layer.eps, relu, gradient)
    apply: Callable[..., Tensor] = AtOnce.apply
    y = apply(x, weight, bias, added, running, call)
    if residual is None or added is not None:
        return y
    y = y + residual
    return y if activation is None else torch.relu(y)


def _check(input: Any, channels: int, activation: str | None, **others: Any) -> None:
    """TypeError or ValueError for invalid arguments."""
    check_input(input, "input")
    if not is_plain(input):
        raise TypeError(f"input: expected a plain tensor, got a {type(input).__qualname__}")
    if input.ndim < 2 or input.shape[1] != channels or channels == 0:
        raise ValueError(f"input: expected (N, {channels}, …), got shape {tuple(input.shape)}")
    if activation is not None and activation != "relu":
        raise ValueError(f"activation: expected 'relu' or None, got {activation!r}")
    check_beside(input, **others)
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.shape != (channels,):
            raise ValueError(f"{name}: expected shape ({channels},), got {tuple(tensor.shape)}")
        if tensor.dtype not in DTYPES or (tensor.dtype == torch.float64 and input.dtype != torch.float64):
            raise TypeError(f"{name}: expected float32 or the dtype of input, {input.dtype}, got {tensor.dtype}")


def _meet(layer: torch.nn.Module, group: Any) -> int:
    """The number of a layer in a group. In its first pass the ranks compare its number of channels.

    Messages of different lengths would end the process in the middle of a collective. So this comparison uses the
    store of the group, once, and no collective.
    """
    met = _GROUPS.setdefault(group, Met())
    if layer in met.numbers:
        return int(met.numbers[layer])
    number: int = met.tried
    met.tried += 1
    store, rank, size = group.get_group_store(), group.rank(), group.size()
    place, text = f"fusedstep/sync_batch_norm/{number}", f"channels: {layer.num_features}"
    store.set(f"{place}/{rank}", text)
    store.add(f"{place}/{text}", 1)
    if store.add(f"{place}/came", 1) == size:
        verdict = "alike"
        if store.add(f"{place}/{text}", 0) != size:
            try:
                shared.require_agreement([store.get(f"{place}/{k}") for k in range(size)], _name(group))
            except shared.DisagreementError as error:
                verdict = str(error)
        store.set(f"{place}/verdict", verdict)
    try:
        verdict = store.get(f"{place}/verdict").decode()
    except RuntimeError as error:
        name = _name(group)
        away = [name(k) for k in range(size) if not store.check([f"{place}/{k}"])]
        raise RuntimeError(f"SyncBatchNorm {number} of the group: {', '.join(away)} did not call it") from error
    if verdict != "alike":
        raise ValueError(verdict)
    met.numbers[layer] = number
    return number


def _name(group: Any) -> shared.Name:
    return lambda k: f"rank {dist.get_global_rank(group, k)}"


def _exchange(group: Any, message: NDArray[np.float64]) -> NDArray[np.float64]:
    """The collective: the messages of all ranks, one per row."""
    table = torch.empty((group.size(), len(message)), dtype=torch.float64)
    dist.all_gather(list(table.unbind()), torch.from_numpy(message), group=group)
    rows: NDArray[np.float64] = table.numpy()
    return rows


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
    residual: Tensor | None,
    call: Call,
) -> tuple[Tensor, int, Tensor | None, Tensor | None]:
    """The output; and, for the backward pass, the count of all ranks' values, the statistics and the mask."""
    message = shared.forward_message(x.shape[1], call.text, _core.batch_norm_stats(view(x, "input"), 1))
    count, mean, m2 = shared.read_forward(_exchange(call.group, message), _name(call.group))
    y = torch.empty_like(x)
    if count == 0:
        return y, 0, None, None
    if count == 1:
        raise ValueError("input: expected more than 1 value per channel of all ranks when training, got 1")
    _, saved = _core.batch_norm_apply(
        view(x, "input"),
        count,
        mean,
        m2,
        view(wide(weight), "weight"),
        view(wide(bias), "bias"),
        call.eps,
        1,
        "relu" if call.relu else None,
        view(residual, "residual"),
        view(y, "out"),
    )
    if running[0] is not None and running[1] is not None:
        wider = (wide(running[0]), wide(running[1]))
        _core.batch_norm_update(
            view(wider[0], "running_mean"), view(wider[1], "running_var"), count, mean, m2, call.momentum, True, False
        )
        running_written(running, wider)
    statistics, mask = _core.batch_norm_parts(saved)
    return y, count, torch.from_numpy(statistics), None if mask is None else torch.from_numpy(mask.view(np.int16))


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    mask: Tensor | None,
    count: int,
    residual: bool,
    call: Call,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dx and dresidual; dweight and dbias of this rank only, because data-parallel engines sum them over ranks."""
    dy = ordered_as(dy, x)
    saved = _core.batch_norm_saved(
        view(x, "input"),
        1,
        view(wide(weight), "weight"),
        statistics.numpy(),
        None if mask is None else mask.numpy().view(np.uint16),
        True,
        residual,
        count,
    )
    sums = _core.batch_norm_backward_sums(view(dy, "dy"), saved)
    dbias = torch.from_numpy(sums[0].copy())
    dweight = torch.from_numpy(sums[1] * statistics[1].numpy())
    if call.gradient:
        message = shared.backward_message(x.shape[1], _backward_text(call), sums)
        sums = shared.read_backward(_exchange(call.group, message), _name(call.group))
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if residual and mask is not None else None
    _core.batch_norm_backward_apply(view(dy, "dy"), saved, *sums, view(dx, "out"), view(dresidual, "residual_out"))
    if residual and dresidual is None:
        dresidual = dy
    kind = x.dtype if weight is None else weight.dtype
    return dx, dweight.to(kind), dbias.to(kind), dresidual


def _backward_text(call: Call) -> bytes:
    return shared.described(layer=call.layer, direction="backward")


class AtOnce(torch.autograd.Function):
    """Forward and backward without the dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        call: Call,
    ) -> Tensor:
        y, ctx.count, statistics, mask = normalize(x, weight, bias, running, residual, call)
        ctx.save_for_backward(x, weight, statistics, mask)
        ctx.call, ctx.residual, ctx.channels = call, residual is not None, x.shape[1]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,) = grads
        try:
            x, weight, statistics, mask = ctx.saved_tensors
        except RuntimeError as error:
            if ctx.call.gradient and ctx.count:
                _exchange(ctx.call.group, shared.backward_message(ctx.channels, shared.refused(error), None))
            raise
        if ctx.count == 0:
            zeros = dy.new_zeros(ctx.channels, dtype=dy.dtype if weight is None else weight.dtype)
            found: Any = (dy, zeros, zeros.clone(), dy if ctx.residual else None)
        else:
            function = Differentiated.apply if torch.is_grad_enabled() else gradients
            found = function(dy, x, weight, statistics, mask, ctx.count, ctx.residual, ctx.call)
        needed = ctx.needs_input_grad
        return *(grad if need else None for grad, need in zip(found, needed[:4], strict=True)), None, None


class Differentiated(torch.autograd.Function):
    """`gradients` under create_graph; differentiating them raises an error."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """As `gradients`."""
        return gradients(*arguments)

    backward = staticmethod(refusal("SyncBatchNorm"))
