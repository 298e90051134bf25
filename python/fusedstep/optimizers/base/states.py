"""How state arrays are stored: the dtype of each, and the conversion from one to another."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arrays import bfloat16_dtype, dtype_name, unmasked
from fusedstep.reference.codec import SCALED, decode_8bit, encode_8bit, in_memory_order, narrowed, scale_count, widened

Array = NDArray[Any]

# Elements that are converted at a time, in whole blocks of 8 bits: temporary arrays stay small.
_PART = SCALED << 12


def stored_dtype(rule: Mapping[str, Any], name: str, param: Array, group: Mapping[str, Any]) -> np.dtype[Any]:
    """How a state of a parameter is stored; uint8 for 8 bits. See `Options`."""
    if param.dtype == np.float64:
        return param.dtype
    narrows = name in rule["states"] and name not in rule["exact"]
    if narrows and group["state_dtype"] == "bfloat16":
        return bfloat16_dtype()
    if narrows and group["state_dtype"] == "8bit" and param.size >= group["min_8bit_size"]:
        return np.dtype(np.uint8)
    return np.dtype(np.float32)


def load_state(
    rule: Mapping[str, Any],
    name: str,
    entry: Mapping[str, Any],
    label: str,
    param: Array,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> dict[str, Array]:
    """A copy of a state in the layout of the parameter and in a dtype; with its scales, if that is of 8 bits."""
    source = unmasked(entry[name], label)
    if source.shape != shape:
        raise ValueError(f"{label}: expected shape {shape}, got {source.shape}")
    kinds = ["float64"] if dtype == np.float64 else ["float32", "float16", "bfloat16"]
    if dtype != np.float64 and name in rule["states"] and name not in rule["exact"]:
        kinds.append("uint8")
    if dtype_name(source.dtype) not in kinds:
        raise TypeError(f"{label}: expected dtype {kinds[0]}, got {source.dtype}")
    signed = name not in rule["squares"]
    scales = _scales(entry, name, label, source) if source.dtype == np.uint8 else None
    if scales is not None and not _same_layout(source, param):
        # In another layout other elements share a scale.
        wide = np.empty_like(source, np.float32)
        in_memory_order(wide)[:] = decode_8bit(in_memory_order(source), scales, signed)
        source, scales = wide, None
    target = np.empty_like(param, dtype, subok=False) if shape == param.shape else np.empty(shape, dtype)
    if dtype_name(source.dtype) == dtype_name(dtype):
        target[...] = source.view(dtype) if source.dtype != dtype else source
        return {name: target} if scales is None else {name: target, f"{name}_scale": scales.copy()}
    # In the order of the target's memory: every 256 elements of it share a scale.
    laid_out = np.empty_like(target, source.dtype)
    laid_out[...] = source
    values, out = in_memory_order(laid_out), in_memory_order(target)
    new_scales = np.empty(scale_count(out.size), np.float32)
    for start in range(0, out.size, _PART):
        part = slice(start, start + _PART)
        of_part = slice(start // SCALED, (start + _PART) // SCALED)
        numbers = widened(values[part]) if scales is None else decode_8bit(values[part], scales[of_part], signed)
        if dtype != np.uint8:
            out[part] = narrowed(numbers, dtype)
            continue
        if not signed and (numbers < 0).any():
            raise ValueError(f"{label}: expected numbers >= 0, got {numbers.min()}")
        out[part], new_scales[of_part] = encode_8bit(numbers, signed)
    return {name: target, f"{name}_scale": new_scales} if dtype == np.uint8 else {name: target}


def relaid(name: str, entry: Mapping[str, Any], param: Array) -> dict[str, Any]:
    """The states of a parameter whose axes have another order in memory now, copied into that order."""
    rule = _core.rules()[name]
    moved: dict[str, Any] = {}
    for key, value in entry.items():
        scaled = key.endswith("_scale") and key.removesuffix("_scale") in entry
        if scaled or not isinstance(value, np.ndarray) or value.shape != param.shape or _same_layout(value, param):
            moved.setdefault(key, value)
        else:
            moved |= load_state(rule, key, entry, key, param, value.shape, value.dtype)
    return moved


def _same_layout(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape have their elements in the same order in memory."""
    steps = zip(a.shape, a.strides, b.strides, strict=True)
    return all(length == 1 or x * b.itemsize == y * a.itemsize for length, x, y in steps)


def _scales(entry: Mapping[str, Any], name: str, label: str, codes: Array) -> Array:
    """The scales of 8-bit codes, checked. A block that holds no numbers any more has the scale NaN, and codes of 0."""
    label = label.replace(f"[{name!r}]", f"[{name + '_scale'!r}]")
    if entry.get(f"{name}_scale") is None:
        raise ValueError(f"{label}: missing, and {name} is of 8 bits, which need it")
    scales = unmasked(entry[f"{name}_scale"], label)
    if scales.dtype != np.float32:
        raise TypeError(f"{label}: expected dtype float32, got {scales.dtype}")
    count = scale_count(codes.size)
    if scales.shape != (count,):
        raise ValueError(f"{label}: expected shape ({count},), got {scales.shape}")
    with np.errstate(all="ignore"):
        finite = np.isfinite(scales) & (scales >= 0) & ((scales == 0) | (np.frexp(scales)[0] == 0.5))
        used = (
            np.logical_or.reduceat(in_memory_order(codes) != 0, np.arange(0, codes.size, SCALED)) if count else finite
        )
        powers = finite | (np.isnan(scales) & ~used)
    if not powers.all():
        wrong = np.flatnonzero(~powers)[0]
        raise ValueError(f"{label}: expected 0 or powers of 2, finite, got {scales[wrong]} at {wrong}")
    return scales
