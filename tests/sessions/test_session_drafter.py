"""Sessions that generate with a drafter: the same text, position and saves as without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.drafter import (
    DrafterConfig,
)
from streamlm.sessions.session import Session
from tests.support.drafters import SMALL, Oracle
from tests.support.invariants import assert_same_state


@pytest.fixture(scope="module")
def tiny_drafter(tiny: Checkpoint) -> Oracle:
    """Two right drafts, then wrong ones."""
    config = DrafterConfig.of(tiny, {**SMALL, "n_tokens": 4})
    return Oracle(tiny.model, config, 2)


def fed(checkpoint: Checkpoint, text: str) -> Session:
    session = Session(checkpoint, seed=5)
    session.feed(text)
    return session


def test_greedy_sessions_generate_the_same(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    texts, sessions = [], []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        texts.append("".join(session.generate(max_tokens=70, temperature=0, drafter=drafter)))
        sessions.append(session)
    assert texts[0] == texts[1]
    plain, drafted = sessions
    assert plain.position == drafted.position
    assert_same_state(plain.state, drafted.state, tolerance=1e-3)
    # The sessions continue alike.
    assert drafted._live.stream.recent.tolist() == plain._live.stream.recent.tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_max_tokens_is_exact(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str], n: int
) -> None:
    session = fed(tiny, prose(60))
    list(session.generate(max_tokens=1, seed=1, drafter=tiny_drafter))  # reads the held-back text
    before = session.position
    list(session.generate(max_tokens=n, seed=1, drafter=tiny_drafter))
    assert session.position == before + n


def test_an_abandoned_draft_keeps_the_returned_tokens(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    wanted = fed(tiny, prose(60))
    whole = list(wanted.generate(max_tokens=30, temperature=0, drafter=tiny_drafter))
    for stop in range(1, 8):
        session = fed(tiny, prose(60))
        pieces = session.generate(max_tokens=30, temperature=0, drafter=tiny_drafter)
        given = [next(pieces) for _ in range(stop)]
        pieces.close()  # type: ignore[attr-defined]
        given += session.generate(max_tokens=30, temperature=0)
        assert "".join(given).startswith("".join(whole))
        assert session.position <= wanted.position + stop


def test_a_stop_string_ends_within_a_pass(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    whole = "".join(fed(tiny, prose(60)).generate(max_tokens=30, temperature=0))
    stop = whole[len(whole) // 2 :][:3]
    ends = []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        text = "".join(session.generate(stop=stop, temperature=0, drafter=drafter))
        ends.append((text, session.position))
    assert ends[0] == ends[1] and ends[0][0] == whole[: whole.find(stop)]


def test_feeding_between_tokens_voids_the_draft(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    ends = []
    for drafter in (None, tiny_drafter):
        session = fed(tiny, prose(60))
        given = []
        for index, piece in enumerate(
            session.generate(max_tokens=20, temperature=0, drafter=drafter)
        ):
            given.append(piece)
            if index in (2, 5):
                session.feed("Call me Ishmael. ")
        ends.append((given, session.position))
    assert ends[0] == ends[1]


def test_forks_made_within_a_pass_are_independent(
    tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]
) -> None:
    session, forks = fed(tiny, prose(60)), []
    given = []
    for piece in session.generate(max_tokens=12, temperature=0, drafter=tiny_drafter):
        given.append(piece)
        forks.append(session.fork())
    for place, fork in enumerate(forks):
        written = "".join(fork.generate(max_tokens=12, temperature=0))
        assert written.startswith("".join(given[place + 1 :]))


def test_a_resumed_session_generates_the_same(
    open_: Callable[..., Session],
    tiny_drafter: Oracle,
    prose: Callable[..., str],
    token_log: Callable[..., list[int]],
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "drafter": tiny_drafter}
    for name in ("whole", "parts"):
        session = open_(name, seed=3)
        session.feed(prose(60))
        session.save_every = 7  # saves fall within passes
        list(session.generate("So", max_tokens=1, **options))
        session.save()
        list(session.generate(max_tokens=19, **options))
        session.save()
        if name == "parts":
            session.close()
            session = open_(name)
            session.save_every = 7
        list(session.generate(max_tokens=22, **options))
        session.close()
    logs = [token_log(tmp_path / f"{name}.zarr") for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_seeds_repeat(tiny: Checkpoint, tiny_drafter: Oracle, prose: Callable[..., str]) -> None:
    session = fed(tiny, prose(60))
    texts = [
        "".join(session.fork().generate(max_tokens=30, seed=seed, drafter=tiny_drafter))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
