"""What the host keeps of a parameter: master, moments, average, and the numbers of its steps."""

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.reference.codec import SCALED, scale_count
from fusedstep.torch.offload.layout import NARROW, as_part, exact, flat, here, is_dense, refuse_freed, same_order
from fusedstep.torch.optim.tensors import COUNTS, number


def untouched(count: int, dtype: torch.dtype) -> Tensor:
    """So many zeros, in memory that nobody has touched: it comes to lie beside the thread that first does."""
    words = {1: np.uint8, 2: np.uint16, 4: np.float32, 8: np.float64}[dtype.itemsize]
    return torch.from_numpy(np.zeros(count, words)).view(dtype)


class Beginnings:
    """The states that parameters begin with, as the native step makes them for one element.

    Args:
        native: The native step.
    """

    def __init__(self, native: _core.TensorStep) -> None:
        self._native = native
        self._params: dict[tuple[int, torch.dtype, bool], Tensor] = {}

    @staticmethod
    def key(place: int, group: dict[str, Any], param: Tensor) -> tuple[int, torch.dtype, bool]:
        """What the states of a parameter depend on: its group, its dtype, and whether they may be of 8 bits."""
        return place, param.dtype, here(param).numel() >= group.get("min_8bit_size", 0)

    def make(self, groups: list[dict[str, Any]], wanted: set[tuple[int, torch.dtype, bool]]) -> dict[Any, Any]:
        """The entry of one element by each key: a state is of one number, or of a code with its scale."""
        made, asked = {}, []
        for key in sorted(wanted, key=str):
            param = self._params.setdefault(key, torch.zeros(1, dtype=key[1], device="cpu"))
            place, _, large = key
            group = {name: value for name, value in groups[place].items() if name != "param_names"}
            asked.append({**group, "params": [param], "_grads": [param], "min_8bit_size": 0 if large else 2**62})
            made[key] = param
        entries: dict[Any, Any] = {}
        self._native.begin(asked, entries)
        return {key: entries.get(param, {}) for key, param in made.items()}


def _say_missing(entry: dict[str, Any], name: str, state: str) -> NoReturn:
    raise ValueError(f"state[{name}][{state!r}]: missing, and the state has {list(entry)}")


def _one_number(value: Any, label: str) -> float:
    if isinstance(value, Tensor):
        if value.dtype not in (torch.float32, torch.float64) or value.numel() != 1:
            raise TypeError(f"{label}: expected a float32 tensor of one number, got {value}")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{label}: expected a number, got {type(value).__qualname__}")
    return float(value)


class Hosted:
    """One parameter and the host's tensors of it.

    Args:
        param: The parameter.
        rule: The optimizer's rule.
    """

    def __init__(self, param: Tensor, rule: str) -> None:
        self.param = param
        #: What of it is in this process: all, unless it is a DTensor.
        self.local = here(param)
        self._rule, self._is_uncounted = _core.rules()[rule], rule in COUNTS
        #: The numbers that each of its steps moves on.
        self.counted = ("step", *self._rule["scalars"])
        #: The float32 or float64 values of a parameter of that dtype, which has no master in its state.
        self._copy: Tensor | None = None
        #: Version and memory of the parameter as the last step left them; None: nothing of it is known.
        self.seen: tuple[int, ...] | None = None
        self.rows: dict[str, Tensor] = {}
        self._known: dict[str, tuple[Any, Tensor]] = {}
        #: Whether memory has become another since it was last looked at.
        self.moved = True

    @property
    def is_narrow(self) -> bool:
        """Whether the parameter is stored in fewer bits than the arithmetic has."""
        return self.local.dtype in NARROW

    @property
    def is_float32(self) -> bool:
        """Whether the arithmetic is that of float32."""
        return exact(self.local.dtype) == torch.float32

    @property
    def has_master(self) -> bool:
        """Whether steps are taken in a float32 copy."""
        return "master" in self.rows

    @property
    def is_read(self) -> bool:
        """Whether the next step has to read the parameter."""
        if self.is_narrow and not self.has_master:
            return True
        return self.seen != self._now()

    def _now(self) -> tuple[int, ...]:
        """The versions and the memory of the parameter and of its master, which are one to the other."""
        tensors = [self.local, self.rows["master"]] if self.has_master else [self.local]
        return self.param._version, *(of for t in tensors for of in (t._version, t.data_ptr()))

    def look(self) -> None:
        """Notes that what is there now is known."""
        self.seen = self._now()

    @property
    def copy(self) -> Tensor:
        """The host's values of a parameter that is not narrow, as a row."""
        if self._copy is None or self._copy.numel() != self.local.numel() or self._copy.dtype != self.local.dtype:
            self._copy = untouched(self.local.numel(), self.local.dtype)
        return self._copy

    def prepare(self, entry: dict[str, Any], begun: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
        """Looks at an entry of the state, and makes what it lacks of what one element begins with.

        Args:
            entry: The parameter's; it is not changed.
            begun: See `Beginnings.make`.
            name: What errors call the parameter.

        Returns:
            What the entry lacks, and whether a state begins with this step.

        Raises:
            TypeError: A tensor of the state of another dtype or kind than can be.
            ValueError: One of another shape or memory.
        """
        before, self.local = self.local, here(self.param)
        if before.data_ptr() != self.local.data_ptr() or before.shape != self.local.shape:
            self.moved = True
            self._known.clear()
        states = [state for state in self._rule["states"] if state in begun]
        kept = [state for state in self._rule["states"] if entry.get(state) is not None]
        made: dict[str, Any] = {}
        begins = False
        rows: dict[str, Tensor] = {}
        for state in [*states, *(copy for copy in ("ema", "master") if copy in begun)]:
            tensor, scale = entry.get(state), entry.get(f"{state}_scale")
            if tensor is None:
                if state in states and entry and kept not in self._rule["variants"]:
                    _say_missing(entry, name, state)
                begins = begins or state in states
                self._make(state, begun, made)
                tensor, scale = made[state], made.get(f"{state}_scale")
            row = self._row(state, tensor, f"state[{name}][{state!r}]")
            rows[state] = row
            if row.dtype == torch.uint8:
                rows[f"{state}_scale"] = self._scales(scale, f"state[{name}]['{state}_scale']")
        for counted in self.counted:
            if counted in begun and entry.get(counted) is None:
                if kept and not (counted == "step" and self._is_uncounted):
                    _say_missing(entry, name, counted)
                made[counted] = number(float(begun[counted]))
        self.rows = rows
        self.moved = self.moved or bool(made)
        return made, begins

    @torch.no_grad()
    def _make(self, state: str, begun: dict[str, Any], made: dict[str, Any]) -> None:
        one, param = begun[state], self.local
        row = untouched(param.numel(), one.dtype)
        tensor = row.as_strided(param.shape, param.stride()) if param.numel() else row.view(param.shape)
        made[state] = as_part(tensor, self.param)
        if state == "ema" or state in self._rule["copies"]:
            tensor.copy_(param)
            return
        if float(one):
            row.fill_(one.item())
        scale = begun.get(f"{state}_scale")
        if scale is not None:
            made[f"{state}_scale"] = torch.full(
                (scale_count(param.numel()),), float(scale), dtype=torch.float32, device="cpu"
            )

    def _row(self, state: str, given: Any, label: str) -> Tensor:
        """A tensor of the state, checked, as a row."""
        if not isinstance(given, Tensor) or given.layout is not torch.strided:
            raise TypeError(f"{label}: expected a dense tensor, got {type(given).__qualname__}")
        tensor = here(given)
        known = self._known.get(state)
        if known is not None and known[0] is given and known[1].data_ptr() == tensor.data_ptr():
            return known[1]
        self._check(state, tensor, label)
        self._known[state] = given, flat(tensor)
        self.moved = True
        return self._known[state][1]

    def _check(self, state: str, tensor: Tensor, label: str) -> None:
        param = self.local
        if tensor.device.type != "cpu":
            raise TypeError(f"{label}: expected a tensor on the CPU, got one on {tensor.device}")
        if tensor.is_inference():
            raise ValueError(f"{label}: expected a normal tensor, got one made in inference mode")
        whole = state in ("ema", "master") or state in self._rule["exact"] or param.dtype == torch.float64
        allowed = [exact(param.dtype)] if whole else [torch.float32, torch.bfloat16, torch.float16, torch.uint8]
        if tensor.dtype not in allowed:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{label}: expected {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.shape != param.shape:
            raise ValueError(f"{label}: expected shape {tuple(param.shape)}, got {tuple(tensor.shape)}")
        refuse_freed(tensor, label)
        if not is_dense(tensor) or not same_order(tensor, param):
            raise ValueError(
                f"{label}: expected the memory layout of its parameter, strides {param.stride()}, got {tensor.stride()}"
            )
        if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + tensor.numel()) * tensor.dtype.itemsize:
            raise ValueError(f"{label}: its storage is smaller than its shape: it was resized or freed")

    def _scales(self, scale: Any, label: str) -> Tensor:
        expected = (scale_count(self.local.numel()),)
        if not isinstance(scale, Tensor):
            raise TypeError(f"{label}: expected a tensor of the scales of 8-bit codes, got {type(scale).__qualname__}")
        if scale.dtype != torch.float32 or scale.device.type != "cpu" or not scale.is_contiguous():
            raise TypeError(f"{label}: expected contiguous float32 on the CPU, got {scale.dtype} on {scale.device}")
        if tuple(scale.shape) != expected:
            raise ValueError(f"{label}: expected shape {expected}, got {tuple(scale.shape)}")
        return scale

    def spans(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """All memory that steps write, by the names that errors use."""
        yield f"params[{name}]", self.local
        for state, row in self.rows.items():
            yield f"state[{name}][{state!r}]", row

    def slices(self, start: int, stop: int) -> dict[str, Any]:
        """The states of elements [start, stop)."""
        if start == 0 and stop == self.local.numel():
            return dict(self.rows)
        return {
            name: row[start // SCALED : -(-stop // SCALED)] if name.endswith("_scale") else row[start:stop]
            for name, row in self.rows.items()
        }

    def numbers(self, entry: dict[str, Any], name: str) -> Iterator[tuple[str, float]]:
        """The counts of an entry before a step, as Python's numbers; `name` is what errors call the parameter.

        Raises:
            TypeError: One that is no number.
            ValueError: A count of steps that cannot be.
        """
        for counted in self.counted:
            value = entry.get(counted)
            if value is None:
                continue
            one = _one_number(value, f"state[{name}][{counted!r}]")
            if counted == "step" and not (0 <= one < 2**53 and one == int(one)):
                raise ValueError(f"state[{name}]['step']: expected a whole number >= 0, got {value}")
            yield counted, int(one) if counted == "step" else one

    def advance(self, entry: dict[str, Any], after: dict[str, Any]) -> None:
        """Takes over the counts that the native step has left in the entry of a piece."""
        for name in self.counted:
            if name not in after:
                continue
            if isinstance(entry.get(name), Tensor):
                entry[name].fill_(float(after[name]))
            else:
                entry[name] = number(float(after[name]))
