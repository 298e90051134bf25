"""Checkpoints: one safetensors file, written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedstep import _core
from fusedstep._arrays import as_array
from fusedstep.optimizers import Optimizer

FORMAT = 1
_KEY = "fusedstep"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        params: The parameters by name (by position, "0", "1", …, where they were a list).
        optimizer: A state dict for `Optimizer.load_state_dict`; None where there was no optimizer.
        metadata: What was given beside them.
    """

    params: dict[str, Array]
    optimizer: dict[str, Any] | None
    metadata: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str],
    params: Mapping[str, Array] | list[Array],
    optimizer: Optimizer | None = None,
    **metadata: Any,
) -> None:
    """Writes parameters, optimizer state and metadata into one safetensors file.

    The file appears under its name when all of it is on the disk: a crash leaves the old one or the new one. A schedule
    is a function and is not saved; its position, the number of steps, is.

    Args:
        path: The file.
        params: The parameters, by name or as a list.
        optimizer: Its state is saved too.
        **metadata: Anything that JSON can hold.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        TypeError: Metadata that JSON cannot hold; a name that is no string; a parameter that is no array.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> params = {"w": np.ones(2, np.float32)}
        >>> opt = fs.AdamW(params)
        >>> report = opt.step({"w": np.ones(2, np.float32)})
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, params, opt, epoch=3)
        >>> loaded = fs.load_checkpoint(path)
        >>> opt.load_state_dict(loaded.optimizer)
        >>> print(loaded.metadata, loaded.optimizer["state"][0]["step"])
        {'epoch': 3} 1
    """
    serialize = _safetensors().save
    named = params if isinstance(params, Mapping) else {str(k): param for k, param in enumerate(params)}
    tensors: dict[str, Array] = {}
    for name, param in named.items():
        if not isinstance(name, str):
            raise TypeError(f"params: expected names that are strings, got {name!r}")
        # safetensors would write the memory of an array in another order of axes as it stands.
        tensors[f"param/{name}"] = _contiguous(as_array(param, f"params[{name!r}]"))
    header: dict[str, Any] = {"format": FORMAT, "version": _core.version, "metadata": metadata, "optimizer": None}
    if optimizer is not None:
        header["optimizer"] = _flatten_state(optimizer.state_dict(), tensors)
    text = json.dumps(header)
    _write_whole(Path(path), serialize(tensors, metadata={_KEY: text}))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        ModuleNotFoundError: The extra `fusedstep[checkpoint]` is not installed.
        ValueError: The file is damaged, or no checkpoint of this library.

    Examples:
        >>> import tempfile, os, numpy as np, fusedstep as fs
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> fs.save_checkpoint(path, [np.zeros(2, np.float32)], note="as a list")
        >>> print(fs.load_checkpoint(path).params)
        {'0': array([0., 0.], dtype=float32)}
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    if text is None:
        raise ValueError(f"{path}: no checkpoint of fusedstep")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise ValueError(f"{path}: format {header['format']} is newer than this version of fusedstep reads ({FORMAT})")
    params = {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")}
    optimizer = header["optimizer"]
    if optimizer is not None:
        optimizer["state"] = {
            int(k): {name: tensors[f"state/{k}/{name}"] if value is None else value for name, value in entry.items()}
            for k, entry in optimizer["state"].items()
        }
    return Checkpoint(params, optimizer, header["metadata"])


def _flatten_state(state_dict: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """Moves the arrays of a state dict into `tensors`, leaving null in their place, and drops schedules."""
    state: dict[str, dict[str, Any]] = {}
    for k, entry in state_dict["state"].items():
        state[str(k)] = {}
        for name, value in entry.items():
            if isinstance(value, np.ndarray):
                tensors[f"state/{k}/{name}"] = _contiguous(value)
                value = None
            state[str(k)][name] = value
    groups = [{k: v for k, v in group.items() if not callable(v)} for group in state_dict["param_groups"]]
    return {**state_dict, "state": state, "param_groups": groups}


def _contiguous(array: Array) -> Array:
    # numpy.ascontiguousarray would make a 0-d array 1-d.
    return np.asarray(array, order="C")


def _write_whole(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("checkpoints need safetensors: pip install 'fusedstep[checkpoint]'") from error
    return safetensors.numpy
