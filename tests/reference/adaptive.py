"""Adaptive embedding and softmax, one token at a time (the authors' Transformer-XL for wt103)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.reference.attention import softmax


def _part(weights: Mapping[str, Tensor], kind: str, i: int) -> Tensor | None:
    """Table or projection of bin i; with div 1 all bins have the same one, or no projection."""
    same = weights.get(f"embedding.{kind}.0")
    return same if "embedding.tables.1" not in weights else weights[f"embedding.{kind}.{i}"]


def _bins(cutoffs: Sequence[int], vocab_size: int) -> list[list[int]]:
    """The ids of every bin."""
    ends = [0, *cutoffs, vocab_size]
    return [list(range(ends[i], ends[i + 1])) for i in range(len(ends) - 1)]


def embed(
    token: int, weights: Mapping[str, Tensor], *, cutoffs: Sequence[int], vocab_size: int
) -> Tensor:
    """P_i E_i[token]."""
    for i, ids in enumerate(_bins(cutoffs, vocab_size)):
        if token in ids:
            row = _row(weights, token, i, ids)
            projection = _part(weights, "projections", i)
            return row if projection is None else projection @ row
    raise AssertionError(token)


def log_probs(
    h: Tensor, weights: Mapping[str, Tensor], *, cutoffs: Sequence[int], vocab_size: int
) -> Tensor:
    """Of every token, by its probability in the head or head times tail."""
    bias = weights["output_bias"]
    first, *rest = _bins(cutoffs, vocab_size)
    p_0 = weights.get("embedding.head_projection")
    projected = h if p_0 is None else p_0.T @ h
    scores = [_row(weights, token, 0, first) @ projected + bias[token] for token in first]
    for i in range(len(rest)):
        scores.append(
            weights["embedding.cluster_weight"][i] @ projected
            + weights["embedding.cluster_bias"][i]
        )
    head = softmax(scores)
    found = head[: len(first)]
    for i, ids in enumerate(rest, start=1):
        projection = _part(weights, "projections", i)
        projected = h if projection is None else projection.T @ h
        tail = softmax([_row(weights, token, i, ids) @ projected + bias[token] for token in ids])
        found += [head[len(first) + i - 1] * p for p in tail]
    return torch.stack(found).log()


def _row(weights: Mapping[str, Tensor], token: int, i: int, ids: list[int]) -> Tensor:
    table = _part(weights, "tables", i)
    assert table is not None
    return table[token if "embedding.tables.1" not in weights else token - ids[0]]
