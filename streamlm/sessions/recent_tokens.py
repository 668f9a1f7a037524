"""The newest token ids of a stream, and how to read them again. Both are bounded."""

from dataclasses import dataclass, replace

import numpy as np

from streamlm.runtime.text_stream import TextStream


class TokenLog:
    """The newest token ids of a stream, by position.

    Putting one costs the same however many there are.

    Attributes:
        keep_from: ids from this position on are not dropped; None drops any.
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
        """Note the ids from `position` on; what was noted there before is void."""
        at = position - self._start
        if not 0 <= at <= self._n:  # nothing leads there
            self._start, at = position, 0
        stop = at + len(ids)
        if stop > len(self._ids):
            grown = np.zeros(max(stop, 2 * len(self._ids)), np.int32)
            grown[:at] = self._ids[:at]
            self._ids = grown
        self._ids[at:stop] = ids
        self._n = stop

    def take(self, start: int, stop: int) -> np.ndarray:
        """The ids at [start, stop), as far as they are here, int32."""
        return self._ids[
            max(0, start - self._start) : max(0, min(stop - self._start, self._n))
        ].copy()

    def drop(self, before: int) -> None:
        """Forget the ids before a position."""
        if self.keep_from is not None:
            before = min(before, self.keep_from)
        n = min(before - self._start, self._n)
        if n > 0:
            left = np.zeros(max(self._n - n, 64), np.int32)
            left[: self._n - n] = self._ids[n : self._n]
            self._ids, self._start, self._n = left, self._start + n, self._n - n


@dataclass(frozen=True, eq=False)
class Trail:
    """Streams before the newest tokens, from which they can be read again.

    Two are kept. When the younger has `length` tokens behind it, the older is dropped.

    Attributes:
        length: tokens that can be read again at least, once there were so many.
        beginnings: one or two streams, oldest first.
    """

    length: int
    beginnings: tuple[TextStream, ...]

    @classmethod
    def begin(cls, stream: TextStream, *, length: int) -> "Trail":
        return cls(length, (stream,))

    @property
    def start(self) -> int:
        """The position of the oldest."""
        return self.beginnings[0].position

    def moved(self, stream: TextStream) -> "Trail":
        """The trail of a stream that is about to move on from here."""
        if stream.position - self.beginnings[-1].position < self.length:
            return self
        return replace(self, beginnings=(self.beginnings[-1], replace(stream, hidden=None)))

    def whole(self, position: int) -> bool:
        """Whether it goes back to the beginning, or by `length` tokens, from a position."""
        return self.start == 0 or position - self.start >= self.length
