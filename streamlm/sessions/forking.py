"""Forks and rewinds in steps: an earlier position is reached by reading its tokens again."""

from datetime import datetime

from memory_store import Ref
from streamlm.config import is_whole
from streamlm.runtime.steps import Steps
from streamlm.sessions.live import LiveStream


def forking(live: LiveStream, branch: str | None, tokens: int | None) -> Steps[LiveStream]:
    """Steps to an independent stream; see `Session.fork`.

    Raises:
        ValueError: as `Session.fork`.
    """
    if tokens is not None and not (is_whole(tokens) and 0 <= tokens <= live.position):
        raise ValueError(f"tokens = {tokens}; allowed: 0 to {live.position}")
    if branch is not None:
        return (yield from _branching(live, branch, tokens))
    if tokens is not None:
        return (yield from _forking_at(live, tokens))
    live.extend_recent()
    other = live.fork()
    other.recent, other.log = live.recent, live.log.copy()
    return other


def _branching(live: LiveStream, branch: str, tokens: int | None) -> Steps[LiveStream]:
    bound = live.require_store("fork to a branch")
    if bound.store.head(branch) is not None:
        raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
    saved = live.save(live.cursor)
    other = LiveStream(live.checkpoint)
    other.save_every, other.save_seconds = live.save_every, live.save_seconds
    ref = bound.store.publish(saved, branch=branch)
    other.bind(bound.store, branch, ref, retention=bound.retention)
    if tokens is not None:
        try:
            yield from rewinding(other, to=tokens)
        except BaseException:
            other.close()  # the branch stays, at an earlier position
            raise
    return other


def _forking_at(live: LiveStream, tokens: int) -> Steps[LiveStream]:
    bound = live.require_store("fork at a position")
    head = bound.saved if live.readonly else live.save(live.cursor)
    assert head is not None
    if tokens > head.position:  # a read-only session has read on without saving
        raise ValueError(f"tokens = {tokens}; allowed: 0 to {head.position}")
    return (yield from live.forking_at(head, tokens))


def rewinding(
    live: LiveStream,
    *,
    to: int | None = None,
    by: int | None = None,
    snapshot: Ref | int | None = None,
    time: datetime | float | None = None,
) -> Steps[None]:
    """Steps back to a position, a snapshot or a time; see `Session.rewind`.

    Without its last steps the stream is at the snapshot before the position.

    Raises:
        ValueError: as `Session.rewind`.
    """
    if sum(goal is not None for goal in (to, by, snapshot, time)) != 1:
        raise ValueError("allowed: one of to=…, by=…, snapshot=… and time=…")
    bound = live.require_store("rewind")
    live.require_writable("rewind")
    if by is not None and not (is_whole(by) and 0 <= by <= live.position):
        raise ValueError(f"by = {by}; allowed: 0 to {live.position}")
    head, later = live.save(live.cursor), None
    to = live.position - by if by is not None else to
    if to is not None:
        commit, ids = bound.path_to(head, to)
        later = live.stream
    else:
        ref = bound.find(snapshot, time)
        commit, ids = ref.commit, None
        if not bound.store.is_loadable(commit):  # deleted, but its tokens are kept
            commit, ids = bound.path_to(ref, ref.position)
    if commit != head.commit:
        loaded = bound.load(commit)  # before publishing, as it may be corrupt
        try:
            bound.store.publish(commit, branch=bound.branch)
        finally:  # interrupted or not, the session follows the branch
            moved = bound.store.head(bound.branch)
            if moved is not None and moved != bound.saved and moved.commit == commit:
                live.restore(bound, moved, loaded)
    if ids is not None and (len(ids) or live.stream.holds_text):
        # The replayed tokens include the snapshot's tail; its `feed` is not resumed.
        stream = yield from live.replaying(live.stream, ids, later=later, cache=live.cache)
        live.move(stream, ids, None)
        live.save(live.cursor)
