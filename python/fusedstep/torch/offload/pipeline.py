"""A step through slots: copies gradients to the host piece by piece, steps them, and copies new values back."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusedstep import _core
from fusedstep.reference.ranged import Ranged, total_of
from fusedstep.torch.offload.copies import wait
from fusedstep.torch.offload.layout import flat
from fusedstep.torch.offload.ring import Gradient, Load, Piece, Ring, Slot
from fusedstep.torch.offload.states import Hosted

Measured = tuple[float, int, float]


@dataclass
class Stepped:
    """A parameter in this step."""

    hosted: Hosted
    number: int  # its index among all parameters
    offset: int  # of its first element in the whole tensor, if it is a shard
    whole: int  # elements of the whole tensor
    group: int
    name: Any  # its name, or its index
    grad: Tensor  # as a row
    copies: Any
    entry: dict[str, Any]  # its state, with the states that this step creates
    begins: bool
    reads: bool
    pieces: list[Piece]
    source: Gradient
    numbers: dict[str, float] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    values: Tensor | None = None  # the parameter, as a row
    squares: list[Ranged] = field(default_factory=list)
    nonfinite: float = 0.0

    @property
    def param(self) -> Tensor:
        """The parameter."""
        return self.hosted.param

    @property
    def label(self) -> str:
        """The name of its gradient in errors."""
        return f"grads[{self.name!r}]"


def cut(param: Tensor, size: int, elements: int) -> list[Piece]:
    """The pieces of a parameter of this size, with this many elements each; the last may have fewer."""
    return [Piece(param, start, min(size, start + elements)) for start in range(0, max(size, 1), elements)]


class Pipeline:
    """One step.

    Args:
        native: The native step.
        ring: The slots; it may hold gradients that hooks have brought.
        groups: The optimizer's.
        stepped: The parameters that have a gradient.
        grad_scale: What the gradients were multiplied by.
        add: None, or what gives the sums over all parts of tensors, of places and the sums of the parts here.
        seconds: How long to wait for a copy.
    """

    def __init__(
        self,
        native: _core.TensorStep,
        ring: Ring,
        groups: list[dict[str, Any]],
        stepped: list[Stepped],
        grad_scale: float,
        add: Any,
        seconds: float,
    ) -> None:
        self._native, self._ring, self._groups, self._seconds = native, ring, groups, seconds
        self._scale, self._add = grad_scale, add
        self._of = {one.param: one for one in stepped}
        self._stepped = stepped
        self._pending: deque[Piece] = deque()
        self._copies = {id(one.copies): one.copies for one in stepped}
        self.taken = native.taken
        #: Whether a parameter may have been written.
        self.wrote = False

    def _sort(self) -> None:
        """Keeps the gradients of this step in the ring, removes all others, and lists the missing pieces."""
        there: dict[Tensor, set[int]] = {one.param: set() for one in self._stepped}
        for slot in self._ring.filled:
            kept = []
            for load in slot.loads:
                one = self._of.get(load.piece.param)
                if one is not None and load.source.is_same(one.source):
                    kept.append(load)
                    there[one.param].add(load.piece.start)
                else:
                    self._wait(load)
            slot.loads = kept
        for one in self._stepped:
            self._pending.extend(piece for piece in one.pieces if piece.start not in there[one.param])

    def _fill(self) -> Iterator[Load]:
        """Copies pieces into the ring while it has room."""
        while self._pending:
            piece = self._pending[0]
            one = self._of[piece.param]
            load = self._ring.load(piece, one.grad, one.label, one.source, one.copies)
            if load is None:
                return
            self._pending.popleft()
            yield load

    def _wait(self, load: Load) -> None:
        for token in load.coming:
            wait(load.copies, token, self._seconds, load.label)
        load.coming.clear()

    def _wait_left(self, slot: Slot) -> None:
        for copies, token, label in slot.leaving:
            wait(copies, token, self._seconds, label)
        slot.leaving.clear()

    def _values(self, slot: Slot, load: Load) -> Tensor:
        """Where the new values of a piece are written on the host."""
        piece, hosted = load.piece, self._of[load.piece.param].hosted
        if hosted.is_narrow:
            return slot.value(load.at, piece.size, hosted.param.dtype)
        return hosted.copy[piece.start : piece.stop]

    def _read(self, slot: Slot, load: Load) -> None:
        """Starts copying the values of a piece of which the parameter was changed outside."""
        one = self._of[load.piece.param]
        if one.reads and one.values is not None:
            self._wait_left(slot)
            source = one.values[load.piece.start : load.piece.stop]
            load.coming.append(one.copies.bring(self._values(slot, load), source))

    def _call(self, slot: Slot) -> tuple[list[dict[str, Any]], list[tuple[Stepped, Tensor, Load]]]:
        """Groups of the pieces in a slot, and the pieces in their order."""
        groups: list[dict[str, Any]] = [
            {**group, "params": [], "_grads": [], "param_names": []} for group in self._groups
        ]
        order: list[list[tuple[Stepped, Tensor, Load]]] = [[] for _ in groups]
        for load in slot.loads:
            one = self._of[load.piece.param]
            values = self._values(slot, load)
            group = groups[one.group]
            group["params"].append(values)
            group["_grads"].append(load.grad)
            group["param_names"].append(one.name)
            order[one.group].append((one, values, load))
        return groups, [item for items in order for item in items]

    def measure(self, others: list[Measured]) -> Measured:
        """The squares of all gradients and how many of their elements are not finite. Nothing is written.

        `others` has the sums of gradients that do not pass through the ring. Gradients that are in the ring at the end
        stay there, so the step does not copy them again.
        """
        self._sort()
        measured: deque[Slot] = deque()
        ring = self._ring
        circulating = min(2, ring.count)
        while True:
            for _ in self._fill():
                pass
            while self._pending and measured and len(ring.filled) + len(ring.free) < circulating:
                ring.release(measured.popleft())
                for _ in self._fill():
                    pass
            if not ring.filled:
                break
            slot = ring.take()
            self._measure(slot)
            measured.append(slot)
        ring.filled.extend(measured)
        sums = [[total_of(one.squares), (one.nonfinite, 0)] for one in self._stepped]
        if self._add is not None:
            sums = self._add([one.number for one in self._stepped], sums)
        squares = [of[0] for of in sums] + [(value, exponent) for value, exponent, _ in others]
        counts = [of[1][0] for of in sums] + [nonfinite for _, _, nonfinite in others]
        return *total_of(squares), sum(counts)

    def _measure(self, slot: Slot) -> None:
        for load in slot.loads:
            self._wait(load)
        groups, order = self._call(slot)
        # Each piece continues the sum of the previous piece, as in one call. In float64 a sum may exceed a double's
        # range, so there each piece has its own sum.
        goes_on = [bool(one.squares) and one.hosted.is_float32 for one, _, _ in order]
        before = [one.squares[-1][0] if on else 0.0 for (one, _, _), on in zip(order, goes_on, strict=True)]
        found = self._native.measure(groups, before)
        for (one, _, _), on, (value, exponent, nonfinite) in zip(order, goes_on, found, strict=True):
            one.squares[len(one.squares) - on :] = [(value, exponent)]
            one.nonfinite += nonfinite

    def update(self, measured: Measured | None) -> bool:
        """Steps all parameters; returns False if the step is skipped because of nonfinite gradients."""
        self._pending.clear()
        self._sort()
        for one in self._stepped:
            one.values = flat(one.hosted.local)
        if not self._stepped and not self._report(measured):
            return False
        for slot in self._ring.slots:
            self._wait_left(slot)
        for slot in self._ring.filled:
            for load in slot.loads:
                self._read(slot, load)
        while True:
            for load in self._fill():
                self._read(self._ring.filled[-1], load)
            if not self._ring.filled:
                break
            slot = self._ring.take()
            stepped = not slot.loads or self._step(slot, measured)
            self._ring.release(slot)
            if not stepped:
                self._ring.clear()
                return False
        for copies in self._copies.values():
            copies.join()
        return True

    def _report(self, measured: Measured | None) -> bool:
        """A native step on no elements, which sets the report."""
        nothing = torch.zeros(0, dtype=torch.float32, device="cpu")
        groups = [{**group, "params": [], "param_names": []} for group in self._groups]
        groups[0] |= {"params": [nothing], "_grads": [nothing.clone()], "param_names": [None]}
        self._native.taken = self.taken
        return self._native.step(groups, {}, self._scale, measured=measured)

    def _step(self, slot: Slot, measured: Measured | None) -> bool:
        for load in slot.loads:
            self._wait(load)
        self._wait_left(slot)
        groups, order = self._call(slot)
        entries = {}
        parts: list[Any] = []
        for one, values, load in order:
            entries[values] = {**one.hosted.slices(load.piece.start, load.piece.stop), **one.numbers}
            parts.append((one.number, one.offset + load.piece.start, one.whole, one.reads, one.begins))
        self._native.taken = self.taken
        # An interrupt may come after the native step. Its own errors come before it writes.
        wrote, self.wrote = self.wrote, True
        try:
            stepped = self._native.step(groups, entries, self._scale, parts=parts, measured=measured)
        except Exception:
            self.wrote = wrote
            raise
        if not stepped:
            self.wrote = wrote
            return False
        for one, values, load in order:
            if not one.after:
                one.after = {name: entries[values][name] for name in one.hosted.counted if name in entries[values]}
            target = one.values[load.piece.start : load.piece.stop]  # type: ignore[index]
            slot.leaving.append((one.copies, one.copies.give(target, values), one.label))
        return True
