"""Reading and scoring as pure functions of (model, state): prefill, advance, score.

The logits for a token come from the token before it, so a stream keeps its newest token pending:
the token is known, but the model has not read it. A new stream has bos pending. Every token,
including the first, is therefore scored exactly once, however the text is split into chunks.
"""

from itertools import pairwise

import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.state import State
from streamlm.transfer import send


@torch.no_grad()
def prefill(model: Model, tokens: Tensor, state: State, cache: Cache | None = None) -> State:
    """Read any number of tokens, and commit each segment at its end.

    Args:
        tokens: [B, n] ids, n ≥ 1.
        cache: the caller's workspace for this stream; see `Model.hidden`.
    """
    _check(tokens)
    cache = Cache() if cache is None else cache
    state = close(model, state, cache)
    for piece in pieces(model, tokens, state):
        state = close(model, model.prefill(piece, state, cache), cache)
    return state


@torch.no_grad()
def advance(
    model: Model, tokens: Tensor, state: State, cache: Cache | None = None
) -> tuple[Tensor, State]:
    """As `prefill`, with what the next token is predicted from.

    Args:
        tokens: [B, n] ids, n ≥ 1.
        cache: the caller's workspace for this stream; see `Model.hidden`.

    Returns:
        The output layer's input after the last token, [B, D], and the state.
    """
    _check(tokens)
    cache = Cache() if cache is None else cache
    state = close(model, state, cache)
    *before, last = pieces(model, tokens, state)
    for piece in before:
        state = close(model, model.prefill(piece, state, cache), cache)
    hidden, state = model.hidden(last, state, cache)
    return hidden[:, -1], close(model, state, cache)


@torch.no_grad()
def score(
    model: Model, tokens: Tensor, targets: Tensor, state: State, cache: Cache | None = None
) -> tuple[Tensor, State]:
    """Read `tokens` and compute the log-probability of each of `targets`.

    Args:
        tokens: [B, n] ids; the first is the pending token.
        targets: [B, n] the ids that follow, on the device or the host; see `Model.log_prob`.
        cache: the caller's workspace for this stream; see `Model.hidden`.

    Returns:
        Log-probabilities in nats, [B, n] float32, and the state.
    """
    if tokens.shape != targets.shape:
        given = f"{tuple(targets.shape)} for tokens of shape {tuple(tokens.shape)}"
        raise ValueError(f"targets of shape {given}; allowed: the same shape")
    if not model.config.cutoffs:
        targets = send(targets, tokens.device)
    cache = Cache() if cache is None else cache
    found, state = [], close(model, state, cache)
    for piece, wanted in zip(
        pieces(model, tokens, state), pieces(model, targets, state), strict=True
    ):
        hidden, state = model.hidden(piece, state, cache)
        state = close(model, state, cache)
        found.append(model.log_prob(hidden, wanted))
    if not found:
        raise ValueError("no tokens to score; allowed: at least one")
    return torch.cat(found, dim=1), state


def _check(tokens: Tensor) -> None:
    if not tokens.shape[1]:
        raise ValueError("no tokens to read; allowed: at least one")


def pieces(model: Model, tokens: Tensor, state: State) -> list[Tensor]:
    """Split tokens wherever a row's segment ends: at multiples of T of the row's position."""
    n, segment_len = tokens.shape[1], model.config.segment_len
    ends = {
        end for phase in set(state.length) for end in range(segment_len - phase, n, segment_len)
    }
    bounds = sorted(ends | {0, n})
    return [tokens[:, start:stop] for start, stop in pairwise(bounds) if stop > start]


def close(model: Model, state: State, cache: Cache | None = None) -> State:
    """Commit the rows whose open segment is full, if any."""
    if model.config.segment_len in state.length:
        if cache is not None and cache.on_close is not None:
            cache.on_close(state)
        state, eviction = model.commit(state, cache)
        if cache is not None and cache.on_commit is not None:
            cache.on_commit(state, eviction)
    return state
