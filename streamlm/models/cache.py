"""Cache: keys and values of a state's slots, kept from one call to the next.

A state is a value that anybody may hold; a cache is a workspace that one caller owns. Threads and
forks have one each, so no call can see another's tokens. A call that is given the wrong cache, or
none, derives keys and values anew.

The last bits of a matrix product depend on how many rows are multiplied at once, and on where they
lie. So past slots are always projected in the same blocks: memory by whole segments, compressed
slots by the T / c of one commit. A cache made from a loaded state then equals the one that grew
with the stream, bit for bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.state import State

Pair = tuple[Tensor, Tensor]  # keys and values, [B, H, n, E] each
ALIGNMENT = 64  # bytes, as torch aligns what it allocates


class Cache:
    """Keys and values of [past | open segment], and the buffer that new slots are written to.

    Make an empty one and hand it to every call that continues the stream; see `Model.hidden`.

    Attributes:
        keys, values: L tensors [B, H, N + T, E], N columns of the past. Columns behind those of the
            open segment are void but finite.
        segment: [L, B, T, W] slots of the open segment. States share this buffer, so no column is
            written twice: stepping back makes a copy.
        length: columns of the open segment that are valid, by row.
        calls: calls that wrote them.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.segment: Tensor | None = None
        self.length: tuple[int, ...] = ()
        self.calls = 0
        self._written: tuple[int, ...] = ()  # columns of `segment` that some state may hold
        self._weights: object = None
        self._past: Tensor | None = None
        self._slots: Tensor | None = None  # the `segment` of the state that this follows

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def copy(self) -> "Cache":
        """A cache of its own that follows the same state."""
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

    def clear(self) -> None:
        """Derive everything anew at the next call."""
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
        """Take over tensors that nobody else writes to."""
        self.keys, self.values, self.segment = keys, values, segment
        self.length, self.calls = length, calls
        self._written = length

    def follow(self, state: State, weights: object) -> None:
        """Note that this belongs to `state` and to these frozen weights (None: to no weights)."""
        self._past, self._slots, self._weights = state.past, state.segment, weights

    def follows(self, state: State, weights: object) -> bool:
        """Whether keys and values are those of `state`; steps back to it where that suffices."""
        if weights is None or weights is not self._weights or state.past is not self._past:
            return False
        if state.segment is not self._slots or len(state.length) != len(self.length):
            return False
        if state.length == self.length:
            return True
        # An earlier state of the same segment: its columns are here, and were not written since.
        if self._slots is not self.segment:
            return False
        if any(n > there for n, there in zip(state.length, self.length, strict=True)):
            return False
        self.length, self.calls = state.length, max(self.calls, 2)
        return True

    def release_tail(self) -> None:
        """Allow columns behind `length` to be written again: no state that holds them is left."""
        self._written = self.length

    def extend(self, t: int) -> Tensor:
        """Claim the next t columns of every row; returns the segment buffer to write them to."""
        assert self.segment is not None
        if self._written != self.length:
            self.segment = self.segment.clone()
        self.calls = self.calls + 1 if any(self.length) else 1
        self.length = self._written = tuple(n + t for n in self.length)
        return self.segment

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, index: Sequence[int]) -> "Cache":
        """Copies of some rows, which follow no state yet."""
        assert self.segment is not None
        at = torch.tensor(list(index), device=self.segment.device)
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
        """Replace rows; `state` is the whole batch afterwards, whose segment is taken over."""
        self.clear()  # until `follow`: an interruption leaves some of it replaced
        at = torch.tensor(list(index), device=state.segment.device)
        for mine, new in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            mine.index_copy_(0, at, new)
        self.hold(
            self.keys, self.values, segment=state.segment, length=state.length, calls=self.calls
        )


def standard(slots: Tensor) -> Tensor:
    """The same values contiguous and aligned: a kernel may be chosen by either."""
    slots = slots.contiguous()
    return slots if slots.data_ptr() % ALIGNMENT == 0 else slots.clone()


def project_blocks(
    project: Callable[[Tensor], Pair],
    slots: Tensor,
    block: int,
    *,
    made: int | None = None,
) -> Pair:
    """Project slots block by block from the right: every block has the shape of a commit.

    With gradients on, where nothing is promised to the bit, all of them at once.

    Args:
        slots: [B, n, W].
        made: keys that a block gives, if they are fewer; only of whole blocks.
    """
    n = slots.shape[1]
    n_made = n if made is None else n // block * made
    if torch.is_grad_enabled() and made is None:
        return project(slots)
    padded = F.pad(slots, (0, 0, -n % block, 0))
    pairs = [project(standard(part)) for part in padded.split(block, dim=1)]
    keys, values = (torch.cat(halves, dim=2) for halves in zip(*pairs, strict=True))
    return keys[:, :, keys.shape[2] - n_made :], values[:, :, values.shape[2] - n_made :]
