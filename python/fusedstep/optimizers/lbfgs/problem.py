"""The parameters as one vector, and the loss as a function of it."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fusedstep import _core
from fusedstep._common.arrays import as_array, unmasked
from fusedstep._common.structure import Nested
from fusedstep.optimizers.base.groups import Array, arrays_of
from fusedstep.optimizers.base.reading import whole_number
from fusedstep.optimizers.lbfgs.numbers import finite, kind, number
from fusedstep.optimizers.lbfgs.state import Move, Point, Progress, largest
from fusedstep.optimizers.sgd import SGD

#: Gives the loss and the gradients at the parameters as they are.
Closure = Callable[[], tuple[float, Any]]


class Layout:
    """The parameters as one vector: one after the other as they were given, each in the order of its axes."""

    def __init__(self, group: Mapping[str, Any], form: str, container: Any) -> None:
        self.group, self.form, self.container = group, form, container
        self.names: list[Any] | None = group.get("param_names")
        params = self.params
        ends = list(itertools.accumulate(param.size for param in params))
        self.spans = [slice(end - param.size, end) for end, param in zip(ends, params, strict=True)]
        self.size, self.dtype = ends[-1], params[0].dtype

    @property
    def params(self) -> list[Array]:
        """The parameters as they are now: a closure may move their memory."""
        return [array for _, array in arrays_of([dict(self.group)])]

    def parts(self, vector: Array) -> list[Array]:
        """Views of a vector's parts, in the shapes of the parameters."""
        return [vector[span].reshape(param.shape) for span, param in zip(self.spans, self.params, strict=True)]

    def read(self) -> Array:
        """A copy of the parameters."""
        vector = np.empty(self.size, self.dtype)
        for part, param in zip(self.parts(vector), self.params, strict=True):
            part[...] = param
        return vector

    def write(self, vector: Array) -> None:
        """Sets the parameters, all of them or, whatever is raised, none."""
        _core.commit(self.pairs(vector))
        _core.wrote(self.group["params"])

    def pairs(self, vector: Array) -> list[tuple[Array, Array]]:
        """The parameters, and what a vector holds for them."""
        return list(zip(self.params, self.parts(vector), strict=True))

    def gradient(self, grads: Any) -> Array:
        """The gradients, structured as `LBFGS.step` says, as a vector."""
        vector = np.zeros(self.size, self.dtype)
        named = zip(self._flattened(grads), self.parts(vector), self.params, strict=True)
        for k, (grad, part, param) in enumerate(named):
            if grad is None:
                continue
            key = f"[{k if self.names is None else self.names[k]!r}]"
            array = as_array(grad, f"grads{key}")
            if hasattr(array, "mask"):
                raise TypeError(f"grads{key}: expected a plain NumPy array, got {kind(array)}")
            if array.dtype != param.dtype:
                raise TypeError(f"grads{key}: expected dtype {param.dtype} as params{key} has, got {array.dtype}")
            if array.shape != param.shape:
                raise ValueError(f"grads{key}: expected shape {param.shape} as params{key} has, got {array.shape}")
            part[...] = array
        return vector

    def _flattened(self, grads: Any) -> list[Any]:
        """One gradient per parameter."""
        if self.form == "array":
            return [grads]
        if isinstance(self.container, Nested):
            unwrapped = self.form == "groups" and isinstance(grads, list | tuple) and len(grads) == 1
            return self.container.grads(grads[0] if unwrapped else grads)
        if isinstance(grads, Iterator):
            grads = list(grads)
        nested = self.form == "groups" and isinstance(grads, (list, tuple)) and len(grads) == 1
        if nested and isinstance(grads[0], (list, tuple, Mapping)):
            grads = grads[0]
        if self.names is not None and (self.form == "dict" or isinstance(grads, Mapping)):
            if not isinstance(grads, Mapping):
                raise TypeError(f"grads: expected a dict with the parameters' names, got {kind(grads)}")
            for name in self.names:
                if name not in grads:
                    raise ValueError(f"grads: no gradient for {name!r} (give None to leave it out)")
            for name in grads:
                if name not in self.names:
                    raise ValueError(f"grads: {name!r} is not the name of a parameter")
            return [grads[name] for name in self.names]
        count = len(self.params)
        if not isinstance(grads, (list, tuple)):
            raise TypeError(f"grads: expected a list of {count} arrays, got {kind(grads)}")
        if len(grads) != count:
            message = f"expected {count} arrays (one per parameter, None to leave one out), got {len(grads)}"
            raise ValueError(f"grads: {message}")
        return list(grads)

    def progress(self, entry: Any, label: str) -> Progress:
        """The state that `Progress.entry` gave, or PyTorch, or that a user has changed."""
        if not isinstance(entry, Mapping):
            raise TypeError(f"{label}: expected a dict, got {kind(entry)}")
        # "al" is scratch, which PyTorch keeps with its state.
        for name in entry:
            if name not in ("func_evals", "n_iter", "al", *Move._fields):
                raise ValueError(f"{label}[{name!r}]: not a state of 'lbfgs'")
        func_evals = whole_number(entry.get("func_evals", 0), f"{label}['func_evals']")
        n_iter = whole_number(entry.get("n_iter", 0), f"{label}['n_iter']")
        if n_iter == 0:
            first = entry.get("t")
            return Progress(func_evals, 0, None, None if first is None else finite(first, f"{label}['t']"))
        values: dict[str, Any] = {}
        for name in Move._fields:
            value, what = entry.get(name), f"{label}[{name!r}]"
            if value is None:
                raise ValueError(f"{what}: missing after {n_iter} iterations")
            if name in ("old_dirs", "old_stps", "ro"):
                if not isinstance(value, (list, tuple)):
                    raise TypeError(f"{what}: expected a list, got {kind(value)}")
                read = finite if name == "ro" else self._vector
                values[name] = [read(item, f"{what}[{k}]") for k, item in enumerate(value)]
                if len(value) != len(values["old_dirs"]):
                    raise ValueError(f"{what}: expected {len(values['old_dirs'])} as 'old_dirs' has, got {len(value)}")
            else:
                values[name] = (self._vector if name in ("d", "prev_flat_grad") else finite)(value, what)
        return Progress(func_evals, n_iter, Move(**values))

    def _vector(self, value: object, label: str) -> Array:
        array = unmasked(value, label)
        if array.dtype != self.dtype:
            raise TypeError(f"{label}: expected dtype {self.dtype}, got {array.dtype}")
        if array.shape != (self.size,):
            raise ValueError(f"{label}: expected shape {(self.size,)}, got {array.shape}")
        return np.ascontiguousarray(array)


class Problem(Layout):
    """The parameters, and the loss as a function of them."""

    def __init__(self, group: Mapping[str, Any], form: str, container: Any, closure: Closure) -> None:
        super().__init__(group, form, container)
        self.closure = closure

    def evaluate(self) -> Point:
        """Calls the closure."""
        returned: object = self.closure()
        if not isinstance(returned, (tuple, list)):
            raise TypeError(f"closure: expected it to return (loss, grads), got {kind(returned)}")
        if len(returned) != 2:
            raise TypeError(f"closure: expected it to return (loss, grads), got {len(returned)} values")
        loss, grad = number(returned[0], "loss"), self.gradient(returned[1])
        return Point(loss, grad, largest(grad))

    def evaluate_finite(self, note: str = "") -> Point:
        """Calls the closure; ValueError where the loss or a gradient is not finite."""
        point = self.evaluate()
        for name, value in (("loss", point.loss), ("grads", point.grad_max)):
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected finite numbers, got {value}{note}")
        return point


def check_params(group: Mapping[str, Any]) -> None:
    """Refuses parameters that no optimizer takes, that are not float32 or float64, or not all of one dtype."""
    SGD([{key: group[key] for key in ("params", "param_names") if key in group}])
    arrays = arrays_of([dict(group)])
    if not arrays:
        raise ValueError("params: expected at least one array, got none")
    for label, array in arrays:
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{label}: expected float32 or float64, got dtype {array.dtype}")
        if array.dtype != arrays[0][1].dtype:
            raise TypeError(f"{label}: expected dtype {arrays[0][1].dtype} as {arrays[0][0]} has, got {array.dtype}")
