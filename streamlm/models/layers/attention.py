"""Relative attention over [compressed | memory | segment] (Transformer-XL, §3.3 and appendix B).

    A_ij = [(q_i + u)·k_j + (q_i + w)·r_{i-j}] / √E,    out = softmax(A) v

u and w are called u and v in the paper. Key columns are slots in time order, so the distance
between two slots is the difference of their columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.layers.blocked_attention import blocked_attention, suits
from streamlm.models.layers.products import infers_on_cpu


def relative_shift(scores: Tensor) -> Tensor:
    """Convert scores per distance to scores per key: [..., T, K+1] → [..., T, K].

    Input column m is the score at distance K - m. Output (i, j) is the score of query i and key j;
    the last query has the column of the last key. Entries with j > i + K - T (the future) are
    undefined and must be masked.
    """
    t, k = scores.shape[-2], scores.shape[-1] - 1
    lead = scores.shape[:-2]
    # Viewed as K+1 rows of T, each row shifts left by one more; the first T entries are dropped.
    return scores.reshape(*lead, k + 1, t)[..., 1:, :].reshape(*lead, t, k)


def by_head(query: Tensor, keys: Tensor) -> Tensor:
    """Scores of keys shared by all rows: [B, H, t, E] and [H, K, E] → [B, H, t, K].

    `query @ keys.mT` would copy the keys for every row.
    """
    b, _, t, _ = query.shape
    if b == 1:
        return torch.bmm(query[0], keys.mT)[None]
    scores = torch.bmm(query.transpose(0, 1).flatten(1, 2), keys.mT)  # [H, B·t, K]
    return scores.unflatten(1, (b, t)).transpose(0, 1)


def attention_mask(
    filled: Tensor, past_len: int, length: int, n_queries: int, *, n_keys: int | None = None
) -> Tensor:
    """Causal mask, True where attention is allowed: [B, 1, t, K].

    Args:
        filled: [B] occupied slots of the past, to the right of the empty ones.
        past_len: P; length: tokens of the open segment before the first query.
        n_queries: t.
        n_keys: K; default P + length + t. Further columns are masked.
    """
    stop = past_len + length + n_queries
    key = torch.arange(stop if n_keys is None else n_keys, device=filled.device)
    query = torch.arange(past_len + length, stop, device=filled.device)
    causal = key[None, :] <= query[:, None]  # [t, K]
    real = key[None, :] >= past_len - filled[:, None]  # [B, K]
    return (causal[None] & real[:, None])[:, None]


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    dropout: float = 0.0,
    want_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ + bias) v, and the weights [B, H, t, K] or None.

    Args:
        query: [B, H, t, E], scaled; key, value: [B, H, K, E].
        bias: [B, H, t, K], -inf where masked.
        want_weights: return the weights; disables the fused kernel.
    """
    if want_weights:
        weights = (query @ key.mT + bias).softmax(dim=-1)
        return F.dropout(weights, dropout) @ value, weights
    heads = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0
    )
    return heads, None


def attention_in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor,
    mask: Tensor,
    *,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ + scores) v, and the weights [B, H, t, K], which overwrite the scores.

    For inference on a CPU. There, the fused kernel takes longer than plain products, and every copy
    of the scores costs a third of a product.

    Args:
        query: [B, H, t, E], scaled; key, value: [B, H, K, E].
        scores: [B, H, t, K], to be added; the rows of each head are contiguous.
        mask: see `RelativeAttention.attend`.
    """
    if len(query) == 1:
        scores[0].baddbmm_(query[0], key[0].mT)
    else:
        scores += query @ key.mT
    masked = scores[..., scores.shape[3] - mask.shape[3] :]
    if mask.dtype == torch.bool:
        masked.masked_fill_(~mask, -torch.inf)
    else:
        masked += mask
    for row in [scores] if scores.is_contiguous() else scores.unbind():
        for part in [row] if row.is_contiguous() else row.unbind():
            torch.softmax(part, dim=-1, out=part)
    weights = F.dropout(scores, dropout) if dropout else scores
    return weights @ value, weights


class ProjectingAttention(nn.Module):
    """Base of attention modules: queries, keys and values of H heads, without biases."""

    n_heads: int
    head_dim: int
    query: nn.Linear
    key_value: nn.Linear

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots: [B, n, W] → two [B, H, n, E]."""
        both = self.key_value(slots).unflatten(2, (2, self.n_heads, self.head_dim))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # [B, n, 2, H, E] → [2, B, H, n, E]
        return key, value

    def queries(self, x: Tensor) -> Tensor:
        """[B, t, D] → [B, H, t, E], divided by √E, so that all terms of the scores are scaled."""
        query: Tensor = self.query(x).unflatten(2, (self.n_heads, self.head_dim)).transpose(1, 2)
        return query * self.head_dim**-0.5


class RelativeAttention(ProjectingAttention):
    """Multi-head attention with relative positions; no biases on q, k, v and o.

    `project` and `attend` are separate, so that keys and values can be cached while the weights are
    frozen.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = head_dim
        self.dropout = dropout
        inner = n_heads * head_dim
        self.query = nn.Linear(d_model, inner, bias=False)
        self.key_value = nn.Linear(d_model, 2 * inner, bias=False)
        self.position = nn.Linear(d_model, inner, bias=False)
        self.output = nn.Linear(inner, d_model, bias=False)

    def project_positions(self, table: Tensor) -> Tensor:
        """W_R R: [n, D] → [H, n, E]."""
        projected: Tensor = self.position(table)
        return projected.unflatten(1, (self.n_heads, self.head_dim)).transpose(0, 1)

    def position_scores(
        self, query: Tensor, w: Tensor, positions: Tensor, column: Tensor | None = None
    ) -> Tensor:
        """(q_i + w)·r for each query and key.

        Args:
            query: [B, H, t, E], divided by √E; w: [H, E].
            positions: [H, K+1, E], for distances K, …, 0; with `column`, for any distances.
            column: [B, 1, t, K] index into `positions` for each query and key.

        Returns:
            [B, H, t, K].
        """
        query = query + self._scaled(w)
        if column is not None:
            scores = by_head(query, positions)
            return scores.gather(3, column.expand(*scores.shape[:3], -1))
        if query.shape[2] == 1:  # one query: distances are already in key order
            return by_head(query, positions[:, 1:])
        return relative_shift(by_head(query, positions))

    def _scaled(self, bias: Tensor) -> Tensor:
        return bias[:, None] * self.head_dim**-0.5  # [H, E] → [H, 1, E]

    def attend(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        positions: Tensor,
        biases: tuple[Tensor, Tensor],
        mask: Tensor,
        column: Tensor | None = None,
        want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer of attention.

        Args:
            x: [B, t, D] inputs of the queries; without `column`, they have the last t key columns.
            key, value: [B, H, K, E].
            positions, column: see `position_scores`.
            biases: u and w, each [H, E].
            mask: [B or 1, 1, t, K], True where attention is allowed. For inference on a CPU, it may
                be what is added to the scores, and of the last columns only.
            want_weights: return the attention weights; disables the fused kernel.

        Returns:
            [B, t, D], and the weights [B, H, t, K] or None.
        """
        query = self.queries(x)
        u, w = biases
        content = query + self._scaled(u)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if column is None and not want_weights and suits(query, key.shape[2]):
            heads = blocked_attention(
                content,
                query + self._scaled(w),
                key,
                value,
                positions=positions,
                mask=mask,
                dropout=dropout,
            )
        else:
            scores = self.position_scores(query, w, positions, column)
            if infers_on_cpu(query.device):
                heads, weights = attention_in_place(
                    content, key, value, scores, mask, dropout=dropout
                )
            else:
                bias = scores.masked_fill(~mask, -torch.inf)
                heads, weights = biased_attention(
                    content, key, value, bias, dropout=dropout, want_weights=want_weights
                )
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))  # [B, H, t, E] → [B, t, H·E]
        return out, weights if want_weights else None
