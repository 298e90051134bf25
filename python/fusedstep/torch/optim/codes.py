"""8-bit states of shards. State dicts have them as float32, because each scale belongs to a block of one shard."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.reference.codec import SCALED, SIGNED, UNSIGNED, decode_8bit, encode_8bit, in_memory_order
from fusedstep.torch.optim.shards import is_sharded


def _signed(rule: str, name: str) -> bool:
    return name not in _core.rules()[rule]["squares"]


def _vector(tensor: Tensor) -> Any:
    return in_memory_order(tensor.detach().numpy())


def without_codes(rule: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A parameter's entry of a state dict, with float32 values in place of the 8-bit codes of shards."""
    coded = [name for name, value in entry.items() if is_sharded(value) and value.dtype == torch.uint8]
    if not coded:
        return entry
    found = {name: value for name, value in entry.items() if name.removesuffix("_scale") not in coded}
    return found | {name: _decoded(entry[name], entry[f"{name}_scale"], _signed(rule, name)) for name in coded}


@torch.no_grad()
def _decoded(codes: Any, scales: Tensor, signed: bool) -> Tensor:
    from torch.distributed.tensor import DTensor

    local = codes.to_local()
    values = torch.empty_like(local, dtype=torch.float32)
    _vector(values)[...] = decode_8bit(_vector(local), scales.numpy(), signed)
    where = codes.device_mesh, codes.placements
    whole: Tensor = DTensor.from_local(values, *where, run_check=False, shape=codes.shape, stride=codes.stride())
    return whole


@torch.no_grad()
def encoded(rule: str, name: str, values: Any) -> tuple[Tensor, Tensor]:
    """Codes and scales of a shard's state, rounded to nearest; exact for numbers that were decoded from 8 bits."""
    signed = _signed(rule, name)
    codes: Any = torch.empty_like(values, dtype=torch.uint8)
    given = np.ascontiguousarray(_vector(values.to_local()))
    found, scales = encode_8bit(given, signed)
    # The block may have had half or twice this scale, because its largest number was rounded at random.
    for factor in (np.float32(0.5), np.float32(2)):
        others = _codes(given, scales * factor, signed)
        lost = _blocks(decode_8bit(found, scales, signed) != given)
        better = lost & ~_blocks(decode_8bit(others, scales * factor, signed) != given)
        found = np.where(np.repeat(better, SCALED)[: found.size], others, found)
        scales = np.where(better, scales * factor, scales)
    _vector(codes.to_local())[...] = found
    return codes, torch.from_numpy(scales)


def _blocks(differs: Any) -> Any:
    padded = np.zeros(-(-differs.size // SCALED) * SCALED, bool)
    padded[: differs.size] = differs
    return padded.reshape(-1, SCALED).any(axis=1)


def _codes(values: Any, scales: Any, signed: bool) -> Any:
    """Codes of numbers, rounded to nearest; the scales must be large enough for the numbers."""
    c = SIGNED if signed else UNSIGNED
    with np.errstate(all="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        places = np.abs(values) * np.repeat(inverse, SCALED)[: values.size] + c.offset
    codes = (places.view(np.uint32) + np.uint32(1 << 18)) >> 19
    if signed:
        return (codes & 0x7F | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)
    return (np.maximum(codes, c.base + 1) & 0xFF).astype(np.uint8)
