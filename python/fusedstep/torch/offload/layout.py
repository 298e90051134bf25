"""Tensors as rows of numbers in the order of their memory, on any device."""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fusedstep.torch.optim.shards import is_dtensor
from fusedstep.torch.optim.tensors import FLOATS

#: Memory of a device from an address to another, with what errors call it.
Span = tuple[str, int, int, str]
#: Dtypes whose arithmetic is another's: float32.
NARROW = (torch.bfloat16, torch.float16)


def exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def here(tensor: Any) -> Any:
    """A tensor without its history; of a DTensor its part in this process."""
    if is_dtensor(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()
    return tensor.detach()


def as_part(tensor: Tensor, param: Any) -> Tensor:
    """A tensor on the host beside what is here of a parameter: as a DTensor where the parameter is one."""
    if not is_dtensor(param):
        return tensor
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # Not from_local, which copies to the device of the mesh.
    meta = TensorMeta(param.shape, param.stride(), tensor.dtype)
    spec = DTensorSpec(param.device_mesh, param.placements, tensor_meta=meta)
    whole: Tensor = DTensor(tensor, spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return whole


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements lie side by side in some order, each once."""
    if tensor.numel() == 0:
        return True
    expected = 1
    for stride, length in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= length
    return True


def same_order(tensor: Tensor, other: Tensor) -> bool:
    """Whether two dense tensors of one shape have their elements in the same order of memory."""
    if tensor.numel() == 0:
        return True
    axes = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(length == 1 or mine == theirs for length, mine, theirs in axes)


def flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as one row of the same memory, whose writes count as the tensor's."""
    return tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def refuse_freed(tensor: Tensor, name: str) -> None:
    """ValueError where a tensor's storage does not have its elements (any more)."""
    if tensor.numel() == 0:
        return
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + last + 1) * tensor.element_size():
        raise ValueError(f"{name}: its storage is smaller than its shape: it was resized or freed")


def refuse_param(param: Any, name: str) -> None:
    """TypeError or ValueError where a parameter is none that can be copied to the host piece by piece."""
    if param.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one with layout {param.layout}")
    if param.is_meta:
        raise TypeError(f"{name}: expected a tensor with data, got one on meta")
    local = here(param)
    if type(local).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(f"{name}: expected a plain tensor, got {type(param).__qualname__}")
    if param.dtype not in FLOATS:
        got = str(param.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {got}")
    if param.is_inference():
        raise ValueError(f"{name}: expected a normal tensor, got one made in inference mode")
    if local.is_neg():
        raise ValueError(f"{name}: expected a tensor without a lazy negation, got a negated view")
    if not is_dense(local):
        raise ValueError(f"{name}: expected elements without gaps in memory, got strides {local.stride()}")


def read_gradient(param: Tensor, grad: Any, name: str) -> Tensor:
    """A gradient beside what is here of its parameter, checked, with its elements in the same order.

    Those of another order are copied on the device.

    Raises:
        TypeError: It is sparse, on another device, or of a dtype whose values the arithmetic does not hold.
        ValueError: It has another shape.
    """
    if grad.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one with layout {grad.layout}")
    grad = here(grad)
    if grad.device != param.device:
        raise TypeError(f"{name}: expected a tensor on {param.device}, as its parameter, got one on {grad.device}")
    if not _holds(param.dtype, grad.dtype):
        expected = str(param.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected dtype {expected}, got {str(grad.dtype).removeprefix('torch.')}")
    if grad.shape != param.shape:
        raise ValueError(f"{name}: expected shape {tuple(param.shape)}, got {tuple(grad.shape)}")
    refuse_freed(grad, name)
    if is_direct(param, grad):
        return flat(grad)
    with torch.no_grad():
        ordered = torch.empty_like(param, dtype=grad.dtype, requires_grad=False)
        return flat(ordered.copy_(grad))


def is_direct(param: Tensor, grad: Tensor) -> bool:
    """Whether a gradient can be read where it lies."""
    return (
        grad.layout is torch.strided
        and grad.device == param.device
        and grad.shape == param.shape
        and _holds(param.dtype, grad.dtype)
        and type(grad).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not grad.is_neg()
        and is_dense(grad)
        and same_order(grad, param)
    )


def _span(tensor: Tensor, name: str) -> Span:
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name


def refuse_overlaps(named: Iterable[tuple[str, Tensor]]) -> list[Span]:
    """Where dense tensors lie, in order; ValueError where two of them share memory."""
    spans = sorted(_span(tensor, name) for name, tensor in named if tensor.numel())
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(f"{other}: overlaps {name} in memory")
    return spans


def overlapped(spans: list[Span], tensor: Tensor) -> str | None:
    """The name of one of the spans in which a dense tensor lies, or some of it."""
    device, start, end, _ = _span(tensor, "")
    place = bisect_left(spans, (device, end)) - 1
    if place < 0 or start == end or spans[place][0] != device or spans[place][2] <= start:
        return None
    return spans[place][3]


def is_alone(grad: Tensor) -> bool:
    """Whether nobody can write into a gradient without its version: not so in a bucket of `DistributedDataParallel`."""
    return not grad._is_view() and grad.untyped_storage().nbytes() == grad.nbytes


def _holds(stored: torch.dtype, grad: torch.dtype) -> bool:
    if stored == torch.float64:
        return grad == torch.float64
    return grad in FLOATS and grad != torch.float64
