"""Relative attention with gradients on a CPU, one block of scores at a time.

The scores of all rows and heads are the largest tensors of a training step. As whole tensors, each
pass over them (shift, mask, sum, softmax, and their gradients) goes to main memory. Here a block
of a few heads stays in a core's cache until its output, and later its gradients, are done.

The shift of `relative_shift` is free: scores per distance [t, K+1] and scores per key [t, K] are
two views of the same memory, t entries apart. So are their gradients.

    memory    [ ·  ·  · | a_00 a_01 … a_0,K-1 | a_10 … ]      [t · (K+1)]
    distances row i begins at i · (K+1);  keys: row i begins at t + i · K
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 2**14  # scores of a block; calling a loop's operations takes longer for smaller ones


def suits(query: Tensor, n_keys: int) -> bool:
    """Whether `blocked_attention` is the fastest for queries [B, H, t, E] with gradients."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and query.shape[2] * n_keys >= LEAST
    )


def blocked_attention(
    content: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    positions: Tensor,
    mask: Tensor,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(content kᵀ + relative_shift(query rᵀ)) v: [B, H, t, E].

    Args:
        content, query: [B, H, t, E], queries for keys and for positions, scaled.
        key, value: [B, H, K, E]; positions: [H, K+1, E], r for the distances K, …, 0.
        mask: [B or 1, 1, t, K], True where attention is allowed.
        dropout: of the weights.
    """
    out: Tensor = _BlockedAttention.apply(content, query, key, value, positions, mask, dropout)
    return out


def _blocks(n_rows: int, n_heads: int) -> Iterator[tuple[int, slice]]:
    """A row and some of its heads, as many as there are threads."""
    step = torch.get_num_threads()
    for row in range(n_rows):
        for head in range(0, n_heads, step):
            yield row, slice(head, min(head + step, n_heads))


def _views(memory: Tensor, n: int, t: int) -> tuple[Tensor, Tensor]:
    """Scores of n heads per distance [n, t, K+1] and per key [n, t, K], of one memory."""
    own = memory[:n]
    return own.view(n, t, -1), own[:, t:].view(n, t, -1)


def _rows_first(like: Tensor, n: int) -> Tensor:
    """An empty [B, H, n, E] in the order [B, n, H, E], as products before and after have it."""
    b, h, _, e = like.shape
    return like.new_empty(b, n, h, e).transpose(1, 2)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        content: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        mask: Tensor,
        dropout: float,
    ) -> Tensor:
        (b, h, t, _), k = content.shape, key.shape[2]
        masked = content.new_zeros(mask.shape[0], t * (k + 1))
        masked[:, t:].view(-1, t, k).masked_fill_(~mask[:, 0], -torch.inf)
        memory = content.new_empty(min(torch.get_num_threads(), h), t * (k + 1))
        out, weights = _rows_first(content, t), content.new_empty(b, h, t, k)
        kept = content.new_empty(b, h, t, k, dtype=torch.bool) if dropout else None
        for row, some in _blocks(b, h):
            by_distance, by_key = _views(memory, some.stop - some.start, t)
            memory.copy_(masked[min(row, len(masked) - 1)])
            by_distance.baddbmm_(query[row, some], positions[some].mT)
            by_key.baddbmm_(content[row, some], key[row, some].mT)
            block = torch.softmax(by_key, dim=-1, out=weights[row, some])
            if kept is not None:
                block, kept[row, some] = torch.native_dropout(block, dropout, True)
            out[row, some] = torch.bmm(block, value[row, some])
        ctx.save_for_backward(content, query, key, value, positions, weights, kept, out)
        ctx.scale = 1 / (1 - dropout)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        content, query, key, value, positions, weights, kept, out = ctx.saved_tensors
        b, h, t, k = weights.shape
        memory = grad.new_zeros(min(torch.get_num_threads(), h), t * (k + 1))
        mean = (grad * out).sum(dim=-1, keepdim=True)  # Σ_j a_j ∂a_j of each query
        of_content, of_query = _rows_first(content, t), _rows_first(query, t)
        of_key, of_value = _rows_first(key, k), _rows_first(value, k)
        of_positions = torch.zeros_like(positions)
        for row, some in _blocks(b, h):
            by_distance, by_key = _views(memory, some.stop - some.start, t)
            block, given = weights[row, some], grad[row, some]
            torch.bmm(given, value[row, some].mT, out=by_key)
            if kept is None:
                of_value[row, some] = torch.bmm(block.mT, given)
            else:
                share = kept[row, some] * ctx.scale
                of_value[row, some] = torch.bmm((block * share).mT, given)
                by_key.mul_(share)
            by_key.sub_(mean[row, some]).mul_(block)
            of_content[row, some] = torch.bmm(by_key, key[row, some])
            of_key[row, some] = torch.bmm(by_key.mT, content[row, some])
            of_query[row, some] = torch.bmm(by_distance, positions[some])
            of_positions[some] += torch.bmm(by_distance.mT, query[row, some])
        return of_content, of_query, of_key, of_value, of_positions, None, None
