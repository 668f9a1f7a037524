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
        suppressed: [V] bool, tokens that are never drawn.
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
    rows = [row for row, draw in enumerate(draws) if draw is not None]
    found = [0] * len(draws)
    if not rows:
        return found
    # All rows take part, so that the shapes do not depend on how many draw.
    scores = logits.detach().float().cpu()
    if scores.data_ptr() == logits.data_ptr():
        scores = scores.clone()
    for row in rows:
        _adjust(scores[row], draws[row])
    top, order = scores.topk(min(SHORT_LIST, scores.shape[1]), dim=1)
    heat = [1.0 if draw is None else draw.sampling.temperature or 1.0 for draw in draws]
    cooled = (scores - top[:, :1]) / torch.tensor(heat)[:, None]
    whole = cooled.exp_().sum(dim=1).double().numpy()
    first = top[:, :1].double()
    shares = ((top.double() - first) / torch.tensor(heat, dtype=torch.float64)[:, None]).exp_()
    ranked, ids = shares.numpy() / whole[:, None], order.numpy()
    for row in rows:
        draw = draws[row]
        assert draw is not None
        found[row] = _draw(ranked[row], ids[row], scores[row], draw)
    return found


def _adjust(scores: Tensor, draw: Draw | None) -> None:
    """Apply suppression and the repetition penalty in place."""
    assert draw is not None
    scores.masked_fill_(draw.suppressed, -torch.inf)
    penalty = draw.sampling.repetition_penalty
    if penalty != 1 and len(draw.recent):
        seen = torch.from_numpy(np.unique(draw.recent).astype(np.int64))
        found = scores[seen]
        scores[seen] = torch.where(found > 0, found / penalty, found * penalty)


def _draw(ranked: np.ndarray, ids: np.ndarray, scores: Tensor, draw: Draw) -> int:
    """Draw from the shares of the likeliest tokens, or from all if those are too few."""
    sampling = draw.sampling
    if sampling.temperature == 0:
        return int(ids[0])
    limit = min(int(sampling.top_k) or len(scores), len(scores))
    if limit > len(ranked) and (sampling.top_k or float(ranked.sum()) <= sampling.top_p):
        cooled = ((scores.double() - scores.max()) / sampling.temperature).exp_()
        top, order = (cooled / cooled.sum()).sort(descending=True)
        ranked, ids = top.numpy(), order.numpy()
    shares = ranked[:limit]
    mass = shares.sum() if sampling.top_k else 1.0
    total = shares.cumsum()
    kept = (total - shares < sampling.top_p * mass) & (shares >= sampling.min_p * shares[0])
    kept[0] = True
    shares, tokens = shares[kept], ids[:limit][kept]
    # In the order of ids, as `sample` draws.
    in_order = np.argsort(tokens)
    cumulative = shares[in_order].cumsum()
    drawn = draw.random.random() * cumulative[-1]
    index = int(np.searchsorted(cumulative, drawn, side="right"))
    return int(tokens[in_order][min(index, len(in_order) - 1)])
