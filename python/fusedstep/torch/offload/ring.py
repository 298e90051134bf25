"""The ring: a bounded number of slots, through which gradients reach the host and new values leave it."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

#: In a slot, pieces begin at multiples of this many elements: 64 bytes even with one byte each.
ALIGNED = 64
#: Pieces are cut at multiples of this, so that 8-bit states are cut between blocks and sums between chunks.
GRANULE = 4096


class Gradient:
    """Identifies a gradient as it was read, by its object, memory, order of elements and version.

    Args:
        grad: The gradient.
        param: Its parameter, whose order of elements is that of the ring.
    """

    def __init__(self, grad: Tensor, param: Tensor) -> None:
        self._tensor = ref(grad)
        # Inference tensors have no version: they may have changed, and are read again.
        self._version = None if grad.is_inference() else grad._version
        self._place = grad.data_ptr(), grad.stride(), param.stride()

    def is_same(self, other: "Gradient") -> bool:
        """Whether both are the same gradient, and it still exists."""
        mine = self._tensor()
        same = mine is not None and mine is other._tensor() and self._version is not None
        return same and self._version == other._version and self._place == other._place


@dataclass
class Piece:
    """Elements [start, stop) of a parameter, in the order of its memory."""

    param: Tensor
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Its elements."""
        return self.stop - self.start


@dataclass
class Load:
    """A piece in a slot, and its copies that may not have ended."""

    piece: Piece
    at: int  # its first element in the slot
    grad: Tensor
    label: str
    source: Gradient
    copies: Any
    coming: list[Any] = field(default_factory=list)


class Slot:
    """Memory for the gradients of a number of elements, and for their new values.

    Args:
        elements: How many.
        grad_bytes: Of an element of a gradient, at most.
        value_bytes: Of an element of a parameter whose values need room of their own; 0: none does.
        pinned: Whether an accelerator copies from and to it.
    """

    def __init__(self, elements: int, grad_bytes: int, value_bytes: int, pinned: bool) -> None:
        self.elements = elements
        self._widths = grad_bytes, value_bytes
        self._memory = [
            torch.empty(elements * width, dtype=torch.uint8, device="cpu", pin_memory=pinned) for width in self._widths
        ]
        self.loads: list[Load] = []
        self.used = 0
        #: Copies of the slot's new values that may not have ended, each with the name of its parameter.
        self.leaving: list[tuple[Any, Any, str]] = []

    def place(self, size: int) -> int | None:
        """Where the next piece of this size begins; None if it does not fit."""
        at = -(-self.used // ALIGNED) * ALIGNED
        return at if at + size <= self.elements else None

    def grad(self, at: int, size: int, dtype: torch.dtype) -> Tensor:
        """The memory of a piece's gradient."""
        return self._view(0, at, size, dtype)

    def value(self, at: int, size: int, dtype: torch.dtype) -> Tensor:
        """The memory of a piece's new values."""
        return self._view(1, at, size, dtype)

    def _view(self, which: int, at: int, size: int, dtype: torch.dtype) -> Tensor:
        start = at * self._widths[which]
        return self._memory[which][start : start + size * dtype.itemsize].view(dtype)

    def clear(self) -> None:
        """Removes all pieces."""
        self.loads, self.used = [], 0


class Ring:
    """Slots that are free, and slots that hold gradients, oldest first.

    Args:
        count: How many slots.
        elements: Of each.
    """

    def __init__(self, count: int, elements: int) -> None:
        self.count, self.elements = count, elements
        self._widths = (0, 0)
        self._pinned = False
        self.slots: list[Slot] = []
        self.free: deque[Slot] = deque()
        self.filled: deque[Slot] = deque()
        #: The slot to which small pieces are added; one of `filled`.
        self._open: Slot | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all slots."""
        return self.count * self.elements * sum(self._widths)

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether its slots have room for gradients of a dtype."""
        return dtype.itemsize <= self._widths[0]

    def fit(self, grad_bytes: int, value_bytes: int, pinned: bool) -> bool:
        """Creates slots for elements of these sizes, unless they exist; returns whether slots were created."""
        widths = max(grad_bytes, self._widths[0]), max(value_bytes, self._widths[1])
        if widths == self._widths and (self._pinned or not pinned) and self.slots:
            return False
        pinned = self._pinned or pinned
        self.slots = [Slot(self.elements, *widths, pinned) for _ in range(self.count)]
        self.clear()
        # Set last, so that after a failed allocation the ring is created again.
        self._widths, self._pinned = widths, pinned
        return True

    def load(self, piece: Piece, grad: Tensor, label: str, source: Gradient, copies: Any) -> Load | None:
        """Starts copying a piece of a gradient (given whole, as a row) into a slot; None if all slots are full."""
        slot = self._open
        at = None if slot is None else slot.place(piece.size)
        if slot is None or at is None:
            if not self.free:
                return None
            slot, at = self.free.popleft(), 0
            self.filled.append(slot)
            self._open = slot
        room = slot.grad(at, piece.size, grad.dtype)
        load = Load(piece, at, room, label, source, copies)
        load.coming.append(copies.bring(room, grad[piece.start : piece.stop]))
        slot.loads.append(load)
        slot.used = at + piece.size
        return load

    def take(self) -> Slot:
        """The oldest slot that holds gradients."""
        slot = self.filled.popleft()
        if slot is self._open:
            self._open = None
        return slot

    def release(self, slot: Slot) -> None:
        """Returns a slot to the free ones."""
        slot.clear()
        self.free.append(slot)

    def clear(self) -> None:
        """Removes all gradients. Slots that were taken and not released are free again."""
        self.filled.clear()
        self._open = None
        for slot in self.slots:
            slot.clear()
        self.free = deque(self.slots)

    def renew(self, param: Tensor, grad: Tensor, source: Gradient) -> bool:
        """Copies again the pieces of a parameter that are in the ring; returns whether there are any."""
        found = False
        for slot in self.filled:
            for load in slot.loads:
                if load.piece.param is param:
                    found = True
                    load.source = source
                    load.coming = [load.copies.bring(load.grad, grad[load.piece.start : load.piece.stop])]
        return found
