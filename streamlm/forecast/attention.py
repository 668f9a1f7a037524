"""ProbSparse attention: only the queries with the sparsest attention attend.

Informer (Zhou et al., AAAI 2021), §3.1, eq. 3 and 4. Queries are measured on a few sampled keys.
The u best get their softmax over all keys, the other, "lazy" queries the mean of the values.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Lazy = Literal["sum", "mean"]


def few(length: int, factor: int) -> int:
    """The number of sampled keys or chosen queries: c·⌈ln L⌉, at most L."""
    return min(length, factor * math.ceil(math.log(length))) if length > 1 else length


def sparsity(query: Tensor, key: Tensor, sample: Tensor) -> Tensor:
    """The max-mean measure of each query on sampled keys: [B, H, L].

    The sum is divided by the number of all keys, not of the sampled ones, as in the authors' code.

    Args:
        query: [B, H, L, E]; key: [B, H, K, E].
        sample: [L, U] the keys on which each query is measured.
    """
    largest = torch.full(query.shape[:3], -torch.inf, dtype=query.dtype, device=query.device)
    total = torch.zeros_like(largest)
    key = key.contiguous()
    for column in sample.unbind(1):  # never all L·U keys at once
        scores = (query * key.index_select(2, column)).sum(dim=3)
        largest, total = torch.maximum(largest, scores), total + scores
    return largest - total / key.shape[2]


def prob_sparse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    factor: int,
    causal: bool,
    sample: Tensor,
    lazy: Lazy = "sum",
) -> Tensor:
    """ProbSparse attention of all heads: [B, H, L, E].

    Args:
        query: [B, H, L, E]; key, value: [B, H, K, E].
        factor: c, which gives u, the number of queries that attend.
        causal: mask later keys for the attending queries; L = K. The choice of queries still
            depends on all keys, so this attention is not causal enough for a language model.
        sample: [L, U]; see `sparsity`.
        lazy: the output of lazy queries if `causal`: the sum of all values so far (the authors'
            code) or their mean (the paper). Otherwise it is the mean of all values.
    """
    b, h, n, width = query.shape
    with torch.no_grad():
        chosen = sparsity(query, key, sample).topk(few(n, factor), dim=2).indices  # [B, H, u]
    rows = chosen[..., None].expand(-1, -1, -1, width)
    mask = None
    if causal:
        mask = torch.arange(n, device=query.device) <= chosen[..., None]  # [B, H, u, K]
        context = value.cumsum(dim=2)
        if lazy == "mean":
            context = context / torch.arange(1, n + 1, device=query.device)[:, None]
    else:
        context = value.mean(dim=2, keepdim=True).expand(b, h, n, -1)
    attended = F.scaled_dot_product_attention(query.gather(2, rows), key, value, attn_mask=mask)
    return context.scatter(2, rows, attended)


class Attention(nn.Module):
    """Multi-head attention, full or ProbSparse, with biases on all projections.

    Args:
        factor: c of ProbSparse attention; None for full attention.
        causal: mask later keys.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        factor: int | None,
        causal: bool = False,
        lazy: Lazy = "sum",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_heads, self.factor, self.causal, self.lazy = n_heads, factor, causal, lazy
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, context: Tensor, sample: Tensor | None = None) -> Tensor:
        """Attention of x [B, L, D] to context [B, K, D]; `sample` replaces randomly drawn keys."""
        query, key, value = (
            project(source).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for project, source in ((self.query, x), (self.key, context), (self.value, context))
        )
        if self.factor is None:
            dropout = self.dropout if self.training else 0.0
            heads = F.scaled_dot_product_attention(
                query, key, value, is_causal=self.causal, dropout_p=dropout
            )
        else:
            if sample is None:
                n_keys = key.shape[2]
                size = (query.shape[2], few(n_keys, self.factor))
                sample = torch.randint(n_keys, size, device=x.device)
            heads = prob_sparse(
                query,
                key,
                value,
                factor=self.factor,
                causal=self.causal,
                sample=sample,
                lazy=self.lazy,
            )
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out
