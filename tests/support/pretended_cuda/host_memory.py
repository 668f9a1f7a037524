"""Host memory as copies see it: which tensors are pinned, and which are still being written.

A copy blocks the host unless it is `non_blocking` and its host memory is pinned. A non-blocking
copy to the host must not be read until the host has waited for an event recorded after it.
"""

from typing import Any

import torch
from torch import Tensor

from tests.support.pretended_cuda.log import Refused, note_wait, project_line

# By address. Keeping the storages alive keeps their addresses from being reused.
_pinned: dict[int, torch.UntypedStorage] = {}
_on_their_way: dict[int, tuple[torch.UntypedStorage, int]] = {}  # with the copy's number
_copies = 0


def pinned(tensor: Tensor, device: Any = None) -> Tensor:
    """A copy in pinned memory; replaces `Tensor.pin_memory`."""
    if is_pinned(tensor):
        return tensor
    copy = tensor.detach().clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
    return copy


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether the tensor is in pinned memory; replaces `Tensor.is_pinned`."""
    return tensor.untyped_storage().data_ptr() in _pinned


def send_home(tensor: Tensor) -> None:
    """Mark a host tensor as the target of a non-blocking copy."""
    global _copies
    _copies += 1
    storage = tensor.untyped_storage()
    _pinned[storage.data_ptr()] = storage  # torch allocates pinned memory for it
    _on_their_way[storage.data_ptr()] = storage, _copies


def require_arrived(tensor: Tensor, doing: str) -> None:
    """Refuse to read a host tensor whose copy may not have finished."""
    if _on_their_way and tensor.untyped_storage().data_ptr() in _on_their_way:
        raise Refused(f"{doing} reads a copy that has not arrived yet, at {project_line()}")


def arrive(up_to: int | None = None) -> None:
    """Finish the copies up to a number, or all of them."""
    for address, (_, number) in list(_on_their_way.items()):
        if up_to is None or number <= up_to:
            del _on_their_way[address]


def forget() -> None:
    """Drop all records, once the device is gone."""
    _pinned.clear()
    _on_their_way.clear()


class Event:
    """Replaces `torch.cuda.Event`: covers the copies that began before it was recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded = 0

    def record(self, stream: Any = None) -> None:
        self._recorded = _copies

    def synchronize(self) -> None:
        note_wait("event")
        arrive(self._recorded)

    def query(self) -> bool:
        arrive(self._recorded)
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 1.0
