"""Session: a stream of text in a store, the one mutable object of the API."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch

from memory_store import Commit, Conflict, MemoryStore, Ref
from streamlm.checkpoint import Checkpoint
from streamlm.memory_report import MemoryReport, observe, window
from streamlm.reports import Progress, ProgressCallback, ReadReport
from streamlm.sources import OpenSource, Reading, Source, continue_reading
from streamlm.state import State
from streamlm.stops import Stops
from streamlm.stream import Sampling
from streamlm.text import REPETITION_WINDOW, TextStream
from streamlm.trail import Trail


class Session:
    """Reads text, says how likely text is, and writes on. Get one from `streamlm.open`.

    A session without a store lives in memory: it can feed, score, generate and fork, not save or
    rewind. One session is used by one thread at a time.

    Args:
        checkpoint: the model that reads.
        seed: of the random generator that sampling draws from.

    Attributes:
        branch: the store's branch that it writes to.
        save_every: tokens after which reading and writing save by themselves.
        readonly: it may be read, scored and forked, not changed.
    """

    def __init__(self, checkpoint: Checkpoint, *, seed: int = 0) -> None:
        self.checkpoint = checkpoint
        self.branch = "main"
        self.save_every = 1 << 14
        self.readonly = False
        self._stream = TextStream.begin(checkpoint, seed=seed)
        self._trail = self._new_trail(self._stream)
        self._store: MemoryStore | None = None
        self._ref: Ref | None = None
        self._unsaved: list[np.ndarray] = []  # ids since the last snapshot, …
        self._n_unsaved = 0  # … in so many items; an interruption may leave one more
        self._dirty = False
        self._reading: Reading | None = None
        self._seed = seed
        self._closed = False
        self._resources = ExitStack()

    # -- what it is -------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Tokens read and written since the stream began."""
        return self._stream.position

    @property
    def state(self) -> State:
        """What the model remembers, as an immutable value."""
        return self._stream.state

    @property
    def tail(self) -> str:
        """Text held back because its last word may not be complete yet."""
        return self._stream.tail["text"]

    @property
    def saved(self) -> Ref | None:
        """The newest snapshot of this session, None before the first."""
        return self._ref

    def history(self) -> list[Ref]:
        """All snapshots that the session's branch pointed at, oldest first."""
        return self._bound("show a history").refs(self.branch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what was read since the last snapshot, and let other writers in.

        A closed session may be looked at, scored and forked, not changed.
        """
        try:
            if self._store is not None and self._dirty and not self.readonly and not self._closed:
                self.save()
        finally:
            self._closed = True
            self._resources.close()

    # -- reading ----------------------------------------------------------------------------------

    def feed(
        self,
        *sources: Source,
        errors: Literal["strict", "replace"] = "strict",
        progress: ProgressCallback | None = None,
    ) -> ReadReport:
        """Read text into memory.

        A session with a store saves itself every `save_every` tokens and at the end. A call that
        was interrupted, by whatever, goes on at the last save when it is made again with the same
        files; what was read is recognised by its content.

        Args:
            sources: paths, texts, file objects, iterators of str or bytes; read one after another.
                A str is a path where it names a file (see `streamlm.sources.as_path`).
            errors: "strict" refuses invalid UTF-8 and binary files, "replace" reads U+FFFD there.
            progress: called after each block of some thousand tokens.

        Raises:
            ValueError: nothing to read, binary or invalid text; what came before it is kept.
            FileNotFoundError, IsADirectoryError, PermissionError: before anything is read.
        """
        self._writable("feed")
        opened = _open_sources(sources)
        done = continue_reading(self._reading, opened).done
        report, started = ReadReport(), time.perf_counter()
        report.skipped_bytes = sum(source.n_bytes for source in opened)
        for source in opened[len(done) :]:
            for block in source:
                reached = Reading(done, source.n_bytes, source.digest) if source.is_file else None
                self._feed_block(source, block, errors, report, reading=reached)
                report.seconds = time.perf_counter() - started
                report.position = self.position
                self._save_when_due()
                if progress is not None:
                    progress(Progress(source.name, source.n_bytes, source.size, report))
            done = [*done, source.digest]
        if not any(source.n_bytes for source in opened):
            raise ValueError(f"nothing to read: {', '.join(s.name for s in opened)} is empty")
        if self._store is not None:
            self._dirty = True
            self._save(None)
        self._reading = None
        report.seconds = time.perf_counter() - started
        report.position = self.position
        return report

    def score(
        self,
        *sources: Source,
        errors: Literal["strict", "replace"] = "strict",
        details: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ReadReport:
        """How likely a text is after all that was read; the session stays as it is.

        Args:
            details: also keep ids and log-probabilities of every token (memory grows with them).

        Raises:
            As `feed`.
        """
        opened = _open_sources(sources)
        other = self._branch_off()
        other._stream, _ = other._stream.end_text(self.checkpoint)
        report, started = ReadReport(), time.perf_counter()
        for source in opened:
            for block in source:
                other._feed_block(source, block, errors, report, keep=details)
                report.seconds = time.perf_counter() - started
                if progress is not None:
                    progress(Progress(source.name, source.n_bytes, source.size, report))
        other._stream.end_text(self.checkpoint, report=report, keep=details)
        if not report.tokens:
            raise ValueError(f"nothing to score: {', '.join(s.name for s in opened)} is empty")
        report.seconds, report.position = time.perf_counter() - started, self.position
        return report

    def _feed_block(
        self,
        source: OpenSource,
        block: str | bytes,
        errors: Literal["strict", "replace"],
        report: ReadReport,
        *,
        keep: bool = False,
        reading: Reading | None = None,
    ) -> None:
        """Read one block as a whole: if this raises, the session is where it was.

        Args:
            reading: where a reading of files stands after this block.
        """
        if errors == "strict" and source.is_file and isinstance(block, bytes) and b"\0" in block:
            raise ValueError(
                f"{source.name} looks binary: it has a NUL byte; allowed: UTF-8 text "
                "(errors 'replace' reads it all the same)"
            )
        try:
            stream, ids = self._stream.read_text(
                self.checkpoint, block, errors=errors, report=report, keep=keep
            )
        except ValueError as error:
            size = len(block.encode()) if isinstance(block, str) else len(block)
            at = source.n_bytes - size
            raise ValueError(f"{source.name}, block at byte {at}: {error}") from None
        if errors == "strict" and source.is_file and stream.tail["bytes"]:
            raise ValueError(f"{source.name} ends within a UTF-8 character")
        self._moved(stream, ids, reading)

    def _moved(self, stream: TextStream, ids: np.ndarray, reading: Reading | None) -> None:
        n_unsaved = self._n_unsaved
        if self._store is not None and len(ids):
            self._unsaved[n_unsaved:] = [ids]
            n_unsaved += 1
        trail = self._trail.moved(self._stream, ids) if len(ids) else self._trail
        # One statement: an interruption finds either all of it done or nothing.
        self._stream, self._trail, self._n_unsaved, self._reading, self._dirty = (
            stream, trail, n_unsaved, reading, True
        )  # fmt: skip

    # -- what is remembered -----------------------------------------------------------------------

    def memory_report(self) -> MemoryReport:
        """What the model still remembers of the stream, slot by slot.

        The newest tokens are read again for it, some hundred to thousand; the session is unchanged.

        Raises:
            ValueError: not known, in a session without a store that was forked from a snapshot.
        """
        stream, ids = self._whole_trail().source()
        if not len(ids):
            raise ValueError("nothing was read yet")
        inputs = np.concatenate([[stream.pending], ids[:-1]]).astype(np.int64)
        tokens = torch.from_numpy(inputs)[None].to(self.checkpoint.model.device)
        report = observe(self.checkpoint.model, tokens, stream.state)
        return replace(report, first=stream.position, ids=ids)

    def _new_trail(self, stream: TextStream, *read: np.ndarray) -> Trail:
        return Trail.begin(stream, *read, length=window(self.checkpoint.model.config))

    def _whole_trail(self) -> Trail:
        """The trail; where it began with a snapshot, as long as the store can make it."""
        if self._trail.whole or self._store is None or self._ref is None:
            return self._trail
        commit = self._store.nearest(self._ref, max(0, self._ref.position - self._trail.length))
        begin, _ = self._load(commit)
        ids = self._store.tokens(self._ref, commit.position, self._ref.position)
        return self._new_trail(begin, ids, *self._unsaved[: self._n_unsaved])

    # -- writing ----------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str = "",
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
    ) -> Iterator[str]:
        """Read `prompt`, then write on; what is written becomes part of the stream.

        Args:
            max_tokens: tokens to write at most.
            temperature, top_k, top_p, min_p, repetition_penalty: see `streamlm.stream.Sampling`.
            stop: strings at which to end; the first one found is read but not given out.
            seed: begin the random generator anew; None goes on with the session's own.

        Returns:
            An iterator of pieces of text, never half a character. If it is dropped halfway, the
            session has read what was written until then.

        Raises:
            ValueError: at once, for a value that is not allowed.
        """
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        stops = [stop] if isinstance(stop, str) else list(stop)
        if max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens}; allowed: 0 or more")
        if not all(isinstance(text, str) and text for text in stops):
            raise ValueError(f"stop = {stop!r}; allowed: strings that are not empty")
        if seed is not None and seed < 0:
            raise ValueError(f"seed = {seed}; allowed: 0 or more")
        self._writable("generate")
        return self._generate(prompt, max_tokens, sampling, stops, seed)

    def _generate(
        self, prompt: str, max_tokens: int, sampling: Sampling, stops: list[str], seed: int | None
    ) -> Iterator[str]:
        if prompt:
            stream, ids = self._stream.read_text(self.checkpoint, prompt, errors="replace")
            self._moved(stream, ids, self._reading)
        if any(self._stream.tail.values()):
            stream, ids = self._stream.end_text(self.checkpoint)
            self._moved(stream, ids, self._reading)
        if seed is not None:
            self._stream = self._stream.seeded(seed)
        text = Stops(stops)
        for _ in range(max_tokens):
            self._writable("generate")  # who reads on may have closed it meanwhile
            stream, chosen, piece = self._stream.write_token(self.checkpoint, sampling)
            self._moved(stream, np.array([chosen], np.int32), self._reading)
            self._save_when_due()
            ready, found = text.push(piece)
            if ready:
                yield ready
            if found:
                return
        if text.held:
            yield text.held

    # -- forks and snapshots ----------------------------------------------------------------------

    def fork(self, branch: str | None = None) -> "Session":
        """A session that goes on from here on its own; nothing is copied.

        Args:
            branch: None gives a session without a store. A name begins a branch of that name in
                this session's store, after saving.

        Raises:
            ValueError: the branch exists, or the session has no store.
        """
        if branch is None:
            other = self._branch_off()
            other._trail = self._whole_trail()
            return other
        store = self._bound("fork to a branch")
        if store.head(branch) is not None:
            raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
        saved = self.save()
        other = Session(self.checkpoint)
        other.save_every = self.save_every
        ref = store.publish(saved, branch=branch)
        other._bind(store, branch, ref)
        return other

    def _branch_off(self) -> "Session":
        other = Session(self.checkpoint)
        other._stream = self._stream
        return other

    def save(self) -> Ref:
        """Commit everything read since the last snapshot; returns once it is safe on disk.

        Raises:
            ValueError: the session has no store.
            memory_store.StoreError: as `MemoryStore.commit`; the session can be saved again.
        """
        return self._save(self._reading)

    def _save(self, reading: Reading | None) -> Ref:
        """`save`, after which `reading` is what is left to go on with."""
        store = self._bound("save")
        self._writable("save")
        if self._ref is not None and not self._dirty:
            return self._ref
        try:
            if self._ref is None and self.position:
                # The empty beginning is a snapshot too, so that every position can be rewound to.
                begin = TextStream.begin(self.checkpoint, seed=self._seed)
                self._ref = self._commit(store, begin, np.zeros(0, np.int32), None)
            # From here on this session and one resumed from the snapshot compute the same bits.
            self._stream = self._stream.canonical(self.checkpoint)
            tokens = np.concatenate([np.zeros(0, np.int32), *self._unsaved[: self._n_unsaved]])
            ref = self._commit(store, self._stream, tokens, reading)
            self._ref, self._unsaved, self._n_unsaved, self._dirty = ref, [], 0, False
        except Conflict:
            raise
        except BaseException:
            self._catch_up(store)
            raise
        self._reading = reading
        return ref

    def _catch_up(self, store: MemoryStore) -> None:
        """After an interrupted commit: take note of it if it got through all the same."""
        head = store.head(self.branch)
        if head is None or head == self._ref:
            return
        if head.position == self.position:
            self._unsaved, self._n_unsaved = [], 0
        self._ref = head

    def _commit(
        self, store: MemoryStore, stream: TextStream, tokens: np.ndarray, reading: Reading | None
    ) -> Ref:
        attributes = {"reading": reading.to_json() if reading else None}
        return store.commit(
            stream.to_snapshot(self.checkpoint, tokens=tokens, attributes=attributes),
            branch=self.branch,
            parent=self._ref,
            fingerprints=self.checkpoint.fingerprints,
        )

    def rewind(self, *, tokens: int | None = None, snapshot: Ref | int | None = None) -> None:
        """Go back to a token position or a snapshot; history keeps what was, so it can be undone.

        Args:
            tokens: the position: from the nearest snapshot before it, the token log is replayed.
                Text that was held back there, not yet a token, is forgotten.
            snapshot: an entry of `history()`, or its `seq`.

        Raises:
            ValueError: neither or both given, or out of range; the session stays as it is.
        """
        if (tokens is None) == (snapshot is None):
            raise ValueError("allowed: either tokens=… or snapshot=…")
        store = self._bound("rewind")
        self._writable("rewind")
        head = self.save()
        replay = np.zeros(0, np.int32)
        if tokens is not None:
            if not 0 <= tokens <= self.position:
                raise ValueError(f"tokens = {tokens}; allowed: 0 to {self.position}")
            commit = store.nearest(head, tokens)
            replay = store.tokens(head, commit.position, tokens)
        else:
            refs = {ref.seq: ref for ref in store.refs(self.branch)}
            seq = snapshot.seq if isinstance(snapshot, Ref) else snapshot
            if seq not in refs or (isinstance(snapshot, Ref) and snapshot != refs[seq]):
                allowed = f"0 to {max(refs)}, or an entry of history()"
                raise ValueError(f"snapshot = {snapshot}; allowed: {allowed}")
            commit = refs[seq].commit
            if not store.is_whole(commit):  # its tokens are still there
                tokens = commit.position
                commit = store.nearest(refs[seq], tokens)
                replay = store.tokens(refs[seq], commit.position, tokens)
        if commit != head.commit:
            loaded = self._load(commit)  # first, for it may be damaged
            try:
                store.publish(commit, branch=self.branch)
            finally:  # interrupted or not, the session stands where the branch does
                moved = store.head(self.branch)
                if moved is not None and moved != self._ref and moved.commit == commit:
                    self._restore(moved, loaded)
        if tokens is not None and (len(replay) or any(self._stream.tail.values())):
            # The snapshot's tail is part of what is replayed; its reading is not gone on with.
            stream = self._stream.read_ids(self.checkpoint, replay)
            self._moved(stream.without_tail(self.checkpoint), replay, None)
            self.save()

    def _save_when_due(self) -> None:
        if self._n_unsaved and self.position - self._saved_position >= self.save_every:
            self.save()

    @property
    def _saved_position(self) -> int:
        return self._ref.position if self._ref is not None else 0

    def _bind(
        self, store: MemoryStore, branch: str, ref: Ref | None, *, readonly: bool = False
    ) -> None:
        """Keep this session in `store`, going on from `ref`."""
        self._store, self.branch, self.readonly = store, branch, readonly
        if not readonly:
            self._resources.enter_context(store.writer(branch))
        try:
            if not readonly:
                ref = store.head(branch)  # who held the branch until now may have moved it
            if ref is not None:
                self._restore(ref, self._load(ref))
        except BaseException:
            self._resources.close()
            raise

    def _load(self, source: Ref | Commit) -> tuple[TextStream, Reading | None]:
        store = self._bound("resume")
        snapshot = store.load(source, fingerprints=self.checkpoint.fingerprints)
        reading: Any = snapshot.attributes["reading"]
        start = max(0, snapshot.position - REPETITION_WINDOW)
        recent = store.tokens(source, start, snapshot.position)
        stream = TextStream.from_snapshot(self.checkpoint, snapshot, recent=recent)
        return stream, Reading(**reading) if reading else None

    def _restore(self, ref: Ref, loaded: tuple[TextStream, Reading | None]) -> None:
        trail = self._new_trail(loaded[0])
        self._stream, self._reading = loaded
        self._trail = trail
        self._ref, self._unsaved, self._n_unsaved, self._dirty = ref, [], 0, False

    def _bound(self, doing: str) -> MemoryStore:
        if self._store is None:
            raise ValueError(f"cannot {doing}: this session has no store; use streamlm.open(path)")
        return self._store

    def _writable(self, doing: str) -> None:
        if self._closed:
            raise ValueError(f"cannot {doing}: the session is closed; open it again")
        if self.readonly:
            raise ValueError(f"cannot {doing}: the session was opened to be read only")


def _open_sources(sources: tuple[Source, ...]) -> list[OpenSource]:
    if not sources:
        raise ValueError("no source given; allowed: paths, texts, file objects, iterators")
    return [OpenSource(source) for source in sources]
