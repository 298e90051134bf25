"""What the native step asks of tensors beyond where their memory lies."""

from sys import getrefcount
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from fusedstep.reference.codec import encode_8bit, scale_count
from fusedstep.sparse import RowSparse


def _references_tell() -> bool:
    weight, other = torch.ones((), requires_grad=True), torch.ones(())
    before = getrefcount(other)
    product = weight * other
    return getrefcount(other) > before and product.requires_grad


#: Whether a tensor that PyTorch saves for a backward pass has one reference more in Python's count.
with torch.inference_mode(False), torch.enable_grad():
    REFERENCES_TELL = _references_tell()

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Rules whose optimizers count steps in no tensor, as PyTorch's do: in a Python number, or where an option needs it.
COUNTS = {"sparse_adam": "number", "sgd": "where needed", "muon": "where needed"}


def refuse(tensor: Tensor, name: str) -> None:
    """TypeError or ValueError where a tensor is none whose numbers lie in this process's memory as they are."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one with layout {tensor.layout}")
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
    if tensor.dtype not in (*FLOATS, torch.uint8):
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {_dtype_name(tensor)}")
    if tensor.is_neg():
        raise ValueError(f"{name}: expected a tensor without a lazy negation, got a negated view")


def refuse_param(param: Tensor, name: str) -> None:
    """The same of a parameter, which is written."""
    refuse(param, name)
    if param.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {_dtype_name(param)}")
    if param.is_inference():
        raise ValueError(f"{name}: expected a normal tensor, got one made in inference mode")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def local(tensor: Any, name: str) -> Any:
    """A plain tensor of the same memory: of a DTensor, its part in this process."""
    if not isinstance(tensor, Tensor):
        return tensor
    part = getattr(tensor, "_local_tensor", None)  # what `to_local` gives, without its detour through autograd
    if type(part) is Tensor:
        refuse(part, name)
        return part.detach()
    with torch.no_grad():
        if hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
        refuse(tensor, name)
        if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise TypeError(f"{name}: expected a plain tensor, got {type(tensor).__qualname__}")
        with torch._C.DisableTorchFunctionSubclass():
            return tensor.detach()


def gradient(grad: Any, name: str) -> Any:
    """A gradient whose memory no table tells of: a row-sparse one, or `local`."""
    if not isinstance(grad, Tensor) or grad.layout is not torch.sparse_coo:
        return local(grad, name)
    if grad.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {grad.device}")
    if grad.sparse_dim() != 1:
        raise ValueError(f"{name}: expected rows, of one sparse axis, got a gradient with {grad.sparse_dim()}")
    return RowSparse(grad._indices()[0], grad._values(), tuple(grad.shape))


def state_shape(param: Tensor, shape: str) -> list[int]:
    """The lengths of a state: of its parameter, or with one number for each of its rows or columns."""
    lengths = list(param.shape)
    if shape != "same":
        lengths[-1 if shape == "rows" else -2] = 1
    return lengths


@torch.inference_mode(False)
@torch.no_grad()
def new_state(param: Tensor, stored: str, shape: str, value: float, copies: bool) -> tuple[Tensor, Tensor | None]:
    """A state as it begins, and its scales where it is of 8 bits (`int8`, or `uint8` where it is never below 0)."""
    if shape != "same":
        return param.new_zeros(state_shape(param, shape), dtype=getattr(torch, stored)), None
    if stored not in ("int8", "uint8"):
        dtype = getattr(torch, stored)
        if copies:
            return param.detach().to(dtype, copy=True), None
        state = torch.zeros_like(param, dtype=dtype)
        return state.fill_(value) if value else state, None
    codes, scale = encode_8bit(np.full(1, value, np.float32), stored == "int8")
    state = torch.full_like(param, int(codes[0]), dtype=torch.uint8)
    count = scale_count(local(param, "params").numel())
    return state, torch.full((count,), float(scale[0]), dtype=torch.float32, device=state.device)


@torch.inference_mode(False)
@torch.no_grad()
def copied(param: Tensor) -> Tensor:
    """A copy in the dtype of the arithmetic: float32 of what has fewer bits."""
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    return param.detach().to(dtype, copy=True)


@torch.inference_mode(False)
def number(value: float) -> Tensor:
    """A number of the state, in PyTorch's dtype for it."""
    return torch.tensor(value, dtype=_get_scalar_dtype(), device="cpu")  # type: ignore[no-untyped-call]
