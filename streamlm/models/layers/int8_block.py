"""Parts of a Llama block with 8-bit weights; products of the same input are one product."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.layers.llama_block import FeedForward, GroupedAttention
from streamlm.models.layers.packed import Int8Linear


class Int8Attention(GroupedAttention):
    """`GroupedAttention` with the weights of another, as 8-bit integers."""

    def __init__(self, plain: GroupedAttention) -> None:
        nn.Module.__init__(self)
        self.head_dim = plain.head_dim
        self.n_heads, self.n_kv_heads = plain.n_heads, plain.n_kv_heads
        self.query_norm, self.key_norm = plain.query_norm, plain.key_norm
        # Rows in the order of slots: the queries, then key and value of each head.
        bias = plain.query.bias
        self.projection = Int8Linear(
            self._joined(plain.query.weight, plain.key.weight, plain.value.weight),
            None if bias is None else self._joined(bias, plain.key.bias, plain.value.bias),
        )
        self.output = Int8Linear(cast(nn.Linear, plain.output).weight)

    def _joined(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pair = [half.unflatten(0, (self.n_kv_heads, self.head_dim)) for half in (key, value)]
        return torch.cat([query, torch.stack(pair, dim=1).flatten(0, 2)])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupedAttention.project`."""
        heads = self.projection(x).unflatten(2, (-1, self.head_dim))
        query, slots = heads.split([self.n_heads, 2 * self.n_kv_heads], dim=2)
        query = self.query_norm(query).transpose(1, 2)
        if isinstance(self.key_norm, nn.Identity):
            return query, slots.flatten(2)
        pairs = slots.unflatten(2, (self.n_kv_heads, 2))
        key, value = self.key_norm(pairs[:, :, :, 0]), pairs[:, :, :, 1]
        return query, torch.stack([key, value], dim=3).flatten(2)


class Int8FeedForward(nn.Module):
    """`FeedForward` with the weights of another, as 8-bit integers."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.gate_up = Int8Linear(torch.cat([plain.gate.weight, plain.up.weight]))
        self.down = Int8Linear(plain.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out
