"""Rows of a group that are read at once: its parts, and as many rows as fit into memory."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamlm.models.modes import in_mode
from streamlm.state import State
from streamlm.training.copies import Copies
from streamlm.training.data import Batch, SegmentBatches
from streamlm.training.group_step import GroupStep

SHARE = 0.9  # of a device's memory that may be taken


def parts(n_rows: int, at_once: int) -> list[slice]:
    """The fewest parts of at most `at_once` of n rows, all of one size but the last."""
    size = _size(n_rows, -(-n_rows // at_once))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _size(n_rows: int, n_parts: int) -> int:
    return -(-n_rows // n_parts)


def read_in_parts(
    step: Copies,
    batches: Sequence[Batch],
    state: State,
    *,
    rows: int,
    n_tokens: int,
    share: float,
    last: bool,
) -> tuple[State, Tensor]:
    """Read a group of rows, at most `rows` at once, and add its gradients to those of the step.

    Args:
        batches, state, n_tokens, share: as of `GroupStep.forward`, for the whole group.
        last: this is the last group of the step.

    Returns:
        The state after the last segment, and the sums of `GroupStep.forward`.
    """
    n, states, sums = state.batch_size, [], []
    each_part = parts(n, rows)
    for part in each_part:
        size, own, before = part.stop - part.start, batches, state
        if size < n:
            own = [batch.rows(part) for batch in batches]
            before = state.rows(range(part.start, part.stop))
        with step.adding(last=last and part == each_part[-1]):
            loss, after, found = step(own, before, n_tokens, share * (size / n))
            if loss.requires_grad:  # not before the first eviction, if only the compression learns
                loss.backward()
        states.append(after)
        sums.append(found)
    if len(states) == 1:
        return states[0], sums[0]
    return State.stack(states), torch.stack(sums).sum(dim=0)


class DeviceMemory:
    """The memory of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def total(self) -> int:
        """Bytes of the device."""
        return int(torch.cuda.mem_get_info(self._device)[1])

    def free(self) -> int:
        """Bytes that no process has taken."""
        return int(torch.cuda.mem_get_info(self._device)[0])

    def held(self) -> int:
        """Bytes that PyTorch has taken, for tensors or to reuse."""
        return torch.cuda.memory_reserved(self._device)

    def peak(self) -> int:
        """The most bytes that tensors have taken at once since `clear`."""
        return torch.cuda.max_memory_allocated(self._device)

    def clear(self) -> None:
        """Return what no tensor uses, and begin to measure a new peak."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)


def most_rows(n_rows: int, step: Callable[[int], None], memory: DeviceMemory) -> int:
    """The largest part of n rows whose step takes no more than SHARE of the memory.

    Parts are those of `parts`: n rows, then halves, thirds, … Each is tried only if a smaller or a
    larger one does not tell already; the memory that a step takes grows with its rows.

    Args:
        step: a step in which so many rows are read at once. It may run out of memory.

    Raises:
        ValueError: not even one row fits.
    """

    def fits(rows: int) -> bool:
        memory.clear()
        others = memory.total() - memory.free() - memory.held()
        try:
            step(rows)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return False
        return memory.peak() + others <= SHARE * memory.total()

    sizes = list(dict.fromkeys(_size(n_rows, n) for n in range(1, n_rows + 1)))
    too_many, right = -1, 0  # indices
    while not fits(sizes[right]):
        if right == len(sizes) - 1:
            raise ValueError(
                f"rows_at_once = -1, but a step with one row takes more than {SHARE:.0%} of the "
                f"device's {memory.total() / 2**30:.1f} GiB; allowed: a smaller model, or shorter "
                "segments and memory"
            )
        too_many, right = right, min(2 * right + 1, len(sizes) - 1)
    while right - too_many > 1:
        middle = (right + too_many) // 2
        if fits(sizes[middle]):
            right = middle
        else:
            too_many = middle
    memory.clear()
    return sizes[right]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, of a tensor or within a library such as cuBLAS."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def fitting_rows(
    step: Copies,
    reading: GroupStep,
    optimizer: torch.optim.Optimizer,
    batches: SegmentBatches,
    state: State,
    *,
    unroll: int,
    memory: DeviceMemory,
) -> int:
    """As many rows of a group as fit into memory at once, by steps that change nothing.

    They are read without torch.compile, which would compile them for every number of rows.

    Args:
        reading: the module of `step`; batches, state: of the group.
        optimizer: of all parameters that are trained.

    Raises:
        ValueError: see `most_rows`.
    """
    place = batches.state()
    segments = [next(batches) for _ in range(unroll)]
    batches.restore(place)
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    # What the first step of the optimiser will take.
    moments = [] if optimizer.state else [torch.empty_like(w) for w in (*trained, *trained)]

    def try_step(rows: int) -> None:
        for weight in trained:  # as after an earlier part
            weight.grad = torch.zeros_like(weight)
        read_in_parts(step, segments, state, rows=rows, n_tokens=1, share=1.0, last=False)

    random = torch.random.fork_rng(devices=[reading.device], device_type="cuda")
    try:
        with in_mode(reading.model, training=True), reading.uncompiled(), random:
            return most_rows(state.batch_size, try_step, memory)
    finally:
        moments.clear()
        optimizer.zero_grad(set_to_none=True)
