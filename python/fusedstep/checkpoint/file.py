"""The file: written by hand, read back, and read."""

import errno
import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fusedstep._common.arguments import shown
from fusedstep._common.arrays import bfloat16_dtype, dtype_name
from fusedstep.checkpoint.fields import as_dict, as_list, field
from fusedstep.checkpoint.ties import in_memory
from fusedstep.checkpoint.values import DTYPES, Array

FORMAT = 4
_TEXT = "fusedstep"
_CHECKSUM = "fusedstep.crc32"
#: Bytes that are copied, checked and written at a time.
_PIECE = 1 << 19


@dataclass(frozen=True, slots=True)
class Written:
    """What a file must hold when it is read back: its header, and the size and checksum of every array."""

    header: bytes
    sizes: dict[str, int]
    checksums: dict[str, int]


def write(file: BinaryIO, header: dict[str, Any], tensors: dict[str, Array]) -> Written:
    """Writes header and arrays into an empty file."""
    # Written by hand, because safetensors copies: up to 0.7 all arrays, from 0.8 on those not in C order, and 0.8 also
    # makes a file of its own. The checksums are computed from the bytes as they are written, because another thread may
    # be stepping. So the header is written last; its length does not depend on the checksums.
    checksums = dict.fromkeys(tensors, 0)
    file.seek(len(_header_bytes(header, tensors, checksums)))
    for name in _layout(tensors):
        for piece in _pieces(tensors[name]):
            checksums[name] = zlib.crc32(piece, checksums[name])
            file.write(piece)
    file.seek(0)
    first = _header_bytes(header, tensors, checksums)
    file.write(first)
    return Written(first, {name: tensors[name].nbytes for name in _layout(tensors)}, checksums)


def verify(file: BinaryIO, written: Written) -> None:
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
        entries[name] = {"dtype": DTYPES[dtype_name(array.dtype)], "shape": array.shape, "data_offsets": [offset, end]}
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
    """Copies of the bytes, in C order: checksum and file agree, even if another thread writes into the array."""
    flags = ["external_loop", "buffered", "zerosize_ok"]
    items = max(1, _PIECE // array.itemsize)
    for piece in np.nditer(array, flags, [["readonly", "contig"]], order="C", buffersize=items):  # type: ignore[call-overload]
        flat = piece.reshape(-1)
        for start in range(0, flat.size, items):
            yield flat[start : start + items].copy().view(np.uint8).data


@contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """A regular file; anything else might never end, or never begin."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:  # of a directory: IsADirectoryError
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        yield file


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The file as safetensors reads it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file, or a damaged one ({error})") from error


def read_header(metadata: dict[str, str]) -> dict[str, Any]:
    """Our part of the header, whose checksum is right and whose format is known."""
    text = metadata.get(_TEXT)
    if text is None:
        raise ValueError("no checkpoint of fusedstep")
    if _CHECKSUM in metadata and metadata[_CHECKSUM] != _checksum(text):
        raise ValueError("damaged: the header has another checksum")
    header = as_dict(json.loads(text, parse_constant=_no_number), "the header")
    version = field(header, "format", int)
    if version > FORMAT:
        raise ValueError(f"format {version} is newer than this version of fusedstep reads ({FORMAT})")
    if version < 1 or (version > 1 and _CHECKSUM not in metadata):
        raise ValueError(f"damaged: format {version} without a checksum")
    return header


def _no_number(text: str) -> None:
    raise ValueError(f"damaged: {text} is no JSON")


def places(file: BinaryIO) -> dict[str, int]:
    """Where the arrays begin, in a file whose header safetensors has checked."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    entries = as_dict(json.loads(file.read(length)), "the file's header")
    return {
        name: 8 + length + int(entry["data_offsets"][0]) for name, entry in entries.items() if name != "__metadata__"
    }


def read_tensor(schema: dict[str, Any], name: str, safe: Any, file: BinaryIO, start: int) -> Array:
    """One array, its bytes checked, with the order of its axes in memory."""
    dtype, shape = field(schema, "dtype", str), field(schema, "shape", list)
    axes = as_list(field(schema, "axes", list), int, f"axes of {name!r}")
    stored = safe.get_slice(name)
    if dtype not in DTYPES or (stored.get_dtype(), stored.get_shape()) != (DTYPES[dtype], shape):
        raise ValueError(
            f"damaged: {name!r} is {stored.get_dtype()} {stored.get_shape()}, not {shown(dtype)[1:-1]} {shown(shape)}"
        )
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"damaged: axes of {name!r}: {shown(axes)}")
    # Read by hand: safetensors maps the file, which another program may truncate, and needs ml_dtypes for bfloat16.
    array: Array = np.empty(shape, bfloat16_dtype() if dtype == "bfloat16" else dtype)
    content = array.reshape(-1).view(np.uint8).data
    file.seek(start)
    if file.readinto(content) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"damaged: {name!r} is cut off")
    if f"{zlib.crc32(content):08x}" != field(schema, "crc32", str):
        raise ValueError(f"damaged: {name!r} has another checksum")
    return array if axes == sorted(axes) else array.transpose(axes).copy(order="C").transpose(np.argsort(axes))
