"""Recall: the archive of keys holds every token that was read, and what was said is found again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import streamlm
from memory_store import MemoryStore, NotFound, Ref, Retention
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.memory.recall import KeySearch
from streamlm.models.cache import Cache
from streamlm.models.llama import LlamaModel
from streamlm.models.retrieval import RetrievalHeads, pack_keys, segment_keys
from streamlm.sessions.archive import Archive
from streamlm.sessions.recall import passage_around, quoted, recall
from streamlm.sessions.session import Session
from tokenizer import Tokenizer

HEADS = RetrievalHeads(((0, 1), (1, 2)))
SECRET = "The parrot Esmeralda knows the number 7319."


@pytest.fixture
def llama(tiny_folder: Callable[..., Path]) -> Checkpoint:
    """In float32, and nothing is chosen: in any calls, keys are nearly the same."""
    folder = tiny_folder(head="llama", n_heads=4, slots="float32", compression="mean")
    checkpoint = load_checkpoint(folder, device="cpu", settings={"precision": "float32"})
    return replace(checkpoint, retrieval=HEADS)


def rows(session: Session) -> np.ndarray:
    """The keys that a session has saved, all of them."""
    bound = session._live.require_store("test")
    ref = session.save() if not session.readonly else session.saved
    assert ref is not None
    assert bound.store.log_spans(ref, f"keys-{HEADS.digest}") == [(0, ref.position)]
    return read(bound.store, ref)


def read(store: MemoryStore, ref: Ref) -> np.ndarray:
    pieces = list(store.log(ref, f"keys-{HEADS.digest}", 0, ref.position))
    return np.concatenate([piece for _, piece in pieces])


def plain(checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """The same keys, of a reading segment by segment."""
    model = checkpoint.model
    assert isinstance(model, LlamaModel)
    inputs = torch.tensor([[checkpoint.tokenizer.bos_id, *ids[:-1].tolist()]])
    state, cache, found = model.init_state(1), Cache(), []
    with torch.no_grad():
        for part in inputs.split(model.config.segment_len, dim=1):
            _, state = model.hidden(part, state, cache)
            found.append(pack_keys(segment_keys(model, state, HEADS)))
            if state.phase == model.config.segment_len:
                state, _ = model.commit(state, cache)
    return np.concatenate(found)


def test_every_token_has_its_keys(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama, save_every=40) as session:
        session.feed(prose(120))
        list(session.generate("Then", max_tokens=9, seed=1))
        session.save()
        with streamlm.open(tmp_path / "s.zarr", llama, branch="main", readonly=True) as other:
            assert np.array_equal(rows(other), rows(session))
        session.feed(prose(50), "And then some more. ")
        ids = session._live.require_store("test").tokens(0, session.position)
        found = rows(session)
    wanted = plain(llama, ids)
    size = llama.model.config.head_dim
    # Single tokens round otherwise than segments; an exponent may be the next one.
    assert found.shape == wanted.shape == (len(ids), 2 * (size + 1))
    near = np.abs(found.astype(int) - wanted)[:, : 2 * size] <= 2
    same = (found == wanted)[:, 2 * size :].all(axis=1)
    assert near[same].all() and same.mean() > 0.95


def test_keys_do_not_depend_on_pieces_or_saves(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    text, found = prose(150), []
    for at, (size, every) in enumerate([(10_000, 1 << 14), (700, 64), (700, 31)]):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        with streamlm.open(tmp_path / f"{at}.zarr", llama, save_every=every) as session:
            session.feed(iter(pieces))
            found.append(rows(session))
    assert all(np.array_equal(each, found[0]) for each in found)


def test_keys_after_resuming_forking_and_rewinding(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    one, two, three = prose(90), "Upon the sea. " * 30, "In the garden. " * 40
    with streamlm.open(tmp_path / "whole.zarr", llama, save_every=50) as session:
        session.feed(one)
        list(session.generate(max_tokens=0))  # reads the last word, which is held back
        middle = session.position
        session.feed(two)
        wanted = rows(session)
    with streamlm.open(tmp_path / "s.zarr", llama, save_every=50) as session:
        session.feed(one)
        list(session.generate(max_tokens=0))
    with streamlm.open(tmp_path / "s.zarr", llama, save_every=50) as session:
        session.feed(three)
        session.rewind(to=middle)
        with session.fork("other") as fork:
            fork.feed(three)
            assert not np.array_equal(rows(fork)[: len(wanted)], wanted[: len(rows(fork))])
        session.feed(two)
        found = rows(session)
        assert found.shape == wanted.shape
        assert (np.abs(found.astype(int) - wanted) <= 2).mean() > 0.99  # replayed in other calls


def test_keys_that_are_not_saved_are_searched_as_those_that_are(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(prose(60))
        list(session.generate(max_tokens=40, seed=1))  # not saved yet
        live = session._live
        archive, bound, saved = live.archive, live.require_store("test"), session.saved
        assert archive is not None and saved is not None and saved.position < session.position
        state, stop = live.stream.state, session.position
        before = list(archive.read(bound.store, saved, state, 0, stop))
        ref = session.save()
        after = list(archive.read(bound.store, ref, live.stream.state, 0, stop))
        assert torch.equal(
            torch.cat([keys for _, keys in before]), torch.cat([keys for _, keys in after])
        )


def test_what_left_memory_is_recalled(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    """Rare words find it, whatever the random heads attend to."""
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(f"{prose(60)}\n\n{SECRET}\n\n{prose(200)}")
        found = session.recall("What number does the parrot Esmeralda know?", k=3)
        best = found[0]
        assert SECRET in best.text and best.sure and 0 < best.score <= 1
        assert best.text in session.text(best.start - 1, best.stop + 1)
        assert best.saved is not None
        assert [each.score for each in found] == sorted((e.score for e in found), reverse=True)
        spans = sorted((each.start, each.stop) for each in found)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("heads", [None, HEADS], ids=["rare words", "heads"])
def test_recalled_passages_come_before_the_prompt(
    heads: RetrievalHeads | None, llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    llama = replace(llama, retrieval=heads)
    question = "What number does the parrot Esmeralda know?"
    texts = []
    for name in ("a", "b"):
        with streamlm.open(tmp_path / f"{name}.zarr", llama, seed=3) as session:
            session.feed(f"{prose(60)}\n\n{SECRET}\n\n{prose(200)}")
            start, (wanted,) = session.position, session.recall(question)
            list(session.generate(question, max_tokens=5, recall=1))
            # The last word, which was held back, is read first: it may move the passage.
            [(first, last, _)] = session.recalled
            assert first < wanted.stop and wanted.start < last
            added, passage = session.text(start), session.text(first, last).strip()
            assert SECRET in passage and added.lstrip().startswith(quoted([passage], question))
            texts.append(added)
            spans = session.recalled
        with streamlm.open(tmp_path / f"{name}.zarr", llama) as session:
            assert session.recalled == spans
            list(session.generate("And?", max_tokens=1))
            assert session.recalled == ()
    assert texts[0] == texts[1]


def test_without_recall_nothing_changes(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    digests = []
    for name, options in (("with", {}), ("without", {"archive": False})):
        with streamlm.open(tmp_path / f"{name}.zarr", llama, seed=3, **options) as session:
            session.feed(prose(120))
            text = "".join(session.generate("Then", max_tokens=20))
            session.save()
            digests.append((text, session.state.digest()))
    assert digests[0] == digests[1]


def test_a_prompt_that_matches_nothing_stays_as_it_is(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(prose(150))
        start = session.position
        list(session.generate("Quxly vrotz!", max_tokens=1, recall=2))
        assert session.recalled == ()
        assert session.text(start).lstrip().startswith("Quxly vrotz!")


@pytest.mark.parametrize("heads", [None, HEADS], ids=["rare words", "heads"])
def test_a_passage_without_the_names_and_numbers_of_a_text_is_not_sure(
    heads: RetrievalHeads | None, llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    llama = replace(llama, retrieval=heads)
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        session.feed(f"{prose(60)}\n\n{SECRET}\n\n{prose(90)}\n\nGate 471 is shut.\n\n{prose(200)}")
        for text, answer in (
            ("Which number does the parrot Esmeralda know?", SECRET),
            ("Esmeralda is the parrot with the number 7319?", SECRET),
            ("Is gate 471 shut?", "Gate 471 is shut."),
        ):
            (found,) = session.recall(text)
            assert found.sure and answer in found.text
        both = session.recall("What of the parrot Esmeralda, and of gate 471?", k=2)
        assert [each.sure for each in both] == [True, True]
        for text in (
            "Which number does the parrot Ferdinand know?",
            "Which parrot knows the number 7310?",
            "Is gate 470 shut?",
            "Is gate 47 shut?",
        ):
            assert not any(each.sure for each in session.recall(text, k=3))
            start = session.position
            list(session.generate(text, max_tokens=0, recall=2))
            assert session.recalled == () and session.text(start).strip() == text


def test_recall_refuses_what_it_cannot_do(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot recall: this session has no store"):
        Session(llama).recall("Who?")
    with streamlm.open(tmp_path / "s.zarr", llama) as session:
        assert session.recall("Who is there?") == []  # nothing has left memory
        session.feed(prose(20))
        with pytest.raises(ValueError, match="k = 0; allowed: at least 1"):
            session.recall("Who?", k=0)
        with pytest.raises(ValueError, match="nothing to recall; allowed: a text"):
            session.recall("  ")
        with pytest.raises(ValueError, match="recall = -1; allowed: 0 or more"):
            session.generate("Who?", recall=-1)
        with pytest.raises(ValueError, match="recall without a prompt"):
            session.generate(recall=1)


def test_tokens_that_were_deleted_cannot_be_searched(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(
        tmp_path / "s.zarr", llama, save_every=40, retention=Retention(last=1, log=False)
    ) as session:
        session.feed(prose(300))
        store = session._live.require_store("test").store
        store.gc(Retention(last=1, log=False), grace=0)
        with pytest.raises(NotFound, match="token ids"):
            session.recall("Who was it?")


def test_a_sentence_beside_others_like_it_is_found(
    books_tokenizer: Tokenizer, prose: Callable[..., str]
) -> None:
    """Two gates before it move the middle of the words, and nine elsewhere attract more."""
    others = [f"The pass key for gate 2{n}0 is 4058{n}." for n in range(9)]
    wanted = "The pass key for gate 560 is 87719."
    beside = [f"The pass key for gate {n} is {n}70. Remember it." for n in (181, 333)]
    parts = [part for other in others for part in (other, prose(100))]
    parts += ["\n\n".join([*beside, wanted]), prose(300)]
    ids = [books_tokenizer.encode(f"{part}\n\n") for part in parts]
    stream, ends = np.concatenate(ids), np.cumsum([len(each) for each in ids])
    keys = torch.full((len(stream) + 1, 1, 1), -3.0)  # key i is that of token i - 1
    keys[ends[:-2:2] - 3], keys[ends[-2] - 3] = 6.0, 4.5  # near the ends of the sentences

    def read(start: int, stop: int) -> Iterator[tuple[int, torch.Tensor]]:
        yield start, keys[start:stop]

    def ask(stop: int) -> KeySearch:
        return KeySearch(torch.ones(1, 1, 1), [0], read, start=1, stop=stop)

    question = "What is the pass key for gate 560?"
    (found,) = recall(question, books_tokenizer, lambda a, b: stream[a:b], len(stream), ask=ask)
    assert wanted in found.text


def test_a_passage_grows_to_sentences_that_end_near(llama: Checkpoint) -> None:
    tokenizer = llama.tokenizer
    text = "It was late. " * 12 + "The old house stood upon a hill by the sea. " + "He left. " * 20
    ids = tokenizer.encode(text)
    middle = len(tokenizer.encode("It was late. " * 12)) + 4
    start, stop, passage = passage_around(lambda a, b: ids[a:b], middle, len(ids), tokenizer)
    assert start < middle < stop and passage in text
    assert passage.startswith("It was") and passage.endswith(".")


def test_an_archive_keeps_nothing_that_is_saved(
    llama: Checkpoint, prose: Callable[..., str], tmp_path: Path
) -> None:
    with streamlm.open(tmp_path / "s.zarr", llama, save_every=64) as session:
        session.feed(prose(400))
        archive = session._live.archive
        assert isinstance(archive, Archive) and len(archive._closed) <= 2
