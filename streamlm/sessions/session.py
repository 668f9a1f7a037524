"""Session: a stream of text in a store, the one mutable object of the API.

Its length is that of its docstrings, which are the reference of the API; the work is done in
`live`, `feed`, `generation`, `reply`, `search`, `forking` and `saving`.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Self

from memory_store import Ref
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import check_whole, is_whole
from streamlm.runtime.drafter import Drafter
from streamlm.runtime.memory_report import MemoryReport
from streamlm.runtime.reports import ProgressCallback, ReadReport, TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.steps import finish
from streamlm.runtime.text_stream import RecalledSpan
from streamlm.sessions.chatting import Chatting
from streamlm.sessions.feed import Errors, Feed
from streamlm.sessions.forking import forking, rewinding
from streamlm.sessions.generation import Generation
from streamlm.sessions.indexing import IndexProgress, index
from streamlm.sessions.inspection import memory_reporting
from streamlm.sessions.live import LiveStream, check_save_seconds
from streamlm.sessions.one_thread import OneThread, by_one_thread
from streamlm.sessions.recall import Recalled
from streamlm.sessions.search import SPAN, Found, search_log
from streamlm.sessions.sources import Source
from streamlm.state import State


class Session(Chatting):
    """Reads, scores and generates text as one continuous stream. `streamlm.open` returns one.

    A session without a store lives in memory: it can feed, score, generate and fork, but not save
    or rewind. One thread at a time may read, generate, save or rewind; another one gets `InUse`.

    Args:
        checkpoint: the model.
        seed: of the random generator that sampling draws from; None is a random one.
        live: the stream to continue; None begins a new one.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, seed: int | None = None, live: LiveStream | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self._live = LiveStream(checkpoint, seed=seed) if live is None else live

    # -- properties -------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Tokens read and generated since the stream began."""
        return self._live.position

    @property
    def seed(self) -> int:
        """The seed of the random generator at the stream's beginning."""
        return self._live.seed

    @property
    def written_from(self) -> int | None:
        """The position at which the newest generated text begins; None before the first."""
        return self._live.written_from

    @property
    def live(self) -> LiveStream:
        """The stream and its workspace, for code that reads step by step, such as an engine."""
        return self._live

    @property
    def one_thread(self) -> OneThread:
        """What keeps other threads out while one uses the session."""
        return self._live.one_thread

    @property
    def state(self) -> State:
        """The state of the model, an immutable value."""
        return self._live.stream.state

    @property
    def tail(self) -> str:
        """Text that is held back and not read, because its last word may be incomplete."""
        stream = self._live.stream
        return self.checkpoint.tokenizer.decode(stream.ahead) + stream.tail["text"]

    @property
    def recalled(self) -> tuple[RecalledSpan, ...]:
        """The passages that were put before the newest prompt, best first."""
        return self._live.stream.recalled

    @property
    def save_every(self) -> int:
        """Tokens between automatic saves, which run in the background.

        `feed` saves at the ends of segments only.
        """
        return self._live.save_every

    @save_every.setter
    def save_every(self, tokens: int) -> None:
        check_whole("save_every", tokens, least=1)
        self._live.save_every = tokens

    @property
    def save_seconds(self) -> float | None:
        """Seconds after which the session saves itself as well; see `streamlm.open`."""
        return self._live.save_seconds

    @save_seconds.setter
    def save_seconds(self, seconds: float | None) -> None:
        check_save_seconds(seconds)
        self._live.save_seconds = seconds

    @property
    def readonly(self) -> bool:
        """Whether the session may only be inspected, scored and forked."""
        return self._live.readonly

    @property
    def branch(self) -> str:
        """The branch of the store; "main" without a store."""
        return self._live.store.branch if self._live.store is not None else "main"

    @property
    def saved(self) -> Ref | None:
        """The newest snapshot that is known to be saved, None before the first."""
        return self._live.store.saved if self._live.store is not None else None

    @by_one_thread
    def history(self) -> list[Ref]:
        """All snapshots that the branch has pointed at, oldest first."""
        bound = self._live.require_store("show a history")
        bound.try_settle()
        return bound.store.refs(self.branch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @by_one_thread
    def close(self) -> None:
        """Save, and release the branch to other writers.

        A closed session may still be inspected, scored and forked.
        """
        self._live.close()

    # -- reading ----------------------------------------------------------------------------------

    @by_one_thread
    def feed(
        self,
        *sources: Source,
        errors: Errors = "strict",
        score: bool = False,
        logprobs: bool = False,
        once: bool = False,
        block_bytes: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReadReport:
        """Read text into memory.

        A session with a store saves itself every `save_every` tokens and at the end. After an
        interruption of any kind, the same call with the same files resumes at the last save. Files
        are recognised by content.

        Args:
            sources: read in order. A str is text; a `pathlib.Path` (or any `os.PathLike`) is a
                file; a file object or an iterator yields str or bytes.
            errors: "strict" refuses invalid UTF-8 and binary files; "replace" reads U+FFFD instead.
            score: also compute log-probabilities, which takes time; see `ReadReport`.
            logprobs: score, and keep the id and log-probability of every token in the report.
                Memory grows with them unless `progress` removes them.
            once: skip what earlier calls with `once` have read of the files: a call that is
                repeated reads nothing, and one with a file that has grown reads the rest. Files
                alone are allowed; they are recognised by content, the newest 4,096 of them.
            block_bytes: size of a block; None uses `streamlm.sessions.sources.BLOCK`.
            progress: called after each block, which has some thousand tokens by default. An
                exception that it raises ends the call.

        Raises:
            ValueError: there is nothing to read, or the text is binary or invalid; everything
                before it stays read. Or block_bytes is below 1, or `once` came with other sources.
            FileNotFoundError, IsADirectoryError, PermissionError: before anything is read.
        """
        self._live.require_writable("feed")
        feed = Feed(
            self._live,
            sources,
            errors=errors,
            logprobs=logprobs,
            once=once,
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
        """Score a text given everything the session has read. The session is not modified.

        Args:
            sources, errors, progress: as in `feed`; a str is text, a path is a file.
            logprobs: also keep the id and log-probability of every token; memory grows with them.

        Raises:
            As `feed`.
        """
        with self.one_thread.use("score"):
            live = self._live.fork()
        feed = Feed(live, sources, errors=errors, logprobs=logprobs, progress=progress)
        return feed.score()

    # -- inspection -------------------------------------------------------------------------------

    def text(self, start: int = 0, stop: int | None = None) -> str:
        """The text of the tokens start ≤ i < stop, from the store's token log.

        Args:
            stop: None is the end of the stream.

        Raises:
            ValueError: the session has no store, or not 0 ≤ start ≤ stop ≤ position.
            memory_store.NotFound: the log begins after `start`.
        """
        bound = self._live.require_store("return its text")
        stop = self.position if stop is None else stop
        whole = is_whole(start) and is_whole(stop)
        if not whole or not 0 <= start <= stop <= self.position:
            raise ValueError(f"tokens {start} to {stop}; allowed: a part of 0 to {self.position}")
        return self.checkpoint.tokenizer.decode(bound.tokens(start, stop))

    def search(self, text: str, *, k: int = 5, span: int = SPAN) -> list[Found]:
        """Find passages that the session has read, however long ago; see `search_log`.

        Args:
            text: passages that share its rare tokens match.
            k: the maximum number of passages, best first; they do not overlap.
            span: tokens of a passage.

        Raises:
            ValueError: the session has no store, or the text is empty.
            memory_store.NotFound: old tokens were deleted.
        """
        bound = self._live.require_store("search it")
        return search_log(
            bound.tokens,
            self.position,
            self.checkpoint.tokenizer,
            text,
            history=self.history(),
            k=k,
            span=span,
        )

    @by_one_thread
    def recall(self, text: str, *, k: int = 1) -> list[Recalled]:
        """Find the passages that answer a text, among all that has left memory.

        A model with retrieval heads finds what is meant; see `streamlm.sessions.recall`. A model
        without finds what shares the rare words of the text.

        Args:
            text: a question, or the beginning of the sentence that is looked for.
            k: the maximum number of passages, best first; they do not overlap.

        Raises:
            ValueError: the session has no store, the text is empty, or `k` is below 1.
            memory_store.NotFound: old tokens were deleted.
        """
        return self._live.recall(text, k=k)

    @by_one_thread
    def index(self, *, progress: IndexProgress = lambda done, total: None) -> int:
        """Read again what the archive has no keys of, and save them; see `sessions.indexing`.

        The state and the text stay as they are. After an interruption the same call goes on.

        Args:
            progress: called with the tokens that were read again, and how many there are. An
                exception that it raises ends the call.

        Returns:
            The number of tokens that have keys now and had none before.

        Raises:
            ValueError: the session has no store, or the model no retrieval heads.
            memory_store.StoreError: as `MemoryStore.commit`; the session can be indexed again.
        """
        return index(self._live, progress)

    @by_one_thread
    def memory_report(self) -> MemoryReport:
        """What the model still remembers of the stream, slot by slot.

        The newest tokens, hundreds to thousands, are read again for it. The session is not
        modified.

        Raises:
            ValueError: nothing was read, or the model has no memory of slots.
        """
        return finish(memory_reporting(self._live))

    # -- generation -------------------------------------------------------------------------------

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
        recall: int = 0,
    ) -> Iterator[str]:
        """Read `prompt`, then generate text, which becomes part of the stream.

        Args:
            max_tokens: the maximum number of tokens.
            temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`.
            stop: strings at which to stop. The first match is read but not returned.
            seed: reseeds the random generator; None continues with the session's own, which began
                with `Session.seed`.
            drafter: proposes tokens, which the model checks several at a time; see
                `streamlm.runtime.speculation`. The text has the same distribution as without, and
                is the same at temperature 0, but random numbers are used in another order.
            recall: read up to so many passages again before the prompt, those that surely answer
                it; see `recall` and `recalled`. They become part of the stream.

        Returns:
            An iterator of pieces of text that never split a character. If the caller stops early,
            the session has read the text generated so far.

        Raises:
            ValueError: immediately, if a value is not allowed.
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
            recall=recall,
        )
        return self.one_thread.each(generation.pieces(), "generate")

    def generate_logprobs(
        self,
        prompt: str = "",
        sampling: Sampling | None = None,
        *,
        max_tokens: int = 256,
        top_logprobs: int = 0,
        stop: str | Iterable[str] = (),
        seed: int | None = None,
        recall: int = 0,
    ) -> Iterator[TokenLogprob]:
        """`generate`, token by token, with log-probabilities.

        Args:
            top_logprobs: the number of likeliest tokens to return with each.
            stop: strings at which to stop. The tokens of the first match are read but not returned;
                a token that begins before it is returned with the characters before it.
            recall: see `generate`.

        Raises:
            ValueError: immediately, if a value is not allowed.
        """
        check_whole("top_logprobs", top_logprobs)
        generation = Generation(
            self._live,
            prompt,
            sampling or Sampling(),
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            recall=recall,
        )
        return self.one_thread.each(generation.logprobs(top_logprobs), "generate")

    # -- forks and snapshots ----------------------------------------------------------------------

    @by_one_thread
    def fork(self, branch: str | None = None, *, tokens: int | None = None) -> "Session":
        """An independent session that continues from here. Nothing is copied.

        Args:
            branch: None returns a session without a store. A name saves, and begins a branch of
                that name in this session's store.
            tokens: an earlier position to continue from; see `rewind`.

        Raises:
            ValueError: the branch exists, the session has no store, or tokens is out of range.
        """
        live = finish(forking(self._live, branch, tokens))
        return Session(self.checkpoint, live=live)

    @by_one_thread
    def save(self) -> Ref:
        """Commit everything since the last snapshot, and return once it is safe on disk.

        Raises:
            ValueError: the session has no store.
            memory_store.StoreError: as `MemoryStore.commit`; the session can be saved again.
        """
        return self._live.save(self._live.cursor)

    @by_one_thread
    def rewind(
        self,
        *,
        to: int | None = None,
        by: int | None = None,
        snapshot: Ref | int | None = None,
        time: datetime | float | None = None,
    ) -> None:
        """Return to a position, a snapshot or a time. The history is kept, so this can be undone.

        Args:
            to: a position in tokens. The token log is replayed from the last snapshot before it.
                Text that was held back there is dropped.
            by: a number of tokens to go back by.
            snapshot: an entry of `history()`, or its `seq`.
            time: a datetime, or seconds since 1970; returns to the newest snapshot at that time.

        Raises:
            ValueError: not exactly one is given, or it is out of range; nothing is changed.
        """
        finish(rewinding(self._live, to=to, by=by, snapshot=snapshot, time=time))
