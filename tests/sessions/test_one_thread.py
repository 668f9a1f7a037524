"""One thread at a time: a second one is told so at once, and nothing of the first is lost."""

import threading
from collections.abc import Callable, Iterator

import pytest

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Engine
from streamlm.sessions.one_thread import InUse
from streamlm.sessions.session import Session

USES: dict[str, Callable[[Session], object]] = {
    "feed": lambda session: session.feed("And more."),
    "score": lambda session: session.score("And more."),
    "generate": lambda session: list(session.generate(max_tokens=1)),
    "generate with logprobs": lambda session: list(session.generate_logprobs(max_tokens=1)),
    "save": lambda session: session.save(),
    "fork": lambda session: session.fork(),
    "rewind": lambda session: session.rewind(to=0),
    "history": lambda session: session.history(),
    "recall": lambda session: session.recall("And?"),
    "memory_report": lambda session: session.memory_report(),
    "close": lambda session: session.close(),
}


class Held:
    """Text that a thread feeds, which waits in the middle until it is told to go on."""

    def __init__(self, session: Session) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=session.feed, args=[self.text()], name="reader")
        self.thread.start()
        assert self.inside.wait(60)

    def text(self) -> Iterator[str]:
        yield "Call me Ishmael. "
        self.inside.set()
        assert self.go_on.wait(60)
        yield "Some years ago. "

    def finish(self) -> None:
        self.go_on.set()
        self.thread.join(60)


@pytest.mark.parametrize("use", USES)
def test_another_thread_is_told_who_uses_the_session(
    use: str, open_: Callable[..., Session], tiny: Checkpoint
) -> None:
    session, alone = open_(), Session(tiny)
    held = Held(session)
    with pytest.raises(InUse, match="thread 'reader' is using this session; allowed: one thread"):
        USES[use](session)
    held.finish()
    alone.feed("Call me Ishmael. Some years ago. ")
    assert session.state.digest() == alone.state.digest()
    USES[use](session)


def test_between_two_pieces_another_thread_may_use_it(open_: Callable[..., Session]) -> None:
    session = open_()
    pieces = session.generate("Call me", max_tokens=5)
    next(pieces)
    thread = threading.Thread(target=session.feed, args=["And so. "])
    thread.start()
    thread.join(60)
    position = session.position
    next(pieces)
    assert session.position == position + 1


def test_an_engine_takes_requests_from_any_thread(open_: Callable[..., Session]) -> None:
    session = open_()
    with Engine(session.checkpoint, rows=2) as engine:
        threads = [
            threading.Thread(target=lambda n=n: engine.feed(session, f"Number {n}. ").result(60))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        session.feed("The end. ")
        text = session.text()
        assert all(f"Number {n}. " in text for n in range(8)), text
        writing = engine.generate(session, max_tokens=100_000)
        next(iter(writing))
        with pytest.raises(InUse, match="thread 'streamlm engine' is using this session"):
            session.feed("Me too.")
        writing.cancel()
        while not writing.done:
            threading.Event().wait(0.01)
        held = Held(session)
        with pytest.raises(InUse, match="cannot serve a request: thread 'reader'"):
            engine.generate(session, max_tokens=1).result(60)
        held.finish()
        assert engine.generate(session, max_tokens=1).result(60) == 1
