"""Copies between the host and a device that do not stall either.

A blocking copy to or from a CUDA device drains the device's queue. `send` never blocks. A `Fetch`
blocks when its values are read, and only until the work queued before it is done.
"""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device. To CUDA they travel from pinned memory, so the host does not block."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Fetch:
    """A copy from a device to the host that is under way.

    Args:
        values: on any device; the caller must not write to them afterwards.
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
        """False while `get` may block."""
        return self._copied is None

    def get(self) -> Tensor:
        """The values on the host, once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._values
