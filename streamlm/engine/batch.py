"""Batch: rows of states that are decoded together, each at its own position.

The batch always has the same number of rows, occupied or not, and always attends over all columns
of the past and of the segment. Every product therefore has the same shape at every step, and no
row of it reads another: what comes of a row does not depend on who else is being served.

Rows are written in place. What `take` returns is a copy, an immutable value as any state.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.state import State

OnClose = Callable[[State], None]


class RaggedState(State):
    """A state whose rows are treated as in different phases, also when they are not.

    Rows of one phase would be computed in other shapes, and one row's bits would depend on the
    phases of the others.
    """

    @property
    def aligned(self) -> bool:
        return False


class Batch:
    """A fixed number of rows, of which any may be occupied.

    Args:
        model: frozen; its `reads_any_phase` must be set.
        rows: R ≥ 1.

    Raises:
        ValueError: the model cannot decode rows of different phases in one batch.
    """

    def __init__(self, model: Model, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"{rows} rows; allowed: at least 1")
        if not model.reads_any_phase:
            raise ValueError(
                f"a batch of head {model.config.head!r}; allowed: heads that read rows of any phase"
            )
        self.model = model
        self._cache = Cache()
        state = model.init_state(rows)
        kind = State if rows == 1 else RaggedState
        self._state = kind(**vars(state))
        self._free = list(range(rows))[::-1]
        self._on_close: list[OnClose | None] = [None] * rows
        self._full: set[int] = set()

    @property
    def rows(self) -> int:
        return self._state.batch_size

    @property
    def n_free(self) -> int:
        """Rows that are not occupied."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Size of the states and of their keys and values, in bytes."""
        return self._state.nbytes + self._cache.nbytes

    # -- rows -------------------------------------------------------------------------------------

    @torch.no_grad()
    def put(self, state: State, *, on_close: OnClose | None = None) -> int:
        """Occupy a free row with a state of one row.

        Its keys and values are computed from the state alone, so it goes on as one that was loaded.

        Args:
            on_close: called with the row's state before its segment is closed.

        Returns:
            The row.

        Raises:
            ValueError: all rows are occupied.
        """
        if not self._free:
            raise ValueError(f"all {self.rows} rows are occupied; allowed: wait for a free one")
        row = self._free.pop()
        try:
            self._write(row, state, self._cache_for(state))
        except BaseException:
            self._free.append(row)
            raise
        self._on_close[row] = on_close
        return row

    def take(self, row: int) -> State:
        """A copy of a row, as a state of one row."""
        return State(**vars(self._state.rows(row)))

    def settle(self, row: int) -> None:
        """Compute the keys and values of a row anew, as if it had just been put."""
        state = self.take(row)
        self._write(row, state, self._cache_for(state))

    def free(self, row: int) -> None:
        """Give a row back. Its values stay until it is occupied again; no other row sees them."""
        self._on_close[row] = None
        self._free.append(row)

    # -- decoding ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one token in each row.

        Args:
            tokens: R ids; those of free rows do not matter.

        Returns:
            The output layer's input, [R, D].
        """
        model, free = self.model, set(self._free)
        before = self._state.length
        ids = torch.tensor(tokens).to(model.device, non_blocking=True)[:, None]
        hidden, after = model.hidden(ids, self._state, self._cache)
        segment = model.config.segment_len
        for row, n in enumerate(after.length):
            if n == segment and row not in free:
                after = self._close(row, after)
        # A free row stays where it is: its segment never fills.
        length = tuple(before[row] if row in free else n for row, n in enumerate(after.length))
        self._bind(replace(after, length=length))
        return hidden[:, -1]

    def _close(self, row: int, batch: State) -> State:
        """Close the full segment of a row; returns the batch with the row's new length."""
        self._state = batch
        state, own = self.take(row), self._cache.rows([row])
        own.follow(state, self.model.frozen)
        on_close = self._on_close[row]
        if on_close is not None:
            on_close(state)
        committed, _ = self.model.commit(state, own)
        self._write(row, committed, own)
        return self._state

    def _cache_for(self, state: State) -> Cache:
        """Keys and values of a state of one row, computed from it alone."""
        cache = Cache()
        self.model.fill(state, cache)
        return cache

    def _write(self, row: int, state: State, cache: Cache) -> None:
        """Overwrite a row in place."""
        batch, mine = self._state, self._cache
        if mine.segment is None:  # the first row
            self.model.fill(batch, mine)
            assert mine.segment is not None
            batch = replace(batch, segment=mine.segment)
        batch.past[:, row] = state.past[:, 0]
        batch.segment[:, row] = state.segment[:, 0]
        batch.usage[:, row] = state.usage[:, 0]
        batch.filled[row] = state.filled[0]
        batch.position[row] = state.position[0]
        for name, tensor in state.carried.items():
            batch.carried[name][:, row] = tensor[:, 0]
        for buffer, part in zip(
            (*mine.keys, *mine.values), (*cache.keys, *cache.values), strict=True
        ):
            buffer[row] = part[0]
        length = tuple(state.length[0] if at == row else n for at, n in enumerate(batch.length))
        known = batch.filled_known
        if known is not None and state.filled_known is not None:
            known = tuple(state.filled_known[0] if at == row else n for at, n in enumerate(known))
        self._bind(replace(batch, length=length, filled_known=known))

    def _bind(self, state: State) -> None:
        self._state, cache = state, self._cache
        assert cache.segment is not None
        cache.hold(cache.keys, cache.values, segment=cache.segment, length=state.length, calls=2)
        cache.follow(state, self.model.frozen)
