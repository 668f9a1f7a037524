"""Evaluation: sums over documents, for any number of parallel rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from streamlm.models.transformer_xl import TransformerXL
from streamlm.training.data import Corpus
from streamlm.training.evaluate import EvalReport, evaluate
from tests.support.invariants import tiny_model

BOS = 0
TOKEN_LENGTHS = np.arange(11, dtype=np.int32) % 4  # some ids stand for no byte at all
LENGTHS = [17, 1, 4, 30, 8, 5]  # T = 4: with rests and without, and far beyond the memory


@pytest.fixture(scope="module")
def model() -> TransformerXL:
    return tiny_model()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    random = np.random.default_rng(1)
    tokens = random.integers(1, 11, sum(LENGTHS)).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Corpus(tokens, offsets, int(TOKEN_LENGTHS[tokens].sum()), 40)


def run(model: TransformerXL, corpus: Corpus, **options: object) -> EvalReport:
    return evaluate(
        model,
        corpus,
        bos=BOS,
        token_lengths=TOKEN_LENGTHS,
        **options,  # type: ignore[arg-type]
    )


@torch.no_grad()
def losses_of(model: TransformerXL, document: np.ndarray, *, memory: bool) -> list[float]:
    """Nats of every token of one document, read alone in a plain loop."""
    found = []
    state = model.init_state(1)
    inputs = [BOS, *document[:-1].tolist()]
    for token, target in zip(inputs, document.tolist(), strict=True):
        logits, state = model(torch.tensor([[token]]), state)
        found.append(-float(logits[0, 0].log_softmax(0)[target]))
        if state.phase == model.config.segment_len:
            state = model.commit(state)[0] if memory else model.init_state(1)
    return found


def assert_same(a: EvalReport, b: EvalReport) -> None:
    """Equal up to rounding of the sums."""
    for name in ("tokens", "n_bytes", "words", "position_tokens"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.nats == pytest.approx(b.nats, rel=1e-6)
    assert a.position_nats == pytest.approx(b.position_nats, rel=1e-6)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_sums_are_those_of_a_plain_loop(
    model: TransformerXL, corpus: Corpus, memory: bool, batch_size: int
) -> None:
    report = run(model, corpus, memory=memory, batch_size=batch_size, token_losses=True)
    documents = [corpus.document(index) for index in range(len(corpus))]
    losses = [losses_of(model, document, memory=memory) for document in documents]
    nats, counts = np.zeros(5), np.zeros(5, int)
    for place, loss in (pair for found in losses for pair in enumerate(found)):
        index = 0 if place < 2 else place.bit_length() - 1
        nats[index] += loss
        counts[index] += 1
    wanted = EvalReport(
        nats=nats.sum(),
        tokens=sum(LENGTHS),
        n_bytes=corpus.n_bytes,
        words=40,
        position_nats=nats.tolist(),
        position_tokens=counts.tolist(),
    )
    assert_same(report, wanted)
    assert report.losses is not None
    for index, document in enumerate(documents):
        sums = report.documents[index]
        assert report.losses[index].tolist() == pytest.approx(losses[index], rel=1e-5)
        assert sums.nats == pytest.approx(sum(losses[index]), rel=1e-6)
        assert (sums.tokens, sums.n_bytes) == (len(document), TOKEN_LENGTHS[document].sum())


def test_memory_affects_the_loss(model: TransformerXL, corpus: Corpus) -> None:
    with_memory, without = run(model, corpus), run(model, corpus, memory=False)
    assert not math.isclose(with_memory.nats, without.nats, rel_tol=1e-3)
    # Only the first segment of every document is unaffected by the memory.
    assert with_memory.position_nats[:2] == pytest.approx(without.position_nats[:2], rel=1e-6)
    assert with_memory.position_nats[2] != pytest.approx(without.position_nats[2], rel=1e-4)


def test_the_report_derives_its_rates_from_sums() -> None:
    report = EvalReport(
        nats=40 * math.log(2),
        tokens=6,
        n_bytes=20,
        words=4,
        position_nats=[3.0, 0.0, 5.0],
        position_tokens=[2, 0, 4],
    )
    assert report.bits_per_byte == pytest.approx(2)
    assert report.word_perplexity == pytest.approx(2**10)
    assert report.loss_by_position == [(1, 1.5, 2), (4, 1.25, 4)]  # no bin without tokens
    assert replace(report, nats=1e9).word_perplexity > 1e300  # not an overflow


def test_a_part_is_read_until_max_tokens(model: TransformerXL, corpus: Corpus) -> None:
    seen: list[int] = []
    report = run(model, corpus, batch_size=2, max_tokens=10, progress=seen.append)
    assert report.tokens == sum(seen) and sum(seen[:-1]) < 10 <= sum(seen)
    # Words are estimated from the share of bytes read.
    assert report.words == round(corpus.n_words * report.n_bytes / corpus.n_bytes)
    assert 0 < report.words < corpus.n_words
    assert [sums.tokens for sums in report.documents] == [8, 1, 4, 0, 0, 0]
    whole = run(model, corpus, batch_size=2, max_tokens=10**9)
    assert_same(whole, run(model, corpus, batch_size=2))


def test_the_model_keeps_its_mode(model: TransformerXL, corpus: Corpus) -> None:
    model.train()
    try:
        in_training = run(model, corpus)
        assert model.training
    finally:
        model.eval()
    assert in_training == run(model, corpus) and not model.training
    assert all(weight.grad is None for weight in model.parameters())
