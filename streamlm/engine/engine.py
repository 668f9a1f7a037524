"""Engine: many sessions at once on one model.

One thread owns the model. Each round reads about one segment, of one session or of several, and
then decodes one token for all that write, in a batch of fixed shape: a long document never stops
those who write, and what a session writes does not depend on who else is being served.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import check_whole
from streamlm.engine.batch import Batch
from streamlm.engine.handle import Cancelled, Handle
from streamlm.engine.row import Drawn
from streamlm.engine.scheduler import Request, Scheduler
from streamlm.engine.tasks import (
    Decode,
    Task,
    calling,
    calling_aside,
    feeding,
    generating,
    replying,
    scoring,
    serving,
)
from streamlm.models.segmented import SegmentedModel
from streamlm.runtime.row_sampling import Draw, sample_rows
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.feed import Errors, Feed
from streamlm.sessions.generation import Generation
from streamlm.sessions.reply import Reply
from streamlm.sessions.session import Session
from streamlm.sessions.sources import Source
from tokenizer.chat import Message

TURN = 8  # tokens that a turn counts as, at least
ASIDE = 8  # threads of functions that are called aside
POLL = 0.002  # seconds between two looks at commits, when there is nothing else to do


class Engine:
    """Serves sessions of one model. Use it as a context manager, or call `close`.

    While a request runs, only the engine may use its session. Requests of one session run in the
    order in which they came; all methods may be called from any thread.

    Args:
        checkpoint: the model; its weights are frozen.
        rows: sessions that write at once. What a session writes is the same, bit for bit, alone
            and beside others, for a given number of rows.
        max_waiting: requests that may wait; further ones are refused.
        max_running: requests that run at once, reading or writing; None is twice the rows.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        rows: int = 16,
        max_waiting: int = 256,
        max_running: int | None = None,
    ) -> None:
        check_whole("rows", rows, least=1)
        model = checkpoint.model
        if model.frozen is None:
            model.freeze()
        self.checkpoint = checkpoint
        self.batch = (
            Batch(model, rows)
            if isinstance(model, SegmentedModel) and model.reads_any_phase
            else None
        )
        self._scheduler = Scheduler(
            max_waiting=max_waiting, max_running=2 * rows if max_running is None else max_running
        )
        self._changed = threading.Condition()
        self._closing = False
        self._aside = ThreadPoolExecutor(ASIDE, thread_name_prefix="streamlm aside")
        self._thread = threading.Thread(target=self._run, name="streamlm engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self, timeout: float | None = None) -> bool:
        """Cancel all requests, save their sessions, and end the thread.

        Args:
            timeout: in seconds; None waits without end.

        Returns:
            Whether all has ended.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        self._aside.shutdown(wait=False)
        return not self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether requests are served: the engine was not closed."""
        return self._thread.is_alive() and not self._closing

    @property
    def load(self) -> tuple[int, int]:
        """The numbers of requests that run and that wait."""
        scheduler = self._scheduler
        return len(scheduler.running), len(scheduler.waiting)

    # -- requests ---------------------------------------------------------------------------------

    def generate(
        self,
        session: Session,
        prompt: str = "",
        sampling: Sampling | None = None,
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        recall: int = 0,
        top_logprobs: int | None = None,
    ) -> Handle:
        """As `Session.generate`: the events are pieces of text, the result is a `Written`.

        Args:
            top_logprobs: the events are tokens as of `Session.generate_logprobs`, each with so
                many of the likeliest.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            live = session.live
            generation = Generation(
                live,
                prompt,
                sampling or Sampling(),
                max_tokens=max_tokens,
                stop=stop,
                seed=seed,
                recall=recall,
            )
            if top_logprobs is not None:
                check_whole("top_logprobs", top_logprobs)
            return generating(
                self.batch, live, generation, handle=handle, top_logprobs=top_logprobs
            )

        return self._submit(session, body)

    def reply(
        self,
        session: Session,
        message: str,
        sampling: Sampling | None = None,
        *,
        system: str | None = None,
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        recall: int = 0,
        history: Sequence[Message] = (),
        top_logprobs: int | None = None,
    ) -> Handle:
        """As `Session.reply`: the events are pieces of text, the result is a `Written`.

        Args:
            history: earlier messages, which are read first if the chat has not begun; skipped if
                it has.
            top_logprobs: as in `generate`.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            live = session.live
            reply = Reply(
                live,
                message,
                sampling or Sampling(),
                system=system,
                max_tokens=max_tokens,
                stop=stop,
                seed=seed,
                recall=recall,
                history=history,
            )
            if top_logprobs is not None:
                check_whole("top_logprobs", top_logprobs)
            return replying(self.batch, live, reply, handle=handle, top_logprobs=top_logprobs)

        return self._submit(session, body)

    def feed(
        self,
        session: Session,
        *sources: Source,
        errors: Errors = "strict",
        score: bool = False,
        logprobs: bool = False,
    ) -> Handle:
        """As `Session.feed`: the events are the report so far, the result is the report.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            session.live.require_writable("feed")
            feed = Feed(session.live, sources, errors=errors, logprobs=logprobs)
            return feeding(session.live, feed, handle=handle, score=score)

        return self._submit(session, body)

    def score(
        self,
        session: Session,
        *sources: Source,
        errors: Errors = "strict",
        logprobs: bool = False,
    ) -> Handle:
        """As `Session.score`: the events are the report so far, the result is the report.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            feed = Feed(session.live.fork(), sources, errors=errors, logprobs=logprobs)
            return scoring(feed, handle=handle)

        return self._submit(session, body)

    def call(
        self, session: Session, function: Callable[[Session], Any], *, aside: bool = False
    ) -> Handle:
        """Call a function with the session: to fork, to rewind, to report.

        The result is what it returns.

        Args:
            aside: call it on another thread, while others go on: for what waits for a disk, or
                takes long. Otherwise it holds up everybody while it runs.

        Raises:
            Busy: too many requests are waiting.
        """
        if aside:
            task = calling_aside(session.live, lambda: function(session), self._aside)
            return self._submit(session, lambda handle: task, serve=False)
        return self._submit(session, lambda handle: calling(lambda: function(session)))

    def _submit(
        self, session: Session, body: Callable[[Handle], Task], *, serve: bool = True
    ) -> Handle:
        """Let a request wait; `serve` has the session for the engine's thread while it runs."""
        if session.checkpoint is not self.checkpoint:
            raise ValueError(
                f"a session of another checkpoint than the engine's, {self.checkpoint.name}; "
                "allowed: sessions that were opened with the engine's checkpoint"
            )
        handle = Handle()
        # The body is begun on the engine's thread, once the session is free.
        begun = _begun(body, handle)
        task = serving(session.live, begun) if serve else begun
        request = Request(task, handle, session.live)
        with self._changed:
            if self._closing:
                raise Cancelled("the engine is closed")
            self._scheduler.add(request)
            handle.on_cancel(self._wake)
            self._changed.notify_all()
        return handle

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the engine's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        scheduler = self._scheduler
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(scheduler))
                if self._closing and not len(scheduler):
                    return
                if self._closing:
                    for request in (*scheduler.waiting, *scheduler.running):
                        request.handle.cancelled = True
                for request in scheduler.drop_waiting():
                    request.task.close()
                    request.handle.end(None, Cancelled("the request was cancelled"))
                scheduler.admit()
            if not self._round():
                with self._changed:
                    self._changed.wait(POLL)

    def _round(self) -> bool:
        """One segment for one reader, and one token for all writers; False if all wait."""
        scheduler = self._scheduler
        for request in list(scheduler.running):
            if request.handle.cancelled and not request.told:
                self._advance(request, None)
        read = self._read()
        writers = list(scheduler.writers())
        if writers:
            self._decode(writers)
        for request in scheduler.waiters():
            self._advance(request, None)
        return bool(read or writers)

    def _read(self) -> bool:
        """Give turns to tasks that read, until they have read a segment; False if there are none.

        A turn counts as some tokens even if nothing was read in it: other work was done.
        """
        left = self.checkpoint.model.config.segment_len
        while left > 0:
            request = self._scheduler.next_reader()
            if request is None:
                return left < self.checkpoint.model.config.segment_len
            before = request.session.position
            self._advance(request, None)
            left -= max(request.session.position - before, TURN)
        return True

    def _decode(self, writers: list[tuple[Request, Decode]]) -> None:
        """One token for every row that is written."""
        batch = self.batch
        assert batch is not None
        tokens = [0] * batch.rows
        draws: list[Draw | None] = [None] * batch.rows
        for _, decode in writers:
            tokens[decode.row.index] = decode.row.stream.pending
            draws[decode.row.index] = decode.draw
        try:
            hidden = batch.step(tokens)
            drawn = sample_rows(self.checkpoint.model.logits(hidden), draws)
        except Exception as error:  # out of memory, say: those who write end, the engine does not
            for request, _ in writers:
                self._advance(request, None, error=error)
            return
        for request, decode in writers:
            row = decode.row.index
            self._advance(request, Drawn(drawn[row], hidden[row : row + 1]))

    def _advance(
        self, request: Request, drawn: Drawn | None, *, error: Exception | None = None
    ) -> None:
        """Run a task to its next step, and end the request with it.

        Args:
            error: to raise in the task.
        """
        # What was drawn belongs to the row, which has read the token before it: first that.
        if request.handle.cancelled and not request.told and drawn is None:
            request.told = True
            error = error or Cancelled("the request was cancelled")
        try:
            task = request.task
            request.want = task.send(drawn) if error is None else task.throw(error)
        except StopIteration as ended:
            self._end(request, ended.value, None)
        except BaseException as failure:  # it is the caller's, who gets it from the handle
            self._end(request, None, failure)

    def _end(self, request: Request, result: Any, error: BaseException | None) -> None:
        with self._changed:
            self._scheduler.remove(request)
        request.handle.end(result, error)


def _begun(body: Callable[[Handle], Task], handle: Handle) -> Task:
    return (yield from body(handle))
