"""Sessions on a pretended CUDA device equal those on the CPU, and resume across devices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamlm
from benchmarks.tools.parity import distance
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.memory_report import MemoryReport
from streamlm.sessions.session import Session
from tests.device.cases import BOOK, COARSE, SENTENCE, VARIANTS, loaded
from tests.support.pretended_cuda import pretended_cuda

WITH_SLOTS = ("relative", "most-used", "select", "adaptive")  # these have a memory report


def lived(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a new session reports and generates; closing it saves it."""
    with streamlm.open(path, checkpoint) as session:
        assert session.state.past.device == checkpoint.model.device
        fed = session.feed(BOOK, score=True)
        text = "".join(session.generate("And so", max_tokens=20, seed=7, repetition_penalty=1.1))
        (token,) = session.generate_logprobs(max_tokens=1, top_logprobs=3, seed=8)
        scored = session.score("The whale").bits_per_byte
        fork = session.fork("side")
        fork.feed("Another ending.")
        fork.close()
        assert session.position == int(session.state.position)
        return {
            "fed": fed.bits_per_byte,
            "text": text + token.text,
            "logprob": token.logprob,
            "scored": scored,
            "past": session.state.past.cpu(),
            "tail": session.tail,
        }


def went_on(session: Session) -> str:
    """Rewind, feed and generate; returns the text."""
    session.rewind(to=100)
    session.feed(SENTENCE * 3)
    return "".join(session.generate(max_tokens=12, seed=3, temperature=0))


def assert_same_report(found: MemoryReport, wanted: MemoryReport) -> None:
    for name in ("start", "stop", "compressions"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    for name in ("attention", "error"):
        assert np.allclose(getattr(found, name), getattr(wanted, name), atol=1e-5), name


@pytest.mark.parametrize("variant", [*VARIANTS, *COARSE])
def test_a_session_goes_from_one_device_to_the_other(tmp_path: Path, variant: str) -> None:
    tolerance = 0.01 if variant in COARSE else 1e-5
    checkpoint = loaded(tmp_path, variant, "cpu")
    paths = tmp_path / "here.zarr", tmp_path / "there.zarr"
    wanted = lived(paths[0], checkpoint)
    with streamlm.open(paths[0], checkpoint, readonly=True) as session:
        digest = session.state.digest()
        report = session.memory_report() if variant in WITH_SLOTS else None
    with pretended_cuda():
        moved = loaded(tmp_path, variant, "cuda")
        assert moved.model.device.type == "cuda"
        found = lived(paths[1], moved)
        if variant not in COARSE:
            assert found["text"] == wanted["text"] and found["tail"] == wanted["tail"]
        for name in ("fed", "scored", "logprob"):
            assert found[name] == pytest.approx(wanted[name], rel=tolerance), name
        assert distance(found["past"], wanted["past"]) < tolerance
        with streamlm.open(paths[0], moved) as session:  # saved on the CPU
            assert session.state.past.device.type == "cuda"
            assert session.state.digest() == digest  # bit for bit
            if report is not None:
                assert_same_report(session.memory_report(), report)
            there = went_on(session)
        with streamlm.open(paths[1], moved, readonly=True) as session:
            digest = session.state.digest()
    with streamlm.open(paths[1], checkpoint) as session:  # saved on CUDA
        assert session.state.past.device.type == "cpu"
        assert session.state.digest() == digest
        here = went_on(session)
        assert here == there or variant in COARSE
