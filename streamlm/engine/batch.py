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

from streamlm.config import check_whole
from streamlm.models.cache import Cache
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State
from streamlm.transfer import send

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
        model: frozen.
        rows: R ≥ 1.

    Raises:
        ValueError: the model cannot decode rows of different phases in one batch.
    """

    def __init__(self, model: SegmentedModel, rows: int) -> None:
        check_whole("rows", rows, least=1)
        if not model.reads_any_phase:
            raise ValueError(
                f"a batch of head {model.config.head!r}; allowed: heads that read rows of any phase"
            )
        self.model = model
        self._cache = Cache()
        self._cache.step = model.rows_step(rows)
        kind = State if rows == 1 else RaggedState  # one row has no others, and a faster way
        self._state = kind(**vars(model.init_state(rows)))
        model.fill(self._state, self._cache)
        assert self._cache.segment is not None
        self._bind(replace(self._state, segment=self._cache.segment))
        self._free = list(range(rows))[::-1]
        self._on_close: list[OnClose | None] = [None] * rows
        self._broken: set[int] = set()

    @property
    def rows(self) -> int:
        return self._state.batch_size

    @property
    def n_free(self) -> int:
        """Rows that are not occupied."""
        return len(self._free)

    # -- rows -------------------------------------------------------------------------------------

    @torch.no_grad()
    def put(self, state: State, cache: Cache, *, on_close: OnClose | None = None) -> int:
        """Occupy a free row with a state of one row, which goes on as one that was loaded.

        Args:
            cache: the workspace of its stream, of which a copy is made; see `Model.settle`.
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
            self.model.settle(state, cache)
            self.model.fill(state, cache)
            self._write(row, state, cache)
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
        state, cache = self.take(row), Cache()
        self.model.fill(state, cache)
        self._write(row, state, cache)

    def free(self, row: int) -> None:
        """Give a row back. Its values stay until it is occupied again; no other row sees them."""
        self._on_close[row] = None
        self._broken.discard(row)
        self._free.append(row)

    # -- decoding ---------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one token in each row.

        Args:
            tokens: R ids; those of free rows do not matter.

        Returns:
            The output layer's input, [R, D].

        Raises:
            Exception: whatever fails; all occupied rows are broken then.
        """
        try:
            return self._step(tokens)
        except BaseException:
            self._broken = set(range(self.rows)) - set(self._free)
            self._bind(self._state)
            raise

    def is_broken(self, row: int) -> bool:
        """Whether a step has failed since the row was occupied: its values are worth nothing."""
        return row in self._broken

    def _step(self, tokens: Sequence[int]) -> Tensor:
        model, free = self.model, set(self._free)
        before = self._state.length
        ids = send(torch.tensor(tokens), model.device)[:, None]
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

    def _write(self, row: int, state: State, cache: Cache) -> None:
        """Overwrite a row in place."""
        batch, mine = self._state, self._cache
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
