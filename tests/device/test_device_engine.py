"""Rows of a batch on a pretended CUDA device: the same tokens as on the CPU, one wait a token."""

from pathlib import Path

import pytest

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine.batch import Batch
from streamlm.engine.row import Drawn, Row
from streamlm.models.segmented import SegmentedModel
from streamlm.runtime.row_sampling import Draw, sample_rows
from streamlm.runtime.sampling import Sampling
from streamlm.sessions.session import Session
from tests.device.cases import BOOK, SENTENCE, loaded
from tests.support.pretended_cuda import counting, pretended_cuda

SAMPLING = Sampling(repetition_penalty=1.1)


def rows_of(checkpoint: Checkpoint) -> tuple[Batch, list[Row]]:
    """Two of three rows, in different phases."""
    model = checkpoint.model
    assert isinstance(model, SegmentedModel)
    batch, rows = Batch(model, 3), []
    for text in (BOOK, SENTENCE):
        session = Session(checkpoint, seed=3)
        session.feed(text)
        rows.append(Row(batch, session.live))
    return batch, rows


def step(checkpoint: Checkpoint, batch: Batch, rows: list[Row]) -> None:
    """Write one token in each row."""
    tokens = [0] * batch.rows
    draws: list[Draw | None] = [None] * batch.rows
    for row in rows:
        tokens[row.index] = row.stream.pending
        draws[row.index] = row.draw(SAMPLING)
    hidden = batch.step(tokens)
    drawn = sample_rows(checkpoint.model.logits(hidden), draws)
    for row in rows:
        row.accept(Drawn(drawn[row.index], hidden[row.index : row.index + 1]))


def written(checkpoint: Checkpoint) -> list[list[int]]:
    """The tokens of both rows, over the end of a segment."""
    batch, rows = rows_of(checkpoint)
    for _ in range(checkpoint.model.config.segment_len + 3):
        step(checkpoint, batch, rows)
    for row in rows:
        row.close()
    assert batch.n_free == batch.rows
    return [row.stream.recent.tolist() for row in rows]


@pytest.mark.parametrize("variant", ["relative", "most-used", "llama"])
def test_rows_write_what_they_write_on_a_cpu(tmp_path: Path, variant: str) -> None:
    wanted = written(loaded(tmp_path, variant, "cpu"))
    with pretended_cuda():
        assert written(loaded(tmp_path, variant, "cuda")) == wanted


def test_one_wait_a_token_of_all_rows(tmp_path: Path) -> None:
    with pretended_cuda():
        checkpoint = loaded(tmp_path, "relative", "cuda")
        batch, rows = rows_of(checkpoint)
        step(checkpoint, batch, rows)
        n = checkpoint.model.config.segment_len
        with counting() as seen:
            for _ in range(n):  # each row closes a segment
                step(checkpoint, batch, rows)
        assert seen.n_waits <= n, seen.offenders()
