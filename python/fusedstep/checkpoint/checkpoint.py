"""Checkpoints: one safetensors file, written whole or not at all, and read whole or not at all.

Any reader of safetensors finds the arrays in it, in C order: `param/<name>`, `state/<position>/<name>`, and so on. What
is no array is JSON in the file's metadata, under "fusedstep": the format and the library's version; `tensors`, the
schema, with dtype, shape and CRC-32 of every array; `params`, their names in order; the optimizer's state dict; the
random state; the caller's metadata. Beside it stands the CRC-32 of that text.

The schedules of this library among the hyper-parameters are a table in the optimizer's part, `schedule_table`: rows of
a name, arguments, the rows of the schedules within, and a state; `schedule_rows` says, group by group, which
hyper-parameter is which row. `views` says which parameters lie in the memory of which other one, and where; `layers`,
which are layers, and of what arrays. A file has the oldest format that knows what is in it, 2, 3 with schedules, 4 with
views or layers: so an older reader says that the file is newer, and reads all that it can.
"""

import errno
import json
import math
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._common.arguments import shown, whole
from fusedstep._common.arrays import bfloat16_dtype, dtype_name, unmasked
from fusedstep._common.brief import brief, plural
from fusedstep._common.files import replacing as _replacing
from fusedstep.checkpoint.ties import View, in_memory, place, ties
from fusedstep.normalization import BatchNorm
from fusedstep.optimizers import LBFGS, Optimizer
from fusedstep.schedules._base import Schedule
from fusedstep.schedules._saving import Table, assemble, can_save

FORMAT = 4
#: How deep lists and dicts may stand in each other.
_DEEPEST = 100
_TEXT = "fusedstep"
_CHECKSUM = "fusedstep.crc32"

#: What safetensors calls the dtypes of NumPy, and bfloat16.
_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}

#: The bit generators that are saved. A file names one of these; it cannot name anything else.
_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}
#: Where they keep a position in a buffer, and its length: NumPy takes any number, and then reads past the end.
_POSITIONS = {"MT19937": (("state", "pos"), 624), "Philox": (("buffer_pos",), 4)}
#: NumPy's own is of 4 words.
_LARGEST_POOL = 256
#: Bytes that are copied, checked and written at a time.
_PIECE = 1 << 19

Array = NDArray[Any]
Params = Mapping[str, Array | BatchNorm] | Sequence[Array | BatchNorm]


class CheckpointError(ValueError):
    """A file that is no checkpoint of this library, or is damaged, or of a newer format."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        params: The parameters by name (by position, "0", "1", …, where they were a list), in the order and with the
            order of axes in memory that they were saved with. Those that shared memory share it again. Where a
            `BatchNorm` was, its state, for `BatchNorm.load_state_dict`.
        optimizer: A state dict for `Optimizer.load_state_dict`; None where there was no optimizer. Schedules of
            `fusedstep.schedules` are objects in its groups. Beside its own keys it has `schedules`: per group, the
            names of the hyper-parameters that were other functions, and are not in it.
        metadata: What was given beside them.
        rng: The random generator, where it was; None where none was given.
    """

    params: dict[str, Any]
    optimizer: dict[str, Any] | None
    metadata: dict[str, Any]
    rng: np.random.Generator | None = None

    def __repr__(self) -> str:
        size = sum(array.size for array in self.params.values())
        rule, step = (self.optimizer or {}).get("rule"), (self.optimizer or {}).get("step")
        optimizer = "None" if self.optimizer is None else f"<{rule} after {plural(int(step or 0), 'step')}>"
        return (
            f"Checkpoint(params=<{plural(len(self.params), 'array')} of {plural(size, 'number')}>, "
            f"optimizer={optimizer}, metadata={brief(self.metadata)}, rng={self.rng!r})"
        )


def save_checkpoint(
    path: str | os.PathLike[str],
    params: Params,
    optimizer: Optimizer | LBFGS | None = None,
    *,
    rng: np.random.Generator | None = None,
    **metadata: Any,
) -> None:
    """Writes parameters, optimizer state, random state and metadata into one safetensors file.

    The file takes its name when all of it is on the disk: a crash leaves the old one or the new one. (A process killed
    in the middle leaves its temporary file too, `.fusedstep-….tmp` in the same directory.) A file that is replaced
    keeps its permissions; a symbolic link stays, and the file it leads to is replaced. The schedules of
    `fusedstep.schedules` are saved, by name and arguments, a `ReduceOnPlateau` with its state. Any other function as a
    learning rate, or one of these around it, is not; its position, the number of steps, is.

    Takes no memory beyond the arrays themselves, in any order of their axes. Another thread may go on with training:
    what was written is read back before it replaces a file. Its arrays may be of different steps then.

    Parameters that share memory, such as `{"embed": w, "head": w.T}`, are saved once, and loaded as views of one array.
    The running statistics of batch norm are part of a model: give the layers beside the parameters.

    Args:
        path: The file.
        params: The parameters, by name or as a list, of any dtype that NumPy and safetensors both have, and layers
            (`BatchNorm`).
        optimizer: Its state is saved too.
        rng: A generator over one of NumPy's own bit generators; its state is saved too.
        **metadata: None, numbers, strings, arrays, and lists, tuples and dicts (by strings) of them. A NumPy scalar
            comes back as the number it holds.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        TypeError: Something that cannot be saved, by name: a parameter that is no array, or masked, a dtype, a value.
        ValueError: `path` is there and no regular file; a name that is not Unicode; metadata that hold themselves;
            parameters that share memory of which none holds all of the other.
        OSError: The file cannot be written, or is not read as it was written. Whatever is raised, the old file is as it
            was.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> params = {"w": np.ones(2, np.float32)}
        >>> opt = fs.AdamW(params)
        >>> rng = np.random.default_rng(0)
        >>> report = opt.step({"w": rng.standard_normal(2, np.float32)})
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, params, opt, rng=rng, epoch=3)
        >>> loaded = fs.load_checkpoint(path)
        >>> opt.load_state_dict(loaded.optimizer)
        >>> print(loaded.metadata, loaded.optimizer["state"][0]["step"])
        {'epoch': 3} 1
        >>> bool(loaded.rng.random() == rng.random())
        True

        A model with batch norm and tied weights:

        >>> w, norm = np.ones((3, 2), np.float32), fs.BatchNorm(2)
        >>> y = norm.forward(np.eye(2, dtype=np.float32), training=True)
        >>> fs.save_checkpoint(path, {"embed": w, "head": w.T, "norm": norm})
        >>> loaded = fs.load_checkpoint(path).params
        >>> np.shares_memory(loaded["embed"], loaded["head"]), loaded["head"].shape
        (True, (2, 3))
        >>> other = fs.BatchNorm(2)
        >>> other.load_state_dict(loaded["norm"])
        >>> print(other.running_mean, other.num_batches_tracked)
        [0.05 0.05] 1
    """
    _safetensors()
    tensors: dict[str, Array] = {}
    fields = _encode_params(params, tensors)
    encoded = None if optimizer is None else _encode_optimizer(_state_of(optimizer), tensors)
    scheduled = encoded is not None and "schedule_table" in encoded
    header = {
        "format": FORMAT if len(fields) > 1 else 3 if scheduled else 2,
        "version": _core.version,
        **fields,
        "optimizer": encoded,
        "rng": None if rng is None else _encode_rng(rng, tensors),
        "metadata": {name: _encode(value, f"metadata/{name}", tensors) for name, value in metadata.items()},
    }
    with _replacing(path) as file:
        written = _write(file, header, tensors)
        file.flush()
        # What cannot be read, or is not what was written, must not replace a good file.
        with _opened(file.name):
            pass
        _verify(file, written)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads what `save_checkpoint` wrote, in this format or an older one.

    Every byte is checked (a file of format 1 has no checksums): what was written is read, or the file is refused.
    Nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The `Checkpoint`; its arrays are new and writable.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        CheckpointError: The file is damaged, or no checkpoint of this library, or of a newer format; it is no regular
            file. A ValueError: whatever somebody made of the file, nothing else is raised, and soon.
        OSError: The file cannot be read; FileNotFoundError where there is none.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, [np.zeros(2, np.float32)], note="as a list")
        >>> print(fs.load_checkpoint(path).params)
        {'0': array([0., 0.], dtype=float32)}
    """
    _safetensors()
    path = os.fsdecode(path)
    try:
        with _reading(path) as file, _opened(path) as safe:
            header = _read_header(safe.metadata() or {})
            return (_read_format_1 if header["format"] == 1 else _read)(header, safe, file)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error!s:.1000}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error!s:.1000}") from error


# ---- Values: JSON, with one-key dicts for what JSON has not. ----


def _encode(value: Any, name: str, tensors: dict[str, Array], depth: int = 0) -> Any:
    """`value` as JSON; its arrays go into `tensors`."""
    if isinstance(value, (np.bool, np.number, np.str_)):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        _check_digits(value, name)
        return value
    if isinstance(value, float):
        # Infinity and NaN are no JSON, though Python would write them.
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (list, tuple, dict)) and depth == _DEEPEST:
        raise ValueError(f"{name:.80}…: expected lists and dicts at most {_DEEPEST} deep, and none that holds itself")
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}/{k}", tensors, depth + 1) for k, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": _encode_dict(value, name, tensors, depth + 1)}
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return {"tensor": _add(unmasked(value, name), name, name, tensors)}
    raise TypeError(f"{name}: cannot save a value of type {type(value).__qualname__}")


def _check_digits(value: int, name: str) -> None:
    """Python reads numbers of so many digits only."""
    most = sys.int_info.default_max_str_digits
    if value.bit_length() > 3 * most and abs(value) >= 10**most:
        raise ValueError(f"{name}: expected a number of at most {most} digits, got one of {value.bit_length()} bits")


def _encode_dict(values: Mapping[Any, Any], name: str, tensors: dict[str, Array], depth: int = 0) -> dict[str, Any]:
    for key in values:
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected keys that are strings, got {shown(key)}")
    return {key: _encode(value, f"{name}/{key}", tensors, depth) for key, value in values.items()}


def _decode(value: Any, tensors: dict[str, Array], depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"damaged: lists and dicts more than {_DEEPEST} deep")
    if isinstance(value, list):
        return [_decode(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("float", "inf" | "-inf" | "nan" as text)]:
            return float(text)
        case [("tuple", list(items))]:
            return tuple(_decode(item, tensors, depth + 1) for item in items)
        case [("dict", dict(items))]:
            return {key: _decode(item, tensors, depth + 1) for key, item in items.items()}
        case [("tensor", str(name))]:
            return _take(tensors, name)
    raise ValueError(f"damaged: {shown(value)} is no value")


def _add(array: Array, name: str, label: str, tensors: dict[str, Array]) -> str:
    """Adds an array under a name like `name`, which it returns."""
    _check_array(array, name, label)
    # Two paths may read the same: {"a": {"b": …}, "a/b": …}.
    while name in tensors:
        name += "'"
    # A view of its own: another thread may give the array another shape.
    tensors[name] = np.ndarray.view(array, np.ndarray)
    return name


def _check_array(array: Array, name: str, label: str) -> None:
    if dtype_name(array.dtype) not in _DTYPES or array.dtype != array.dtype.newbyteorder("<"):
        raise TypeError(f"{label}: cannot save dtype {array.dtype!r}, expected one of {', '.join(_DTYPES)}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{label}: {error}") from error


def _take(tensors: dict[str, Array], name: str) -> Array:
    if name not in tensors:
        raise ValueError(f"damaged: no tensor {name!r}")
    return tensors.pop(name)


# ---- Parameters, optimizer, random state ----


def _encode_params(params: Params, tensors: dict[str, Array]) -> dict[str, Any]:
    """The header's fields of them."""
    if isinstance(params, Mapping):
        named = [(name, f"params[{shown(name)}]", param) for name, param in params.items()]
    elif isinstance(params, (list, tuple)):
        named = [(str(k), f"params[{k}]", param) for k, param in enumerate(params)]
    else:
        raise TypeError(f"params: expected a mapping or a list of arrays, got {type(params).__qualname__}")
    arrays: dict[str, Array] = {}
    labels: dict[str, str] = {}
    layers: dict[str, dict[str, Any]] = {}

    def add(value: Any, name: str, label: str) -> str:
        array = unmasked(value, label)
        _check_array(array, name, label)
        while name in arrays:
            name += "'"
        arrays[name], labels[name] = np.ndarray.view(array, np.ndarray), label
        return name

    for name, label, param in named:
        if not isinstance(name, str):
            raise TypeError(f"params: expected names that are strings, got {shown(name)}")
        if not isinstance(param, BatchNorm):
            add(param, f"param/{name}", label)
    # After the parameters, whose names in the file are their own.
    for name, label, param in named:
        if isinstance(param, BatchNorm):
            own = {
                part: add(array, f"param/{name}/{part}", f"{label}.{part}") for part, array in param._arrays().items()
            }
            batches = None
            if param.running_mean is not None:
                batches = whole(param.num_batches_tracked, f"{label}.num_batches_tracked")
            layers[name] = {"arrays": own, "num_batches_tracked": batches}
    views = ties(arrays, labels)
    tensors |= {name: array for name, array in arrays.items() if name not in views}
    fields: dict[str, Any] = {"params": [name for name, _, _ in named]}
    if views:
        fields["views"] = {name: view._asdict() for name, view in views.items()}
    if layers:
        fields["layers"] = layers
    return fields


def _decode_params(header: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    views = {name: _decode_view(view) for name, view in _optional(header, "views").items()}
    placed = {}
    for name, view in views.items():
        if name in tensors or view.of not in tensors:
            raise ValueError(f"damaged: {name!r} is a view of {view.of!r}")
        try:
            placed[name] = place(view, tensors[view.of])
        except ValueError as error:
            raise ValueError(f"damaged: {name!r}: {error}") from error
    tensors |= placed
    layers = _optional(header, "layers")
    names = _list(_field(header, "params", list), str, "params")
    if not layers.keys() <= set(names):
        raise ValueError(f"damaged: layers {sorted(layers)}")
    return {
        name: _decode_layer(layers[name], tensors) if name in layers else _take(tensors, f"param/{name}")
        for name in names
    }


def _decode_view(saved: Any) -> View:
    fields = _dict(saved, "a view")
    of, dtype, offset = _field(fields, "of", str), _field(fields, "dtype", str), _field(fields, "offset", int)
    shape, strides = (_list(_field(fields, key, list), int, f"{key} of a view") for key in ("shape", "strides"))
    sizes = (*shape, *strides, offset)
    # No memory is as large; NumPy takes 64 axes.
    if dtype not in _DTYPES or len(shape) != len(strides) or len(shape) > 64 or any(abs(n) > 2**60 for n in sizes):
        raise ValueError(f"damaged: a view is {shown(saved)}")
    return View(of, dtype, tuple(shape), offset, tuple(strides))


def _decode_layer(saved: Any, tensors: dict[str, Array]) -> dict[str, Array]:
    """A state dict for `BatchNorm.load_state_dict`."""
    fields = _dict(saved, "a layer")
    state = {name: _take(tensors, str(own)) for name, own in _field(fields, "arrays", dict).items()}
    batches = _field(fields, "num_batches_tracked", (int, type(None)))
    if batches is not None:
        if isinstance(batches, bool) or not 0 <= batches < 2**53:
            raise ValueError(f"damaged: 'num_batches_tracked' is {shown(batches)}")
        state["num_batches_tracked"] = np.array(batches)
    return state


def _state_of(optimizer: Any) -> dict[str, Any]:
    """Its state dict; without a copy where it can be had."""
    from fusedstep.optimizers import LBFGS
    from fusedstep.optimizers._base import Optimizer

    state: dict[str, Any] = (
        optimizer.state_dict(copy=False) if isinstance(optimizer, Optimizer | LBFGS) else optimizer.state_dict()
    )
    return state


def _encode_optimizer(state_dict: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    state, groups, schedules, rows, table = {}, [], [], [], Table()
    for k, entry in state_dict["state"].items():
        state[str(k)] = _encode_dict(entry, f"state/{k}", tensors)
    for k, group in enumerate(state_dict["param_groups"]):
        schedules.append([name for name, value in group.items() if callable(value) and not can_save(value)])
        rows.append({name: table.add(value) for name, value in group.items() if can_save(value)})
        kept = {name: value for name, value in group.items() if not callable(value)}
        groups.append(_encode_dict(kept, f"param_groups/{k}", tensors))
    rest = {key: value for key, value in state_dict.items() if key not in ("state", "param_groups")}
    encoded = {
        **_encode_dict(rest, "optimizer", tensors),
        "state": state,
        "param_groups": groups,
        "schedules": schedules,
    }
    if table.rows:
        encoded["schedule_table"] = _encode(table.rows, "schedules", tensors)
        encoded["schedule_rows"] = rows
    return encoded


def _decode_optimizer(saved: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    groups = [_dict(group, "a group") for group in _field(saved, "param_groups", list)]
    schedules = [_list(names, str, "a group's schedules") for names in _field(saved, "schedules", list)]
    if len(schedules) != len(groups):
        raise ValueError(f"damaged: {len(groups)} groups, schedules of {len(schedules)}")
    for group in groups:
        _field(group, "params", list)
    _field(saved, "rule", str)
    _field(saved, "step", int)
    scheduled = _decode_schedules(saved, groups, tensors)
    apart = ("state", "param_groups", "schedule_table", "schedule_rows")
    return {
        **{key: _decode(value, tensors) for key, value in saved.items() if key not in apart},
        "state": {
            _position(k): {name: _decode(value, tensors) for name, value in _dict(entry, "a state").items()}
            for k, entry in _field(saved, "state", dict).items()
        },
        "param_groups": [
            {name: _decode(value, tensors) for name, value in group.items()} | own
            for group, own in zip(groups, scheduled, strict=True)
        ],
        "schedules": schedules,
    }


def _decode_schedules(
    saved: dict[str, Any], groups: list[dict[str, Any]], tensors: dict[str, Array]
) -> list[dict[str, Schedule]]:
    """Per group, the hyper-parameters that are schedules."""
    if "schedule_table" not in saved and "schedule_rows" not in saved:
        return [{} for _ in groups]
    made = assemble(_decode(_field(saved, "schedule_table", list), tensors))
    rows = [_dict(own, "a group's schedules") for own in _field(saved, "schedule_rows", list)]
    if len(rows) != len(groups):
        raise ValueError(f"damaged: {len(groups)} groups, schedules of {len(rows)}")
    for group, own in zip(groups, rows, strict=True):
        for name, row in own.items():
            if name in group or type(row) is not int or not 0 <= row < len(made):
                raise ValueError(f"damaged: {name!r} is schedule {shown(row)}")
    return [{name: made[row] for name, row in own.items()} for own in rows]


def _encode_rng(rng: np.random.Generator, tensors: dict[str, Array]) -> dict[str, Any]:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__qualname__}")
    bits = rng.bit_generator
    if type(bits) not in _BIT_GENERATORS.values():
        raise TypeError(f"rng: expected one of {', '.join(_BIT_GENERATORS)}, got {type(bits).__qualname__}")
    seeds = bits.seed_seq
    if type(seeds) is not np.random.SeedSequence:
        raise TypeError(f"rng: expected a seed sequence of type SeedSequence, got {type(seeds).__qualname__}")
    _check_seeds(seeds.state, "rng: ")
    # The seeds too: `Generator.spawn` draws from them.
    return _encode_dict({"state": bits.state, "seeds": seeds.state}, "rng", tensors)


def _decode_rng(saved: dict[str, Any], tensors: dict[str, Array]) -> np.random.Generator:
    state = _decode(_field(saved, "state", dict), tensors)
    seeds = _decode(_field(saved, "seeds", dict), tensors)
    try:
        _check_seeds(seeds, "")
        kind = state["bit_generator"]
        bits = _BIT_GENERATORS[kind](np.random.SeedSequence(**seeds))
        bits.state = state
        if kind in _POSITIONS:
            keys, length = _POSITIONS[kind]
            position = state
            for key in keys:
                position = position[key]
            if not 0 <= position <= length:
                raise ValueError(f"{'.'.join(keys)} is {shown(position)}")
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"damaged: no random state ({error!r})") from error
    return np.random.Generator(bits)


def _check_seeds(seeds: Any, place: str) -> None:
    """What a `numpy.random.SeedSequence` is made of: it mixes every word of its pool with every other."""
    if not isinstance(seeds, dict) or set(seeds) != {"entropy", "spawn_key", "pool_size", "n_children_spawned"}:
        raise ValueError(f"{place}seeds are {shown(seeds)}")
    for name, most in (("pool_size", _LARGEST_POOL), ("n_children_spawned", 2**63 - 1)):
        count = seeds[name]
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or not 0 <= count <= most:
            raise ValueError(f"{place}{name}: expected a whole number from 0 to {most}, got {shown(count)}")


# ---- The file ----


@dataclass(frozen=True, slots=True)
class _Written:
    """What must be found in a file again: its first bytes, then so many of every array, and the checksums of these."""

    header: bytes
    sizes: dict[str, int]
    checksums: dict[str, int]


def _write(file: BinaryIO, header: dict[str, Any], tensors: dict[str, Array]) -> _Written:
    # By hand: safetensors up to 0.7 doubles the memory; 0.8 does so for arrays that are not in C order, and makes a
    # file of its own beside ours. The checksums are those of the bytes that go out, even if somebody steps meanwhile;
    # so the header, whose length does not depend on them, goes out last.
    checksums = dict.fromkeys(tensors, 0)
    file.seek(len(_header_bytes(header, tensors, checksums)))
    for name in _layout(tensors):
        for piece in _pieces(tensors[name]):
            checksums[name] = zlib.crc32(piece, checksums[name])
            file.write(piece)
    file.seek(0)
    first = _header_bytes(header, tensors, checksums)
    file.write(first)
    return _Written(first, {name: tensors[name].nbytes for name in _layout(tensors)}, checksums)


def _verify(file: BinaryIO, written: _Written) -> None:
    """Reads a file back, and compares."""
    file.seek(0)
    same = file.read(len(written.header)) == written.header
    for name, size in written.sizes.items():
        checksum = 0
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            checksum, size = zlib.crc32(piece, checksum), size - len(piece)
        same = same and size == 0 and checksum == written.checksums[name]
    if not same or file.read(1):
        raise OSError(errno.EIO, "what is read back is not what was written", file.name)


def _header_bytes(header: dict[str, Any], tensors: dict[str, Array], checksums: dict[str, int]) -> bytes:
    schema = {
        name: {
            "dtype": dtype_name(array.dtype),
            "shape": array.shape,
            "crc32": f"{checksums[name]:08x}",
            "axes": in_memory(array),
        }
        for name, array in tensors.items()
    }
    text = json.dumps({**header, "tensors": schema}, allow_nan=False)
    entries: dict[str, Any] = {"__metadata__": {_TEXT: text, _CHECKSUM: _checksum(text)}}
    offset = 0
    for name in _layout(tensors):
        array = tensors[name]
        end = offset + array.nbytes
        entries[name] = {"dtype": _DTYPES[dtype_name(array.dtype)], "shape": array.shape, "data_offsets": [offset, end]}
        offset = end
    content = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _layout(tensors: dict[str, Array]) -> list[str]:
    # As safetensors does: the widest items first, so that each tensor starts at a multiple of its item.
    return sorted(tensors, key=lambda name: -tensors[name].itemsize)


def _pieces(array: Array) -> Iterator[memoryview]:
    """Copies of the bytes, in C order: what is checked and written is the same, whoever writes into the array."""
    flags = ["external_loop", "buffered", "zerosize_ok"]
    items = max(1, _PIECE // array.itemsize)
    for piece in np.nditer(array, flags, [["readonly", "contig"]], order="C", buffersize=items):  # type: ignore[call-overload]
        flat = piece.reshape(-1)
        for start in range(0, flat.size, items):
            yield flat[start : start + items].copy().view(np.uint8).data


@contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    """A regular file; anything else might never end, or never begin."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:  # of a directory: IsADirectoryError
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        yield file


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file, or a damaged one ({error})") from error


def _read_header(metadata: dict[str, str]) -> dict[str, Any]:
    text = metadata.get(_TEXT)
    if text is None:
        raise ValueError("no checkpoint of fusedstep")
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(text):
        raise ValueError("damaged: the header has another checksum")
    header = _dict(json.loads(text, parse_constant=_no_number), "the header")
    version = _field(header, "format", int)
    if version > FORMAT:
        raise ValueError(f"format {version} is newer than this version of fusedstep reads ({FORMAT})")
    if version < 1 or (version > 1 and _CHECKSUM not in metadata):
        raise ValueError(f"damaged: format {version} without a checksum")
    return header


def _no_number(text: str) -> None:
    raise ValueError(f"damaged: {text} is no JSON")


def _read(header: dict[str, Any], safe: Any, file: BinaryIO) -> Checkpoint:
    _field(header, "version", str)
    schema = _field(header, "tensors", dict)
    places = _places(file)
    _same_names(set(schema), set(places))
    _same_names(set(schema), set(safe.keys()))
    tensors = {
        name: _read_tensor(_dict(schema[name], "a tensor"), name, safe, file, start) for name, start in places.items()
    }
    optimizer, rng = (_field(header, key, (dict, type(None))) for key in ("optimizer", "rng"))
    checkpoint = Checkpoint(
        _decode_params(header, tensors),
        None if optimizer is None else _decode_optimizer(optimizer, tensors),
        {name: _decode(value, tensors) for name, value in _field(header, "metadata", dict).items()},
        None if rng is None else _decode_rng(rng, tensors),
    )
    _same_names(set(), set(tensors))
    return checkpoint


def _places(file: BinaryIO) -> dict[str, int]:
    """Where the arrays begin, in a file whose header safetensors has checked."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    entries = _dict(json.loads(file.read(length)), "the file's header")
    return {
        name: 8 + length + int(entry["data_offsets"][0]) for name, entry in entries.items() if name != "__metadata__"
    }


def _read_tensor(schema: dict[str, Any], name: str, safe: Any, file: BinaryIO, start: int) -> Array:
    dtype, shape = _field(schema, "dtype", str), _field(schema, "shape", list)
    axes = _list(_field(schema, "axes", list), int, f"axes of {name!r}")
    stored = safe.get_slice(name)
    if dtype not in _DTYPES or (stored.get_dtype(), stored.get_shape()) != (_DTYPES[dtype], shape):
        raise ValueError(
            f"damaged: {name!r} is {stored.get_dtype()} {stored.get_shape()}, not {shown(dtype)[1:-1]} {shown(shape)}"
        )
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"damaged: axes of {name!r}: {shown(axes)}")
    # By hand: what safetensors maps into memory another program may cut off, and it has no bfloat16 without ml_dtypes.
    array: Array = np.empty(shape, bfloat16_dtype() if dtype == "bfloat16" else dtype)
    content = array.reshape(-1).view(np.uint8).data
    file.seek(start)
    if file.readinto(content) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"damaged: {name!r} is cut off")
    if f"{zlib.crc32(content):08x}" != _field(schema, "crc32", str):
        raise ValueError(f"damaged: {name!r} has another checksum")
    return array if axes == sorted(axes) else array.transpose(axes).copy(order="C").transpose(np.argsort(axes))


def _read_format_1(header: dict[str, Any], safe: Any, file: BinaryIO) -> Checkpoint:
    """Format 1 had no schema, no tags, and null where a state is an array."""
    tensors: dict[str, Array] = {}
    for name in safe.keys():  # noqa: SIM118
        if (dtype := safe.get_slice(name).get_dtype()) not in _DTYPES.values():
            raise ValueError(f"damaged: {name!r} is {dtype}")
        tensors[name] = safe.get_tensor(name)
    params = {name.removeprefix("param/"): tensors.pop(name) for name in list(tensors) if name.startswith("param/")}
    optimizer = _field(header, "optimizer", (dict, type(None)))
    if optimizer is not None:
        state = {
            k: {
                name: {"tensor": f"state/{k}/{name}"} if value is None else value
                for name, value in _dict(entry, "a state").items()
            }
            for k, entry in _field(optimizer, "state", dict).items()
        }
        groups = [
            {
                name: {"tuple": value} if isinstance(value, list) and not name.startswith("param") else value
                for name, value in _dict(group, "a group").items()
            }
            for group in _field(optimizer, "param_groups", list)
        ]
        optimizer = _decode_optimizer(
            {**optimizer, "state": state, "param_groups": groups, "schedules": [[] for _ in groups]}, tensors
        )
    _same_names(set(), set(tensors))
    _check_depth(metadata := _field(header, "metadata", dict))
    return Checkpoint(params, optimizer, metadata)


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"damaged: lists and dicts more than {_DEEPEST} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


# ---- What a field must be ----


def _field(holder: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    if key not in holder:
        raise ValueError(f"damaged: the header has no {key!r}")
    value = holder[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"damaged: {key!r} is {shown(value)}")
    return value


def _optional(holder: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = _field({key: {}, **holder}, key, dict)
    return found


def _dict(value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"damaged: {label} is {shown(value)}")
    return value


def _list(values: Any, kind: type, label: str) -> list[Any]:
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"damaged: {label}: {shown(values)}")
    return values


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"damaged: a state of parameter {shown(text)}")
    return int(text)


def _same_names(expected: set[str], found: set[str]) -> None:
    if expected != found:
        raise ValueError(f"damaged: tensors missing: {sorted(expected - found)}; too many: {sorted(found - expected)}")


def _safetensors() -> None:
    try:
        import safetensors.numpy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("checkpoints need safetensors: pip install 'fusedstep[checkpoint]'") from error
