"""Writing from the same places with a drafter or without, timed and counted."""

import time
from collections.abc import Callable

import numpy as np

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import Drafter
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.text_stream import TextStream
from streamlm.training.data import Corpus

Start = tuple[TextStream, Cache]  # a stream, and the keys and values of what it has read


def starts(checkpoint: Checkpoint, corpus: Corpus, *, n: int, read: int) -> list[Start]:
    """n streams, each of which has read some of a document, from its beginning or further on."""
    streams = []
    for index in range(n):
        document = corpus.document(index % len(corpus))
        begin = index // len(corpus) * read
        ids = document[begin : begin + read].astype(np.int32)
        stream, cache = TextStream.begin(checkpoint, seed=index), Cache()
        streams.append((stream.read_ids(checkpoint, ids, cache=cache), cache))
    return streams


class Drafting:
    """Writes `tokens` from the next of the streams at each call; returns the seconds it took.

    Attributes:
        passes, written: of the model and of tokens, over all calls.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        streams: list[Start],
        drafter: Drafter | None,
        sampling: Sampling,
        *,
        tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.checkpoint, self.streams, self.drafter = checkpoint, streams, drafter
        self.sampling, self.tokens = sampling, tokens
        self.calls = self.passes = self.written = 0
        self._lengths: list[int] = []

    def __call__(self) -> float:
        stream, cache = self.streams[self.calls % len(self.streams)]
        cache = cache.copy()  # what one measurement derives must help no other
        lengths = []
        started, left = self.clock(), self.tokens
        while left:
            found = list(
                stream.generate_tokens(
                    self.checkpoint, self.sampling, self.drafter, limit=left, cache=cache
                )
            )
            stream, left = found[-1][0], left - len(found)
            lengths.append(len(found))
        spent = self.clock() - started
        self.calls += 1
        self.passes += len(lengths)
        self.written += sum(lengths)
        self._lengths += lengths
        return spent

    def shares(self) -> list[float]:
        """For each offset, the share of all passes in which its guess was accepted, about.

        A pass at the end of a segment, or of what is asked for, drafts less; so these are a little
        below what they would be without ends.
        """
        assert self.drafter is not None
        lengths = np.array(self._lengths)
        return [float((lengths > n).mean()) for n in range(1, self.drafter.config.n_tokens + 1)]
