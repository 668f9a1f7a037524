"""`AsyncSession`: the loop goes on, calls keep their order, cancellation loses nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from streamlm import Checkpoint, Session
from streamlm.sessions.asynchronous import AsyncSession

Open = Callable[..., Session]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_it_does_what_a_session_does(open_: Open, tiny: Checkpoint, tmp_path: Path) -> None:
    plain = Session(tiny, seed=3)
    fed = plain.feed("Call me Ishmael. ").tokens
    wanted = list(plain.generate("Some years ago", max_tokens=9, seed=5))
    scored = plain.score("never mind").nats
    tokens = [token.text for token in plain.generate_logprobs(max_tokens=4, seed=1)]

    async def use() -> None:
        async with AsyncSession(open_("s", seed=3)) as session:
            assert (await session.feed("Call me Ishmael. ")).tokens == fed
            options = {"max_tokens": 9, "seed": 5}
            found = [piece async for piece in session.generate("Some years ago", **options)]
            assert found == wanted
            assert (await session.score("never mind")).nats == scored
            end = session.session.position
            written = session.generate_logprobs(max_tokens=4, seed=1)
            assert [token.text async for token in written] == tokens
            await session.rewind(to=end)
            assert session.session.position == end
            async with await session.fork("b") as fork:
                await fork.feed(" On another branch.")
                assert fork.session.branch == "b"
            assert (await session.save()).position == end
            assert await session.call(lambda each: each.branch) == "main"
            with pytest.raises(ValueError, match="no source given"):
                await session.feed()
        await session.close()
        assert session.session.live.closed

    run(use())
    assert open_("s").position > 0


def test_the_loop_goes_on_and_calls_keep_their_order(tiny: Checkpoint, text: str) -> None:
    async def use() -> None:
        session, ticks = AsyncSession(Session(tiny, seed=1)), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())

        async def slowly() -> AsyncIterator[str]:
            for word in ("Call ", "me ", "Ishmael. "):
                await asyncio.sleep(0.01)  # on the loop, which the session does not hold up
                yield word

        pieces = [text[at : at + 50] for at in range(0, 300, 50)]
        await asyncio.gather(session.feed(slowly()), *(session.feed(piece) for piece in pieces))
        ticking.cancel()
        assert ticks > 3
        plain = Session(tiny, seed=1)
        plain.feed("Call me Ishmael. " + text[:300])
        assert (session.session.position, session.session.tail) == (plain.position, plain.tail)
        assert session.session.state.position.tolist() == plain.state.position.tolist()
        await session.close()

    run(use())


def test_cancelling_loses_nothing_that_was_read(open_: Open, text: str) -> None:
    async def use() -> None:
        session = AsyncSession(open_("s", seed=1))
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        options = {"block_bytes": 40}

        def progress(_: object) -> None:
            loop.call_soon_threadsafe(begun.set)

        feeding = asyncio.create_task(session.feed(text[:400], progress=progress, **options))
        await begun.wait()
        feeding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await feeding
        at = session.session.position  # the call has run to its end
        await session.feed(text[400:500])
        assert session.session.position > at
        async with aclosing(session.generate(max_tokens=50, seed=1)) as pieces:  # type: ignore[type-var]
            async for _ in pieces:
                break
        assert at < session.session.position < at + 150

        async def never() -> AsyncIterator[str]:
            yield " And so on. "
            await asyncio.Event().wait()

        at = session.session.position
        waiting = asyncio.create_task(session.feed(never()))
        while session.session.position == at:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await session.feed(" And on.")  # the session is free again
        await session.close()

    run(use())
    with open_("s") as again:
        assert text[:400] in again.text() + again.tail


def test_cancelling_while_a_piece_is_asked_for_ends_the_call(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = asyncio.run_coroutine_threadsafe

    async def use() -> None:
        session, asked = AsyncSession(Session(tiny, seed=1)), threading.Event()

        def slowly(*args: Any) -> Any:
            asked.set()
            time.sleep(0.2)  # in which the call is cancelled
            return ask(*args)

        async def never() -> AsyncIterator[str]:
            await asyncio.Event().wait()
            yield ""

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", slowly)
        feeding = asyncio.create_task(session.feed(never()))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        feeding.cancel()
        await asyncio.wait([feeding], timeout=30)
        assert feeding.cancelled()
        await session.close()

    run(use())
