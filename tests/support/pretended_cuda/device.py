"""`pretended_cuda`: a context in which PyTorch has a CUDA device."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # keeps torch's functions in tables: before they are replaced
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.support.pretended_cuda import host_memory
from tests.support.pretended_cuda.log import Log, counting, note_wait
from tests.support.pretended_cuda.operators import PretendedDevice
from tests.support.pretended_cuda.tensor import CUDA, PretendedTensor, thread

PROPERTIES = SimpleNamespace(
    name="pretended", major=9, minor=0, total_memory=1 << 36, multi_processor_count=132
)
# What functions of torch.cuda return. The random state is the CPU's, which callers save anyway.
ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "_lazy_init": None,
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "max_memory_allocated": 1,
    "memory_allocated": 1,
    "memory_reserved": 1,
    "mem_get_info": (1 << 36, 1 << 36),
    "get_device_name": PROPERTIES.name,
    "get_device_properties": PROPERTIES,
    "get_device_capability": (PROPERTIES.major, PROPERTIES.minor),
    "is_bf16_supported": True,
    "manual_seed_all": None,
    "set_rng_state": None,
    "is_current_stream_capturing": False,
    "current_stream": None,
}
_thread_run = threading.Thread.run
_to = Tensor.to
_sdpa = torch.nn.functional.scaled_dot_product_attention
_group_tensors = torch._C._group_tensors_by_device_and_dtype
_tensor, _load, _save, _autocast = torch.tensor, torch.load, torch.save, torch.autocast


@contextlib.contextmanager
def pretended_cuda() -> Iterator[Log]:
    """Provide the CUDA device `cuda:0`, also to threads that start within the context.

    Yields:
        A log of everything that happens on the device.
    """
    with contextlib.ExitStack() as stack:
        for owner, name, value in _replacements():
            stack.enter_context(_replaced(owner, name, value))
        stack.callback(host_memory.forget)
        stack.enter_context(PretendedDevice())
        yield stack.enter_context(counting())


def _replacements() -> Iterator[tuple[Any, str, Any]]:
    for name, answer in ANSWERS.items():
        yield torch.cuda, name, _answering(answer)
    for owner in (torch.cuda, torch.cuda.random):
        yield owner, "get_rng_state", lambda *_: torch.get_rng_state()
        yield owner, "set_rng_state", _answering(None)
    yield torch.cuda, "synchronize", _synchronize
    yield torch.cuda, "Event", host_memory.Event
    yield torch, "tensor", _make
    yield torch, "load", _load_to
    yield torch, "save", _save_from
    yield torch, "autocast", _autocast_on_the_cpu
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        yield torch, name, _autocast_of_the_cpu(getattr(torch, name))
    yield torch.nn.functional, "scaled_dot_product_attention", _attend
    yield Tensor, "to", _move
    yield Tensor, "cuda", lambda self, *args, **kwargs: _move(self, CUDA)
    yield Tensor, "pin_memory", host_memory.pinned
    yield Tensor, "is_pinned", host_memory.is_pinned
    for name in ("numpy", "tolist"):
        yield Tensor, name, _reading(name)
    yield torch._C, "_group_tensors_by_device_and_dtype", _group
    yield threading.Thread, "run", _run_thread


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:  # inherited
            delattr(owner, name)


def _synchronize(*_: Any) -> None:
    note_wait("synchronize")
    host_memory.arrive()


def _reading(name: str) -> Callable[..., Any]:
    """A method of CPU tensors that reads values without calling an operator."""
    method = getattr(Tensor, name)

    def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        host_memory.require_arrived(self, name)
        return method(self, *args, **kwargs)

    return read


def _move(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` of a CPU tensor. Builds without CUDA accept `cuda:0`, but not plain `cuda`."""

    def indexed(value: Any) -> Any:
        named = isinstance(value, torch.device) and value.type == "cuda"
        if named or (isinstance(value, str) and value.startswith("cuda")):
            return CUDA
        return value

    if args and isinstance(args[0], PretendedTensor):
        args = (CUDA, args[0].dtype, *args[1:])
    return _to(
        self,
        *(indexed(value) for value in args),
        **{name: indexed(value) for name, value in kwargs.items()},
    )


def _make(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    made = _tensor(data, **kwargs)
    return made if device is None else made.to(device)


def _autocast_on_the_cpu(device_type: Any, *args: Any, **kwargs: Any) -> Any:
    kind = "cpu" if str(device_type).startswith("cuda") else device_type
    return _autocast(kind, *args, **kwargs)


def _autocast_of_the_cpu(function: Callable[[str], Any]) -> Callable[..., Any]:
    return lambda kind="cuda": function("cpu" if kind.startswith("cuda") else kind)


def _attend(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    before, thread.composing = thread.composing, isinstance(query, PretendedTensor)
    try:
        return _sdpa(query, *args, **kwargs)
    finally:
        thread.composing = before


def _save_from(obj: Any, *args: Any, **kwargs: Any) -> None:
    _save(
        tree_map(lambda x: x.cpu() if isinstance(x, PretendedTensor) else x, obj), *args, **kwargs
    )


def _load_to(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    found = _load(file, map_location="cpu", **kwargs)
    if map_location is not None and torch.device(map_location).type == "cuda":
        found = tree_map(lambda x: x.to(CUDA) if isinstance(x, Tensor) else x, found)
    return found


def _group(tensors: Any, with_indices: bool = False) -> Any:
    """As in PyTorch, but by the device that Python sees; for optimisers and gradient clipping."""
    found = _group_tensors(tensors, with_indices)
    return {
        (CUDA if isinstance(lists[0][0], PretendedTensor) else device, dtype): (lists, indices)
        for (device, dtype), (lists, indices) in found.items()
    }


def _run_thread(self: threading.Thread) -> None:
    with PretendedDevice():  # modes are per thread
        _thread_run(self)
