"""`Session.score` and `Session.generate`."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamlm
from memory_store import (
    DirectoryStore,
)
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.runtime.stream import score
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.session import Session
from tests.support.invariants import assert_same_state
from tests.support.sessions import (
    TOLERANCE,
    End,
    Open,
    TokenLog,
    assert_same_end,
    facts,
    state_after,
)
from tokenizer import StreamDecoder

# -- score ------------------------------------------------------------------------------------

SETTLED = "Call me Ishmael. Some years ago — never mind how long precisely" + "\n" * 256


@pytest.mark.parametrize("before", ["", "It was the best of ti"])
def test_score_agrees_with_feed_and_changes_nothing(
    before: str, open_: Open, tiny: Checkpoint, tmp_path: Path
) -> None:
    session = open_()
    if before:
        session.feed([before])
    else:
        session.save()
    kept, size = facts(session), DirectoryStore.open(tmp_path / "s.zarr").size()
    report = session.score([SETTLED], logprobs=True)
    again = session.score(SETTLED[:40], [SETTLED[40:]])
    assert facts(session) == kept
    session.save()
    assert DirectoryStore.open(tmp_path / "s.zarr").size() == size
    assert len(session.history()) == (2 if before else 1)

    ids = tiny.tokenizer.encode(SETTLED).tolist()
    assert report.ids == ids and len(report.logprobs) == len(ids) == report.tokens
    assert -sum(report.logprobs) == pytest.approx(report.nats)
    assert max(report.logprobs) < 0 and again.ids == again.logprobs == []
    assert again.nats == pytest.approx(report.nats, rel=1e-5)
    assert (again.tokens, again.n_bytes) == (report.tokens, len(SETTLED.encode()))
    assert report.position == session.position

    list(session.generate(max_tokens=0))  # reads the held-back word
    fed = session.feed([SETTLED], score=True)
    assert fed.nats == pytest.approx(report.nats, rel=1e-5) and session.tail == ""
    assert (fed.tokens, fed.n_bytes) == (report.tokens, report.n_bytes)
    assert "ids" not in fed.to_dict() and report.to_dict()["ids"] == ids


def test_score_reads_the_tail_too(tiny: Checkpoint) -> None:
    text = "the whale"
    report = Session(tiny).score([text], logprobs=True)
    assert report.ids == tiny.tokenizer.encode(text).tolist()
    assert report.n_bytes == len(text)


# -- generate ---------------------------------------------------------------------------------


def test_greedy_is_deterministic(tiny: Checkpoint) -> None:
    session = Session(tiny)
    session.feed(["Call me Ishmael. "])
    twin, other_seed = session.fork(), session.fork()
    found = "".join(session.generate("Some", max_tokens=20, temperature=0))
    assert found and found == "".join(twin.generate("Some", max_tokens=20, temperature=0))
    assert found == "".join(other_seed.generate("Some", max_tokens=20, temperature=0, seed=5))
    assert session.state.digest() == twin.state.digest()


def test_seeds(tiny: Checkpoint) -> None:
    begin = Session(tiny)
    others = [Session(tiny) for _ in range(3)]
    assert len({each.seed for each in [begin, *others]}) == 4

    def write(seed: int | None, session: Session | None = None) -> str:
        return "".join((session or begin.fork()).generate(max_tokens=12, seed=seed))

    assert write(7) == write(7) != write(8)
    # Without a seed the session's generator continues, so no two calls draw the same.
    assert write(None) == write(None) == write(begin.seed)
    assert write(None, Session(tiny, seed=begin.seed)) == write(begin.seed)
    session = Session(tiny, seed=7)
    assert write(None, session) == write(7)
    on = session.fork()
    assert write(None, session) == write(None, on) != write(7, session.fork())


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 3}])
def test_generating_in_parts_equals_generating_at_once(
    tiny: Checkpoint, options: dict[str, Any]
) -> None:
    at_once, in_parts = Session(tiny), Session(tiny)
    wanted = "".join(at_once.generate("Call me", max_tokens=18, **options))
    found = "".join(in_parts.generate("Call me", max_tokens=7, **options))
    options.pop("seed", None)
    for n in (0, 1, 10):
        found += "".join(in_parts.generate(max_tokens=n, **options))
    assert found == wanted
    assert in_parts.state.digest() == at_once.state.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": -1}, "max_tokens = -1; allowed: 0 or more"),
        ({"max_tokens": 0.5}, r"max_tokens = 0\.5; allowed: 0 or more, a whole number"),
        ({"max_tokens": 2.0}, r"max_tokens = 2\.0; allowed: 0 or more, a whole number"),
        ({"max_tokens": math.nan}, "max_tokens = nan; allowed"),
        ({"max_tokens": math.inf}, "max_tokens = inf; allowed"),
        ({"max_tokens": 10**30}, "max_tokens = 10{30}; allowed: .* up to 9,007,199,254,740,991"),
        ({"max_tokens": True}, "max_tokens = True; allowed"),
        ({"max_tokens": "7"}, "max_tokens = '7'; allowed"),
        ({"seed": 1.5}, r"seed = 1\.5; allowed"),
        ({"recall": 0.5}, r"recall = 0\.5; allowed"),
        ({"temperature": -0.1}, r"temperature = -0\.1; allowed: 0 \(greedy\) to 100"),
        ({"temperature": math.nan}, "temperature = nan; allowed"),
        ({"top_k": -1}, "top_k = -1; allowed"),
        ({"top_k": 2.5}, r"top_k = 2\.5; allowed"),
        ({"top_p": 0}, "top_p = 0; allowed"),
        ({"top_p": 1.1}, r"top_p = 1\.1; allowed"),
        ({"min_p": 2}, "min_p = 2; allowed"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0; allowed"),
        ({"stop": ""}, "stop = ''; allowed: strings that are not empty"),
        ({"stop": ["end", ""]}, r"stop = \['end', ''\]; allowed"),
        ({"stop": ["end", 3]}, "allowed: strings that are not empty"),
        ({"seed": -1}, "seed = -1; allowed: 0 or more"),
    ],
)
def test_wrong_values_are_refused_immediately(
    tiny: Checkpoint, options: dict[str, Any], message: str
) -> None:
    session = Session(tiny)
    before = facts(session)
    with pytest.raises(ValueError, match=message):
        session.generate("Call me", **options)  # not even for the first piece
    assert facts(session) == before


def test_no_tokens_only_read_the_prompt(tiny: Checkpoint, whole: End, text: str) -> None:
    session = Session(tiny)
    session.feed([text[:55]])
    assert list(session.generate(text[55:], max_tokens=0)) == []
    wanted = tiny.tokenizer.encode(text).tolist()
    assert session.position == len(wanted) and session.tail == ""
    assert_same_state(session.state, state_after(tiny, wanted), tolerance=TOLERANCE)
    bare = Session(tiny)
    assert list(bare.generate(max_tokens=0)) == [] and bare.position == 0


def test_lone_surrogates_in_a_prompt_are_replaced(tiny: Checkpoint) -> None:
    found, wanted = Session(tiny), Session(tiny)
    list(found.generate("a\ud800b", max_tokens=0))
    list(wanted.generate("a\ufffdb", max_tokens=0))
    assert found.state.digest() == wanted.state.digest()


class Script:
    """Makes every session generate these texts, one per token, without a model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: list[str]) -> None:
        self.written = ""
        left = iter(pieces)

        def generate_token(stream: TextStream, *args: Any) -> tuple[TextStream, int, str]:
            piece = next(left)
            self.written += piece
            return stream, 5, piece

        monkeypatch.setattr(TextStream, "generate_token", generate_token)


AB = st.text("ab", max_size=3)


@settings(max_examples=200)
@given(pieces=st.lists(AB, max_size=8), stop=st.text("ab", min_size=1, max_size=4))
@example(pieces=["a", "a", "b", "a"], stop="aab")
@example(pieces=["ab", "", "ab", "b"], stop="abb")
@example(pieces=["b", "ab"], stop="abab")
def test_generation_ends_at_a_stop_string(tiny: Checkpoint, pieces: list[str], stop: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        script = Script(patch, pieces)
        found = ""
        for piece in Session(tiny).generate(max_tokens=len(pieces), stop=stop):
            assert piece
            found += piece
            # Only a possible beginning of the stop string is held back.
            held = script.written.removeprefix(found)
            assert stop in script.written or stop.startswith(held)
    assert found == "".join(pieces).partition(stop)[0]
    # No token is drawn after the one that completes it.
    so_far = ["".join(pieces[:n]) for n in range(len(pieces) + 1)]
    assert script.written == next((text for text in so_far if stop in text), so_far[-1])


def test_the_earliest_stop_string_counts(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    Script(monkeypatch, ["one", " tw", "o th", "ree"])
    session = Session(tiny)
    assert list(session.generate(max_tokens=9, stop=["three", "two", "e th"])) == ["on", "e "]


def test_stop_strings_of_a_model(tiny: Checkpoint) -> None:
    session = Session(tiny)
    whole = "".join(session.fork().generate("Call me", max_tokens=16, temperature=0))
    for start, size in ((0, 1), (3, 2), (9, 12), (5, 30)):
        stop = whole[start : start + size]
        found = session.fork().generate("Call me", max_tokens=16, temperature=0, stop=stop)
        assert "".join(found) == whole[: whole.find(stop)]
    # The stop string is read but not returned.
    stopped, stops = session.fork(), ["never met", whole[9:14]]
    list(stopped.generate("Call me", max_tokens=16, temperature=0, stop=stops))
    assert whole[9:14] in tiny.tokenizer.decode(stopped._live.stream.recent)


def test_an_abandoned_iterator_keeps_its_tokens(
    open_: Open, tmp_path: Path, token_log: TokenLog, tiny: Checkpoint
) -> None:
    session, twin = open_(), open_("twin")
    pieces = session.generate("Call me", max_tokens=30, temperature=0)
    found = "".join(islice(pieces, 5))
    pieces.close()  # type: ignore[attr-defined]
    session.save()
    written = token_log(tmp_path / "s.zarr")[len(tiny.tokenizer.encode("Call me")) :]
    assert tiny.tokenizer.decode(written) == found
    found += "".join(session.generate(max_tokens=30 - len(written), temperature=0))
    assert found == "".join(twin.generate("Call me", max_tokens=30, temperature=0))
    ends = [
        End.of(one, tmp_path / f"{name}.zarr", token_log)
        for one, name in ((session, "s"), (twin, "twin"))
    ]
    assert_same_end(*ends)
    untouched = open_("untouched")
    untouched.generate("Call me", max_tokens=30)  # lazy: nothing happens before the first piece
    assert untouched.position == 0


@pytest.fixture(scope="module")
def byte_writer(tiny_folder: Callable[..., Path]) -> Checkpoint:
    """A model that often generates bytes of characters outside its vocabulary."""
    return load_checkpoint(tiny_folder(likes="漢🐋ѣ"), device="cpu")


def test_pieces_are_whole_characters_and_match_the_log(
    byte_writer: Checkpoint, tmp_path: Path, token_log: TokenLog
) -> None:
    path = tmp_path / "s.zarr"
    decoder = StreamDecoder(byte_writer.tokenizer)
    with streamlm.open(path, byte_writer, seed=0) as session:

        def write(prompt: str, max_tokens: int) -> tuple[str, list[int]]:
            """What it gave out, and what the log says it wrote."""
            n_before = session.position + len(byte_writer.tokenizer.encode(prompt))
            pieces = list(
                session.generate(prompt, max_tokens=max_tokens, temperature=2.0, top_p=1.0)
            )
            assert all(pieces)
            session.save()
            return "".join(pieces), token_log(path)[n_before:]

        n_cut, n_bytes = 0, []
        for max_tokens in range(1, 12):
            text, ids = write("", max_tokens)
            n_bytes += [byte_writer.tokenizer.token_lengths[id] for id in ids]
            assert len(ids) == max_tokens and text == decoder.decode(ids)
            n_cut += bool(decoder.state["bytes"])
        assert n_cut > 1 and 1 in n_bytes  # some calls ended within a character

        # A prompt ends an incomplete character, as any text does.
        for _ in range(50):
            if decoder.state["bytes"]:
                break
            decoder.decode(write("", 1)[1])
        assert decoder.state["bytes"]
        text, ids = write("x", 12)
        assert text == StreamDecoder(byte_writer.tokenizer).decode(ids)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 2.0, "top_p": 1.0}])
def test_suppressed_tokens_are_never_generated(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    token_log: TokenLog,
    options: dict[str, Any],
) -> None:
    checkpoint = load_checkpoint(tiny_folder(), device="cpu")
    lengths = checkpoint.tokenizer.token_lengths
    with torch.no_grad():
        checkpoint.model.output_bias[torch.from_numpy(lengths == 0)] += 1000
    with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
        list(session.generate("<s>", max_tokens=12, **options))
    log = token_log(tmp_path / "s.zarr")
    assert len(log) > 12 and all(lengths[log])


def test_the_repetition_penalty_covers_text_that_was_read(tiny: Checkpoint) -> None:
    session = Session(tiny)
    session.feed(["Call me Ishmael. Some years ago"])
    list(session.generate(max_tokens=0))
    read = set(session._live.stream.recent.tolist())
    # Once the likeliest token is recent, it is not generated again.
    likeliest = session.fork()
    list(likeliest.generate(max_tokens=1, temperature=0))
    (id,) = likeliest._live.stream.recent[-1:].tolist()
    session._live.stream = replace(session._live.stream, recent=np.array([*read, id], np.int32))
    list(session.generate(max_tokens=1, temperature=0, repetition_penalty=100.0))
    assert session._live.stream.recent[-1] not in (*read, id)


def test_score_agrees_with_the_model(tiny: Checkpoint, text: str) -> None:
    """Log-probabilities do not depend on how a block is split."""
    ids = tiny.tokenizer.encode(text)
    inputs = np.concatenate([[tiny.tokenizer.bos_id], ids[:-1]]).astype(np.int64)
    wanted, _ = score(
        tiny.model,
        torch.from_numpy(inputs)[None],
        torch.from_numpy(ids.astype(np.int64))[None],
        tiny.model.init_state(1),
    )
    session = Session(tiny)
    report = session.score([text], logprobs=True)
    assert report.ids == ids.tolist()
    assert report.logprobs == pytest.approx(wanted[0].tolist(), abs=1e-4)
