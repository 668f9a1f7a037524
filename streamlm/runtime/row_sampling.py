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
    suppressed = torch.zeros_like(logits, dtype=torch.bool)
    heat = torch.ones(len(draws))
    for row, draw in drawing:
        suppressed[row] = draw.suppressed
        heat[row] = draw.sampling.temperature or 1.0
    scores = logits.detach().float().masked_fill(suppressed, -torch.inf).cpu()
    for row, draw in drawing:
        _penalize(scores[row], draw)
    top, order = scores.topk(min(SHORT_LIST, scores.shape[1]), dim=1)
    shares = ((scores - top[:, :1]) / heat[:, None]).exp_()
    shares /= shares.sum(dim=1, keepdim=True)
    ranked, ids, every = shares.gather(1, order).numpy(), order.numpy(), shares.numpy()
    for row, draw in drawing:
        found[row] = _draw(every[row], ranked[row], ids[row], draw)
    return found


def _penalize(scores: Tensor, draw: Draw) -> None:
    """Apply the repetition penalty in place."""
    penalty = draw.sampling.repetition_penalty
    if penalty != 1 and len(draw.recent):
        seen = torch.from_numpy(np.unique(draw.recent).astype(np.int64))
        found = scores[seen]
        scores[seen] = torch.where(found > 0, found / penalty, found * penalty)


def _draw(shares: np.ndarray, ranked: np.ndarray, ids: np.ndarray, draw: Draw) -> int:
    """Draw a token.

    Args:
        shares: [V] probabilities; ranked: the largest of them, ids: whose they are.
    """
    sampling = draw.sampling
    if sampling.temperature == 0:
        return int(ids[0])
    limit = min(int(sampling.top_k) or len(shares), len(shares))
    listed = limit <= len(ranked) or not (sampling.top_k or float(ranked.sum()) <= sampling.top_p)
    # Tokens are found in the short list, or else by the smallest share that is kept.
    best = ranked[:limit] if listed else np.sort(shares)[::-1][:limit]
    mass = best.sum(dtype=float) if sampling.top_k else 1.0
    total = best.cumsum(dtype=float)
    n_kept = max(1, int(np.searchsorted(total - best, sampling.top_p * mass, side="left")))
    if sampling.min_p:
        n_kept = max(1, min(n_kept, int((best >= sampling.min_p * best[0]).sum())))
    tokens = np.sort(ids[:n_kept]) if listed else np.flatnonzero(shares >= best[n_kept - 1])
    # In the order of ids, as `sample` draws.
    cumulative = shares[tokens].cumsum(dtype=float)
    drawn = draw.random.random() * cumulative[-1]
    index = int(np.searchsorted(cumulative, drawn, side="right"))
    return int(tokens[min(index, len(tokens) - 1)])
