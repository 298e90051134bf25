"""What is saved and loaded, part by part; `save_checkpoint` and `load_checkpoint`."""

import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fusedstep import _core
from fusedstep._common.brief import brief, plural
from fusedstep._common.extras import require
from fusedstep._common.files import replacing
from fusedstep.checkpoint.fields import as_dict, field, same_names
from fusedstep.checkpoint.file import FORMAT, opened, places, read_header, read_tensor, reading, verify, write
from fusedstep.checkpoint.optimizer import decode_optimizer, encode_optimizer, state_of
from fusedstep.checkpoint.params import Params, decode_params, encode_params
from fusedstep.checkpoint.rng import decode_rng, encode_rng
from fusedstep.checkpoint.values import DEEPEST, DTYPES, Array, decode, encode
from fusedstep.optimizers import LBFGS, Optimizer


class CheckpointError(ValueError):
    """A file that is no checkpoint of this library, or is damaged, or of a newer format."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        params: The parameters by name (by position, "0", "1", …, where they were a list), in the order and with the
            order of axes in memory that they were saved with. Those that shared memory share it again. For a
            `BatchNorm`: its state, for `BatchNorm.load_state_dict`.
        optimizer: A state dict for `Optimizer.load_state_dict`; None where there was no optimizer. Schedules of
            `fusedstep.schedules` are objects in its groups. Beside its own keys it has `schedules`: per group, the
            names of the hyper-parameters that were other functions, and are not in it.
        metadata: The metadata that were given.
        rng: The random generator in its saved state; None if none was given.
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

    The file gets its name when all of it is on the disk: a crash leaves the old file or the new one. (A process killed
    in the middle leaves its temporary file too, `.fusedstep-….tmp` in the same directory.) A file that is replaced
    keeps its permissions; a symbolic link stays, and the file it leads to is replaced. The schedules of
    `fusedstep.schedules` are saved, by name and arguments, a `ReduceOnPlateau` with its state. Any other function, or a
    schedule that contains one, is not saved; its position, the number of steps, is.

    Needs no memory beyond the arrays themselves, in any order of their axes. Another thread may go on training: the new
    file is read back before it replaces the old one. Its arrays may then be of different steps.

    Parameters that share memory, such as `{"embed": w, "head": w.T}`, are saved once, and loaded as views of one array.
    The running statistics of batch norm are part of a model: give the layers beside the parameters.

    Args:
        path: The file.
        params: The parameters, of any dtype that NumPy and safetensors both have, and layers (`BatchNorm`), in any
            structure that an optimizer takes. Names in nested dicts are paths, "net.w"; parameters without a name are
            named by their position. Only the parameters of groups are saved.
        optimizer: Its state is saved too.
        rng: A generator over one of NumPy's own bit generators; its state is saved too.
        **metadata: None, numbers, strings, arrays, and lists, tuples and dicts (by strings) of them. A NumPy scalar
            comes back as the number it holds.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        TypeError: Something that cannot be saved, by name: a parameter that is no array, or masked, a dtype, a value.
        ValueError: `path` exists and is not a regular file; a name that is not Unicode; metadata that contain
            themselves; parameters that share memory, neither of which holds all of the other.
        OSError: The file cannot be written, or reads back differently. After any error the old file is unchanged.

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
    require("safetensors.numpy", "checkpoint", "checkpoints need safetensors")
    tensors: dict[str, Array] = {}
    fields = encode_params(params, tensors)
    encoded = None if optimizer is None else encode_optimizer(state_of(optimizer), tensors)
    scheduled = encoded is not None and "schedule_table" in encoded
    header = {
        "format": FORMAT if len(fields) > 1 else 3 if scheduled else 2,
        "version": _core.version,
        **fields,
        "optimizer": encoded,
        "rng": None if rng is None else encode_rng(rng, tensors),
        "metadata": {name: encode(value, f"metadata/{name}", tensors) for name, value in metadata.items()},
    }
    with replacing(path) as file:
        written = write(file, header, tensors)
        file.flush()
        # A file that cannot be read, or reads back differently, must not replace a good one.
        with opened(file.name):
            pass
        verify(file, written)


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
            file. It is a ValueError, and the only error for any content of a file.
        OSError: The file cannot be read; FileNotFoundError if it does not exist.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, [np.zeros(2, np.float32)], note="as a list")
        >>> print(fs.load_checkpoint(path).params)
        {'0': array([0., 0.], dtype=float32)}
    """
    require("safetensors.numpy", "checkpoint", "checkpoints need safetensors")
    path = os.fsdecode(path)
    try:
        with reading(path) as file, opened(path) as safe:
            header = read_header(safe.metadata() or {})
            return (_read_format_1 if header["format"] == 1 else _read)(header, safe, file)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error!s:.1000}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error!s:.1000}") from error


def _read(header: dict[str, Any], safe: Any, file: BinaryIO) -> Checkpoint:
    field(header, "version", str)
    schema = field(header, "tensors", dict)
    starts = places(file)
    same_names(set(schema), set(starts))
    same_names(set(schema), set(safe.keys()))
    tensors = {
        name: read_tensor(as_dict(schema[name], "a tensor"), name, safe, file, start) for name, start in starts.items()
    }
    optimizer, rng = (field(header, key, (dict, type(None))) for key in ("optimizer", "rng"))
    checkpoint = Checkpoint(
        decode_params(header, tensors),
        None if optimizer is None else decode_optimizer(optimizer, tensors),
        {name: decode(value, tensors) for name, value in field(header, "metadata", dict).items()},
        None if rng is None else decode_rng(rng, tensors),
    )
    same_names(set(), set(tensors))
    return checkpoint


def _read_format_1(header: dict[str, Any], safe: Any, file: BinaryIO) -> Checkpoint:
    """Format 1 had no schema, no tags, and null where a state is an array."""
    tensors: dict[str, Array] = {}
    for name in safe.keys():  # noqa: SIM118
        if (dtype := safe.get_slice(name).get_dtype()) not in DTYPES.values():
            raise ValueError(f"damaged: {name!r} is {dtype}")
        tensors[name] = safe.get_tensor(name)
    params = {name.removeprefix("param/"): tensors.pop(name) for name in list(tensors) if name.startswith("param/")}
    optimizer = field(header, "optimizer", (dict, type(None)))
    if optimizer is not None:
        state = {
            k: {
                name: {"tensor": f"state/{k}/{name}"} if value is None else value
                for name, value in as_dict(entry, "a state").items()
            }
            for k, entry in field(optimizer, "state", dict).items()
        }
        groups = [
            {
                name: {"tuple": value} if isinstance(value, list) and not name.startswith("param") else value
                for name, value in as_dict(group, "a group").items()
            }
            for group in field(optimizer, "param_groups", list)
        ]
        optimizer = decode_optimizer(
            {**optimizer, "state": state, "param_groups": groups, "schedules": [[] for _ in groups]}, tensors
        )
    same_names(set(), set(tensors))
    _check_depth(metadata := field(header, "metadata", dict))
    return Checkpoint(params, optimizer, metadata)


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"damaged: lists and dicts more than {DEEPEST} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)
