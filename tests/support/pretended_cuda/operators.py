"""Operators on the pretended device: check the operands, log the cost, run on the CPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.support.pretended_cuda.host_memory import arrive, is_pinned, require_arrived, send_home
from tests.support.pretended_cuda.log import (
    Refused,
    note_copy,
    note_kernel,
    note_wait,
    project_line,
)
from tests.support.pretended_cuda.tensor import CPU, PretendedTensor, thread

# Operators that return a view or allocate, and launch no kernel.
NO_KERNEL = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided", "alias", "unfold"),
        *("slice", "select", "transpose", "permute", "expand", "t", "unsqueeze", "squeeze"),
        *("split", "split_with_sizes", "unbind", "diagonal", "detach", "detach_", "lift_fresh"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
        *("set_", "is_pinned", "_local_scalar_dense", "_fused_sdp_choice"),
    }
)
# Operators whose result's size depends on values, so that the host must wait for them.
SIZED_BY_VALUES = frozenset(
    {
        *("nonzero", "masked_select", "equal", "bincount"),
        *("_unique2", "unique_dim", "unique_consecutive"),
    }
)
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})
# Operators that do not accept a 0-d CPU tensor beside CUDA tensors.
NO_SCALARS = frozenset({"mm", "bmm", "addmm", "cat", "stack", "gather", "scatter", "index_select"})

PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout})


class PretendedDevice(TorchDispatchMode):
    """Makes factories with `device="cuda"` and copies to it return pretended tensors."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the wrapper costs as much as an operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operator that may involve the pretended device."""
    name = func.overloadpacket.__name__
    there: list[PretendedTensor] = []
    here: list[Tensor] = []

    def sorted_out(x: Tensor) -> Tensor:
        if isinstance(x, PretendedTensor):
            there.append(x)
            return x.inner
        here.append(x)
        return x

    inner = with_tensors(sorted_out, args)
    named = {key: with_tensors(sorted_out, each) for key, each in kwargs.items()}
    on_cuda = _runs_on_cuda(name, there, kwargs)
    for tensor in here:
        require_arrived(tensor, name)
    generator = kwargs.get("generator")
    if generator is not None and on_cuda and generator.device.type != "cuda":
        raise Refused(f"{name}: expected a cuda generator, found cpu, at {project_line()}")
    moves = name in ("_to_copy", "copy_") and (there or on_cuda)
    non_blocking = False
    if moves:
        non_blocking = _move(name, args, kwargs, on_cuda)
    elif there:
        _compute(name, args, kwargs, here)
    elif on_cuda and name not in NO_KERNEL:
        note_kernel(name)
    if named.get("device") is not None:
        named["device"] = CPU
    named.pop("pin_memory", None)
    result = func(*inner, **named)
    if name == "copy_" and not isinstance(args[0], PretendedTensor):
        if there and non_blocking:
            send_home(args[0])
        return args[0]
    if name == "_local_scalar_dense" or not on_cuda:
        if name == "_to_copy" and there:
            result = result.clone() if result is inner[0] else result
            if non_blocking:
                send_home(result)
        return result
    known = {id(x.inner): x for x in there}

    def wrapped(x: Tensor) -> Tensor:
        return known[id(x)] if id(x) in known else PretendedTensor(x)

    out = with_tensors(wrapped, result)
    return return_and_correct_aliasing(func, args, kwargs, out) if there and aliases(func) else out


def with_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value as operators take and return it, with its tensors changed."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return kind([each if type(each) in PLAIN else with_tensors(change, each) for each in value])
    return value


@cache
def aliases(func: Any) -> bool:
    """Whether results of an operator share memory with its operands."""
    return any(each.alias_info is not None for each in func._schema.returns)


def _runs_on_cuda(name: str, there: list[PretendedTensor], kwargs: dict[str, Any]) -> bool:
    """Whether the result is on the device."""
    asked = kwargs.get("device")
    if asked is None or torch.device(asked).type == "cuda":
        return bool(there) or asked is not None
    # The CPU was asked for: by Python, or by C++ that takes a pretended tensor for a CPU tensor.
    if name == "_to_copy":
        return bool(there) and not thread.leaving
    return bool(there) or thread.composing


def _move(name: str, args: Any, kwargs: dict[str, Any], on_cuda: bool) -> bool:
    """Log a copy; returns whether the host continues without waiting for it."""
    source = args[1] if name == "copy_" else args[0]
    asked = kwargs.get("non_blocking", False)
    if name == "copy_":
        on_cuda = isinstance(args[0], PretendedTensor)
        asked = asked or (len(args) > 2 and bool(args[2]))
    from_cuda = isinstance(source, PretendedTensor)
    if on_cuda and from_cuda:
        note_kernel(name)
        return True
    if on_cuda:
        note_copy("to the device")
        if source.ndim == 0 and name == "copy_":
            note_kernel("fill_")  # a scalar is passed to the kernel
            return True
        free = asked and is_pinned(source)
        if not free:
            note_wait("copy to the device")
        return free
    note_copy("to the host")
    # A non-blocking `to` allocates pinned memory; `copy_` uses what it is given.
    free = asked and (name == "_to_copy" or is_pinned(args[0]))
    if not free:
        note_wait("copy to the host")
        arrive()
    return free


def _compute(name: str, args: Any, kwargs: dict[str, Any], here: list[Tensor]) -> None:
    """Log an operator on the device, and refuse operands on the CPU."""
    indices = (args[1] or ()) if name in INDEXING else ()
    for operand in here:
        if operand.ndim == 0 and name not in NO_SCALARS:
            continue  # CUDA accepts a 0-d CPU tensor as a scalar
        if any(operand is index for index in indices):
            note_wait("index from the CPU")
            continue
        raise Refused(
            f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu "
            f"({tuple(operand.shape)} {operand.dtype}), at {project_line()}"
        )
    by_mask = any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices
    )
    if name == "_local_scalar_dense":
        note_wait("item")
        arrive()
    elif name in SIZED_BY_VALUES or (
        name == "repeat_interleave" and kwargs.get("output_size") is None
    ):
        note_wait(name)
    elif by_mask:
        note_wait("index by mask")
    if name not in NO_KERNEL:
        note_kernel(name)
