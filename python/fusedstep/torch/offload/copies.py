"""Copies between a device and the host: on an accelerator by two streams of their own, on the CPU at once."""

from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """The CPU stands in for a device: a copy is over when its call returns."""

    pinned = False

    def bring(self, into: Tensor, source: Tensor) -> Any:
        """Begins a copy from the device to the host; `ended` tells of what it returns."""
        into.copy_(source)
        return None

    def give(self, into: Tensor, source: Tensor) -> Any:
        """Begins a copy from the host to the device."""
        into.copy_(source)
        return None

    def ended(self, token: Any) -> bool:
        """Whether a copy is over."""
        return True

    def join(self) -> None:
        """Makes what the device computes next wait for all copies to it."""


class StreamCopies:
    """Copies of an accelerator: one stream brings, the other gives, so that both directions go on at once.

    Args:
        device: The accelerator's.
    """

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bringing, self._giving = torch.Stream(device), torch.Stream(device)

    def _after_device(self, stream: Any) -> None:
        # What has been queued so far makes the gradient, or still reads the parameter.
        stream.wait_stream(torch.accelerator.current_stream(self._device))

    def bring(self, into: Tensor, source: Tensor) -> Any:
        """See `HostCopies.bring`."""
        self._after_device(self._bringing)
        with self._bringing:
            into.copy_(source, non_blocking=True)
        # Its memory may be freed, and given to another tensor, before the copy has read it.
        source.record_stream(self._bringing)
        return self._bringing.record_event()

    def give(self, into: Tensor, source: Tensor) -> Any:
        """See `HostCopies.give`."""
        self._after_device(self._giving)
        with self._giving:
            into.copy_(source, non_blocking=True)
        into.record_stream(self._giving)
        return self._giving.record_event()

    def ended(self, token: Any) -> bool:
        """See `HostCopies.ended`."""
        return bool(token.query())

    def join(self) -> None:
        """See `HostCopies.join`."""
        torch.accelerator.current_stream(self._device).wait_stream(self._giving)


def copies_of(device: torch.device) -> Any:
    """How numbers get from a device to the host and back."""
    return HostCopies() if device.type == "cpu" else StreamCopies(device)


def wait(copies: Any, token: Any, seconds: float, name: str) -> None:
    """Waits for a copy.

    Raises:
        TimeoutError: It has not ended in so many seconds. The message names what was copied.
    """
    deadline = monotonic() + seconds
    pause = 0.0
    while not copies.ended(token):
        if monotonic() > deadline:
            raise TimeoutError(f"{name}: its copy has not ended within {seconds:g} s")
        sleep(pause)
        pause = min(1e-3, pause + 1e-5)
