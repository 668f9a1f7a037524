"""Relative attention with gradients on a CPU, one block of scores at a time.

The scores of all rows and heads are the largest tensors of a training step. As whole tensors, each
pass over them (shift, mask, sum, softmax, and their gradients) goes to main memory. Here the block
of a row and a head stays in a core's cache until its output, and later its gradients, are done.

The shift of `relative_shift` is free: scores per distance [t, K+1] and scores per key [t, K] are
two views of the same memory, t entries apart. So are their gradients.

    memory     [ ·  ·  · | a_00 a_01 … a_0,K-1 | a_10 … ]     [t · (K+1)]
    distances: row i begins at i · (K+1);  keys: row i begins at t + i · K
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 2**14  # scores of a block, for each thread; with fewer, calling operations takes longer


def suits(query: Tensor, n_keys: int) -> bool:
    """Whether `blocked_attention` is the fastest for queries [B, H, t, E] with gradients."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.float64)
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and query.shape[2] * n_keys >= LEAST * torch.get_num_threads()
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


def _blocks(tensor: Tensor) -> list[Tensor]:
    """[B, H, n, E] → B·H of [n, E]."""
    return [block for row in tensor.unbind(0) for block in row.unbind(0)]


def _columns(like: Tensor) -> Tensor:
    """An empty [B, H, n, E] in the order [H, E, B, n], that of `project_slots`."""
    b, h, n, e = like.shape
    return like.new_empty(h, e, b, n).permute(2, 0, 3, 1)


def _rows(like: Tensor) -> Tensor:
    """An empty [B, H, n, E] in the order [B, n, H, E], that of queries."""
    b, h, n, e = like.shape
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
        masked = content.new_zeros(b, t * (k + 1))
        masked[:, t:].view(b, t, k).masked_fill_(~mask[:, 0], -torch.inf)
        memory = content.new_empty(t * (k + 1))
        by_distance, by_key = memory.view(t, k + 1), memory[t:].view(t, k)
        out, weights = _rows(content), content.new_empty(b, h, t, k)
        kept = content.new_empty(b, h, t, k, dtype=torch.bool) if dropout else None
        queries = zip(*(_blocks(each) for each in (content, query, key, value)), strict=True)
        results = zip(_blocks(weights), _blocks(out), strict=True)
        for i, ((c, q, k_, v), (block, to)) in enumerate(zip(queries, results, strict=True)):
            memory.copy_(masked[i // h])
            by_distance.addmm_(q, positions[i % h].mT)
            by_key.addmm_(c, k_.mT)
            torch.softmax(by_key, dim=-1, out=block)
            if kept is not None:
                block, kept[i // h, i % h] = torch.native_dropout(block, dropout, True)
            torch.mm(block, v, out=to)
        ctx.save_for_backward(content, query, key, value, positions, weights, kept, out)
        ctx.scale = 1 / (1 - dropout)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        content, query, key, value, positions, weights, kept, out = ctx.saved_tensors
        _, h, t, k = weights.shape
        memory = grad.new_zeros(t * (k + 1))
        by_distance, by_key = memory.view(t, k + 1), memory[t:].view(t, k)
        mean = (grad * out).sum(dim=-1, keepdim=True)  # Σ_j a_j ∂a_j of each query
        of_content, of_query = _rows(content), _rows(query)
        of_key, of_value = _columns(key), _columns(value)
        of_positions = positions.new_zeros(h, positions.shape[2], k + 1)
        given = (content, query, key, value, weights, grad, mean)
        wanted = (of_content, of_query, of_key, of_value)
        each = zip(*(_blocks(tensor) for tensor in (*given, *wanted)), strict=True)
        for i, (c, q, k_, v, block, g, m, of_c, of_q, of_k, of_v) in enumerate(each):
            torch.mm(g, v.mT, out=by_key)
            if kept is None:
                torch.mm(g.mT, block, out=of_v.mT)
            else:
                share = kept[i // h, i % h].to(block.dtype) * ctx.scale
                torch.mm(g.mT, block * share, out=of_v.mT)
                by_key.mul_(share)
            by_key.sub_(m).mul_(block)
            torch.mm(by_key, k_, out=of_c)
            torch.mm(c.mT, by_key, out=of_k.mT)
            torch.mm(by_distance, positions[i % h], out=of_q)
            of_positions[i % h].addmm_(q.mT, by_distance)
        return of_content, of_query, of_key, of_value, of_positions.mT, None, None
