"""The archive on a pretended CUDA device: the same keys, the same passages, and no waits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import streamlm
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.cache import Cache
from streamlm.models.retrieval import RetrievalHeads
from streamlm.runtime.stream import advance
from streamlm.sessions.archive import Archive
from tests.device.cases import BOOK, SENTENCE, loaded
from tests.support.pretended_cuda import counting, pretended_cuda

HEADS = RetrievalHeads(((0, 1), (1, 0)))
TEXT = f"{BOOK}The parrot Esmeralda knows the number 7319. {BOOK}"
QUESTION = "Which number does the parrot Esmeralda know?"


def with_heads(path: Path, device: str) -> Checkpoint:
    return replace(loaded(path, "llama", device), retrieval=HEADS)


def kept(path: Path, checkpoint: Checkpoint) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The keys that a session saves, and where it finds an answer."""
    with streamlm.open(path, checkpoint) as session:
        session.feed(TEXT)
        ref = session.saved
        assert ref is not None
        store = session._live.require_store("test").store
        pieces = [rows for _, rows in store.log(ref, f"keys-{HEADS.digest}", 0, ref.position)]
        found = session.recall(QUESTION, k=2)
        return np.concatenate(pieces), [(each.start, each.stop) for each in found]


def test_keys_and_passages_are_those_of_the_cpu(tmp_path: Path) -> None:
    wanted, places = kept(tmp_path / "here.zarr", with_heads(tmp_path, "cpu"))
    with pretended_cuda():
        found, there = kept(tmp_path / "there.zarr", with_heads(tmp_path, "cuda"))
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= 1
    assert there == places


def test_keeping_keys_waits_for_nothing(tmp_path: Path) -> None:
    with pretended_cuda():
        checkpoint = with_heads(tmp_path, "cuda")
        archive, model, cache = Archive(checkpoint), checkpoint.model, Cache()
        cache.on_close = archive.close_segment
        t = model.config.segment_len
        ids = torch.randint(model.config.vocab_size, (1, 8 * t)).to("cuda")
        _, state = advance(model, ids, model.init_state(1), cache)
        with counting() as read:
            advance(model, ids[:, : 3 * t], state, cache)
        assert not read.n_waits, read.offenders()
        assert len(archive._closed) >= 10


def test_a_session_finds_on_one_device_what_was_read_on_the_other(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    _, places = kept(path, with_heads(tmp_path, "cpu"))
    with pretended_cuda(), streamlm.open(path, with_heads(tmp_path, "cuda")) as session:
        found = session.recall(QUESTION, k=2)
        assert [(each.start, each.stop) for each in found] == places
        session.feed(SENTENCE)
