"""Int8Step: one token of one stream through all blocks with 8-bit weights, in few operations.

Of a token's time in the modules of the blocks, more than half goes to some 220 small operations a
layer. Here, they are 60. The results differ from those of the modules by rounding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.layers.int8_block import Int8Attention, Int8FeedForward
from streamlm.models.layers.llama_block import LlamaBlock
from streamlm.models.layers.packed import TINY, Digits, Int8Linear

Pairs = list[tuple[Tensor, Tensor]]


class _Layer(NamedTuple):
    """Packed weights of a block, and the weights of its norms, [1, D]."""

    attention_norm: Tensor
    projection: Any
    output: Any
    feed_forward_norm: Tensor
    gate_up: Any
    down: Any


class _Writer:
    """Writes the digits of one row, [1, k], to the rows that the kernel reads, [3, k]."""

    def __init__(self, digits: Digits, k: int) -> None:
        self._narrow, self._half, self._base = digits
        self._rows = torch.cat([torch.empty(2, k), digits.edges(k)])
        self._high, self._low = self._rows[:1], self._rows[1:2]
        self._linear = torch.ops.quantized.linear_dynamic.default

    def normed(self, x: Tensor, norm: Tensor, packed: Any, eps: float) -> tuple[Tensor, float]:
        """Products of a layer with the digits of x's RMS norm, [3, n], and their common factor."""
        length = torch.linalg.vector_norm(x).item()
        torch.mul(x, norm, out=self._high)
        out, scale = self.plain(self._high, packed)
        return out, scale * (length * length / x.shape[1] + eps) ** -0.5

    def plain(self, x: Tensor, packed: Any) -> tuple[Tensor, float]:
        """Products of a layer with the digits of x, [3, n], and their common factor."""
        scale = max(torch.linalg.vector_norm(x).item(), TINY) / self._half
        torch.mul(x, 1 / scale, out=self._high)
        torch.sub(self._high, self._high.round(), out=self._low).mul_(self._base)
        return self._linear(self._rows, packed, self._narrow), scale


class Int8Step:
    """The blocks of a Llama without biases and without norms of queries and keys."""

    def __init__(self, blocks: nn.ModuleList, *, eps: float) -> None:
        self._layers = [_layer(cast(LlamaBlock, block)) for block in blocks]
        attention = cast(Int8Attention, cast(LlamaBlock, blocks[0]).attention)
        self._n_heads, self._n_kv_heads = attention.n_heads, attention.n_kv_heads
        self._head_dim, self._eps = attention.head_dim, eps
        self._digits = attention.projection.digits
        self._sum = torch.tensor([[1.0, 1.0 / self._digits.base, 0.0]])  # of the digits' products
        self._zero = torch.zeros(1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes

    @staticmethod
    def supports(blocks: nn.ModuleList) -> bool:
        """Whether the blocks have no biases and no norms of queries and keys."""
        attention = cast(Int8Attention, cast(LlamaBlock, blocks[0]).attention)
        return isinstance(attention.query_norm, nn.Identity) and attention.projection.bias is None

    @torch.inference_mode()
    def __call__(
        self,
        x: Tensor,
        *,
        rotation: tuple[Tensor, Tensor],
        bias: Tensor,
        pairs: Pairs,
        column: int,
        as_slots: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Read a token; its keys and values are written to `pairs`.

        Args:
            x: [1, D] float32.
            rotation: cos and sin of its position, two [1, E].
            bias: [1, H / H_kv, K], -inf where masked.
            pairs: each layer's keys and values, two [H_kv, K, E]; the products copy a part of such
                a tensor, so they take all columns.
            column: where the token's keys and values go.
            as_slots: rounds keys and values, [W], to the precision of slots.

        Returns:
            x after all blocks [1, D], and slots [L, W].
        """
        heads, kv_heads, e, eps = self._n_heads, self._n_kv_heads, self._head_dim, self._eps
        width, half = heads * e, e // 2
        cos, sin = self._tables(*rotation)
        narrow, inner = _Writer(self._digits, x.shape[1]), None
        wide = narrow if width == x.shape[1] else _Writer(self._digits, width)
        written: list[Tensor] = []
        for layer, (key, value) in zip(self._layers, pairs, strict=True):
            out, factor = narrow.normed(x, layer.attention_norm, layer.projection, eps)
            out = torch.addmm(self._zero, self._sum, out, beta=0, alpha=factor)[0]
            unrotated = out[width:]
            slots = as_slots(unrotated)
            unrotated.copy_(slots)  # keys are rotated after they were rounded
            written.append(slots)
            rows = out.view(-1, e)
            rows = (rows * cos).add_(rows.roll(half, 1).mul_(sin))
            query, new = rows.split([heads, 2 * kv_heads])
            new_key, new_value = new.view(kv_heads, 2, e).unbind(1)
            key.select(1, column).copy_(new_key)
            value.select(1, column).copy_(new_value)
            query = query.to(key.dtype).view(kv_heads, -1, e)
            weights = torch.baddbmm(bias, query, key.mT).softmax(-1)
            attended = torch.bmm(weights, value).view(1, width).float()
            out, factor = wide.plain(attended, layer.output)
            x = torch.addmm(x, self._sum, out, alpha=factor)
            out, factor = narrow.normed(x, layer.feed_forward_norm, layer.gate_up, eps)
            gate, up = torch.addmm(self._zero, self._sum, out, beta=0, alpha=factor).chunk(2, 1)
            hidden = F.silu(gate).mul_(up)
            inner = inner or _Writer(self._digits, hidden.shape[1])
            out, factor = inner.plain(hidden, layer.down)
            x = torch.addmm(x, self._sum, out, alpha=factor)
        return x, torch.stack(written)

    def _tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of all heads of a projection, two [H + 2 · H_kv, E].

        Queries are divided by √E, values stay.
        """
        tables = []
        for turned, still in ((cos, 1.0), (sin, 0.0)):
            query = (turned * self._head_dim**-0.5).expand(self._n_heads, -1)
            pair = torch.cat([turned, torch.full_like(turned, still)])
            tables.append(torch.cat([query, pair.repeat(self._n_kv_heads, 1)]))
        return tables[0], tables[1]


def _layer(block: LlamaBlock) -> _Layer:
    attention = cast(Int8Attention, block.attention)
    feed_forward = cast(Int8FeedForward, cast(Any, block.feed_forward))
    return _Layer(
        block.attention_norm.weight.detach()[None],
        attention.projection.packed,
        cast(Int8Linear, attention.output).packed,
        block.feed_forward_norm.weight.detach()[None],
        feed_forward.gate_up.packed,
        feed_forward.down.packed,
    )
