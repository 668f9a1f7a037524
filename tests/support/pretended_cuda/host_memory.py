"""Memory of the host as copies see it: which of it is pinned, and what is still on its way.

A copy waits for the device unless it is asked not to (`non_blocking`) and the memory of the host is
pinned. A copy to the host that does not wait must not be read before an event recorded after it was
waited for.
"""

from typing import Any

import torch
from torch import Tensor

from tests.support.pretended_cuda.log import note_wait, project_line
from tests.support.pretended_cuda.refusal import Refused

# By address. The storages are held, so that no address is given to another meanwhile.
_pinned: dict[int, torch.UntypedStorage] = {}
_on_their_way: dict[int, tuple[torch.UntypedStorage, int]] = {}  # with the number of the copy
_copies = 0


def pinned(tensor: Tensor, device: Any = None) -> Tensor:
    """A copy in pinned memory; stands for `Tensor.pin_memory`."""
    if is_pinned(tensor):
        return tensor
    copy = tensor.detach().clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
    return copy


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Whether `pinned` made it; stands for `Tensor.is_pinned`."""
    return tensor.untyped_storage().data_ptr() in _pinned


def send_home(tensor: Tensor) -> None:
    """Note that a tensor of the host is written by a copy that nobody has waited for."""
    global _copies
    _copies += 1
    storage = tensor.untyped_storage()
    _pinned[storage.data_ptr()] = storage  # torch copies into pinned memory then
    _on_their_way[storage.data_ptr()] = storage, _copies


def require_arrived(tensor: Tensor, doing: str) -> None:
    """Refuse what reads a tensor of the host that may not have arrived."""
    if _on_their_way and tensor.untyped_storage().data_ptr() in _on_their_way:
        raise Refused(f"{doing} reads a copy that has not arrived yet, at {project_line()}")


def arrive(up_to: int | None = None) -> None:
    """The host has waited for the copies up to a number, or for all."""
    for address, (_, number) in list(_on_their_way.items()):
        if up_to is None or number <= up_to:
            del _on_their_way[address]


def forget() -> None:
    """Let go of everything, when the device is gone."""
    _pinned.clear()
    _on_their_way.clear()


class Event:
    """Stands for `torch.cuda.Event`: knows the copies begun before it was recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded = 0

    def record(self, stream: Any = None) -> None:
        self._recorded = _copies

    def synchronize(self) -> None:
        note_wait("event", project_line())
        arrive(self._recorded)

    def query(self) -> bool:
        arrive(self._recorded)
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 1.0
