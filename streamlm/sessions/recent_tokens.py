"""Trail: how a stream came to be where it is, for as far back as its memory reaches."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from streamlm.runtime.text_stream import TextStream


@dataclass(frozen=True, eq=False)
class Trail:
    """The newest tokens of a stream, and the stream before them: bounded, however long it runs.

    Two beginnings are kept. When the younger has `length` tokens behind it, the older is let go.

    Attributes:
        length: tokens to keep at least, once there were so many.
        beginnings: one or two streams without derived keys and values, each with what was read
            since, oldest first.
    """

    length: int
    beginnings: tuple[tuple[TextStream, tuple[np.ndarray, ...]], ...]

    @classmethod
    def begin(cls, stream: TextStream, *read: np.ndarray, length: int) -> "Trail":
        """A trail that begins here, and what was read since."""
        return cls(length, ((_bare(stream), read),))

    def moved(self, before: TextStream, ids: np.ndarray) -> "Trail":
        """The trail after the stream, which stood at `before`, read or wrote ids."""
        beginnings = self.beginnings
        if sum(map(len, beginnings[-1][1])) >= self.length:
            beginnings = (beginnings[-1], (_bare(before), ()))
        return replace(self, beginnings=tuple((b, (*read, ids)) for b, read in beginnings))

    @property
    def whole(self) -> bool:
        """Does it go back to the beginning, or by `length` tokens?"""
        stream, read = self.beginnings[0]
        return stream.position == 0 or sum(map(len, read)) >= self.length

    def source(self) -> tuple[TextStream, np.ndarray]:
        """A stream, and the ids that lead from it to where the stream stands now."""
        stream, read = self.beginnings[0]
        return stream, np.fromiter(chain.from_iterable(read), np.int32)


def _bare(stream: TextStream) -> TextStream:
    return replace(stream, state=replace(stream.state, cache=None))
