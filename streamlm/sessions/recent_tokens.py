"""The newest tokens of a stream: their ids, and states from which to read them again. Bounded."""

from dataclasses import dataclass, replace

import numpy as np

from streamlm.runtime.text_stream import TextStream


class TokenLog:
    """The newest token ids of a stream, by position.

    `put` takes constant amortized time, however long the log is.

    Attributes:
        keep_from: `drop` keeps the ids from this position on; None lets it drop any.
    """

    def __init__(self, start: int = 0, ids: np.ndarray | None = None) -> None:
        self.keep_from: int | None = None
        self._start = start
        self._ids = np.zeros(64, np.int32) if ids is None else ids.astype(np.int32)
        self._n = 0 if ids is None else len(ids)

    def copy(self) -> "TokenLog":
        other = TokenLog(self._start, self._ids[: self._n].copy())
        other.keep_from = self.keep_from
        return other

    def put(self, position: int, ids: np.ndarray) -> None:
        """Record the ids from `position` on, in place of any recorded there before."""
        at = position - self._start
        if not 0 <= at <= self._n:  # a gap: the older ids lead nowhere
            self._start, at = position, 0
        stop = at + len(ids)
        if stop > len(self._ids):
            grown = np.zeros(max(stop, 2 * len(self._ids)), np.int32)
            grown[:at] = self._ids[:at]
            self._ids = grown
        self._ids[at:stop] = ids
        self._n = stop

    def take(self, start: int, stop: int) -> np.ndarray:
        """The recorded ids within [start, stop), int32."""
        return self._ids[
            max(0, start - self._start) : max(0, min(stop - self._start, self._n))
        ].copy()

    def drop(self, before: int) -> None:
        """Drop the ids before a position, except those from `keep_from` on."""
        if self.keep_from is not None:
            before = min(before, self.keep_from)
        n = min(before - self._start, self._n)
        if n > 0:
            left = np.zeros(max(self._n - n, 64), np.int32)
            left[: self._n - n] = self._ids[n : self._n]
            self._ids, self._start, self._n = left, self._start + n, self._n - n


@dataclass(frozen=True, eq=False)
class RecentTokens:
    """Streams from which the newest tokens can be read again.

    There are at most two. Once the younger is `length` tokens back, the older is dropped.

    Attributes:
        length: tokens that can be read again at least, or all if the stream has fewer.
        starts: one or two streams, oldest first.
    """

    length: int
    starts: tuple[TextStream, ...]

    @classmethod
    def begin(cls, stream: TextStream, *, length: int) -> "RecentTokens":
        return cls(length, (stream,))

    @property
    def start(self) -> int:
        """The position of the oldest stream."""
        return self.starts[0].position

    def advanced(self, stream: TextStream) -> "RecentTokens":
        """The value to keep when `stream` is about to read on; may be this one."""
        if stream.position - self.starts[-1].position < self.length:
            return self
        return replace(self, starts=(self.starts[-1], replace(stream, hidden=None)))

    def covers(self, position: int) -> bool:
        """Whether the oldest stream is `length` tokens before `position`, or at the beginning."""
        return self.start == 0 or position - self.start >= self.length
