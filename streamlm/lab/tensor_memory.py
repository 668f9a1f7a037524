"""How many bytes of tensors a piece of work holds at its worst, to the byte, on any device.

The peak of the process says what the allocator did, and a small model's tensors drown in it.
"""

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """Most bytes that were held at a time of all tensors that `work` makes.

    What a kernel takes for itself while it runs is not seen, nor is what was there before.
    """
    with _Watch() as watch:
        work()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Sees each operation's results come, and go with the last tensor that shares their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._shared: dict[int, int] = {}  # address of memory → tensors in it

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            address = _address(tensor)
            if address in self._shared:
                self._shared[address] += 1
            elif address in given:
                continue  # a view of what was there before
            else:
                self._shared[address] = 1
                self.held += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self.held)
            weakref.finalize(tensor, self._gone, address, tensor.untyped_storage().nbytes())
        return result

    def _gone(self, address: int, nbytes: int) -> None:
        self._shared[address] -= 1
        if not self._shared[address]:
            del self._shared[address]
            self.held -= nbytes


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
