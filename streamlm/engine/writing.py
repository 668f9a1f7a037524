"""Writing: the tokens of a session, decoded in a row of the batch or by itself."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from streamlm.engine.batch import Batch
from streamlm.engine.row import Row
from streamlm.engine.wants import Decode, Task, Want
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.live import LiveStream

OnToken = Callable[[TextStream, str], bool]


class Writers:
    """How the sessions of an engine that write are decoded.

    Attributes:
        batch: None if the model cannot decode rows of any phase.
        n: sessions that write, or wait for a row.

    Args:
        narrow: use a batch of 2, 4, 8 … rows while they suffice, and none for one session.
    """

    def __init__(self, batch: Batch | None, *, narrow: bool) -> None:
        self.batch = batch
        self.n = 0
        self._narrow = narrow
        self._narrower: dict[int, Batch] = {}

    @property
    def together(self) -> Batch | None:
        """The batch to decode in now; None decodes each session by itself."""
        if self.batch is None or not self._narrow:
            return self.batch
        if self.n < 2:
            return None
        rows = 1 << (self.n - 1).bit_length()
        if rows >= self.batch.rows:
            return self.batch
        if rows not in self._narrower:
            self._narrower[rows] = Batch(self.batch.model, rows)
        return self._narrower[rows]


def writing(
    writers: Writers,
    live: LiveStream,
    sampling: Sampling,
    limit: int,
    on_token: OnToken,
    *,
    in_reply: bool = False,
) -> Task:
    """Generate at most `limit` tokens, until `on_token` returns True."""
    writers.n += 1
    try:
        tokens = _Tokens(writers, live, sampling, limit, on_token, in_reply=in_reply)
        while not tokens.ended:
            batch = writers.together
            yield from tokens.by_itself() if batch is None else tokens.in_row(batch)
    finally:
        writers.n -= 1


class _Tokens:
    """The tokens that one request generates. Each way ends when the other one is to go on."""

    def __init__(
        self,
        writers: Writers,
        live: LiveStream,
        sampling: Sampling,
        limit: int,
        on_token: OnToken,
        *,
        in_reply: bool,
    ) -> None:
        self._writers, self._live, self._sampling = writers, live, sampling
        self._limit, self._on_token, self._in_reply = limit, on_token, in_reply
        self._n = 0
        self.ended = not limit

    def in_row(self, batch: Batch) -> Task:
        """Generate in a row of the batch."""
        while not batch.n_free:
            yield Want.WAIT
            if self._writers.together is not batch:
                return
        row = Row(batch, self._live)
        try:
            while not self.ended and self._writers.together is batch:
                n_said = self._n if self._in_reply else None
                drawn = yield Decode(row, row.draw(self._sampling, n_said=n_said))
                assert drawn is not None
                piece = row.accept(drawn, in_reply=self._in_reply)
                stream = row.stream  # once saved, it has no output for log-probabilities
                row.save_if_due()
                self._count(stream, piece)
        finally:
            row.close()

    def by_itself(self) -> Generator[Want, Any, None]:
        """Generate as a session without an engine does."""
        live, sampling = self._live, self._sampling
        while not self.ended and self._writers.together is None:
            checkpoint, cache = live.checkpoint, live.cache
            if self._in_reply:
                stream, token, piece = live.stream.reply_token(
                    checkpoint, sampling, cache, n_said=self._n
                )
            else:
                stream, token, piece = live.stream.generate_token(checkpoint, sampling, cache)
            live.move(stream, np.array([token], np.int32), live.cursor)
            live.save_if_due()
            self._count(stream, piece)
            if not self.ended:
                yield Want.TOKEN

    def _count(self, stream: TextStream, piece: str) -> None:
        self._n += 1
        self.ended = self._on_token(stream, piece) or self._n == self._limit
