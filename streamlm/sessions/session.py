"""Session: a stream of text in a store, the one mutable object of the API."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Literal, Self

import numpy as np
import torch

from memory_store import MemoryStore, Ref, Retention
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import Drafter
from streamlm.runtime.memory_report import MemoryReport, observe, window
from streamlm.runtime.reports import Choice, Progress, ProgressCallback, ReadReport
from streamlm.runtime.sampling import Sampling, Stops
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.recent_tokens import TokenLog, Trail
from streamlm.sessions.saving import Keeping
from streamlm.sessions.sources import OpenSource, Reading, Source, continue_reading
from streamlm.state import State
from streamlm.transfer import send


class Session:
    """Reads text, says how likely text is, and writes on. Get one from `streamlm.open`.

    A session without a store lives in memory: it can feed, score, generate and fork, not save or
    rewind. One session is used by one thread at a time.

    Args:
        checkpoint: the model that reads.
        seed: of the random generator that sampling draws from.

    Attributes:
        save_every: tokens after which reading and writing save by themselves; reading does so at
            the ends of segments. It goes on meanwhile.
        readonly: it may be read, scored and forked, not changed.
    """

    def __init__(self, checkpoint: Checkpoint, *, seed: int = 0) -> None:
        self.checkpoint = checkpoint
        self.save_every = 1 << 14
        self.readonly = False
        if checkpoint.model.frozen is None and not checkpoint.model.training:
            checkpoint.model.freeze()
        self._stream = TextStream.begin(checkpoint, seed=seed)
        self._cache = Cache()  # of keys and values: a workspace that no other session shares
        self._log = TokenLog()
        # A session with a store reads what it needs from there; see `memory_report`.
        self._trail: Trail | None = self._new_trail(self._stream)
        self._reading: Reading | None = None
        self._version = 0  # counts changes
        self._keeping: Keeping | None = None
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
        """Text that has come and was not read yet: its last word may not be complete."""
        return self.checkpoint.tokenizer.decode(self._stream.ahead) + self._stream.tail["text"]

    @property
    def branch(self) -> str:
        """The store's branch that it writes to; "main" without a store."""
        return self._keeping.branch if self._keeping is not None else "main"

    @property
    def saved(self) -> Ref | None:
        """The newest snapshot of this session that is known to be safe, None before the first."""
        return self._keeping.ref if self._keeping is not None else None

    def history(self) -> list[Ref]:
        """All snapshots that the session's branch pointed at, oldest first."""
        keeping = self._bound("show a history")
        keeping.settled()
        return keeping.store.refs(self.branch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what was read since the last snapshot, and let other writers in.

        A closed session may be looked at, scored and forked, not changed.
        """
        try:
            if self._keeping is not None and not self.readonly and not self._closed:
                self._keeping.settled()
                if self._version != self._keeping.version:
                    self.save()
        finally:
            self._closed = True
            self._cache = Cache()
            if self._keeping is not None:
                self._keeping.close()
            self._resources.close()

    # -- reading ----------------------------------------------------------------------------------

    def feed(
        self,
        *sources: Source,
        errors: Literal["strict", "replace"] = "strict",
        score: bool = False,
        logprobs: bool = False,
        block_bytes: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReadReport:
        """Read text into memory.

        A session with a store saves itself every `save_every` tokens and at the end. A call that
        was interrupted, by whatever, goes on at the last save when it is made again with the same
        files; what was read is recognised by its content.

        Args:
            sources: read one after another. A str is text; a `pathlib.Path` (or any `os.PathLike`)
                is a file; a file object or an iterator gives str or bytes.
            errors: "strict" refuses invalid UTF-8 and binary files, "replace" reads U+FFFD there.
            score: also find out how likely the text was, which takes time; see `ReadReport`.
            logprobs: score, and keep ids and log-probabilities of every token in the report (memory
                grows with them, unless `progress` takes them out).
            block_bytes: size of a block; None takes `streamlm.sessions.sources.BLOCK`.
            progress: called after each block, of some thousand tokens unless `block_bytes` differs.
                What it raises ends the reading there.

        Raises:
            ValueError: nothing to read, binary or invalid text; what came before it is kept. Or
                block_bytes below 1.
            FileNotFoundError, IsADirectoryError, PermissionError: before anything is read.
        """
        self._writable("feed")
        if block_bytes is not None and block_bytes < 1:
            raise ValueError(f"block_bytes = {block_bytes}; allowed: at least 1")
        opened = _open_sources(sources, block_bytes=block_bytes)
        done = continue_reading(self._reading, opened).done
        report, started = ReadReport(), time.perf_counter()
        report.skipped_bytes = sum(source.n_bytes for source in opened)
        if report.skipped_bytes:  # but for what came of them and is still to be read
            lengths = self.checkpoint.tokenizer.token_lengths
            report.skipped_bytes -= int(lengths[self._stream.ahead].sum())
        score = score or logprobs
        if len(self._stream.ahead):
            self._read(self._stream, self._reading, report, score=score, keep=logprobs)
        for source in opened[len(done) :]:
            for block in source:
                reached = Reading(done, source.n_bytes, source.digest) if source.is_file else None
                stream = self._with_block(source, block, errors)
                self._read(stream, reached, report, score=score, keep=logprobs)
                report.seconds = time.perf_counter() - started
                report.position = self.position
                if progress is not None:
                    progress(Progress(source.name, source.n_bytes, source.size, report))
            done = [*done, source.digest]
        if not any(source.n_bytes for source in opened):
            raise ValueError(f"nothing to read: {', '.join(s.name for s in opened)} is empty")
        if self._keeping is not None:
            self._version += 1
            self._save(None)
        self._reading = None
        report.seconds = time.perf_counter() - started
        report.position = self.position
        return report

    def score(
        self,
        *sources: Source,
        errors: Literal["strict", "replace"] = "strict",
        logprobs: bool = False,
        progress: ProgressCallback | None = None,
    ) -> ReadReport:
        """How likely a text is after all that was read; the session stays as it is.

        Args:
            sources, errors, progress: as in `feed`: a str is text, a path is a file.
            logprobs: also keep ids and log-probabilities of every token (memory grows with them).

        Raises:
            As `feed`.
        """
        opened = _open_sources(sources)
        other = self._branch_off()
        other._end_text()
        report, started = ReadReport(), time.perf_counter()
        for source in opened:
            for block in source:
                other._read(other._with_block(source, block, errors), None, report, keep=logprobs)
                report.seconds = time.perf_counter() - started
                if progress is not None:
                    progress(Progress(source.name, source.n_bytes, source.size, report))
        other._end_text(report, keep=logprobs)
        if not report.tokens:
            raise ValueError(f"nothing to score: {', '.join(s.name for s in opened)} is empty")
        report.seconds, report.position = time.perf_counter() - started, self.position
        return report

    def _with_block(
        self, source: OpenSource, block: str | bytes, errors: Literal["strict", "replace"]
    ) -> TextStream:
        """The stream with a block to be read."""
        if errors == "strict" and source.is_file and isinstance(block, bytes) and b"\0" in block:
            raise ValueError(
                f"{source.name} looks binary: it has a NUL byte; allowed: UTF-8 text "
                "(errors 'replace' reads it all the same)"
            )
        try:
            stream = self._stream.take_text(self.checkpoint, block, errors=errors)
        except ValueError as error:
            size = len(block.encode()) if isinstance(block, str) else len(block)
            at = source.n_bytes - size
            raise ValueError(f"{source.name}, block at byte {at}: {error}") from None
        if errors == "strict" and source.is_file and stream.tail["bytes"]:
            raise ValueError(f"{source.name} ends within a UTF-8 character")
        return stream

    def _end_text(self, report: ReadReport | None = None, *, keep: bool = False) -> None:
        """Read all the text that has come; what follows begins a new word."""
        if self._stream.holds_text:
            stream = self._stream.end_text(self.checkpoint)
            self._read(stream, self._reading, report, keep=keep)

    def _read(
        self,
        stream: TextStream,
        reading: Reading | None,
        report: ReadReport | None = None,
        *,
        score: bool = True,
        keep: bool = False,
    ) -> None:
        """Read the text that has come, and save where it is due.

        Unless it is saved in between, all of it is read, or nothing.

        Args:
            stream: the session's, perhaps with more text to be read.
            reading: where a reading of files stands after this text.
        """
        while True:
            limit = self._until_due()
            stream, ids = stream.read_ahead(
                self.checkpoint, limit, cache=self._cache, report=report, score=score, keep=keep
            )
            self._moved(stream, ids, reading)
            self._save_when_due()
            if not len(stream.ahead):
                return
            stream = self._stream

    def _moved(self, stream: TextStream, ids: np.ndarray, reading: Reading | None) -> None:
        trail = self._trail
        if len(ids):
            if trail is not None or self._keeping is not None:
                self._log.put(self.position, ids)
            if trail is not None and (moved := trail.moved(self._stream)) is not trail:
                trail = moved
                self._log.keep_from = trail.start
                if self._keeping is None:
                    self._log.drop(trail.start)
        # One statement: an interruption finds either all of it done or nothing.
        self._stream, self._trail, self._reading, self._version = (
            stream, trail, reading, self._version + 1
        )  # fmt: skip

    # -- what was read, and is remembered ---------------------------------------------------------

    def text(self, start: int = 0, stop: int | None = None) -> str:
        """The text of the tokens start ≤ i < stop, from the store's log; stop = None: to the end.

        Raises:
            ValueError: the session has no store, or not 0 ≤ start ≤ stop ≤ position.
            memory_store.NotFound: the log begins later.
        """
        keeping = self._bound("look up what was read")
        stop = self.position if stop is None else stop
        if not 0 <= start <= stop <= self.position:
            raise ValueError(f"tokens {start} to {stop}; allowed: a part of 0 to {self.position}")
        return self.checkpoint.tokenizer.decode(keeping.ids(start, stop))

    def memory_report(self) -> MemoryReport:
        """What the model still remembers of the stream, slot by slot.

        The newest tokens are read again for it, some hundred to thousand; the session is unchanged.

        Raises:
            ValueError: not known, in a session without a store that was forked from a snapshot.
        """
        self._lengthen_trail()
        if self._trail is None or self._trail.start == self.position:
            raise ValueError("nothing was read yet")
        stream = self._trail.beginnings[0]
        ids = self._log.take(stream.position, self.position)
        inputs = np.concatenate([[stream.pending], ids[:-1]]).astype(np.int64)
        tokens = send(torch.from_numpy(inputs)[None], self.checkpoint.model.device)
        report = observe(self.checkpoint.model, tokens, stream.state)
        return replace(report, first=stream.position, ids=ids)

    def _new_trail(self, stream: TextStream) -> Trail:
        return Trail.begin(stream, length=window(self.checkpoint.model.config))

    def _lengthen_trail(self) -> None:
        """Make the trail as long as the store can; from here on it is kept in memory."""
        keeping, trail = self._keeping, self._trail
        if keeping is None or (trail is not None and trail.whole(self.position)):
            return
        stream, ids = keeping.before(self.position, window(self.checkpoint.model.config))
        log = TokenLog(stream.position, ids)
        log.keep_from = stream.position
        self._log = keeping.log = log
        self._trail = self._new_trail(stream)

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
        drafter: Drafter | None = None,
    ) -> Iterator[str]:
        """Read `prompt`, then write on; what is written becomes part of the stream.

        Args:
            max_tokens: tokens to write at most.
            temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`.
            stop: strings at which to end; the first one found is read but not given out.
            seed: begin the random generator anew; None goes on with the session's own.
            drafter: guesses tokens, which the model then checks several at once (see
                `streamlm.runtime.speculation`): faster where it guesses well. The text is as likely
                as without, and at temperature 0 the same; the random numbers are used otherwise.

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
        self._check_writing(max_tokens, seed)
        if drafter is not None:
            drafter.check(self.checkpoint)
        text, written = Stops.at(stop), self._write(prompt, max_tokens, sampling, seed, drafter)

        def pieces() -> Iterator[str]:
            for _, piece in written:
                ready, found = text.push(piece)
                if ready:
                    yield ready
                if found:
                    return
            if text.held:
                yield text.held

        return pieces()

    def choices(
        self,
        prompt: str = "",
        sampling: Sampling | None = None,
        *,
        max_tokens: int = 256,
        others: int = 0,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
    ) -> Iterator[Choice]:
        """`generate`, token by token: with each, how likely it was and what else was likely.

        Args:
            others: so many of the likeliest tokens are told with each; see `Choice`.
            stop: strings at which to end. The tokens of the first one found are read, not told; one
                that begins before it is told with the characters that are not part of it.

        Raises:
            ValueError: at once, for a value that is not allowed.
        """
        self._check_writing(max_tokens, seed)
        if others < 0:
            raise ValueError(f"others = {others}; allowed: 0 or more")
        text = Stops.at(stop)
        written = self._write(prompt, max_tokens, sampling or Sampling(), seed, None)

        def choices() -> Iterator[Choice]:
            held, told = deque[Choice](), 0  # told: characters that may be, of those in `held`
            for stream, piece in written:
                held.append(stream.choice(self.checkpoint, piece, others=others))
                ready, found = text.push(piece)
                told += len(ready)
                while held and len(held[0].text) <= told and not (found and told == 0):
                    told -= len(held[0].text)
                    yield held.popleft()
                if found:
                    if told:
                        yield replace(held[0], text=held[0].text[:told])
                    return
            yield from held

        return choices()

    def _check_writing(self, max_tokens: int, seed: int | None) -> None:
        if max_tokens < 0:
            raise ValueError(f"max_tokens = {max_tokens}; allowed: 0 or more")
        if seed is not None and seed < 0:
            raise ValueError(f"seed = {seed}; allowed: 0 or more")
        self._writable("generate")

    def _write(
        self,
        prompt: str,
        max_tokens: int,
        sampling: Sampling,
        seed: int | None,
        drafter: Drafter | None,
    ) -> Iterator[tuple[TextStream, str]]:
        """Write token by token: the stream that has just taken one in, and its characters."""
        if prompt:
            stream = self._stream.take_text(self.checkpoint, prompt, errors="replace")
            self._read(stream, self._reading)
        self._end_text()
        if seed is not None:
            self._stream, self._version = self._stream.seeded(seed), self._version + 1
        left = max_tokens
        while left:
            before = self._stream
            for stream, chosen, piece in before.write_tokens(
                self.checkpoint, sampling, drafter, limit=left, cache=self._cache
            ):
                self._writable("generate")  # who reads on may have closed it meanwhile
                if self._stream is not before:
                    break  # saved, or read on: the rest of the draft does not follow any more
                self._moved(stream, np.array([chosen], np.int32), self._reading)
                before, left = stream, left - 1
                self._save_when_due()
                yield stream, piece

    # -- forks and snapshots ----------------------------------------------------------------------

    def fork(self, branch: str | None = None, *, tokens: int | None = None) -> "Session":
        """A session that goes on from here on its own; nothing is copied.

        Args:
            branch: None gives a session without a store. A name begins a branch of that name in
                this session's store, after saving.
            tokens: where to begin instead: an earlier position, as `rewind` would go to.

        Raises:
            ValueError: the branch exists, the session has no store, or tokens is out of range.
        """
        if tokens is not None and not 0 <= tokens <= self.position:
            raise ValueError(f"tokens = {tokens}; allowed: 0 to {self.position}")
        if branch is None and tokens is not None:
            return self._branch_off_at(tokens)
        if branch is None:
            self._lengthen_trail()
            other = self._branch_off()
            other._trail, other._log = self._trail, self._log.copy()
            return other
        keeping = self._bound("fork to a branch")
        if keeping.store.head(branch) is not None:
            raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
        saved = self.save()
        other = Session(self.checkpoint)
        other.save_every = self.save_every
        ref = keeping.store.publish(saved, branch=branch)
        other._bind(keeping.store, branch, ref, retention=keeping.retention)
        if tokens is not None:
            other.rewind(tokens=tokens)
        return other

    def _branch_off(self) -> "Session":
        other = Session(self.checkpoint)
        other._stream, other._trail = self._stream, None
        if self._cache.follows(self._stream.state, self.checkpoint.model.frozen):
            other._cache = self._cache.copy()
        return other

    def _branch_off_at(self, tokens: int) -> "Session":
        keeping = self._bound("fork at a position")
        head = self.saved if self.readonly else self.save()
        assert head is not None
        if tokens > head.position:  # read since, by a session that may not save
            raise ValueError(f"tokens = {tokens}; allowed: 0 to {head.position}")
        length = window(self.checkpoint.model.config)
        commit = keeping.store.nearest(head, max(0, tokens - length))
        stream, _ = keeping.load(commit)
        ids = keeping.store.tokens(head, commit.position, tokens)
        other = Session(self.checkpoint)
        other._trail, other._log = self._new_trail(stream), TokenLog(stream.position, ids)
        stream = stream.read_ids(self.checkpoint, ids, cache=other._cache)
        other._stream = stream.without_held_text(self.checkpoint)
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
        keeping = self._bound("save")
        self._writable("save")
        keeping.settled()
        if keeping.ref is None or self._version != keeping.version:
            self._begin_save(keeping, reading)
            keeping.settle()
        self._reading = reading
        assert keeping.ref is not None
        return keeping.ref

    def _begin_save(self, keeping: Keeping, reading: Reading | None) -> None:
        # From here on this session and one resumed from the snapshot compute the same bits.
        self._stream = self._stream.settled(self.checkpoint, self._cache)
        keeping.begin(self._stream, reading, version=self._version)

    def _save_when_due(self) -> None:
        keeping = self._keeping
        if keeping is not None and self.position - keeping.begun >= self.save_every:
            self._writable("save")
            keeping.settle()
            self._begin_save(keeping, self._reading)

    def _until_due(self) -> int | None:
        """Tokens to the end of a segment at which the session is to be saved, if it is kept."""
        if self._keeping is None:
            return None
        length = self.checkpoint.model.config.segment_len
        due = max(self._keeping.begun + self.save_every, self.position + 1)
        return -(-due // length) * length - self.position

    def rewind(
        self,
        *,
        tokens: int | None = None,
        snapshot: Ref | int | None = None,
        time: datetime | float | None = None,
    ) -> None:
        """Go back to a position, a snapshot or a time; history keeps what was: it can be undone.

        Args:
            tokens: the position: from the nearest snapshot before it, the token log is replayed.
                Text that was held back there, not yet a token, is forgotten.
            snapshot: an entry of `history()`, or its `seq`.
            time: to where the branch stood then: a datetime, or seconds since 1970.

        Raises:
            ValueError: not just one is given, or it is out of range; the session stays as it is.
        """
        if sum(goal is not None for goal in (tokens, snapshot, time)) != 1:
            raise ValueError("allowed: one of tokens=…, snapshot=… and time=…")
        keeping = self._bound("rewind")
        self._writable("rewind")
        head = self.save()
        if tokens is not None:
            commit, ids = keeping.way_to(head, tokens)
        else:
            ref = keeping.snapshot_at(snapshot, time)
            commit, ids = ref.commit, None
            if not keeping.store.is_loadable(commit):  # its tokens are still there
                commit, ids = keeping.way_to(ref, ref.position)
        if commit != head.commit:
            loaded = keeping.load(commit)  # first, for it may be damaged
            try:
                keeping.store.publish(commit, branch=self.branch)
            finally:  # interrupted or not, the session stands where the branch does
                moved = keeping.store.head(self.branch)
                if moved is not None and moved != keeping.ref and moved.commit == commit:
                    self._restore(keeping, moved, loaded)
        if ids is not None and (len(ids) or self._stream.holds_text):
            # The snapshot's tail is part of what is replayed; its reading is not gone on with.
            stream = self._stream.read_ids(self.checkpoint, ids, cache=self._cache)
            self._moved(stream.without_held_text(self.checkpoint), ids, None)
            self.save()

    def _bind(
        self,
        store: MemoryStore,
        branch: str,
        ref: Ref | None,
        *,
        retention: Retention | None,
        readonly: bool = False,
    ) -> None:
        """Keep this session in `store`, going on from `ref`."""
        self.readonly = readonly
        keeping = Keeping(
            store, branch, checkpoint=self.checkpoint, seed=self._seed, retention=retention
        )
        if not readonly:
            self._resources.enter_context(store.writer(branch))
        try:
            if not readonly:
                ref = store.head(branch)  # who held the branch until now may have moved it
            if ref is not None:
                self._restore(keeping, ref, keeping.load(ref))
            else:
                self._trail, keeping.log = None, self._log
            self._keeping = keeping
        except BaseException:
            self._resources.close()
            raise

    def _restore(
        self, keeping: Keeping, ref: Ref, loaded: tuple[TextStream, Reading | None]
    ) -> None:
        log = TokenLog(loaded[0].position)
        self._stream, self._reading, self._trail, self._log, keeping.ref, keeping.log = (
            *loaded, None, log, ref, log
        )  # fmt: skip
        keeping.version = self._version

    def _bound(self, doing: str) -> Keeping:
        if self._keeping is None:
            raise ValueError(f"cannot {doing}: this session has no store; use streamlm.open(path)")
        return self._keeping

    def _writable(self, doing: str) -> None:
        if self._closed:
            raise ValueError(f"cannot {doing}: the session is closed; open it again")
        if self.readonly:
            raise ValueError(f"cannot {doing}: the session was opened to be read only")


def _open_sources(
    sources: tuple[Source, ...], *, block_bytes: int | None = None
) -> list[OpenSource]:
    if not sources:
        raise ValueError("no source given; allowed: paths, texts, file objects, iterators")
    return [OpenSource(source, block_bytes=block_bytes) for source in sources]
