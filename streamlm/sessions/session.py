"""Session: a stream of text in a store, the one mutable object of the API."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Self

import numpy as np
import torch

from memory_store import Ref
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.drafter import Drafter
from streamlm.runtime.memory_report import MemoryReport, observe
from streamlm.runtime.reports import Choice, ProgressCallback, ReadReport
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.feed import Errors, Feed
from streamlm.sessions.generation import Generation
from streamlm.sessions.live import LiveStream
from streamlm.sessions.sources import Source
from streamlm.state import State
from streamlm.transfer import send


class Session:
    """Reads text, says how likely text is, and writes on. Get one from `streamlm.open`.

    A session without a store lives in memory: it can feed, score, generate and fork, not save or
    rewind. One session is used by one thread at a time.

    Args:
        checkpoint: the model that reads.
        seed: of the random generator that sampling draws from.
        live: the stream that it goes on with; None begins one.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, seed: int = 0, live: LiveStream | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self._live = LiveStream(checkpoint, seed=seed) if live is None else live

    # -- what it is -------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Tokens read and written since the stream began."""
        return self._live.position

    @property
    def state(self) -> State:
        """What the model remembers, as an immutable value."""
        return self._live.stream.state

    @property
    def tail(self) -> str:
        """Text that has come and was not read yet: its last word may not be complete."""
        stream = self._live.stream
        return self.checkpoint.tokenizer.decode(stream.ahead) + stream.tail["text"]

    @property
    def save_every(self) -> int:
        """Tokens after which reading and writing save by themselves, without waiting for the disk.

        Reading saves at the ends of segments.
        """
        return self._live.save_every

    @save_every.setter
    def save_every(self, tokens: int) -> None:
        self._live.save_every = tokens

    @property
    def readonly(self) -> bool:
        """Whether the session may be read, scored and forked, but not changed."""
        return self._live.readonly

    @property
    def branch(self) -> str:
        """The store's branch that it writes to; "main" without a store."""
        return self._live.store.branch if self._live.store is not None else "main"

    @property
    def saved(self) -> Ref | None:
        """The newest snapshot of this session that is known to be safe, None before the first."""
        return self._live.store.saved if self._live.store is not None else None

    def history(self) -> list[Ref]:
        """All snapshots that the session's branch pointed at, oldest first."""
        bound = self._live.require_store("show a history")
        bound.try_settle()
        return bound.store.refs(self.branch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Save what was read since the last snapshot, and let other writers in.

        A closed session may be looked at, scored and forked, not changed.
        """
        self._live.close()

    # -- reading ----------------------------------------------------------------------------------

    def feed(
        self,
        *sources: Source,
        errors: Errors = "strict",
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
        self._live.require_writable("feed")
        feed = Feed(
            self._live,
            sources,
            errors=errors,
            logprobs=logprobs,
            block_bytes=block_bytes,
            progress=progress,
        )
        return feed.feed(score=score)

    def score(
        self,
        *sources: Source,
        errors: Errors = "strict",
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
        live = self._live.fork()
        feed = Feed(live, sources, errors=errors, logprobs=logprobs, progress=progress)
        return feed.score()

    # -- what was read, and is remembered ---------------------------------------------------------

    def text(self, start: int = 0, stop: int | None = None) -> str:
        """The text of the tokens start ≤ i < stop, from the store's log; stop = None: to the end.

        Raises:
            ValueError: the session has no store, or not 0 ≤ start ≤ stop ≤ position.
            memory_store.NotFound: the log begins later.
        """
        bound = self._live.require_store("look up what was read")
        stop = self.position if stop is None else stop
        if not 0 <= start <= stop <= self.position:
            raise ValueError(f"tokens {start} to {stop}; allowed: a part of 0 to {self.position}")
        return self.checkpoint.tokenizer.decode(bound.tokens(start, stop))

    def memory_report(self) -> MemoryReport:
        """What the model still remembers of the stream, slot by slot.

        The newest tokens are read again for it, some hundred to thousand; the session is unchanged.

        Raises:
            ValueError: not known, in a session without a store that was forked from a snapshot.
        """
        live = self._live
        live.extend_recent()
        if live.recent is None or live.recent.start == self.position:
            raise ValueError("nothing was read yet")
        stream = live.recent.starts[0]
        ids = live.log.take(stream.position, self.position)
        inputs = np.concatenate([[stream.pending], ids[:-1]]).astype(np.int64)
        tokens = send(torch.from_numpy(inputs)[None], self.checkpoint.model.device)
        report = observe(self.checkpoint.model, tokens, stream.state)
        return replace(report, first=stream.position, ids=ids)

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
        generation = Generation(
            self._live,
            prompt,
            sampling,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            drafter=drafter,
        )
        return generation.pieces()

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
        if others < 0:
            raise ValueError(f"others = {others}; allowed: 0 or more")
        generation = Generation(
            self._live, prompt, sampling or Sampling(), max_tokens=max_tokens, stop=stop, seed=seed
        )
        return generation.choices(others)

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
        if branch is None:
            live = self._fork_live() if tokens is None else self._fork_live_at(tokens)
            return Session(self.checkpoint, live=live)
        bound = self._live.require_store("fork to a branch")
        if bound.store.head(branch) is not None:
            raise ValueError(f"branch {branch!r} exists already; allowed: a new name")
        saved = self.save()
        live = LiveStream(self.checkpoint)
        live.save_every = self.save_every
        ref = bound.store.publish(saved, branch=branch)
        live.bind(bound.store, branch, ref, retention=bound.retention)
        other = Session(self.checkpoint, live=live)
        if tokens is not None:
            other.rewind(tokens=tokens)
        return other

    def _fork_live(self) -> LiveStream:
        self._live.extend_recent()
        other = self._live.fork()
        other.recent, other.log = self._live.recent, self._live.log.copy()
        return other

    def _fork_live_at(self, tokens: int) -> LiveStream:
        self._live.require_store("fork at a position")
        head = self.saved if self.readonly else self.save()
        assert head is not None
        if tokens > head.position:  # read since, by a session that may not save
            raise ValueError(f"tokens = {tokens}; allowed: 0 to {head.position}")
        return self._live.fork_at(head, tokens)

    def save(self) -> Ref:
        """Commit everything read since the last snapshot; returns once it is safe on disk.

        Raises:
            ValueError: the session has no store.
            memory_store.StoreError: as `MemoryStore.commit`; the session can be saved again.
        """
        return self._live.save(self._live.cursor)

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
        live = self._live
        bound = live.require_store("rewind")
        live.require_writable("rewind")
        head = self.save()
        if tokens is not None:
            commit, ids = bound.path_to(head, tokens)
        else:
            ref = bound.find(snapshot, time)
            commit, ids = ref.commit, None
            if not bound.store.is_loadable(commit):  # its tokens are still there
                commit, ids = bound.path_to(ref, ref.position)
        if commit != head.commit:
            loaded = bound.load(commit)  # first, for it may be damaged
            try:
                bound.store.publish(commit, branch=self.branch)
            finally:  # interrupted or not, the session stands where the branch does
                moved = bound.store.head(self.branch)
                if moved is not None and moved != bound.saved and moved.commit == commit:
                    live.restore(bound, moved, loaded)
        if ids is not None and (len(ids) or live.stream.holds_text):
            # The snapshot's tail is part of what is replayed; its reading is not gone on with.
            stream = live.stream.read_ids(self.checkpoint, ids, cache=live.cache)
            live.move(stream.without_held_text(self.checkpoint), ids, None)
            self.save()
