"""Cache: the key/value cache of one stream.

A state is an immutable value; a cache is a mutable workspace with one owner. Threads and forks have
separate caches, so no call can see the tokens of another. A call without a cache, or with a cache
of a different state, recomputes keys and values.

The low-order bits of a matrix product depend on the number and the alignment of its rows. Past
slots are therefore always projected in the same blocks: memory by whole segments, compressed slots
by the T / c of one commit. A cache built from a loaded state is then bitwise equal to one that grew
with the stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.memory.eviction import Eviction
from streamlm.models.captured import Captured
from streamlm.state import State
from streamlm.transfer import send

Pair = tuple[Tensor, Tensor]  # keys and values, [B, H, n, E] each
ALIGNMENT = 64  # bytes, as torch aligns what it allocates


class Cache:
    """Keys and values of [past | open segment], and the buffer for new slots.

    Create an empty cache and pass it to every call on the stream; see `Model.hidden`.

    Attributes:
        keys, values: L tensors [B, H, N + T, E], N past columns. Columns after the last token of
            the open segment are undefined but finite.
        segment: [L, B, T, W] slots of the open segment. States share this buffer, so it is copied
            before a column is overwritten.
        length: valid columns of the open segment, per row.
        calls: number of calls that wrote these columns.
        on_close: called with a state whose segment is about to be closed; not copied.
        on_commit: called with the state after a commit, and with what the commit evicted; not
            copied. A batch of rows does not call it.
        step: the fast way to read a token in each of its rows, if its owner has one; not copied.
    """

    def __init__(self) -> None:
        self.on_close: Callable[[State], None] | None = None
        self.on_commit: Callable[[State, Eviction | None], None] | None = None
        self.step: Any = None
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.segment: Tensor | None = None
        self.length: tuple[int, ...] = ()
        self.calls = 0
        self._written: tuple[int, ...] = ()  # columns of `segment` in use by states
        self._weights: object = None
        self._past: Tensor | None = None
        self._slots: Tensor | None = None  # `segment` of the bound state
        self._row: list[Pair] = []

    @property
    def stays(self) -> bool:
        """Whether keys and values must stay where they are, because a captured step knows it."""
        return isinstance(self.step, Captured)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def copy(self) -> "Cache":
        """An independent copy, bound to the same state."""
        other = Cache()
        if self.segment is not None:
            other.hold(
                [key.clone() for key in self.keys],
                [value.clone() for value in self.values],
                segment=self.segment.clone(),
                length=self.length,
                calls=self.calls,
            )
            other._weights, other._past, other._slots = self._weights, self._past, self._slots
        return other

    def release(self) -> None:
        """Free the memory of the keys and values; the next call recomputes them."""
        self.clear()
        if self.stays:
            self.step = None
        self.keys, self.values, self.segment = [], [], None
        self._past, self._slots, self._row = None, None, []

    def clear(self) -> None:
        """Invalidate: the next call recomputes all keys and values."""
        self._weights = None

    def hold(
        self,
        keys: list[Tensor],
        values: list[Tensor],
        *,
        segment: Tensor,
        length: tuple[int, ...],
        calls: int,
    ) -> None:
        """Replace the contents; the cache takes ownership of these tensors."""
        self.keys, self.values, self.segment = keys, values, segment
        self.length, self.calls = length, calls
        self._written = length
        self._row = []

    def row(self) -> list[Pair]:
        """Keys and values of the only row, per layer [H, N + T, E] each; views."""
        if not self._row:
            self._row = [(k[0], v[0]) for k, v in zip(self.keys, self.values, strict=True)]
        return self._row

    def follow(self, state: State, weights: object) -> None:
        """Bind the cache to `state` and to frozen weights; None as weights invalidates it."""
        self._past, self._slots, self._weights = state.past, state.segment, weights

    def follows(self, state: State, weights: object) -> bool:
        """Whether the cache is valid for `state`; truncates it if `state` is an earlier one."""
        if weights is None or weights is not self._weights or state.past is not self._past:
            return False
        if state.segment is not self._slots or len(state.length) != len(self.length):
            return False
        if state.length == self.length:
            return True
        # An earlier state of the same segment, whose columns have not been overwritten.
        if self._slots is not self.segment:
            return False
        if any(n > there for n, there in zip(state.length, self.length, strict=True)):
            return False
        self.length, self.calls = state.length, max(self.calls, 2)
        return True

    def release_tail(self) -> None:
        """Allow columns after `length` to be overwritten, once no live state uses them."""
        self._written = self.length

    def extend(self, t: int) -> Tensor:
        """Reserve the next t columns of every row, copying the segment buffer if they are in use.

        Returns:
            The segment buffer.
        """
        assert self.segment is not None
        if self._written != self.length:
            self.segment = self.segment.clone()
        self.calls = self.calls + 1 if any(self.length) else 1
        self.length = self._written = tuple(n + t for n in self.length)
        return self.segment

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, index: Sequence[int]) -> "Cache":
        """Copies of the selected rows, not bound to a state."""
        assert self.segment is not None
        at = send(torch.tensor(list(index)), self.segment.device)
        other = Cache()
        other.hold(
            [key.index_select(0, at) for key in self.keys],
            [value.index_select(0, at) for value in self.values],
            segment=self.segment.index_select(1, at),
            length=tuple(self.length[row] for row in index),
            calls=self.calls,
        )
        return other

    def put(self, index: Sequence[int], other: "Cache", state: State) -> None:
        """Replace rows by those of `other`; `state` is the resulting batch and owns the segment."""
        self.clear()  # until `follow`: an interruption may leave some rows replaced
        at = send(torch.tensor(list(index)), state.segment.device)
        for mine, new in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine.index_copy_(0, at, new)
        self.hold(
            self.keys, self.values, segment=state.segment, length=state.length, calls=self.calls
        )


class CacheWriter:
    """Writes the slots, keys and values of one call to a cache."""

    def __init__(self, cache: Cache, state: State, t: int) -> None:
        self.cache = cache
        self.segment = cache.extend(t)
        self._stop = max(state.length) + t
        self._columns: slice | Tensor
        if state.aligned:
            self._columns = slice(self._stop - t, self._stop)
        else:
            device = self.segment.device
            self._columns = state.lengths()[:, None] + torch.arange(t, device=device)  # [B, t]
            self._rows = torch.arange(len(state.length), device=device)[:, None]

    def write(self, index: int, x: Tensor, new: Pair, n_keys: int) -> Pair:
        """Write a layer's new slots, keys and values; returns its first n_keys keys and values."""
        buffers = self.cache.keys[index], self.cache.values[index]
        columns = self._columns
        first = buffers[0].shape[2] - self.segment.shape[2]  # column of the open segment
        if isinstance(columns, slice):
            self.segment[index, :, columns] = x
            span = slice(first + columns.start, first + columns.stop)
            for buffer, part in zip(buffers, new, strict=True):
                buffer[:, :, span] = part
        else:
            self.segment[index].index_put_((self._rows, columns), x)
            at = first + columns
            for buffer, part in zip(buffers, new, strict=True):
                # Advanced indices around a slice come first: [B, t, H, E].
                buffer[self._rows, :, at] = part.transpose(1, 2)
        return buffers[0][:, :, :n_keys], buffers[1][:, :, :n_keys]


class TokenWriter:
    """Writes one token's keys and values in each row of buffers, and keeps its slots.

    Args:
        keys, values: L tensors [B, H, N + T, E].
        column: [B] where each row's token goes, on the device.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], column: Tensor) -> None:
        self.slots: list[Tensor] = []  # [B, 1, W] of each layer
        self._buffers = list(zip(keys, values, strict=True))
        self._column = column
        self._rows = torch.arange(len(column), device=column.device)

    def write(self, index: int, x: Tensor, new: Pair) -> Pair:
        """Write a layer's new keys and values; returns all of its keys and values."""
        self.slots.append(x)
        for buffer, part in zip(self._buffers[index], new, strict=True):
            buffer[self._rows, :, self._column] = part[:, :, 0]
        return self._buffers[index]


def standard(slots: Tensor) -> Tensor:
    """A contiguous, aligned tensor: kernel selection may depend on both."""
    slots = slots.contiguous()
    return slots if slots.data_ptr() % ALIGNMENT == 0 else slots.clone()


def project_blocks(
    project: Callable[[Tensor], Pair],
    slots: Tensor,
    block: int,
    *,
    made: int | None = None,
) -> Pair:
    """Project slots in blocks of fixed size, aligned to the right.

    With gradients enabled, all slots are projected at once, without bitwise reproducibility.

    Args:
        slots: [B, n, W].
        block: slots per block.
        made: keys per block, if fewer than `block`; a partial block then has none.
    """
    n = slots.shape[1]
    n_made = n if made is None else n // block * made
    if torch.is_grad_enabled() and made is None:
        return project(slots)
    padded = F.pad(slots, (0, 0, -n % block, 0))
    pairs = [project(standard(part)) for part in padded.split(block, dim=1)]
    keys, values = (torch.cat(halves, dim=2) for halves in zip(*pairs, strict=True))
    return keys[:, :, keys.shape[2] - n_made :], values[:, :, values.shape[2] - n_made :]


def with_room(buffer: Tensor | None, parts: Sequence[Tensor], t: int) -> Tensor:
    """Columns of the parts, followed by t undefined ones; overwrites `buffer` if it has this size.

    Args:
        parts: [B, H, n, E] each; none of them in the buffer.
    """
    b, h, _, e = parts[0].shape
    shape = b, h, sum(part.shape[2] for part in parts) + t, e
    if buffer is None or buffer.shape != shape:
        buffer = parts[0].new_zeros(shape)
    start = 0
    for part in parts:
        stop = start + part.shape[2]
        buffer[:, :, start:stop] = part
        start = stop
    return buffer


def columns(pair: Pair, which: slice) -> Pair:
    """Some columns of a pair; views."""
    key, value = pair
    return key[:, :, which], value[:, :, which]


def joined(left: Pair, right: Pair) -> Pair:
    """Concatenate the columns of two pairs."""
    key, value = (torch.cat(both, dim=2) for both in zip(left, right, strict=True))
    return key, value


def newest(past: Pair, new: Pair) -> list[Pair]:
    """As many columns as of `past`, the newest of both, in two parts."""
    n = past[0].shape[2]
    n_new = min(new[0].shape[2], n)
    return [columns(past, slice(n_new, None)), columns(new, slice(new[0].shape[2] - n_new, None))]
