"""Learned selection of keys and values: each head keeps the 1/c of evicted slots it needs most.

Slots hold keys before rotation and values of H_kv heads, [H_kv, 2, E]. Original; the selection of
`compression.Select`, head by head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.memory.compression import highest


class HeadSelect(nn.Module):
    """Keep each head's 1/c of the real slots with the highest gate, in time order.

    The gate of a slot is the product of its RMS norm and two vectors, one for its role as a key and
    one for its role as a value. Selection has no gradient; in training, each group of c slots is
    pooled with the softmax of these gates (`pool`).

    Attributes:
        gate: [H_kv, 2E, 2].
        mass: [H_kv], added to the logits of pooled keys, each of which represents c slots; training
            only.
    """

    def __init__(self, n_heads: int, head_dim: int, rate: int) -> None:
        super().__init__()
        self.rate, self.n_heads = rate, n_heads
        self.gate = nn.Parameter(torch.empty(n_heads, 2 * head_dim, 2))
        self.mass = nn.Parameter(torch.empty(n_heads))

    def reset(self, std: float) -> None:
        """Nearly equal gates, so that an untrained selection is arbitrary but harmless."""
        nn.init.normal_(self.gate, std=std)
        nn.init.constant_(self.mass, math.log(self.rate))

    def value(self, slots: Tensor) -> Tensor:
        """Gates of slots, for keys and for values: [B, n, W] → [B, H_kv, n, 2]."""
        dtype = torch.promote_types(slots.dtype, torch.float32)
        heads = slots.to(dtype).unflatten(2, (self.n_heads, -1))  # [B, n, H, 2E]
        gate = self.gate.to(dtype)
        return torch.einsum("bnhe,hei->bhni", F.rms_norm(heads, heads.shape[-1:]), gate)

    def columns(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        """Columns of the kept slots: [B, H_kv, n / c]."""
        score = self.value(evicted).sum(dim=3)  # [B, H, n]
        score = score.masked_fill((usage < 0)[:, None], torch.finfo(score.dtype).min)
        every_head = real[:, None].expand_as(score).flatten(0, 1)
        kept = highest(score.flatten(0, 1), every_head, rate=self.rate)
        return kept.unflatten(0, score.shape[:2])

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        columns = self.columns(evicted, usage, real).transpose(1, 2)  # [B, n/c, H]
        heads = evicted.unflatten(2, (self.n_heads, -1))
        kept = heads.gather(1, columns[..., None].expand(-1, -1, -1, heads.shape[3]))
        return kept.flatten(2)

    def pool(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before rotation and values of each group of c slots, averaged by their gates.

        Args:
            slots: [B, n, W].

        Returns:
            Two [B, H_kv, n/c, E].
        """
        weights = self.value(slots).unflatten(2, (-1, self.rate)).softmax(dim=3)  # [B,H,n/c,c,2]
        heads = slots.to(weights.dtype).unflatten(2, (self.n_heads, 2, -1)).permute(0, 2, 1, 3, 4)
        groups = heads.unflatten(2, (-1, self.rate))  # [B, H, n/c, c, 2, E]
        pooled = torch.einsum("bhgci,bhgcie->bhgie", weights, groups)
        key, value = pooled.unbind(3)
        return key, value
