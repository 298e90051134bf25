"""Checkpoints: one safetensors file, written whole or not at all, and read whole or not at all.

Any reader of safetensors finds the arrays in it, in C order: `param/<name>`, `state/<position>/<name>`, and so on. What
is no array is JSON in the file's metadata, under "fusedstep": the format and the library's version; `tensors`, the
schema, with dtype, shape and CRC-32 of every array; `params`, their names in order; the optimizer's state dict; the
random state; the caller's metadata. Beside it stands the CRC-32 of that text.

The schedules of this library among the hyper-parameters are a table in the optimizer's part, `schedule_table`: rows of
a name, arguments, the rows of the schedules within, and a state; `schedule_rows` says, group by group, which
hyper-parameter is which row. A file with a table is of format 3, any other of format 2, which knows none and would
refuse the rows as damage: so an older reader says that the file is newer, and reads all that it can.
"""

import json
import math
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._arrays import as_array, dtype_name
from fusedstep._brief import brief, plural
from fusedstep.optimizers import LBFGS, Optimizer
from fusedstep.schedules._base import Schedule
from fusedstep.schedules._saving import Table, assemble, can_save

FORMAT = 3
#: That of a file without schedules.
_FORMAT_WITHOUT = 2
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

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        params: The parameters by name (by position, "0", "1", …, where they were a list), in the order and with the
            order of axes in memory that they were saved with.
        optimizer: A state dict for `Optimizer.load_state_dict`; None where there was no optimizer. Schedules of
            `fusedstep.schedules` are objects in its groups. Beside its own keys it has `schedules`: per group, the
            names of the hyper-parameters that were other functions, and are not in it.
        metadata: What was given beside them.
        rng: The random generator, where it was; None where none was given.
    """

    params: dict[str, Array]
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
    params: Mapping[str, Array] | Sequence[Array],
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

    Takes no memory beyond the arrays themselves, in any order of their axes.

    Args:
        path: The file.
        params: The parameters, by name or as a list, of any dtype that NumPy and safetensors both have.
        optimizer: Its state is saved too.
        rng: A generator over one of NumPy's own bit generators; its state is saved too.
        **metadata: None, numbers, strings, arrays, and lists, tuples and dicts (by strings) of them. A NumPy scalar
            comes back as the number it holds.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        TypeError: Something that cannot be saved, by name: a parameter that is no array, a dtype, a value.
        ValueError: `path` is there and no regular file; a name that is not Unicode.
        OSError: The file cannot be written. Whatever is raised, the old file is as it was.

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
    """
    _safetensors()
    tensors: dict[str, Array] = {}
    named = _encode_params(params, tensors)
    encoded = None if optimizer is None else _encode_optimizer(optimizer.state_dict(), tensors)
    header = {
        "format": FORMAT if encoded and "schedule_table" in encoded else _FORMAT_WITHOUT,
        "version": _core.version,
        "params": named,
        "optimizer": encoded,
        "rng": None if rng is None else _encode_rng(rng, tensors),
        "metadata": {name: _encode(value, f"metadata/{name}", tensors) for name, value in metadata.items()},
    }
    with _replacing(path) as file:
        _write(file, header, tensors)
        file.flush()
        # What safetensors would not open must not replace a good file.
        with _opened(file.name):
            pass


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
        ValueError: The file is damaged, or no checkpoint of this library, or of a newer format.
        OSError: The file cannot be read; FileNotFoundError where there is none.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, [np.zeros(2, np.float32)], note="as a list")
        >>> print(fs.load_checkpoint(path).params)
        {'0': array([0., 0.], dtype=float32)}
    """
    _safetensors()
    # safetensors reports whatever it cannot open as a missing file.
    with open(path, "rb"):
        pass
    try:
        with _opened(path) as file:
            header = _read_header(file.metadata() or {})
            return (_read_format_1 if header["format"] == 1 else _read)(header, file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


# ---- Values: JSON, with one-key dicts for what JSON has not. ----


def _encode(value: Any, name: str, tensors: dict[str, Array]) -> Any:
    """`value` as JSON; its arrays go into `tensors`."""
    if isinstance(value, (np.bool, np.number, np.str_)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # Infinity and NaN are no JSON, though Python would write them.
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}/{k}", tensors) for k, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": _encode_dict(value, name, tensors)}
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return {"tensor": _add(as_array(value, name), name, name, tensors)}
    raise TypeError(f"{name}: cannot save a value of type {type(value).__qualname__}")


def _encode_dict(values: Mapping[Any, Any], name: str, tensors: dict[str, Array]) -> dict[str, Any]:
    for key in values:
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected keys that are strings, got {key!r}")
    return {key: _encode(value, f"{name}/{key}", tensors) for key, value in values.items()}


def _decode(value: Any, tensors: dict[str, Array]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("float", "inf" | "-inf" | "nan" as text)]:
            return float(text)
        case [("tuple", list(items))]:
            return tuple(_decode(item, tensors) for item in items)
        case [("dict", dict(items))]:
            return {key: _decode(item, tensors) for key, item in items.items()}
        case [("tensor", str(name))]:
            return _take(tensors, name)
    raise ValueError(f"damaged: {value!r} is no value")


def _add(array: Array, name: str, label: str, tensors: dict[str, Array]) -> str:
    """Adds an array under a name like `name`, which it returns."""
    if dtype_name(array.dtype) not in _DTYPES or array.dtype != array.dtype.newbyteorder("<"):
        raise TypeError(f"{label}: cannot save dtype {array.dtype!r}, expected one of {', '.join(_DTYPES)}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{label}: {error}") from error
    # Two paths may read the same: {"a": {"b": …}, "a/b": …}.
    while name in tensors:
        name += "'"
    tensors[name] = array
    return name


def _take(tensors: dict[str, Array], name: str) -> Array:
    if name not in tensors:
        raise ValueError(f"damaged: no tensor {name!r}")
    return tensors.pop(name)


# ---- Parameters, optimizer, random state ----


def _encode_params(params: Mapping[str, Array] | Sequence[Array], tensors: dict[str, Array]) -> list[str]:
    if isinstance(params, Mapping):
        named = [(name, f"params[{name!r}]", param) for name, param in params.items()]
    elif isinstance(params, (list, tuple)):
        named = [(str(k), f"params[{k}]", param) for k, param in enumerate(params)]
    else:
        raise TypeError(f"params: expected a mapping or a list of arrays, got {type(params).__qualname__}")
    for name, label, param in named:
        if not isinstance(name, str):
            raise TypeError(f"params: expected names that are strings, got {name!r}")
        _add(as_array(param, label), f"param/{name}", label, tensors)
    return [name for name, _, _ in named]


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
                raise ValueError(f"damaged: {name!r} is schedule {row!r}")
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
    # The seeds too: `Generator.spawn` draws from them.
    return _encode_dict({"state": bits.state, "seeds": seeds.state}, "rng", tensors)


def _decode_rng(saved: dict[str, Any], tensors: dict[str, Array]) -> np.random.Generator:
    state = _decode(_field(saved, "state", dict), tensors)
    seeds = _decode(_field(saved, "seeds", dict), tensors)
    try:
        kind = state["bit_generator"]
        bits = _BIT_GENERATORS[kind](np.random.SeedSequence(**seeds))
        bits.state = state
        if kind in _POSITIONS:
            keys, length = _POSITIONS[kind]
            position = state
            for key in keys:
                position = position[key]
            if not 0 <= position <= length:
                raise ValueError(f"{'.'.join(keys)} is {position}")
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"damaged: no random state ({error!r})") from error
    return np.random.Generator(bits)


# ---- The file ----


def _write(file: BinaryIO, header: dict[str, Any], tensors: dict[str, Array]) -> None:
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
    file.write(_header_bytes(header, tensors, checksums))


def _header_bytes(header: dict[str, Any], tensors: dict[str, Array], checksums: dict[str, int]) -> bytes:
    schema = {
        name: {
            "dtype": dtype_name(array.dtype),
            "shape": array.shape,
            "crc32": f"{checksums[name]:08x}",
            "axes": _axes(array),
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


def _axes(array: Array) -> list[int]:
    """The axes as they lie in memory, the slowest first; in C order where they leave gaps."""
    axes = sorted(range(array.ndim), key=lambda k: -array.strides[k])
    return axes if array.transpose(axes).flags.c_contiguous and not array.flags.c_contiguous else sorted(axes)


def _pieces(array: Array) -> Iterator[memoryview]:
    """The bytes in C order: of the array itself where it is, through a buffer of 64 Ki items where it is not."""
    flags = ["external_loop", "buffered", "zerosize_ok"]
    for piece in np.nditer(array, flags, [["readonly", "contig"]], order="C", buffersize=2**16):  # type: ignore[call-overload]
        yield piece.reshape(-1).view(np.uint8).data


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, or vanishes when it fails."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{os.fspath(path)}: is there, and no regular file")
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".fusedstep-{secrets.token_hex(8)}.tmp")
    try:
        # Not `tempfile`, whose files only their owner may read.
        with open(temporary, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    # Until the directory is on the disk too, a loss of power may bring the old file back.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    header = _dict(json.loads(text), "the header")
    version = _field(header, "format", int)
    if version > FORMAT:
        raise ValueError(f"format {version} is newer than this version of fusedstep reads ({FORMAT})")
    if version < 1 or (version > 1 and _CHECKSUM not in metadata):
        raise ValueError(f"damaged: format {version} without a checksum")
    return header


def _read(header: dict[str, Any], file: Any) -> Checkpoint:
    _field(header, "version", str)
    schema = _field(header, "tensors", dict)
    _same_names(set(schema), set(file.keys()))
    tensors = {name: _read_tensor(_dict(schema[name], "a tensor"), name, file) for name in file.keys()}  # noqa: SIM118
    optimizer, rng = (_field(header, key, (dict, type(None))) for key in ("optimizer", "rng"))
    checkpoint = Checkpoint(
        {name: _take(tensors, f"param/{name}") for name in _list(_field(header, "params", list), str, "params")},
        None if optimizer is None else _decode_optimizer(optimizer, tensors),
        {name: _decode(value, tensors) for name, value in _field(header, "metadata", dict).items()},
        None if rng is None else _decode_rng(rng, tensors),
    )
    _same_names(set(), set(tensors))
    return checkpoint


def _read_tensor(schema: dict[str, Any], name: str, file: Any) -> Array:
    dtype, shape = _field(schema, "dtype", str), _field(schema, "shape", list)
    axes = _list(_field(schema, "axes", list), int, f"axes of {name!r}")
    stored = file.get_slice(name)
    if dtype not in _DTYPES or (stored.get_dtype(), stored.get_shape()) != (_DTYPES[dtype], shape):
        raise ValueError(f"damaged: {name!r} is {stored.get_dtype()} {stored.get_shape()}, not {dtype} {shape}")
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"damaged: axes of {name!r}: {axes}")
    array: Array = file.get_tensor(name)
    if f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}" != _field(schema, "crc32", str):
        raise ValueError(f"damaged: {name!r} has another checksum")
    return array if axes == sorted(axes) else array.transpose(axes).copy(order="C").transpose(np.argsort(axes))


def _read_format_1(header: dict[str, Any], file: Any) -> Checkpoint:
    """Format 1 had no schema, no tags, and null where a state is an array."""
    tensors: dict[str, Array] = {}
    for name in file.keys():  # noqa: SIM118
        if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES.values():
            raise ValueError(f"damaged: {name!r} is {dtype}")
        tensors[name] = file.get_tensor(name)
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
    return Checkpoint(params, optimizer, _field(header, "metadata", dict))


# ---- What a field must be ----


def _field(holder: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    if key not in holder:
        raise ValueError(f"damaged: the header has no {key!r}")
    value = holder[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"damaged: {key!r} is {value!r}")
    return value


def _dict(value: Any, label: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"damaged: {label} is {value!r}")
    return value


def _list(values: Any, kind: type, label: str) -> list[Any]:
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"damaged: {label}: {values!r}")
    return values


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"damaged: a state of parameter {text!r}")
    return int(text)


def _same_names(expected: set[str], found: set[str]) -> None:
    if expected != found:
        raise ValueError(f"damaged: tensors missing: {sorted(expected - found)}; too many: {sorted(found - expected)}")


def _safetensors() -> None:
    try:
        import safetensors.numpy  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("checkpoints need safetensors: pip install 'fusedstep[checkpoint]'") from error
