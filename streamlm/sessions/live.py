"""LiveStream: the mutable part of a session, shared by feeding, generating and saving.

The file is long because nothing else changes a stream.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from memory_store import MemoryStore, Ref, Retention
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.memory.recall import KeySearch
from streamlm.models.cache import Cache
from streamlm.runtime.conversation import conversation_after
from streamlm.runtime.memory_report import window
from streamlm.runtime.reports import ReadReport
from streamlm.runtime.steps import Steps, finish
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.archive import Archive
from streamlm.sessions.one_thread import OneThread
from streamlm.sessions.recall import Recalled, recall
from streamlm.sessions.recent_tokens import RecentTokens, TokenLog
from streamlm.sessions.saving import SessionStore
from streamlm.sessions.sources import FeedCursor


class LiveStream:
    """A stream's current value, the workspace to read on, and the store that it is saved to.

    Attributes:
        stream: the current value.
        cache: keys and values, a workspace that no other session shares.
        log: the newest token ids.
        recent: streams from which the newest tokens can be read again; None if the store has them.
        cursor: of a call of `feed` that is running or was interrupted; None otherwise.
        version: counts changes.
        store: the branch that it is saved to; None if it lives in memory.
        archive: keys of what is read into the store; None without a store or retrieval heads.
        save_every: tokens between automatic saves.
        readonly, closed: changes are refused.
        one_thread: what callers hold while they use the stream.
    """

    def __init__(self, checkpoint: Checkpoint, *, seed: int = 0) -> None:
        if checkpoint.model.frozen is None and not checkpoint.model.training:
            checkpoint.model.freeze()
        self.checkpoint = checkpoint
        self.seed = seed
        self.one_thread = OneThread()
        self.save_every = 1 << 14
        self.readonly = False
        self.closed = False
        self.stream = TextStream.begin(checkpoint, seed=seed)
        self.cache = Cache()
        self.log = TokenLog()
        self.recent: RecentTokens | None = self._recent_from(self.stream)
        self.cursor: FeedCursor | None = None
        self.version = 0
        self.store: SessionStore | None = None
        self.archive: Archive | None = None

    @property
    def position(self) -> int:
        return self.stream.position

    def require_store(self, action: str) -> SessionStore:
        """Raises ValueError if the session has no store."""
        if self.store is None:
            raise ValueError(f"cannot {action}: this session has no store; use streamlm.open(path)")
        return self.store

    def require_writable(self, action: str) -> None:
        """Raises ValueError if the session is closed or read-only."""
        if self.closed:
            raise ValueError(f"cannot {action}: the session is closed; open it again")
        if self.readonly:
            raise ValueError(f"cannot {action}: the session was opened to be read only")

    # -- reading ----------------------------------------------------------------------------------

    def read(
        self,
        stream: TextStream,
        cursor: FeedCursor | None,
        report: ReadReport | None = None,
        *,
        score: bool = True,
        keep: bool = False,
    ) -> None:
        """Read the text ahead, and save when due.

        Between two saves, either all of the text is read or none.

        Args:
            stream: the current value, possibly with more text ahead.
            cursor: the progress of the call of `feed` after this text.
            report, score, keep: as in `TextStream.read_ids`.
        """
        finish(self.reading(stream, cursor, report, score=score, keep=keep, by_segment=False))

    def reading(
        self,
        stream: TextStream,
        cursor: FeedCursor | None,
        report: ReadReport | None = None,
        *,
        score: bool = True,
        keep: bool = False,
        by_segment: bool = True,
    ) -> Steps[None]:
        """`read` in steps.

        Args:
            by_segment: a step ends where a segment does, and otherwise where a save is due.
        """
        length = self.checkpoint.model.config.segment_len
        while True:
            limit = length - self.position % length if by_segment else self._tokens_until_save()
            stream, ids = stream.read_ahead(
                self.checkpoint, limit, cache=self.cache, report=report, score=score, keep=keep
            )
            self.move(stream, ids, cursor)
            self.save_if_due()
            yield len(ids)
            if not len(stream.ahead):
                return
            stream = self.stream

    def ending_text(
        self, report: ReadReport | None = None, *, keep: bool = False, by_segment: bool = True
    ) -> Steps[None]:
        """Read all text that is held back, in steps; what follows begins a new word.

        Args:
            by_segment: as in `reading`.
        """
        if self.stream.holds_text:
            stream = self.stream.end_text(self.checkpoint)
            yield from self.reading(stream, self.cursor, report, keep=keep, by_segment=by_segment)

    def end_turn(self) -> None:
        """End a turn of a chat that is open, so that text can follow it."""
        conversation = self.stream.conversation
        if conversation is not None and conversation.open:
            ids = np.array([self.checkpoint.chat.reply_end], np.int32)
            stream = self.stream.read_ids(self.checkpoint, ids, cache=self.cache)
            self.move(replace(stream, conversation=conversation.closed()), ids, self.cursor)

    def replaying(
        self, stream: TextStream, ids: np.ndarray, *, later: TextStream | None, cache: Cache
    ) -> Steps[TextStream]:
        """Steps to a stream of the past after `ids` of its log, without the text that it held.

        Args:
            later: the same stream further on, where it is known; see `conversation_after`.
        """
        chat = self.checkpoint.tokenizer.chat
        conversation = conversation_after(
            self.checkpoint.chat if chat is not None and chat.template is not None else None,
            stream.conversation,
            ids,
            later=later.conversation if later is not None else None,
        )
        recalled = () if len(ids) else stream.recalled  # among the ids may be another prompt
        stream = yield from stream.reading_ids(self.checkpoint, ids, cache=cache)
        stream = stream.without_held_text(self.checkpoint)
        return replace(stream, conversation=conversation, recalled=recalled)

    def move(self, stream: TextStream, ids: np.ndarray, cursor: FeedCursor | None) -> None:
        """Make `stream` the current value; `ids` are the tokens that it adds."""
        recent = self.recent
        if len(ids):
            if recent is not None or self.store is not None:
                self.log.put(self.position, ids)
            if recent is not None:
                recent = recent.advanced(self.stream)
        shortened = recent is not self.recent
        # One statement, so that an interruption leaves either all or none of it done.
        self.stream, self.recent, self.cursor, self.version = (
            stream, recent, cursor, self.version + 1
        )  # fmt: skip
        if shortened and recent is not None:  # afterwards: an interruption leaves too many ids
            self.log.keep_from = recent.start
            if self.store is None:
                self.log.drop(recent.start)

    def extend_recent(self) -> None:
        """Extend `recent` from the store; from then on it is kept in memory."""
        store, recent = self.store, self.recent
        if store is None or (recent is not None and recent.covers(self.position)):
            return
        stream, ids = store.replay_recent(self.position, window(self.checkpoint.model.config))
        log = TokenLog(stream.position, ids)
        log.keep_from = stream.position
        self.log = store.log = log
        self.recent = self._recent_from(stream)

    def _recent_from(self, stream: TextStream) -> RecentTokens:
        return RecentTokens.begin(stream, length=window(self.checkpoint.model.config))

    def recall(self, text: str, *, k: int) -> list[Recalled]:
        """The k passages that the stream has read and `text` asks for; see `recall.recall`.

        Only what has left memory is searched.

        Raises:
            ValueError: there is no store, the text is empty, or `k` is below 1.
            memory_store.NotFound: old tokens were deleted.
        """
        bound = self.require_store("recall")
        return recall(
            text,
            self.checkpoint.tokenizer,
            bound.tokens,
            self.recall_stop,
            ask=None if self.archive is None else partial(self.ask, text),
            history=bound.store.refs(bound.branch),
            k=k,
        )

    def ask(self, text: str, stop: int) -> KeySearch:
        """The attention of a text over the archive; see `Archive.ask`."""
        bound, archive = self.require_store("recall"), self.archive
        assert archive is not None
        bound.try_settle()
        state = self.stream.state
        read = partial(archive.read, bound.store, bound.saved, state)
        return archive.ask(text.strip(), self.checkpoint.tokenizer, read, state, stop=stop)

    @property
    def recall_stop(self) -> int:
        """The position at which memory begins: what is in it is in sight."""
        config = self.checkpoint.model.config
        closed = self.position - self.position % config.segment_len
        return max(0, closed - config.memory_len)

    # -- forking ----------------------------------------------------------------------------------

    def fork(self) -> "LiveStream":
        """An independent stream in memory with the same value, without `recent`."""
        other = LiveStream(self.checkpoint)
        other.stream, other.recent = self.stream, None
        if self.cache.follows(self.stream.state, self.checkpoint.model.frozen):
            other.cache = self.cache.copy()
        return other

    def forking_at(self, head: Ref, tokens: int) -> Steps["LiveStream"]:
        """Steps to a stream in memory at an earlier position, replayed from the store.

        Args:
            head: a snapshot at or after `tokens`.
        """
        store = self.require_store("fork at a position")
        length = window(self.checkpoint.model.config)
        stream, ids = store.replay(head, tokens - length, tokens)
        other = LiveStream(self.checkpoint)
        other.recent, other.log = self._recent_from(stream), TokenLog(stream.position, ids)
        other.stream = yield from self.replaying(stream, ids, later=self.stream, cache=other.cache)
        return other

    # -- saving -----------------------------------------------------------------------------------

    def save(self, cursor: FeedCursor | None) -> Ref:
        """Commit everything since the last snapshot, and make `cursor` the current one.

        Raises:
            ValueError: there is no store, or it may not be changed.
            memory_store.StoreError: as `MemoryStore.commit`.
        """
        store = self.require_store("save")
        if self.begin_save(cursor):
            store.settle()
        self.cursor = cursor
        assert store.saved is not None
        return store.saved

    def begin_save(self, cursor: FeedCursor | None) -> bool:
        """Start to commit everything since the last snapshot; False if there is nothing new.

        Raises:
            ValueError: as `save`.
        """
        store = self.require_store("save")
        self.require_writable("save")
        store.try_settle()
        if store.saved is not None and self.version == store.version:
            return False
        self._begin_save(store, cursor)
        return True

    def save_if_due(self) -> None:
        """Start a save if `save_every` tokens have been read since the last."""
        store = self.store
        if store is not None and self.save_is_due(self.position):
            self.require_writable("save")
            store.settle()
            self._begin_save(store, self.cursor)

    def save_is_due(self, position: int) -> bool:
        """Whether a save is due at a position."""
        store = self.store
        return store is not None and position - store.newest_position >= self.save_every

    def _begin_save(self, store: SessionStore, cursor: FeedCursor | None) -> None:
        # From here on this session and one resumed from the snapshot compute the same bits.
        self.stream = self.stream.settled(self.checkpoint, self.cache)
        store.begin_commit(self.stream, cursor, version=self.version)

    def _tokens_until_save(self) -> int | None:
        """Tokens to the end of the segment at which a save is due; None without a store."""
        if self.store is None:
            return None
        length = self.checkpoint.model.config.segment_len
        due = max(self.store.newest_position + self.save_every, self.position + 1)
        return -(-due // length) * length - self.position

    def close(self) -> None:
        """Save, unless nothing has changed, and release the store. Safe to repeat."""
        try:
            if self.store is not None and not self.readonly and not self.closed:
                self.store.try_settle()
                if self.version != self.store.version:
                    self.save(self.cursor)
        finally:
            self.closed = True
            self.cache, self.archive = Cache(), None
            if self.store is not None:
                self.store.close()

    # -- loading ----------------------------------------------------------------------------------

    def bind(
        self,
        store: MemoryStore,
        branch: str,
        ref: Ref | None,
        *,
        retention: Retention | None,
        readonly: bool = False,
        discard_empty: bool = False,
        archive: bool = True,
    ) -> None:
        """Continue from `ref`, and save to `branch` from now on; see `SessionStore`.

        Args:
            archive: keep the keys of the model's retrieval heads, if it has any.
        """
        self.readonly = readonly
        if archive and self.checkpoint.retrieval is not None:
            self.archive = Archive(self.checkpoint)
            self.cache.on_close = None if readonly else self.archive.close_segment
        bound = SessionStore(
            store,
            branch,
            checkpoint=self.checkpoint,
            seed=self.seed,
            retention=retention,
            readonly=readonly,
            discard_empty=discard_empty,
            archive=self.archive,
        )
        try:
            newest = bound.newest(readonly=readonly)
            if not readonly:
                ref = newest  # the last writer may have moved it
            if ref is not None:
                self.restore(bound, ref, bound.load(ref))
            else:
                self.recent, bound.log = None, self.log
            self.store = bound
        except BaseException:
            bound.close()
            raise

    def restore(
        self, store: SessionStore, ref: Ref, loaded: tuple[TextStream, FeedCursor | None]
    ) -> None:
        """Continue from a snapshot that was loaded."""
        log = TokenLog(loaded[0].position)
        self.stream, self.cursor, self.recent, self.log, store.saved, store.log = (
            *loaded, None, log, ref, log
        )  # fmt: skip
        store.version = self.version
