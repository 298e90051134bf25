"""Copies between a device and the host: on an accelerator with two streams, on the CPU at once."""

from time import monotonic, sleep
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """The CPU in place of a device: a copy has ended when its call returns."""

    pinned = False

    def bring(self, into: Tensor, source: Tensor) -> Any:
        """Starts a copy from the device to the host; pass the result to `ended`."""
        into.copy_(source)
        return None

    def give(self, into: Tensor, source: Tensor) -> Any:
        """Starts a copy from the host to the device."""
        into.copy_(source)
        return None

    def ended(self, token: Any) -> bool:
        """Whether a copy has ended."""
        return True

    def join(self) -> None:
        """Makes later operations of the device wait for all copies to it."""


class StreamCopies:
    """Copies of an accelerator, with one stream per direction, so that both directions run at the same time.

    Args:
        device: The accelerator's.
    """

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bringing, self._giving = torch.Stream(device), torch.Stream(device)

    def _after_device(self, stream: Any) -> None:
        # Operations queued so far compute the gradient, or still read the parameter.
        stream.wait_stream(torch.accelerator.current_stream(self._device))

    def bring(self, into: Tensor, source: Tensor) -> Any:
        """See `HostCopies.bring`."""
        self._after_device(self._bringing)
        with self._bringing:
            into.copy_(source, non_blocking=True)
        # Otherwise its memory could be freed and reused before the copy has read it.
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
