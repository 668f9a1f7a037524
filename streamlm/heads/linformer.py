"""Linformer attention (Wang et al., 2020): keys and values shortened along their length.

    softmax(Q (E K)ᵀ / √e) F V,    E and F [k, n]

Every shortened slot mixes all n positions, so this is an encoder's attention: as it stands it must
not be used where the future is hidden.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARING = ("none", "headwise", "key-value", "layerwise")
KINDS = ("linear", "pool", "conv")


class LengthProjection(nn.Module):
    """Shortens slots along their length: [B, H, m, e] → [B, H, k, e] for m ≤ n.

    Args:
        n: the longest length; k: what it is shortened to.
        kind: "linear" is a learned [k, n]; "pool" the mean, "conv" a convolution, both of n / k.
        n_heads: matrices of their own for so many heads; 1 shares one.
        head_dim: e, which a convolution mixes.

    Raises:
        ValueError: names what was given and what is allowed.
    """

    def __init__(self, n: int, k: int, *, kind: str, n_heads: int = 1, head_dim: int = 1) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"projection = {kind!r}; allowed: {' or '.join(KINDS)}")
        if not 1 <= k <= n or (kind != "linear" and n % k):
            allowed = f"1 to n = {n}" + ", a divisor of it" * (kind != "linear")
            raise ValueError(f"projected_len = {k}; allowed: {allowed}")
        self.n, self.k, self.kind, self.width = n, k, kind, n // k
        if kind == "linear":
            self.weight = nn.Parameter(torch.empty(n_heads, k, n))
            for matrix in self.weight.data:
                nn.init.xavier_uniform_(matrix, gain=1 / math.sqrt(2))
        elif kind == "conv":
            self.convolution = nn.Conv1d(
                head_dim, head_dim, self.width, stride=self.width, bias=False
            )

    def forward(self, slots: Tensor) -> Tensor:
        """Shorter inputs use the first columns of E; pooling has windows of n / k all the same."""
        m = slots.shape[2]
        if not 1 <= m <= self.n or (self.kind != "linear" and m % self.width):
            allowed = f"1 to {self.n}" + f", multiples of {self.width}" * (self.kind != "linear")
            raise ValueError(f"{m} slots; allowed: {allowed}")
        if self.kind == "linear":
            return self.weight[..., :m] @ slots
        if self.kind == "pool":
            return slots.unflatten(2, (-1, self.width)).mean(dim=3)
        rows = slots.flatten(0, 1).mT  # [B·H, e, m]
        shortened: Tensor = self.convolution(rows).mT
        return shortened.unflatten(0, slots.shape[:2])


def projections(
    n_layers: int, n_heads: int, head_dim: int, *, n: int, k: int, kind: str, sharing: str
) -> list[tuple[LengthProjection, LengthProjection]]:
    """E and F of each layer: 2·L·H matrices with sharing "none", 2·L "headwise", L "key-value", 1
    "layerwise".

    Raises:
        ValueError: no such sharing.
    """
    if sharing not in SHARING:
        raise ValueError(f"sharing = {sharing!r}; allowed: {' or '.join(SHARING)}")
    own = n_heads if sharing == "none" else 1

    def made() -> LengthProjection:
        return LengthProjection(n, k, kind=kind, n_heads=own, head_dim=head_dim)

    if sharing == "layerwise":
        return [(made(),) * 2] * n_layers
    if sharing == "key-value":
        return [(made(),) * 2 for _ in range(n_layers)]
    return [(made(), made()) for _ in range(n_layers)]


class SelfAttention(nn.Module):
    """Multi-head self-attention of an encoder: full, or with shortened keys and values.

    Args:
        lengths: E and F; None attends fully.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        lengths: tuple[LengthProjection, LengthProjection] | None,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.project = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.shorten_keys = lengths[0] if lengths is not None else None
        self.shorten_values = lengths[1] if lengths is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, D] → [B, n, D]."""
        parts = self.project(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # [B, H, n, e]
        if self.shorten_keys is not None and self.shorten_values is not None:
            key, value = self.shorten_keys(key), self.shorten_values(value)
        heads = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out
