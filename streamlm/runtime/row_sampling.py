"""Sampling for many rows at once: the ranking is batched, the draw of each row is its own.

A row's token depends on its own logits, settings and generator only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamlm.runtime.sampling import SHORT_LIST, Sampling


@dataclass(frozen=True, eq=False)
class Draw:
    """What one row draws with.

    Attributes:
        sampling: its settings; random: its generator, which is advanced.
        recent: ids that the repetition penalty applies to.
        suppressed: [V] bool, tokens that are never drawn; on the device of the logits.
    """

    sampling: Sampling
    random: np.random.Generator
    recent: np.ndarray
    suppressed: Tensor


@torch.no_grad()
def sample_rows(logits: Tensor, draws: Sequence[Draw | None]) -> list[int]:
    """Draw one token for each row: the distributions are those of `sample`.

    Probabilities are computed in float32 where `sample` uses float64.

    Args:
        logits: [R, V].
        draws: one for each row; None for a row that draws nothing.

    Returns:
        R tokens; 0 for a row that draws nothing.
    """
    drawing = [(row, draw) for row, draw in enumerate(draws) if draw is not None]
    found = [0] * len(draws)
    if not drawing:
        return found
    # All rows take part, so that the shapes do not depend on how many draw.
    scores = logits.detach().float().masked_fill(_suppressed(logits, drawing), -torch.inf).cpu()
    heat = torch.ones(len(draws))
    for row, draw in drawing:
        heat[row] = draw.sampling.temperature or 1.0
        _penalize(scores[row], draw)
    top, order = scores.topk(min(SHORT_LIST, scores.shape[1]), dim=1)
    shares = scores.sub_(top[:, :1]).div_(heat[:, None]).exp_()
    shares /= shares.sum(dim=1, keepdim=True)
    ranked, ids, every = shares.gather(1, order).numpy(), order.numpy(), shares.numpy()
    listed, n_kept = _kept(ranked, shares.shape[1], draws)
    for row, draw in drawing:
        if draw.sampling.temperature == 0:
            found[row] = int(ids[row, 0])
            continue
        # In the order of ids, as `sample` draws.
        tokens = (
            np.sort(ids[row, : n_kept[row]])
            if listed[row]
            else _kept_of_all(every[row], draw.sampling)
        )
        cumulative = every[row][tokens].cumsum(dtype=float)
        drawn = draw.random.random() * cumulative[-1]
        index = int(cumulative.searchsorted(drawn, side="right"))
        found[row] = int(tokens[min(index, len(tokens) - 1)])
    return found


def _suppressed(logits: Tensor, drawing: Sequence[tuple[int, Draw]]) -> Tensor:
    """The tokens that no row draws, [V], or each row, [R, V]."""
    first = drawing[0][1].suppressed
    if all(draw.suppressed is first for _, draw in drawing):
        return first
    suppressed = torch.zeros_like(logits, dtype=torch.bool)
    for row, draw in drawing:
        suppressed[row] = draw.suppressed
    return suppressed


def _penalize(scores: Tensor, draw: Draw) -> None:
    """Apply the repetition penalty in place."""
    penalty = draw.sampling.repetition_penalty
    if penalty != 1 and len(draw.recent):
        seen = torch.from_numpy(np.unique(draw.recent).astype(np.int64))
        found = scores[seen]
        scores[seen] = torch.where(found > 0, found / penalty, found * penalty)


def _kept(
    ranked: np.ndarray, vocab_size: int, draws: Sequence[Draw | None]
) -> tuple[np.ndarray, np.ndarray]:
    """How many of each row's likeliest tokens are kept.

    Args:
        ranked: [R, K], the largest probabilities of each row, in descending order.

    Returns:
        [R] bool, whether all that are kept are among the K; [R], how many are kept then.
    """
    settings = [Sampling() if draw is None else draw.sampling for draw in draws]
    top_k, top_p, min_p = (
        np.array([getattr(each, name) for each in settings])[:, None]
        for name in ("top_k", "top_p", "min_p")
    )
    limit = np.where(top_k > 0, np.minimum(top_k, vocab_size), vocab_size)
    total = ranked.cumsum(axis=1, dtype=float)
    n_listed = np.minimum(limit, ranked.shape[1]).astype(int)
    mass = np.where(top_k > 0, np.take_along_axis(total, n_listed - 1, axis=1), 1.0)
    kept = (np.arange(ranked.shape[1]) < limit) & (total - ranked < top_p * mass)
    kept &= ranked >= min_p * ranked[:, :1]
    listed = (limit <= ranked.shape[1]) | ((top_k == 0) & (total[:, -1:] > top_p))
    return listed[:, 0], np.maximum(kept.sum(axis=1), 1)


def _kept_of_all(shares: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The tokens that are kept of all, ascending: by the smallest share that is kept.

    Args:
        shares: [V] probabilities.
    """
    limit = min(int(sampling.top_k) or len(shares), len(shares))
    best = np.sort(shares)[::-1][:limit]
    total = best.cumsum(dtype=float)
    mass = total[-1] if sampling.top_k else 1.0
    kept = (total - best < sampling.top_p * mass) & (best >= sampling.min_p * best[0])
    return np.flatnonzero(shares >= best[max(1, int(kept.sum())) - 1])
