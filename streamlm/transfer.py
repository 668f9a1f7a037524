"""Copies between the host and a device that let both go on working.

A plain copy to or from a CUDA device makes the host wait until the device has done all that it was
given before. `send` does not wait at all; a `Fetch` waits when its values are asked for, and only
for what the device had to do when it was begun.
"""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device; the host does not wait, for CUDA reads pinned memory."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Fetch:
    """Values of a device on their way to the host.

    Args:
        values: on any device; not to be written to any more.
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
        """False where `get` would have to wait for a device."""
        return self._copied is None

    def get(self) -> Tensor:
        """The values, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._values
