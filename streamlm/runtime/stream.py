"""Reading and sampling as pure functions of (model, state): advance, score, sample.

One convention runs through them. The logits for a token come from the token before it, so a stream
keeps its newest token `pending`: it is known, but the model has not read it yet. A new stream has
bos pending. Hence every token is scored exactly once, the first included, whatever the chunks.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.state import State
from streamlm.transfer import send

SHORT_LIST = 512  # tokens ranked before a full sort is tried


@torch.no_grad()
def advance(
    model: Model, tokens: Tensor, state: State, cache: Cache | None = None
) -> tuple[Tensor, State]:
    """Read any number of tokens, closing segments where they end.

    Args:
        tokens: [B, n] ids, n ≥ 1.
        cache: the caller's workspace for this stream; see `Model.hidden`.

    Returns:
        The output layer's input after the last token, [B, D], and the state.
    """
    cache = Cache() if cache is None else cache
    hidden, state = None, close(model, state, cache)
    for piece in pieces(model, tokens, state):
        hidden, state = model.hidden(piece, state, cache)
        state = close(model, state, cache)
    if hidden is None:
        raise ValueError("no tokens to read; allowed: at least one")
    return hidden[:, -1], state


@torch.no_grad()
def score(
    model: Model, tokens: Tensor, targets: Tensor, state: State, cache: Cache | None = None
) -> tuple[Tensor, State]:
    """Read `tokens` and say how likely each of `targets` was.

    Args:
        tokens: [B, n] ids, the first of them the pending one.
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


def pieces(model: Model, tokens: Tensor, state: State) -> list[Tensor]:
    """Cut where any row's segment ends: at absolute multiples of T of the row's position."""
    n, segment_len = tokens.shape[1], model.config.segment_len
    ends = {
        end for phase in set(state.length) for end in range(segment_len - phase, n, segment_len)
    }
    bounds = sorted(ends | {0, n})
    return [tokens[:, start:stop] for start, stop in pairwise(bounds) if stop > start]


def close(model: Model, state: State, cache: Cache | None = None) -> State:
    """Commit the rows whose open segment is full, if there are any."""
    if model.config.segment_len in state.length:
        return model.commit(state, cache)[0]
    return state


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of the attributes.

    Attributes:
        repetition_penalty: divides positive and multiplies negative logits of recent tokens
            (Keskar et al. 2019); 1 is off.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: keep the k likeliest; 0 is off.
        top_p: keep the likeliest tokens that together reach this probability; 1 is off.
        min_p: keep tokens at least this share of the likeliest one's probability; 0 is off.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0

    def __post_init__(self) -> None:
        limits = (
            ("repetition_penalty", 0 < self.repetition_penalty <= 100, "above 0, at most 100"),
            ("temperature", 0 <= self.temperature <= 100, "0 (greedy) to 100"),
            ("top_k", self.top_k >= 0 and self.top_k % 1 == 0, "a whole number, 0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "0 (off) to 1"),
        )
        for name, good, allowed in limits:
            if not good:
                raise ValueError(f"{name} = {getattr(self, name)!r}; allowed: {allowed}")

    def probabilities(self, logits: Tensor, recent: np.ndarray) -> Tensor:
        """The distribution that a token is drawn from: [V] logits → [V] float64 on the CPU."""
        logits = logits.detach().double().cpu()
        if self.repetition_penalty != 1 and len(recent):
            seen = torch.from_numpy(np.unique(recent).astype(np.int64))
            penalty, found = self.repetition_penalty, logits[seen]
            logits = logits.clone()
            logits[seen] = torch.where(found > 0, found / penalty, found * penalty)
        if self.temperature == 0:
            greedy = torch.zeros_like(logits)
            greedy[logits.argmax()] = 1.0
            return greedy
        # Subtracting the maximum first keeps a tiny temperature from overflowing.
        shares = ((logits - logits.max()) / self.temperature).softmax(0)
        limit = min(int(self.top_k) or len(shares), len(shares))
        # The nucleus is nearly always small, and finding a few hundred is far cheaper than sorting.
        ranked, order = shares.topk(min(limit, SHORT_LIST))
        if limit > len(ranked) and (self.top_k or float(ranked.sum()) <= self.top_p):
            ranked, order = shares.topk(limit)
        mass = ranked.sum() if self.top_k else 1.0  # top_p counts within what top_k left
        before = ranked.cumsum(0) - ranked
        kept = (before < self.top_p * mass) & (ranked >= self.min_p * ranked[0])
        kept[0] = True
        result = torch.zeros_like(shares)
        result[order[kept]] = ranked[kept] / ranked[kept].sum()
        return result


def sample(
    logits: Tensor, sampling: Sampling, *, random: np.random.Generator, recent: np.ndarray
) -> int:
    """Draw one token.

    The random number is drawn on the CPU in float64, so the same generator gives the same choice on
    any device that agrees on the logits.

    Args:
        logits: [V]; recent: ids that the repetition penalty looks at.
    """
    return draw(sampling.probabilities(logits, recent), random)


def draw(probabilities: Tensor, random: np.random.Generator) -> int:
    """Draw from a distribution that need not be normalised: [V] float64, on the CPU."""
    cumulative = probabilities.cumsum(0).numpy()
    drawn = random.random() * cumulative[-1]
    index = int(np.searchsorted(cumulative, drawn, side="right"))
    # The last token with any probability, should rounding push the draw past the end.
    return min(index, int(np.searchsorted(cumulative, cumulative[-1], side="left")))
