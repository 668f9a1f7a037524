"""The text of a session, log-probabilities of generated tokens, and forks at earlier positions."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.reports import Progress, TokenLogprob
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.steps import finish
from streamlm.sessions.session import Session

Open = Callable[..., Session]


def test_generate_logprobs_yields_the_text_of_generate(tiny: Checkpoint) -> None:
    session = Session(tiny)
    session.feed(["It was a bright cold day. "])
    pieces = "".join(session.fork().generate("And", max_tokens=20, seed=3, temperature=1.1))
    options: dict[str, Any] = {"sampling": Sampling(temperature=1.1), "max_tokens": 20, "seed": 3}
    tokens = list(session.fork().generate_logprobs("And", top_logprobs=4, **options))
    assert "".join(token.text for token in tokens) == pieces
    plain = session.fork().generate_logprobs("And", **options)
    assert [(token.id, token.top) for token in plain] == [(token.id, ()) for token in tokens]
    for token in tokens:
        top = [logprob for _, logprob in token.top]
        assert len(top) == 4 and top == sorted(top, reverse=True)
        assert token.logprob <= top[0] and sum(map(math.exp, top)) <= 1


def test_logprobs_are_the_models_own(tiny: Checkpoint) -> None:
    """They do not depend on the sampling, and agree with `score`."""
    session = Session(tiny)
    session.feed(["one two three "])

    def first(temperature: float, **options: Any) -> TokenLogprob:
        sampling = Sampling(temperature=temperature)
        return next(session.fork().generate_logprobs("", sampling, max_tokens=1, **options))

    greedy, warm = (first(temperature, top_logprobs=8192, seed=1) for temperature in (0, 5))
    assert greedy.top == warm.top and greedy.logprob == greedy.top[0][1]
    assert sum(math.exp(logprob) for _, logprob in greedy.top) == pytest.approx(1)
    finish(session._live.ending_text())
    generated = first(2, seed=5)
    report = session.score([generated.text], logprobs=True)
    assert report.ids[0] == generated.id  # a token of the vocabulary, not a byte
    assert report.logprobs[0] == pytest.approx(generated.logprob, abs=0.05)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_generate_logprobs_stops_where_generate_stops(tiny: Checkpoint, at: int) -> None:
    session = Session(tiny)
    session.feed(["It was a bright cold day. "])
    options: dict[str, Any] = {"max_tokens": 40, "seed": 3}
    sampling = Sampling(temperature=1.1)
    whole = "".join(session.fork().generate("And", temperature=1.1, **options))
    stop = [whole[at : at + 1 + at % 5], "never written"]
    one, two = session.fork(), session.fork()
    text = "".join(one.generate("And", temperature=1.1, stop=stop, **options))
    tokens = list(two.generate_logprobs("And", sampling, stop=stop, **options))
    assert "".join(token.text for token in tokens) == text == whole[: whole.find(stop[0])]
    assert one.position == two.position and one.tail == two.tail
    others = list(session.fork().generate_logprobs("And", sampling, **options))
    assert [token.id for token in tokens] == [token.id for token in others[: len(tokens)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ["a", ""]}, "stop = .*; allowed: strings that are not empty"),
        ({"max_tokens": -1}, "max_tokens = -1; allowed"),
        ({"top_logprobs": -1}, "top_logprobs = -1; allowed"),
        ({"seed": -2}, "seed = -2; allowed"),
    ],
)
def test_generate_logprobs_refuses(tiny: Checkpoint, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Session(tiny).generate_logprobs("", **options)


def test_text_returns_the_text_read(open_: Open, prose: Callable[..., str]) -> None:
    session, text = open_(), prose(120)
    session.feed([text])
    assert (session.text() + session.tail) == text
    middle = session.position // 2
    assert session.text(0, middle) + session.text(middle) == session.text()
    written = "".join(session.generate(" And", max_tokens=9, seed=1))  # not saved
    assert session.saved is not None and session.saved.position < session.position
    assert session.text().endswith(written) and session.text(session.position) == ""
    session.close()
    with open_(readonly=True) as again:
        assert again.text().endswith(written)
        with pytest.raises(ValueError, match="allowed: a part of 0 to"):
            again.text(3, again.position + 1)


def test_text_needs_a_store(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no store"):
        Session(tiny).text()


def test_a_fork_at_a_position_equals_a_rewound_session(
    open_: Open, prose: Callable[..., str]
) -> None:
    session = open_(save_every=64)
    session.feed([prose(300)])
    goal, before, ids = 150, session.position, len(session.history())
    other = session.fork(tokens=goal)
    assert (other.position, session.position, len(session.history())) == (goal, before, ids)
    report = other.memory_report()
    written = "".join(other.generate("", max_tokens=12, seed=4))
    session.rewind(to=goal)
    assert "".join(session.fork().generate("", max_tokens=12, seed=4)) == written
    assert np.array_equal(report.start, session.memory_report().start)
    assert report.position == goal


def test_a_readonly_session_forks_at_a_position(
    tmp_path: Path, tiny: Checkpoint, prose: Callable[..., str]
) -> None:
    path = tmp_path / "s.zarr"
    with streamlm.open(path, tiny) as session:
        session.feed([prose(200)])
        n = session.position
    with streamlm.open(path, tiny, readonly=True) as session:
        assert session.fork(tokens=n - 5).position == n - 5
        for wrong in (-1, n + 1):
            with pytest.raises(ValueError, match=f"tokens = {wrong}; allowed: 0 to {n}"):
                session.fork(tokens=wrong)


def test_a_branch_at_a_position(open_: Open, prose: Callable[..., str]) -> None:
    session = open_()
    session.feed([prose(200)])
    with session.fork("side", tokens=40) as side:
        assert side.position == 40 and side.text() == session.text(0, 40)
        assert session.position > 40
        with pytest.raises(ValueError, match="allowed: 0 to 40"):
            side.fork("other", tokens=41)
        assert side.history()[-1].position == 40


def test_feed_reports_every_token(open_: Open, prose: Callable[..., str]) -> None:
    text, seen = prose(150), []

    def look(done: Progress) -> None:
        seen.append(len(done.report.ids))

    plain = Session(open_("plain").checkpoint)
    expected = plain.feed([text], score=True)
    session = open_()
    report = session.feed([text], logprobs=True, block_bytes=100, progress=look)
    assert len(seen) == -(-len(text) // 100)  # characters of a str, not bytes
    assert seen == sorted(seen) and seen[-1] == len(report.ids) == report.tokens == plain.position
    assert report.nats == pytest.approx(-sum(report.logprobs), rel=1e-5)
    assert report.nats == pytest.approx(expected.nats, rel=1e-4)
    for size in (0, 0.5, math.inf):
        with pytest.raises(ValueError, match=f"block_bytes = {size}; allowed"):
            session.feed([text], block_bytes=size)  # type: ignore[arg-type]


def test_positions_are_whole_numbers(open_: Callable[..., Session], text: str) -> None:
    session = open_()
    session.feed(text)
    before = session.state.digest()
    for tokens in (1.5, math.nan, math.inf, "3", True):
        with pytest.raises(ValueError, match=f"tokens = {tokens}; allowed: 0 to"):
            session.fork(tokens=tokens)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"position {tokens}; allowed: 0 to"):
            session.rewind(to=tokens)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"by = {tokens}; allowed: 0 to"):
            session.rewind(by=tokens)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="allowed: a part of 0 to"):
            session.text(tokens)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"save_every = .*; allowed: at least 1, a whole"):
            session.save_every = tokens  # type: ignore[assignment]
    assert session.state.digest() == before


def test_feed_resumes_after_progress_raises(
    open_: Open, tmp_path: Path, prose: Callable[..., str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(prose(300), encoding="utf-8")

    class Enough(Exception):
        pass

    def stop(done: Progress) -> None:
        if done.read >= 300:
            raise Enough

    session = open_()
    with pytest.raises(Enough):
        session.feed(file, block_bytes=100, progress=stop)
    session.close()
    session = open_()
    assert 0 < session.position < 200
    report = session.feed(file, block_bytes=100)
    assert report.skipped_bytes > 200
    assert session.text() + session.tail == file.read_text(encoding="utf-8")
