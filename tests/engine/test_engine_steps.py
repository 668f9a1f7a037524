"""The engine: forks, rewinds and reports go in steps, and who writes alone is decoded alone."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import Cancelled, Engine
from streamlm.engine.batch import Batch
from streamlm.sessions.session import Session
from tests.support.chats import chat_folder, load_chat

SEGMENT = 16
MAX_STEP = 2 * SEGMENT  # tokens read between two tokens of one who writes


@pytest.fixture
def engine(tiny: Checkpoint) -> Iterator[Engine]:
    with Engine(tiny, rows=3) as engine:
        yield engine


class Meter:
    """Tokens read between two steps of the batch, in rows of their own."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        kind, batch = type(engine.checkpoint.model), engine.batch
        assert batch is not None
        real, step = kind.read, batch.step
        self.read, self.steps = 0, list[int]()

        def count(model: Any, x: Any, *arguments: Any, **options: Any) -> Any:
            self.read += x.shape[1] if x.shape[0] == 1 else 0
            return real(model, x, *arguments, **options)

        def note(tokens: Any) -> Any:
            self.steps.append(self.read)
            return step(tokens)

        monkeypatch.setattr(kind, "read", count)
        monkeypatch.setattr(batch, "step", note)

    @property
    def between(self) -> list[int]:
        return [after - before for before, after in pairwise(self.steps)]


def test_forks_rewinds_and_reports(
    engine: Engine, tiny: Checkpoint, tmp_path: Path, prose: Callable[..., str]
) -> None:
    """As those of a session."""
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        session.feed(prose(60))
        middle = session.save()
        session.feed(prose(40, seed=1))
        end, whole = session.position, session.text()
        report = engine.memory_report(session).result(60)
        wanted = session.memory_report()
        assert np.array_equal(report.ids, wanted.ids) and report.first == wanted.first
        assert np.array_equal(report.attention, wanted.attention)
        with engine.fork(session, tokens=70).result(60) as fork:
            assert fork.state.digest() == session.fork(tokens=70).state.digest()
        with engine.fork(session, "side", tokens=70).result(60) as side:
            assert side.branch == "side" and side.text() == session.text(0, 70)
        assert engine.fork(session).result(60).state.digest() == session.state.digest()
        assert session.position == end
        engine.rewind(session, to=end - 3).result(60)
        assert session.text() == whole[: len(session.text())]
        assert session.position == end - 3 == engine.save(session).result(60).position
        engine.rewind(session, snapshot=middle).result(60)
        assert session.position == middle.position
        for request, problem in (
            (engine.rewind(session), "one of to=…, by=…, snapshot=… and time=…"),
            (engine.rewind(session, to=10**6), "position 1000000; allowed"),
            (engine.fork(session, "side"), "branch 'side' exists already"),
            (engine.fork(session, tokens=10**6), "tokens = 1000000; allowed"),
            (engine.save(Session(tiny)), "no store"),
            (engine.memory_report(Session(tiny)), "nothing was read yet"),
        ):
            with pytest.raises(ValueError, match=problem):
                request.result(60)


@pytest.mark.parametrize("what", ["rewind", "fork", "report", "prompt", "held text", "score"])
def test_nothing_long_holds_up_those_who_write(
    engine: Engine,
    tiny: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prose: Callable[..., str],
    what: str,
) -> None:
    """Between two tokens about a segment is read, whatever is read."""
    with streamlm.open(tmp_path / "s.zarr", tiny, save_every=10**6) as session:
        if what != "held text":
            session.feed(prose(800))
        else:  # as after a feed that was cancelled
            live = session.live
            live.stream = live.stream.take_text(tiny, prose(800))
            assert len(live.stream.ahead) > 30 * SEGMENT
        meter, other = Meter(engine, monkeypatch), Session(tiny)
        writing = engine.generate(other, "And", max_tokens=10**6)
        next(iter(writing))
        meter.read, _ = 0, meter.steps.clear()
        n_report = 6 * SEGMENT
        request, n_tokens = {
            "rewind": lambda: (engine.rewind(session, to=session.position - 5), 600),
            "fork": lambda: (engine.fork(session, tokens=session.position - 5), 600),
            "report": lambda: (engine.memory_report(session), n_report // 2),
            "prompt": lambda: (engine.generate(session, prose(800), max_tokens=1), 600),
            "held text": lambda: (engine.generate(session, max_tokens=1), 30 * SEGMENT),
            "score": lambda: (engine.score(session, prose(800)), 600),
        }[what]()
        request.result(60)
        writing.cancel()
        with pytest.raises(Cancelled):
            writing.result(60)
        assert meter.read >= n_tokens and max(meter.between) <= MAX_STEP
        assert len([read for read in meter.between if read]) >= n_tokens / MAX_STEP / 2


def test_a_report_while_the_session_reads(engine: Engine, tiny: Checkpoint) -> None:
    """It does not wait for the reading, nor changes it."""
    session, plain = Session(tiny), Session(tiny)
    feed = engine.feed(session, repeat("It was the whale. "))
    positions = [0]
    for _ in range(3):
        while session.position < positions[-1] + 5 * SEGMENT:
            time.sleep(0.001)
        positions.append(engine.memory_report(session).result(60).position)
    assert not feed.done and positions == sorted(set(positions))
    feed.cancel()
    with pytest.raises(Cancelled):
        feed.result(60)
    session.feed("It was the whale. ")  # also the rest of a sentence that was cut
    while plain.position < session.position:
        plain.feed("It was the whale. ")
    assert session.state.digest() == plain.state.digest()


def test_events_with_tokens(engine: Engine, tiny: Checkpoint, prose: Callable[..., str]) -> None:
    text = prose(300)
    wanted = Session(tiny).feed(text, logprobs=True)
    handle = engine.feed(Session(tiny), text, token_events=True, block_bytes=100)
    reports = list(handle)
    assert len(reports) > len(text) / 200
    assert [id for report in reports for id in report.ids] == wanted.ids
    assert [value for report in reports for value in report.logprobs] == pytest.approx(
        wanted.logprobs, abs=1e-5
    )
    assert [report.tokens for report in reports] == sorted({each.tokens for each in reports})
    assert [report.position for report in reports] == [report.tokens for report in reports]
    result = handle.result()
    assert result.ids == [] and result.tokens == wanted.tokens
    assert result.nats == pytest.approx(wanted.nats)


def test_a_batch_is_no_wider_than_needed(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who writes alone, writes as without an engine; others come and go, and nothing is lost."""
    with Engine(tiny, rows=4, narrow=True) as engine:
        widths, step = list[int](), Batch.step

        def note(batch: Batch, tokens: Any) -> Any:
            widths.append(batch.rows)
            return step(batch, tokens)

        monkeypatch.setattr(Batch, "step", note)
        wanted, served = Session(tiny), Session(tiny)
        handle = engine.generate(served, "Call me", max_tokens=40, seed=3)
        assert "".join(handle) == "".join(wanted.generate("Call me", max_tokens=40, seed=3))
        assert served.state.digest() == wanted.state.digest() and not widths
        with streamlm.open(tmp_path / "s.zarr", tiny, save_every=SEGMENT) as session:
            one = engine.generate(session, "Call me", max_tokens=10**6, top_logprobs=0)
            tokens = [next(iter(one)) for _ in range(5)]
            for n_others, width in ((1, 2), (3, 4), (5, 4), (1, 2)):
                widths.clear()
                others = [
                    engine.generate(Session(tiny), max_tokens=30, seed=n) for n in range(n_others)
                ]
                assert [other.result(60) for other in others] == [30] * n_others
                assert widths[len(widths) // 4] == width
            n_steps, written = len(widths), session.position
            tokens += [next(iter(one)) for _ in range(60)]
            while len(tokens) < written:  # what is shown now was written alone
                tokens.append(next(iter(one)))
            assert len(widths) <= n_steps + 1
            one.cancel()
            with pytest.raises(Cancelled):
                tokens.extend(one)
            n_prompt, store = len(tiny.tokenizer.encode("Call me")), session.live.store
            assert store is not None and store.saved is not None
            ids = store.tokens(n_prompt, session.position)
            assert ids.tolist() == [token.id for token in tokens]
            assert session.state.position == session.position == store.saved.position


def test_replies_alone_and_beside_others(tmp_path: Path) -> None:
    chat = load_chat(chat_folder(tmp_path))
    with Engine(chat, rows=2, narrow=True) as engine:
        wanted, served = Session(chat), Session(chat)
        handle = engine.reply(served, "Who are you?", max_tokens=9, seed=1)
        options: dict[str, Any] = {"temperature": 0.8, "top_p": 1.0, "repetition_penalty": 1.0}
        assert "".join(handle) == "".join(
            wanted.reply("Who are you?", max_tokens=9, seed=1, **options)
        )
        handles = [engine.reply(Session(chat), "Who?", max_tokens=n, seed=1) for n in (3, 9, 9)]
        assert all(handle.result(60) for handle in handles)


def test_an_engine_that_nobody_holds_is_forgotten(tiny: Checkpoint) -> None:
    engine = Engine(tiny, rows=1)
    handle = engine.generate(Session(tiny), max_tokens=3)
    forgotten = weakref.ref(engine)
    del engine
    assert handle.result(60) == 3
    del handle
    deadline = time.monotonic() + 60
    while forgotten() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert forgotten() is None
    assert not any(thread.name == "streamlm engine" for thread in threading.enumerate())
