"""Copies between host and device that do not stall either.

A blocking copy to or from a CUDA device drains the device's queue. `send` never blocks. A `Fetch`
blocks only when its values are read, until the work queued before it has finished.
"""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to a device; to CUDA through pinned memory, without blocking the host."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Fetch:
    """A pending copy from a device to the host.

    Args:
        values: on any device; the caller must not modify them afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        values = values.detach()
        self._copied: torch.cuda.Event | None = None
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        if values.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))

    @property
    def arrived(self) -> bool:
        """Whether `get` returns without blocking."""
        return self._copied is None

    def get(self) -> Tensor:
        """The values on the host; blocks until the copy is complete."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._values
