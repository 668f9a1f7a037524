"""What a token costs a young session and one that has read a great deal, measured in turns."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.tools.timing import median_interval, ratio, side_by_side
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.reports import ReadReport
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.session import Session

SEGMENTS_FED = 8  # a measurement feeds so many segments, and writes one: each closes as many


Place = tuple[TextStream, Cache]  # a stream, and the keys and values of what it has read


def stream_of(session: Session, ids: np.ndarray) -> Place:
    """The session's stream, moved on by some of `ids` to the end of a segment.

    Two streams then stand at the same place in their segments, and do the same work from there.
    """
    stream, cache = session._live.stream, Cache()
    segment_len = session.checkpoint.model.config.segment_len
    missing = segment_len - stream.position % segment_len  # one at least, which fills the cache
    return stream.read_ids(session.checkpoint, ids[:missing], cache=cache), cache


@dataclass(frozen=True)
class Costs:
    """Seconds of each measurement of both streams; `tokens` are what one measurement took."""

    young: list[float]
    old: list[float]
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        per_token = 1000 / self.tokens
        return {
            "young_ms_per_token": median_interval([s * per_token for s in self.young]),
            "old_ms_per_token": median_interval([s * per_token for s in self.old]),
            "old_tokens_per_second": self.tokens / float(np.median(self.old)),
            "old_to_young": ratio(self.old, self.young),
            "tokens_per_measurement": self.tokens,
        }


def token_costs(
    checkpoint: Checkpoint,
    *,
    young: Place,
    old: Place,
    ids: np.ndarray,
    repeats: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Costs]:
    """Feed both the same tokens, and let both write, in turns.

    Streams are values: each measurement begins at the same two, with a copy of the cache of each,
    so the young one stays young.
    """
    segment_len = checkpoint.model.config.segment_len
    n_fed = SEGMENTS_FED * segment_len
    sampling = Sampling()

    def feed(stream: TextStream, cache: Cache, repeat: int) -> float:
        start = repeat * n_fed % max(1, len(ids) - n_fed)
        part, report = ids[start : start + n_fed], ReadReport()
        return _timed(lambda: stream.read_ids(checkpoint, part, cache=cache, report=report))

    def write(stream: TextStream, cache: Cache, repeat: int) -> float:
        def tokens() -> None:
            now = stream
            for _ in range(segment_len):
                now, _, _ = now.generate_token(checkpoint, sampling, cache)

        return _timed(tokens)

    found = {}
    for name, work, n in (("feed", feed, n_fed), ("decode", write, segment_len)):
        counts = {"young": 0, "old": 0}

        def one(
            which: str, place: Place, work: Any = work, counts: dict[str, int] = counts
        ) -> float:
            counts[which] += 1
            stream, cache = place
            spent: float = work(stream, cache.copy(), counts[which])
            return spent

        seconds = side_by_side(
            lambda one=one: one("young", young),  # type: ignore[misc]
            lambda one=one: one("old", old),  # type: ignore[misc]
            repeats=repeats,
            progress=progress,
        )
        found[name] = Costs(*seconds, tokens=n)
    return found


def _timed(work: Callable[[], object]) -> float:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
