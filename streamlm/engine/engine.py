"""Engine: many sessions at once on one model.

One thread owns the model. Each round reads about one segment, of one session or of several, and
then decodes one token for all that write, in a batch of fixed shape: a long document never stops
those who write, and what a session writes does not depend on who else is being served. The file is
long because its docstrings are the reference of all requests.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Self

from memory_store import Ref
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import check_whole
from streamlm.engine.batch import Batch
from streamlm.engine.handle import Cancelled, Handle
from streamlm.engine.rounds import Rounds
from streamlm.engine.scheduler import Request, Scheduler
from streamlm.engine.tasks import (
    calling,
    calling_aside,
    feeding,
    generating,
    replying,
    saving,
    scoring,
    serving,
    stepping,
)
from streamlm.engine.wants import Task
from streamlm.engine.writing import Writers
from streamlm.models.segmented import SegmentedModel
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.feed import Errors, Feed
from streamlm.sessions.forking import forking, rewinding
from streamlm.sessions.generation import Generation
from streamlm.sessions.inspection import memory_reporting
from streamlm.sessions.reply import Reply
from streamlm.sessions.session import Session
from streamlm.sessions.sources import Source
from tokenizer.chat import Message

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
        narrow: decode in no more rows than are needed, and a session by itself while no other
            writes: faster for few. What one writes then depends, by rounding, on when others do.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        rows: int = 16,
        max_waiting: int = 256,
        max_running: int | None = None,
        narrow: bool = False,
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
        self._writers = Writers(self.batch, narrow=narrow)
        self._scheduler = Scheduler(
            max_waiting=max_waiting, max_running=2 * rows if max_running is None else max_running
        )
        self._changed = threading.Condition()
        self._rounds = Rounds(checkpoint, self._scheduler, self._changed)
        self._closing = False
        self._aside = ThreadPoolExecutor(ASIDE, thread_name_prefix="streamlm aside")
        self._thread: threading.Thread | None = None  # there is one while there are requests

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
            ended = self._changed.wait_for(lambda: self._thread is None, timeout)
        self._aside.shutdown(wait=False)
        return ended

    @property
    def running(self) -> bool:
        """Whether requests are served: the engine was not closed."""
        return not self._closing

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
                self._writers,
                live,
                generation,
                handle=handle,
                top_logprobs=top_logprobs,
                threads=self._aside,
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
            return replying(
                self._writers,
                live,
                reply,
                handle=handle,
                top_logprobs=top_logprobs,
                threads=self._aside,
            )

        return self._submit(session, body)

    def feed(
        self,
        session: Session,
        *sources: Source,
        errors: Errors = "strict",
        score: bool = False,
        logprobs: bool = False,
        token_events: bool = False,
        block_bytes: int | None = None,
    ) -> Handle:
        """As `Session.feed`: the events are the report so far, the result is the report.

        Args:
            token_events: the events are reports with the ids and log-probabilities of the tokens
                since the event before; the result has none of them.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            session.live.require_writable("feed")
            feed = Feed(
                session.live,
                sources,
                errors=errors,
                logprobs=logprobs or token_events,
                block_bytes=block_bytes,
            )
            return feeding(
                session.live, feed, handle=handle, score=score, token_events=token_events
            )

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

    def save(self, session: Session) -> Handle:
        """As `Session.save`, while others go on; the result is the snapshot.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            store = session.live.require_store("save")
            session.live.require_writable("save")
            yield from saving(session.live)
            return store.saved

        return self._submit(session, body)

    def fork(
        self, session: Session, branch: str | None = None, *, tokens: int | None = None
    ) -> Handle:
        """As `Session.fork`; the result is the fork.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            live = yield from stepping(forking(session.live, branch, tokens))
            return Session(self.checkpoint, live=live)

        return self._submit(session, body)

    def rewind(
        self,
        session: Session,
        *,
        tokens: int | None = None,
        snapshot: Ref | int | None = None,
        time: datetime | float | None = None,
    ) -> Handle:
        """As `Session.rewind`; the result is None.

        A request that is cancelled may leave the session at the snapshot before the position.

        Raises:
            Busy: too many requests are waiting.
        """

        def body(handle: Handle) -> Task:
            yield from saving(session.live)
            yield from stepping(
                rewinding(session.live, tokens=tokens, snapshot=snapshot, time=time)
            )

        return self._submit(session, body)

    def memory_report(self, session: Session) -> Handle:
        """As `Session.memory_report`; the result is the report.

        It does not wait for other requests of the session: while one reads, it reports on what was
        read until now; while one writes, on what was there when it was last saved, or began.

        Raises:
            Busy: too many requests are waiting.
        """
        steps = memory_reporting(session.live)
        return self._submit(session, lambda handle: stepping(steps), serve=False, looks=True)

    def call(
        self, session: Session, function: Callable[[Session], Any], *, aside: bool = False
    ) -> Handle:
        """Call a function with the session.

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
        self,
        session: Session,
        body: Callable[[Handle], Task],
        *,
        serve: bool = True,
        looks: bool = False,
    ) -> Handle:
        """Let a request wait.

        Args:
            serve: have the session for the engine's thread while it runs.
            looks: run beside other requests of the session.
        """
        if session.checkpoint is not self.checkpoint:
            raise ValueError(
                f"a session of another checkpoint than the engine's, {self.checkpoint.name}; "
                "allowed: sessions that were opened with the engine's checkpoint"
            )
        handle = Handle()
        # The body is begun on the engine's thread, once the session is free.
        begun = _begun(body, handle)
        task = serving(session.live, begun) if serve else begun
        request = Request(task, handle, None if looks else session.live)
        with self._changed:
            if self._closing:
                raise Cancelled("the engine is closed")
            self._scheduler.add(request)
            handle.on_cancel(self._wake)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="streamlm engine", daemon=True
                )
                self._thread.start()
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
                if not len(scheduler):  # the thread ends, so that an engine can be forgotten
                    self._thread = None
                    self._changed.notify_all()
                    return
                if self._closing:
                    for request in (*scheduler.waiting, *scheduler.running):
                        request.handle.cancelled = True
                for request in scheduler.drop_waiting():
                    request.task.close()
                    request.handle.end(None, Cancelled("the request was cancelled"))
                scheduler.admit()
            if not self._rounds.take():
                with self._changed:
                    self._changed.wait(POLL)


def _begun(body: Callable[[Handle], Task], handle: Handle) -> Task:
    return (yield from body(handle))
