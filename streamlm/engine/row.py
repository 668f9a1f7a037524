"""Row: a session's stream while it is decoded in a row of a batch."""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from streamlm.engine.batch import Batch
from streamlm.runtime.row_sampling import Draw
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.speculation import Accepted
from streamlm.sessions.live import LiveStream

SYNC_EVERY = 1024  # tokens that a row may be ahead of its session


@dataclass(frozen=True, eq=False)
class Drawn:
    """A row's new token, and the output layer's input that it was drawn from, [1, D]."""

    token: int
    hidden: Tensor


class Row:
    """A stream in a row. Its session lags behind until `sync`.

    Attributes:
        batch: it is decoded in.
        index: of the row in the batch.
        stream: the stream, but for its `state`, which is that of the last `sync`.
    """

    def __init__(self, batch: Batch, live: LiveStream) -> None:
        self.batch, self._live = batch, live
        self._ids: list[int] = []
        self.stream = live.stream
        self._bits = self.stream.generator()
        self._random = np.random.Generator(self._bits)
        self.index = batch.put(live.stream.state, live.cache, on_close=live.cache.on_close)
        live.cache.release()

    def draw(self, sampling: Sampling, *, n_said: int | None = None) -> Draw:
        """What the next token is drawn with.

        Args:
            n_said: tokens of the reply so far; None outside of one.
        """
        checkpoint, stream = self._live.checkpoint, self.stream
        if n_said is None:
            return Draw(sampling, self._random, stream.recent, checkpoint.suppressed)
        said = stream.newest(n_said)
        return Draw(sampling, self._random, said, checkpoint.suppressed_in_replies)

    def accept(self, drawn: Drawn, *, in_reply: bool = False) -> str:
        """Append a token to the stream; returns the characters that it completes."""
        checkpoint, stream = self._live.checkpoint, self.stream
        random = dict(self._bits.state)
        accepted = Accepted(drawn.token, stream.state, drawn.hidden, random, drafted=False)
        accept = stream.accept_in_reply if in_reply else stream.accept
        self.stream, token, piece = accept(checkpoint, accepted)
        self._ids.append(token)
        if len(self._ids) >= SYNC_EVERY:
            self.sync()
        return piece

    def sync(self) -> None:
        """Bring the session up to date."""
        if not self._ids:
            return
        live = self._live
        ids, self._ids = np.array(self._ids, np.int32), []
        if self.batch.is_broken(self.index):
            state = live.stream.read_ids(live.checkpoint, ids, cache=live.cache).state
        else:
            state = self.batch.take(self.index)
        live.move(replace(self.stream, state=state), ids, live.cursor)
        self.stream = live.stream

    def save_if_due(self) -> None:
        """Start a save if `save_every` tokens have been read since the last."""
        live = self._live
        if live.save_is_due(live.position + len(self._ids)):
            self.sync()
            live.save_if_due()
            self.stream = live.stream
            # As a session that is resumed from this save.
            self.batch.settle(self.index)

    def close(self) -> None:
        """Bring the session up to date, and free the row."""
        try:
            self.sync()
        finally:
            self.batch.free(self.index)
