"""Relative attention, one query, one head and one key at a time (Transformer-XL, §3.3).

Everything here is for one stream: a list of slots, oldest first, none of them empty.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoid(distance: int, width: int) -> Tensor:
    """R_δ = [sin(δω); cos(δω)], ω_i = 10000^(-2i/d), rounded to float32 as the model's table is."""
    rates = [10000.0 ** (-2 * i / width) for i in range(width // 2)]
    row = [math.sin(distance * rate) for rate in rates]
    row += [math.cos(distance * rate) for rate in rates]
    return torch.tensor(row, dtype=torch.float64).float().double()


def relative_attention(
    queries: Sequence[Tensor],
    context: Sequence[Tensor],
    *,
    w_q: Tensor,
    w_kv: Tensor,
    w_r: Tensor,
    w_o: Tensor,
    u: Tensor,
    w: Tensor,
) -> tuple[list[Tensor], list[list[list[float]]]]:
    """A_ij = [(q_i + u)·k_j + (q_i + w)·r_{i-j}] / √e, out_i = W_o [softmax(A_i) v].

    Args:
        queries: t vectors, standing on the last t slots of `context`.
        w_q, w_r: [H·e, d]; w_kv: [2·H·e, d], keys above values; w_o: [d, H·e]; u, w: [H, e].

    Returns:
        t vectors, and for each query and head the weight of every slot up to the query.
    """
    n_heads, head_dim = u.shape
    outs, weights = [], []
    for i, x in enumerate(queries):
        at = len(context) - len(queries) + i
        heads, weights_of_heads = [], []
        for h in range(n_heads):
            rows = slice(h * head_dim, (h + 1) * head_dim)
            q = w_q[rows] @ x
            scores, values = [], []
            for j in range(at + 1):
                k = w_kv[: n_heads * head_dim][rows] @ context[j]
                r = w_r[rows] @ sinusoid(at - j, len(x))
                scores.append(((q + u[h]) @ k + (q + w[h]) @ r) / math.sqrt(head_dim))
                values.append(w_kv[n_heads * head_dim :][rows] @ context[j])
            p = softmax(scores)
            heads.append(sum((p_j * v for p_j, v in zip(p, values, strict=True)), 0 * q))
            weights_of_heads.append([p_j.item() for p_j in p])
        outs.append(w_o @ torch.cat(heads))
        weights.append(weights_of_heads)
    return outs, weights


def content_attention(
    query: Tensor, slots: Sequence[Tensor], *, w_q: Tensor, w_kv: Tensor, n_heads: int
) -> Tensor:
    """softmax(q·k / √e) v over all slots: no u, w, positions, mask or W_o; the heads in a row."""
    head_dim = len(w_q) // n_heads
    heads = []
    for h in range(n_heads):
        rows = slice(h * head_dim, (h + 1) * head_dim)
        q = w_q[rows] @ query
        keys = [w_kv[: len(w_q)][rows] @ slot for slot in slots]
        values = [w_kv[len(w_q) :][rows] @ slot for slot in slots]
        p = softmax([q @ k / math.sqrt(head_dim) for k in keys])
        heads.append(sum((p_j * v for p_j, v in zip(p, values, strict=True)), 0 * q))
    return torch.cat(heads)


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    largest = max(score.item() for score in scores)
    powers = [(score - largest).exp() for score in scores]
    total = sum(powers[1:], powers[0])
    return [power / total for power in powers]
