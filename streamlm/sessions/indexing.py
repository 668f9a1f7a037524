"""Indexing: the keys of what a session has read without an archive, made by reading it again.

Keys depend on the state in which the tokens were read. So the stream is replayed from the nearest
snapshot before each gap. The rows are those that reading would have saved: to the bit on one
machine where segments were read in one piece, and within rounding where they were cut by blocks of
text, saves or generated tokens. They are saved in commits without tokens, whose state is that of
the session.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from memory_store import Commit, NotFound, Ref
from streamlm.models.cache import Cache
from streamlm.runtime.text_stream import REPETITION_WINDOW
from streamlm.sessions.archive import Archive
from streamlm.sessions.live import LiveStream
from streamlm.sessions.saving import SessionStore

IndexProgress = Callable[[int, int], object]  # tokens read again, and how many there are
ROWS = 1 << 17  # of a commit


@dataclass(frozen=True)
class Gap:
    """Tokens without keys: start ≤ i < stop, and the snapshot from which they are read again."""

    start: int
    stop: int
    begin: Commit


def gaps(store: SessionStore, saved: Ref, name: str) -> list[Gap]:
    """The tokens up to a snapshot that have no rows in a log and can be read again, ascending.

    Tokens before the oldest loadable snapshot are left out where older ones were deleted.
    """
    spans = store.store.log_spans(saved, name)
    ends = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), saved.position]
    found = []
    for start, stop in zip(ends, starts, strict=True):
        if start < stop:
            begin = _snapshot_before(store, saved, start, stop)
            if begin is not None:
                found.append(Gap(max(start, begin.position), stop, begin))
    return found


def _snapshot_before(store: SessionStore, saved: Ref, start: int, stop: int) -> Commit | None:
    """The nearest loadable snapshot at or before `start`, or else the first one before `stop`."""
    later = {ref.position for ref in store.store.refs(store.branch)}
    for position in (start, *sorted(at for at in later if start < at < stop)):
        try:
            commit = store.store.nearest(saved, position)
            store.store.tokens(saved, max(0, commit.position - REPETITION_WINDOW), stop)
        except NotFound:
            continue
        return commit
    return None


def index(live: LiveStream, progress: IndexProgress) -> int:
    """Save the keys that the archive of a stream lacks; see `Session.index`."""
    bound = live.require_store("index")
    live.require_writable("index")
    if live.checkpoint.retrieval is None:
        raise ValueError(
            f"{live.checkpoint.name} has no retrieval heads; streamlm calibrate MODEL finds those "
            "of a Llama-family model"
        )
    if not live.position:
        return 0
    saved = live.save(live.cursor)
    found = gaps(bound, saved, Archive(live.checkpoint).name)
    total = sum(gap.stop - gap.begin.position for gap in found)
    done = n_rows = 0
    for gap in found:
        begin = _snapshot_before(bound, saved, gap.start, gap.stop)  # commits delete old snapshots
        if begin is not None:
            now = replace(gap, start=max(gap.start, begin.position), begin=begin)
            _fill(live, bound, now, partial(_report, progress, done, total))
            n_rows += gap.stop - now.start
        done += gap.stop - gap.begin.position
    return n_rows


def _report(progress: IndexProgress, before: int, total: int, n: int) -> None:
    progress(min(before + n, total), total)


def _fill(
    live: LiveStream, bound: SessionStore, gap: Gap, progress: Callable[[int], object]
) -> None:
    """Read a gap again, and save its rows, `ROWS` at a time.

    Args:
        progress: called with the tokens read since the snapshot.
    """
    checkpoint, length = live.checkpoint, live.checkpoint.model.config.segment_len
    stream, _ = bound.load(gap.begin)
    archive, cache, begin = Archive(checkpoint), Cache(), stream.position
    cache.on_close = archive.close_segment
    start = gap.start
    while start < gap.stop:
        assert bound.saved is not None
        stop = min(gap.stop, (start + max(ROWS, length)) // length * length)
        ids = bound.store.tokens(bound.saved, stream.position, stop)
        while len(ids):
            n = length - stream.position % length
            stream = stream.read_ids(checkpoint, ids[:n], cache=cache)
            ids = ids[n:]
            archive.drop(start)
            progress(stream.position - begin)
        bound.fill_log(
            live.stream, live.cursor, archive.rows(stream.state, start), version=live.version
        )
        archive.drop(stop)
        start = stop
