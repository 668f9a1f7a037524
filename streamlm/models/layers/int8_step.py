"""Int8Step: one token of one stream through all blocks with 8-bit weights, without Python between.

In the modules of the blocks, two thirds of a token's time goes to calling some 220 small operations
a layer. Here they are 50, and TorchScript calls them; it needs no compiler. (torch.jit is
deprecated. Without it, the same code runs in Python.) Results differ from those of the modules by
rounding.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.cache import Pair
from streamlm.models.layers.int8_block import Int8Attention, Int8FeedForward
from streamlm.models.layers.llama_block import LlamaBlock
from streamlm.models.layers.packed import TINY, Digits, Int8Linear

Round = Callable[[Tensor], Tensor]


class StepLayer(nn.Module):
    """A block; its packed weights are shared with the modules."""

    def __init__(self, block: LlamaBlock, *, eps: float, as_slots: Round) -> None:
        super().__init__()
        attention = cast(Int8Attention, block.attention)
        feed_forward = cast(Int8FeedForward, cast(Any, block.feed_forward))
        self.digits: Digits = attention.projection.digits
        self.heads, self.kv_heads = attention.n_heads, attention.n_kv_heads
        self.head_dim, self.eps, self.as_slots = attention.head_dim, eps, as_slots
        self.attention_norm = block.attention_norm.weight.detach()[None]
        self.feed_forward_norm = block.feed_forward_norm.weight.detach()[None]
        self.projection = attention.projection.packed
        self.output = cast(Int8Linear, attention.output).packed
        self.gate_up, self.down = feed_forward.gate_up.packed, feed_forward.down.packed
        inputs = self.attention_norm.shape[1], self.heads * self.head_dim
        self.edges, self.wide_edges = (self.digits.edges(k) for k in inputs)
        self.inner_edges = self.digits.edges(feed_forward.down.in_features)
        self.sum = torch.tensor([[1.0, 1 / self.digits.base, 0.0]])  # of the digits' products

    def product(self, x: Tensor, packed: Any, edges: Tensor) -> tuple[Tensor, Tensor]:
        """As `Int8Linear` of [1, k], without a factor: [1, n], and the factor."""
        scale = torch.linalg.vector_norm(x).clamp(min=TINY) / self.digits.half
        high = x / scale
        low = (high - high.round()) * self.digits.base
        rows = torch.cat([high, low, edges])
        out = torch.ops.quantized.linear_dynamic(rows, packed, self.digits.narrow)
        return self.sum @ out, scale

    def normed(self, x: Tensor, norm: Tensor, packed: Any) -> Tensor:
        """Of the RMS norm of x: [1, n]."""
        out, scale = self.product(x * norm, packed, self.edges)
        return out * (scale * ((x * x).mean() + self.eps).rsqrt())

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        bias: Tensor,
        pair: tuple[Tensor, Tensor],
        at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        key, value = pair
        heads, kv_heads, e = self.heads, self.kv_heads, self.head_dim
        projected = self.normed(x, self.attention_norm, self.projection)
        query, slots = projected.split([heads * e, 2 * kv_heads * e], dim=1)
        slots = self.as_slots(slots)
        # Keys are rotated after they were rounded.
        rows = torch.cat([query, slots.to(query.dtype)], dim=1).view(-1, e)
        rows = (rows * rotation[0] + rows.roll(e // 2, 1) * rotation[1]).to(key.dtype)
        query, new = rows.split([heads, 2 * kv_heads])
        new_key, new_value = new.view(kv_heads, 2, 1, e).unbind(1)
        key.index_copy_(1, at, new_key)
        value.index_copy_(1, at, new_value)
        # A part of the columns would be copied by the products, so they take all.
        weights = torch.baddbmm(bias, query.view(kv_heads, -1, e), key.mT).softmax(-1)
        attended = torch.bmm(weights, value).view(1, -1).to(x.dtype)
        out, scale = self.product(attended, self.output, self.wide_edges)
        x = torch.addcmul(x, out, scale)
        gate, up = self.normed(x, self.feed_forward_norm, self.gate_up).chunk(2, 1)
        out, scale = self.product(F.silu(gate) * up, self.down, self.inner_edges)
        return torch.addcmul(x, out, scale), slots


class StepLayers(nn.Module):
    """All blocks, one after the other."""

    def __init__(self, layers: Sequence[StepLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        written: list[Tensor] = []
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            x, slots = layer(x, (cos, sin), bias, (key, value), at)
            written.append(slots)
        return x, torch.cat(written)


class Int8Step:
    """The blocks of a Llama without biases and without norms of queries and keys.

    Args:
        eps: of the norms.
        columns: K, key columns.
        dtype: of queries, keys and values.
        as_slots: rounds keys and values, [1, W], to the precision of slots.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        *,
        eps: float,
        columns: int,
        dtype: torch.dtype,
        as_slots: Round,
    ) -> None:
        first = cast(Int8Attention, cast(LlamaBlock, blocks[0]).attention)
        self._heads, self._kv_heads = first.n_heads, first.n_kv_heads
        self._head_dim, self.dtype = first.head_dim, dtype
        layers = [StepLayer(cast(LlamaBlock, b), eps=eps, as_slots=as_slots) for b in blocks]
        e, n, width = self._head_dim, len(layers), first.projection.in_features
        pairs = torch.zeros(2 * n, self._kv_heads, columns, e, dtype=dtype)
        table = torch.zeros(self._heads + 2 * self._kv_heads, e)
        bias = torch.zeros(1, self._heads // self._kv_heads, columns, dtype=dtype)
        lists = list(pairs[:n].unbind()), list(pairs[n:].unbind())
        example = torch.ones(1, width), table, table, bias, *lists, torch.zeros(1, dtype=torch.long)
        self._layers = traced(StepLayers(layers), example)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    @staticmethod
    def supports(blocks: nn.ModuleList) -> bool:
        """Whether the blocks have no biases and no norms of queries and keys."""
        attention = cast(Int8Attention, cast(LlamaBlock, blocks[0]).attention)
        return isinstance(attention.query_norm, nn.Identity) and attention.projection.bias is None

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, *, rotation: Pair, bias: Tensor, pairs: list[Pair], column: int
    ) -> tuple[Tensor, Tensor]:
        """Read a token; its keys and values are written to `pairs`.

        Args:
            x: [1, D] float32.
            rotation: cos and sin of its position, two [1, E].
            bias: [1, H / H_kv, K], -inf where masked.
            pairs: each layer's keys and values, two [H_kv, K, E].
            column: where the token's keys and values go.

        Returns:
            x after all blocks [1, D], and slots [L, W].
        """
        cos, sin = head_tables(*rotation, heads=self._heads, kv_heads=self._kv_heads)
        keys, values = ([pair[half] for pair in pairs] for half in (0, 1))
        found = self._layers(x, cos, sin, bias, keys, values, torch.tensor([column]))
        return cast("tuple[Tensor, Tensor]", found)


def traced(layers: nn.Module, example: tuple[Any, ...]) -> Any:
    """The layers as TorchScript calls them, where there is TorchScript."""
    if not hasattr(torch.jit, "trace"):
        return layers.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.trace(layers.eval(), example, check_trace=False))


def head_tables(cos: Tensor, sin: Tensor, *, heads: int, kv_heads: int) -> Pair:
    """cos and sin of all heads of a projection: two [..., 1, E] → two [..., H + 2 · H_kv, E].

    Queries are divided by √E, values stay.
    """
    tables = []
    for turned, still in ((cos, 1.0), (sin, 0.0)):
        query = turned * turned.shape[-1] ** -0.5
        pair = [turned, torch.full_like(turned, still)]
        tables.append(torch.cat([query] * heads + pair * kv_heads, dim=-2))
    return tables[0], tables[1]
