"""The engine: sessions beside each other get what they get alone, and nobody waits for long.

The file is long because every kind of request is tried alone, beside others, cancelled and failing.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.engine import Busy, Cancelled, Engine
from streamlm.models.layers.packed import has_int8_kernels
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session
from tests.support.chats import chat_folder, load_chat

SEGMENT = 16
ROWS = 4
MODELS: dict[str, dict[str, Any]] = {
    "mean": {"compression": "mean"},
    "max": {"compression": "max"},
    "conv": {"compression": "conv"},
    "dilated": {"compression": "dilated"},
    "most-used": {"compression": "most-used"},
    "select": {"compression": "select"},
    "window": {"compressed_len": 0},
    "int8": {"compression": "conv", "precision": "int8"},
    "llama": {"head": "llama"},
    "llama-int8": {"head": "llama", "n_heads": 4, "precision": "int8"},
    "linformer": {"head": "linformer", "compressed_len": 0, "projected_len": 4},
}


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> Checkpoint:
    options = dict(MODELS[request.param])
    precision = options.pop("precision", "float32")
    if precision == "int8" and not has_int8_kernels():
        pytest.skip("this processor or this torch has no FBGEMM kernels")
    settings = {"precision": precision}
    return load_checkpoint(tiny_folder(**options), device="cpu", settings=settings)


@pytest.fixture
def engine(tiny: Checkpoint) -> Iterator[Engine]:
    with Engine(tiny, rows=ROWS) as engine:
        yield engine


def written(
    checkpoint: Checkpoint, texts: dict[int, str], *, rows: int = ROWS
) -> dict[int, tuple[str, str]]:
    """What sessions write beside each other, and the digests of their states."""
    with Engine(checkpoint, rows=rows) as engine:
        sessions = {seed: Session(checkpoint) for seed in texts}
        handles = {
            seed: engine.generate(session, texts[seed], max_tokens=2 * SEGMENT + 5, seed=seed)
            for seed, session in sessions.items()
        }
        found = {seed: "".join(handle) for seed, handle in handles.items()}
        return {seed: (found[seed], sessions[seed].state.digest()) for seed in texts}


def test_alone_and_beside_others(checkpoint: Checkpoint, prose: Callable[..., str]) -> None:
    """The same text and the same state, bit for bit, also for more sessions than rows."""
    texts = {seed: prose(3 * seed, seed=seed) for seed in range(2 * ROWS)}
    beside = written(checkpoint, texts)
    backwards = written(checkpoint, dict(reversed(texts.items())))
    assert beside == backwards
    for seed in (0, 3, 7):
        assert written(checkpoint, {seed: texts[seed]})[seed] == beside[seed]
    assert len({text for text, _ in beside.values()}) == len(texts)


def test_texts_are_those_of_a_session(tiny: Checkpoint, prose: Callable[..., str]) -> None:
    """Where rounding cannot matter: what is likeliest is so by far."""
    texts = {seed: prose(5 * seed, seed=seed) for seed in range(4)}
    for rows in (1, ROWS):
        with Engine(tiny, rows=rows) as engine:
            for text in texts.values():
                alone, served = Session(tiny), Session(tiny)
                greedy = Sampling(temperature=0)
                wanted = list(alone.generate_logprobs(text, greedy, max_tokens=40, top_logprobs=2))
                found = list(engine.generate(served, text, greedy, max_tokens=40, top_logprobs=2))
                for here, there in zip(found, wanted, strict=True):
                    first, second = (value for _, value in there.top)
                    if first - second < 1e-3:
                        break  # as likely as another: either may be written
                    assert here.text == there.text
                    assert here.logprob == pytest.approx(there.logprob, abs=1e-3)


def test_a_session_goes_on_after_it_was_served(
    tiny: Checkpoint, engine: Engine, tmp_path: Path, prose: Callable[..., str]
) -> None:
    """Saved when the request ends; a later process goes on to the bit."""
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        session.save_every = 20
        n_tokens = engine.generate(session, prose(9), max_tokens=70, seed=5).result()
        assert n_tokens == 70 and session.saved is not None
        assert session.saved.position == session.position
        assert len(session.history()) > 3  # saved while it was written, too
        wanted = session.state.digest(), session.text()
        with streamlm.open(tmp_path / "s.zarr", tiny, readonly=True) as other:
            assert (other.state.digest(), other.text()) == wanted
        more = "".join(engine.generate(session, max_tokens=20))
    with streamlm.open(tmp_path / "s.zarr", tiny) as again:
        assert again.text().endswith(more)


def test_a_save_in_between_changes_nothing(tiny: Checkpoint, tmp_path: Path) -> None:
    """A session that was closed and opened again at its saves writes what one that went on does."""
    n = len(tiny.tokenizer.encode("Call me"))
    with Engine(tiny, rows=ROWS) as engine:
        with streamlm.open(tmp_path / "one.zarr", tiny) as one:
            one.save_every = 10
            whole = "".join(engine.generate(one, "Call me", max_tokens=40 - n, seed=1))
            assert [ref.position for ref in one.history()] == [0, 10, 20, 30, 40]
        parts = []
        for part in range(4):
            with streamlm.open(tmp_path / "two.zarr", tiny) as two:
                start: dict[str, Any] = {} if part else {"prompt": "Call me", "seed": 1}
                n_tokens = 10 if part else 10 - n
                parts.append("".join(engine.generate(two, max_tokens=n_tokens, **start)))
        assert "".join(parts) == whole
        assert two.state.digest() == one.state.digest()


def test_feed_and_score(engine: Engine, tiny: Checkpoint, prose: Callable[..., str]) -> None:
    text, alone, served = prose(300), Session(tiny), Session(tiny)
    wanted = alone.feed(text, score=True)
    handle = engine.feed(served, text, score=True)
    reports = list(handle)
    assert reports and handle.result().tokens == wanted.tokens
    assert handle.result().bits_per_byte == wanted.bits_per_byte
    assert served.state.digest() == alone.state.digest()
    digest = served.state.digest()
    scored = engine.score(served, "And so it was.").result()
    assert scored.bits_per_byte == alone.score("And so it was.").bits_per_byte
    assert served.state.digest() == digest


def test_a_long_text_does_not_stop_those_who_write(
    engine: Engine, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tokens a text without end is read for about a segment."""
    reader, positions = Session(tiny), []
    batch = engine.batch
    assert batch is not None
    real = batch.step

    def step(tokens: Any) -> Any:
        positions.append(reader.position)
        return real(tokens)

    monkeypatch.setattr(batch, "step", step)
    read = engine.feed(reader, repeat("It was the whale. "))
    engine.generate(Session(tiny), max_tokens=60).result(60)
    steps = [after - before for before, after in pairwise(positions)]
    assert len(steps) == 59 and max(steps) <= 2 * SEGMENT
    assert sum(steps) >= 30 * SEGMENT / 2  # and it is read meanwhile
    read.cancel()
    with pytest.raises(Cancelled):
        read.result(60)


def test_a_cancelled_request_keeps_what_it_has(
    engine: Engine, tiny: Checkpoint, tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        handle, pieces = engine.generate(session, "Call me", max_tokens=10**6), []
        for piece in handle:
            pieces.append(piece)
            if len(pieces) == 5:
                handle.cancel()
                break
        with pytest.raises(Cancelled, match="was cancelled"):
            handle.result(60)
        assert engine.batch is not None and engine.batch.n_free == ROWS
        assert session.saved is not None and session.saved.position == session.position
        assert "".join(pieces) in session.text()
        engine.generate(session, max_tokens=3).result(60)


def test_requests_of_one_session_run_in_order(engine: Engine, tiny: Checkpoint) -> None:
    session = Session(tiny)
    handles = [engine.feed(session, f"Number {n}. ") for n in range(8)]
    handles.append(engine.call(session, lambda session: session.position))
    position = handles.pop().result(60)
    assert position == session.position
    wanted = Session(tiny)
    for n in range(8):
        wanted.feed(f"Number {n}. ")
    assert session.state.digest() == wanted.state.digest()


def test_errors_reach_the_caller_and_nobody_else(engine: Engine, tiny: Checkpoint) -> None:
    session, other = Session(tiny), Session(tiny)
    writing = engine.generate(other, "Call me", max_tokens=60, seed=3)
    with pytest.raises(ValueError, match="max_tokens = -1; allowed"):
        engine.generate(session, max_tokens=-1).result(60)
    with pytest.raises(ValueError, match="nothing to read"):
        engine.feed(session, "").result(60)
    with pytest.raises(FileNotFoundError):
        engine.feed(session, Path("no such file")).result(60)
    with pytest.raises(ZeroDivisionError):
        engine.call(session, lambda session: 1 // 0).result(60)

    def broken(session: Session) -> None:
        raise KeyboardInterrupt  # whatever it is, the engine's thread lives on

    with pytest.raises(KeyboardInterrupt):
        engine.call(session, broken).result(60)
    assert writing.result(60) == 60
    assert engine.generate(session, max_tokens=2).result(60) == 2


def test_a_step_that_fails_ends_those_who_write(
    engine: Engine, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [Session(tiny) for _ in range(3)]
    handles = [engine.generate(session, max_tokens=10**6) for session in sessions]
    begun = [next(iter(handle)) for handle in handles]
    real, batch = engine.batch._step, engine.batch

    def fail(tokens: Any) -> Any:
        monkeypatch.setattr(batch, "_step", real)
        real(tokens)  # some of the rows have gone on
        raise MemoryError("no memory left")

    monkeypatch.setattr(batch, "_step", fail)
    shown = [[first] for first in begun]
    for handle, pieces in zip(handles, shown, strict=True):
        with pytest.raises(MemoryError) as raised:
            pieces.extend(handle)
        # Not through the other requests, which got the same error.
        assert len(raised.traceback) < 12 and raised.traceback[-1].name == "fail"
    assert batch.n_free == ROWS
    for pieces, session in zip(shown, sessions, strict=True):
        assert int(session.state.position) == session.position
        # Nothing that was shown is lost: as if the session had read it.
        ids = session.live.log.take(0, session.position)
        again = Session(tiny)
        again.live.move(again.live.stream.read_ids(tiny, ids), ids, None)
        assert again.state.position == session.position
        assert tiny.tokenizer.decode(ids).startswith("".join(pieces))
        assert engine.generate(session, max_tokens=2).result(60) == 2


def test_more_requests_than_may_wait(tiny: Checkpoint) -> None:
    with Engine(tiny, rows=1, max_waiting=2, max_running=1) as engine:
        go_on = threading.Event()
        first = engine.call(Session(tiny), lambda session: go_on.wait(60))
        while engine.load != (1, 0):
            time.sleep(0.001)
        others = [engine.generate(Session(tiny), max_tokens=1) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests are waiting; allowed: 2"):
            engine.generate(Session(tiny), max_tokens=1)
        others[0].cancel()
        go_on.set()
        assert first.result(60)
        with pytest.raises(Cancelled):
            others[0].result(60)
        assert others[1].result(60) == 1


def test_closing_saves_what_is_written(tiny: Checkpoint, tmp_path: Path) -> None:
    with streamlm.open(tmp_path / "s.zarr", tiny) as session:
        engine = Engine(tiny, rows=2)
        handle = engine.generate(session, "Call me", max_tokens=100_000)
        assert next(iter(handle))
        assert engine.close(60)
        with pytest.raises(Cancelled):
            handle.result(60)
        assert session.saved is not None and session.saved.position == session.position > 2
        with pytest.raises(Cancelled, match="the engine is closed"):
            engine.generate(session)


def test_events_in_a_coroutine(engine: Engine, tiny: Checkpoint) -> None:
    async def pieces(seed: int) -> str:
        handle = engine.generate(Session(tiny), "Call me", max_tokens=20, seed=seed)
        return "".join([piece async for piece in handle])

    async def both() -> list[str]:
        return await asyncio.gather(pieces(1), pieces(2))

    one, two = asyncio.run(both())
    assert one != two
    again = engine.generate(Session(tiny), "Call me", max_tokens=20, seed=1)
    assert "".join(again) == one


def test_replies(tmp_path: Path) -> None:
    chat = load_chat(chat_folder(tmp_path))
    with Engine(chat, rows=3) as engine:
        served = [Session(chat) for _ in range(3)]
        handles = [
            engine.reply(session, "Who are you? " * n, system="Be a whale.", max_tokens=9, seed=n)
            for n, session in enumerate(served, 1)
        ]
        texts = ["".join(handle) for handle in handles]
        for n, session in enumerate(served, 1):
            alone = Session(chat)
            handle = engine.reply(
                alone, "Who are you? " * n, system="Be a whale.", max_tokens=9, seed=n
            )
            assert "".join(handle) == texts[n - 1]
            assert alone.state.digest() == session.state.digest()
            assert alone.conversation == session.conversation
        engine.reply(served[0], "And now?", max_tokens=3).result(60)
        with pytest.raises(ValueError, match="another system prompt"):
            engine.reply(served[0], "And now?", system="Be a man.").result(60)


def test_stop_strings(engine: Engine, tiny: Checkpoint) -> None:
    """As a session's own, with text and with log-probabilities."""
    whole = "".join(engine.generate(Session(tiny), "Call me", max_tokens=60, seed=2))
    stop = whole[20:24]
    until = whole[: whole.index(stop)]
    session = Session(tiny)
    assert "".join(engine.generate(session, "Call me", max_tokens=60, seed=2, stop=stop)) == until
    tokens = engine.generate(
        Session(tiny), "Call me", max_tokens=60, seed=2, stop=stop, top_logprobs=1
    )
    assert "".join(token.text for token in tokens) == until


def test_another_checkpoint_is_refused(engine: Engine, tiny_folder: Callable[..., Path]) -> None:
    other = Session(load_checkpoint(tiny_folder(seed=2), device="cpu"))
    with pytest.raises(ValueError, match="a session of another checkpoint"):
        engine.generate(other)
    with pytest.raises(ValueError, match="rows = 0; allowed: at least 1"):
        Engine(engine.checkpoint, rows=0)


def test_what_came_of_a_request_that_wrote(engine: Engine, tiny: Checkpoint) -> None:
    session = Session(tiny)
    n_prompt = len(tiny.tokenizer.encode("Call me Ishmael."))
    written = engine.generate(session, "Call me Ishmael.", max_tokens=9, seed=1).result(60)
    assert (written, written.n_read, written.reason) == (9, n_prompt, "length")
    assert written.position == session.position == n_prompt + 9
    text = "".join(engine.generate(session.fork(), max_tokens=30, seed=2))
    stop = text[10:12]
    written = engine.generate(session, max_tokens=30, seed=2, stop=stop).result(60)
    assert written.reason == "stop" and 0 < written < 30 and written.n_read == 0
    assert written.saved is None


def test_the_snapshot_of_a_request_is_its_own(
    engine: Engine, open_: Callable[..., Session]
) -> None:
    """Also when others have gone on with the session before anybody looks."""
    session = open_()
    handles = [engine.generate(session, "Call me", max_tokens=5, seed=n) for n in range(3)]
    written = [handle.result(60) for handle in handles]
    for each in written:
        assert each.saved is not None and each.saved.position == each.position
    assert written[-1].saved == session.saved


def test_a_function_that_is_called_aside_stops_nobody(
    engine: Engine, tiny: Checkpoint, open_: Callable[..., Session]
) -> None:
    """Others write meanwhile; those of the same session wait; a cancelled one is waited for."""
    session, go_on, inside = open_(), threading.Event(), threading.Event()
    engine.feed(session, "Call me Ishmael. ").result(60)

    def wait(session: Session) -> int:
        inside.set()
        assert go_on.wait(60)
        with session.fork("side", tokens=2) as other:
            return other.position

    aside = engine.call(session, wait, aside=True)
    assert inside.wait(60)
    after = engine.generate(session, max_tokens=3)
    assert engine.generate(Session(tiny), max_tokens=5).result(60) == 5
    aside.cancel()
    assert not after.done and not aside.done
    go_on.set()
    assert aside.result(60) == 2 and after.result(60) == 3
    with pytest.raises(ZeroDivisionError):
        engine.call(session, lambda session: 1 // 0, aside=True).result(60)
    assert engine.generate(session, max_tokens=1).result(60) == 1


def test_waiting_for_the_end_in_a_coroutine(engine: Engine, tiny: Checkpoint) -> None:
    async def ends() -> list[bool]:
        handles = [
            engine.generate(Session(tiny), max_tokens=3),
            engine.feed(Session(tiny), ""),  # fails
            engine.generate(Session(tiny), max_tokens=10**6),
        ]
        handles[2].cancel()
        for handle in handles:
            await handle.ended()
        return [handle.done for handle in handles]

    assert asyncio.run(ends()) == [True] * 3


def test_a_chat_that_began_elsewhere(tmp_path: Path) -> None:
    """Earlier messages are read before the first; a chat that goes on has read its own."""
    chat = load_chat(chat_folder(tmp_path))
    messages = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A whale."},
    ]
    with Engine(chat, rows=2) as engine:
        session, without = Session(chat), Session(chat)
        written = engine.reply(session, "Why?", max_tokens=4, seed=1, history=messages).result(60)
        whole = [*messages, {"role": "user", "content": "Why?"}]
        ids = chat.chat.conversation_ids(whole, generation_prompt=True)
        assert written.n_read == len(ids) - (ids[0] == chat.tokenizer.bos_id)
        alone = engine.reply(without, "Why?", max_tokens=4, seed=1).result(60)
        assert alone.n_read < written.n_read
        again = engine.reply(session, "Why?", max_tokens=4, history=messages).result(60)
        assert again.n_read <= alone.n_read + 2
        tokens = list(engine.reply(Session(chat), "Why?", max_tokens=4, seed=1, top_logprobs=2))
        text = "".join(engine.reply(Session(chat), "Why?", max_tokens=4, seed=1))
        assert "".join(token.text for token in tokens) == text
        assert all(token.logprob <= 0 and len(token.top) == 2 for token in tokens)
