"""advance and score against forward and commit called by hand."""

import numpy as np
import pytest
import torch

from streamlm.config import COMPRESSIONS
from streamlm.models.cache import Cache
from streamlm.runtime.stream import advance, pieces, prefill, score
from streamlm.state import State
from tests.reference.losses import negative_log_likelihood
from tests.support.invariants import assert_same_state, chunkings, random_tokens, read, tiny_model


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 31])
@torch.no_grad()
def test_advance_is_forward_and_commit(compression: str, n: int) -> None:
    model = tiny_model(compression=compression)
    tokens = random_tokens(model, 6 + n, rows=2)
    _, start = read(model, tokens[:, :6], model.init_state(2))
    wanted, end = read(model, tokens[:, 6:], start)
    hidden, state = advance(model, tokens[:, 6:], start)
    assert hidden.shape == (2, 8)
    # The output layer has one row here and many there, which may round differently.
    assert torch.allclose(model.logits(hidden), wanted[:, -1], rtol=0, atol=1e-10)
    assert state.digest() == end.digest()
    assert state.phase == (6 + n) % 4, "full segments are closed"
    # With a cache that follows the stream, whose values are rounded as they were read.
    cache = Cache()
    _, start = read(model, tokens[:, :6], model.init_state(2), sizes=[1] * 6, cache=cache)
    hidden, state = advance(model, tokens[:, 6:], start, cache)
    assert torch.allclose(model.logits(hidden), wanted[:, -1], rtol=0, atol=1e-10)
    assert_same_state(state, end, tolerance=1e-10)
    assert cache.follows(state, model.frozen)


@torch.no_grad()
def test_chunks_change_nothing() -> None:
    model = tiny_model()
    tokens = random_tokens(model, 30)
    wanted, end = advance(model, tokens, model.init_state(1))
    for sizes in chunkings(model, 30):
        state = model.init_state(1)
        for piece in tokens.split(sizes, dim=1):
            hidden, state = advance(model, piece, state)
        assert torch.allclose(hidden, wanted, rtol=0, atol=1e-10)
        assert_same_state(state, end, tolerance=1e-10)


@torch.no_grad()
def test_rows_are_committed_at_their_segment_ends() -> None:
    """Tokens are split at the segment ends of all rows, and each row reads as it does alone."""
    model = tiny_model()
    ages, tokens = (5, 12, 18), random_tokens(model, 23, rows=3)
    alone = [
        advance(model, random_tokens(model, age, seed=age), model.init_state(1))[1] for age in ages
    ]
    start = State.stack(alone)
    assert start.length == (1, 0, 2)
    for rows, sizes in ((range(3), [2, 1, 1, 2, 1, 1, 1]), ([0, 1], [3, 1, 3, 1, 1])):
        cut = pieces(model, tokens[:, :9], start.rows(rows))
        assert [piece.shape[1] for piece in cut] == sizes
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    for cache in (None, Cache()):
        hidden, state = advance(model, tokens, start, cache)
        found, scored = score(model, inputs, targets, start, cache)
        assert state.length == (0, 3, 1) and scored.length == (3, 2, 0)
        for row, state_alone in enumerate(alone):
            here = slice(row, row + 1)
            wanted, end = advance(model, tokens[here], state_alone)
            assert torch.allclose(hidden[here], wanted, rtol=0, atol=1e-10)
            assert_same_state(state.rows(row), end, tolerance=1e-10)
            right, _ = score(model, inputs[here], targets[here], state_alone)
            assert torch.allclose(found[here], right, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_full_segment_is_committed_before_reading() -> None:
    """`Model` leaves it open, and callers may pass such a state."""
    model = tiny_model()
    tokens = random_tokens(model, 10)
    wanted, _ = advance(model, tokens, model.init_state(1))
    _, full = model(tokens[:, :4], model.init_state(1))
    hidden, _ = advance(model, tokens[:, 4:], full)
    assert torch.equal(hidden, wanted)
    found, _ = score(model, tokens[:, 4:-1], tokens[:, 5:], full)
    right, _ = score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(1))
    assert torch.equal(found, right[:, 4:])


@torch.no_grad()
def test_score_is_the_log_probability_of_every_target() -> None:
    """Each target once, also across segment ends, in any chunks."""
    model = tiny_model()
    tokens = random_tokens(model, 27, rows=2)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits, end = read(model, inputs, model.init_state(2))
    wanted = [
        [-float(negative_log_likelihood(logits[row, i], int(targets[row, i]))) for i in range(26)]
        for row in range(2)
    ]
    for sizes in chunkings(model, 26):
        state, found = model.init_state(2), []
        for piece, right in zip(inputs.split(sizes, 1), targets.split(sizes, 1), strict=True):
            nats, state = score(model, piece, right, state)
            assert nats.dtype == torch.float32
            found.append(nats)
        assert np.allclose(torch.cat(found, 1).numpy(), np.array(wanted), rtol=0, atol=1e-5)
        assert_same_state(state, end, tolerance=1e-10)


def test_nothing_to_read_is_refused() -> None:
    model, empty = tiny_model(), torch.zeros(1, 0, dtype=torch.int64)
    for reading in (prefill, advance):
        with pytest.raises(ValueError, match="no tokens to read; allowed: at least one"):
            reading(model, empty, model.init_state(1))
    with pytest.raises(ValueError, match="no tokens to score; allowed: at least one"):
        score(model, empty, empty, model.init_state(1))


def test_targets_of_another_shape_are_refused() -> None:
    model = tiny_model()
    tokens = random_tokens(model, 3)
    with pytest.raises(ValueError, match=r"targets of shape \(1, 1\) for tokens of shape \(1, 3\)"):
        score(model, tokens, tokens[:, :1], model.init_state(1))


def test_reading_keeps_no_graph() -> None:
    model = tiny_model(compression_loss="bptt")
    tokens = random_tokens(model, 14)
    hidden, state = advance(model, tokens, model.init_state(1))
    nats, scored = score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(1))
    tensors = (hidden, state.past, state.segment, nats, scored.past)
    assert not any(tensor.requires_grad for tensor in tensors)
