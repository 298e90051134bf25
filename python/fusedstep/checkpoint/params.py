"""Parameters and layers: which of them share memory, and how they are loaded."""

from collections import Counter
from typing import Any

import numpy as np

from fusedstep._common.arguments import is_whole, shown, whole
from fusedstep._common.arrays import unmasked
from fusedstep._common.structure import Parameters
from fusedstep.checkpoint.fields import as_dict, as_list, field, optional
from fusedstep.checkpoint.ties import View, place, ties
from fusedstep.checkpoint.values import DTYPES, Array, check_array, take
from fusedstep.normalization import BatchNorm

#: Arrays and layers in any structure that an optimizer takes parameters in.
Params = Any


def _named(params: Any) -> list[tuple[str, str, Any]]:
    """For each parameter and layer: its name in the file, its name in errors, and the object."""
    given = Parameters(params)
    found: list[tuple[str, str, Any]] = []
    for group in given.groups:
        names = range(len(found), len(found) + len(group.objects)) if group.names is None else group.names
        for name, value in zip(names, group.objects, strict=True):
            if group.names is not None and not isinstance(name, str):
                raise TypeError(f"params: expected names that are strings, got {shown(name)}")
            found.append((str(name), "params" if given.single else f"params[{shown(name)}]", value))
    for name, count in Counter(name for name, _, _ in found).items():
        if count > 1:
            raise ValueError(f"params: two parameters are named {name!r}")
    return found


def encode_params(params: Params, tensors: dict[str, Array]) -> dict[str, Any]:
    """The header's fields of them."""
    named = _named(params)
    arrays: dict[str, Array] = {}
    labels: dict[str, str] = {}
    layers: dict[str, dict[str, Any]] = {}

    def add(value: Any, name: str, label: str) -> str:
        array = unmasked(value, label)
        check_array(array, name, label)
        while name in arrays:
            name += "'"
        arrays[name], labels[name] = np.ndarray.view(array, np.ndarray), label
        return name

    for name, label, param in named:
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


def decode_params(header: dict[str, Any], tensors: dict[str, Array]) -> dict[str, Any]:
    """Parameters and the states of layers, by name."""
    views = {name: _decode_view(view) for name, view in optional(header, "views").items()}
    placed = {}
    for name, view in views.items():
        if name in tensors or view.of not in tensors:
            raise ValueError(f"damaged: {name!r} is a view of {view.of!r}")
        try:
            placed[name] = place(view, tensors[view.of])
        except ValueError as error:
            raise ValueError(f"damaged: {name!r}: {error}") from error
    tensors |= placed
    layers = optional(header, "layers")
    names = as_list(field(header, "params", list), str, "params")
    if not layers.keys() <= set(names):
        raise ValueError(f"damaged: layers {sorted(layers)}")
    return {
        name: _decode_layer(layers[name], tensors) if name in layers else take(tensors, f"param/{name}")
        for name in names
    }


def _decode_view(saved: Any) -> View:
    fields = as_dict(saved, "a view")
    of, dtype, offset = field(fields, "of", str), field(fields, "dtype", str), field(fields, "offset", int)
    shape, strides = (as_list(field(fields, key, list), int, f"{key} of a view") for key in ("shape", "strides"))
    sizes = (*shape, *strides, offset)
    # No memory is as large; NumPy takes 64 axes.
    if dtype not in DTYPES or len(shape) != len(strides) or len(shape) > 64 or any(abs(n) > 2**60 for n in sizes):
        raise ValueError(f"damaged: a view is {shown(saved)}")
    return View(of, dtype, tuple(shape), offset, tuple(strides))


def _decode_layer(saved: Any, tensors: dict[str, Array]) -> dict[str, Array]:
    """A state dict for `BatchNorm.load_state_dict`."""
    fields = as_dict(saved, "a layer")
    state = {name: take(tensors, str(own)) for name, own in field(fields, "arrays", dict).items()}
    batches = field(fields, "num_batches_tracked", (int, type(None)))
    if batches is not None:
        if not (is_whole(batches) and 0 <= batches < 2**53):
            raise ValueError(f"damaged: 'num_batches_tracked' is {shown(batches)}")
        state["num_batches_tracked"] = np.array(batches)
    return state
