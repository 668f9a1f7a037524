"""Int8Rows: one token of each row of a batch through all blocks with 8-bit weights.

As `Int8Step`, for rows in different phases. Each row has scales of its own, the kernels' sums are
of integers, and every product has the same shape at every step, so that a row's bits do not depend
on the others.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.cache import Pair
from streamlm.models.layers.int8_block import Int8Attention
from streamlm.models.layers.int8_step import StepLayer, StepLayers, head_tables, traced
from streamlm.models.layers.llama_block import LlamaBlock
from streamlm.models.layers.packed import TINY


class _RowsLayer(StepLayer):
    """A block for one token in each of R rows, of which each is computed by itself."""

    def product(self, x: Tensor, packed: Any, edges: Tensor) -> tuple[Tensor, Tensor]:
        """[R, k] → [R, n], and the factors [R, 1]."""
        rows = x.shape[0]
        scale = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=TINY)
        scale = scale / self.digits.half
        high = x / scale
        low = (high - high.round()) * self.digits.base
        both = torch.cat([high, low, edges])
        out = torch.ops.quantized.linear_dynamic(both, packed, self.digits.narrow)
        high_out, low_out, _ = out.split([rows, rows, 1])
        return torch.add(high_out, low_out, alpha=1 / self.digits.base), scale

    def normed(self, x: Tensor, norm: Tensor, packed: Any) -> Tensor:
        out, scale = self.product(x * norm, packed, self.edges)
        return out * (scale * ((x * x).mean(1, keepdim=True) + self.eps).rsqrt())

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        bias: Tensor,
        pair: tuple[Tensor, Tensor],
        at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As of one row; see `Int8Rows`.

        Args:
            x: [R, D]; rotation: two [R, H + 2 · H_kv, E]; bias: [R · H_kv, H / H_kv, K].
            pair: two [R · H_kv, K, E].
            at: of each row and head, its index and the new column, [2, R · H_kv].
        """
        key, value = pair
        heads, kv_heads, e, r = self.heads, self.kv_heads, self.head_dim, x.shape[0]
        projected = self.normed(x, self.attention_norm, self.projection)
        query, slots = projected.split([heads * e, 2 * kv_heads * e], dim=1)
        slots = self.as_slots(slots)
        rows = torch.cat([query, slots.to(query.dtype)], dim=1).view(r, -1, e)
        rows = (rows * rotation[0] + rows.roll(e // 2, 2) * rotation[1]).to(key.dtype)
        query, new = rows.split([heads, 2 * kv_heads], dim=1)
        new_key, new_value = new.reshape(r * kv_heads, 2, e).unbind(1)
        row, column = at.unbind()
        key.index_put_((row, column), new_key)
        value.index_put_((row, column), new_value)
        query = query.reshape(r * kv_heads, -1, e)
        weights = torch.baddbmm(bias, query, key.mT).softmax(-1)
        attended = torch.bmm(weights, value).view(r, -1).to(x.dtype)
        out, scale = self.product(attended, self.output, self.wide_edges)
        x = torch.addcmul(x, out, scale)
        gate, up = self.normed(x, self.feed_forward_norm, self.gate_up).chunk(2, 1)
        out, scale = self.product(F.silu(gate) * up, self.down, self.inner_edges)
        return torch.addcmul(x, out, scale), slots


class Int8Rows:
    """The blocks of a Llama that `Int8Step.supports`.

    Args:
        rows: R.
        eps, columns, dtype, as_slots: as of `Int8Step`; `as_slots` rounds [R, W].
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        *,
        rows: int,
        eps: float,
        columns: int,
        dtype: torch.dtype,
        as_slots: Callable[[Tensor], Tensor],
    ) -> None:
        first = cast(Int8Attention, cast(LlamaBlock, blocks[0]).attention)
        self._heads, self._kv_heads, e = first.n_heads, first.n_kv_heads, first.head_dim
        layers = [_RowsLayer(cast(LlamaBlock, b), eps=eps, as_slots=as_slots) for b in blocks]
        self._row = torch.arange(rows * self._kv_heads)
        table = torch.zeros(rows, self._heads + 2 * self._kv_heads, e)
        pairs = torch.zeros(2 * len(layers), rows * self._kv_heads, columns, e, dtype=dtype)
        bias = torch.zeros(len(self._row), self._heads // self._kv_heads, columns, dtype=dtype)
        example = (
            *(torch.ones(rows, first.projection.in_features), table, table, bias),
            *(list(pairs[: len(layers)].unbind()), list(pairs[len(layers) :].unbind())),
            torch.stack([self._row, torch.zeros_like(self._row)]),
        )
        self._layers = traced(StepLayers(layers), example)

    @torch.inference_mode()
    def __call__(
        self, x: Tensor, *, rotation: Pair, bias: Tensor, pairs: list[Pair], columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read a token in each row; its keys and values are written to `pairs`.

        Args:
            x: [R, D] float32.
            rotation: cos and sin of the rows' positions, two [R, 1, E].
            bias: [R, 1, H / H_kv, K], -inf where masked.
            pairs: each layer's keys and values, two [R, H_kv, K, E].
            columns: where the rows' keys and values go, [R].

        Returns:
            x after all blocks [R, D], and slots [L, R, W].
        """
        cos, sin = head_tables(*rotation, heads=self._heads, kv_heads=self._kv_heads)
        shape = (-1, *pairs[0][0].shape[2:])  # views, which are written to
        keys, values = ([pair[half].view(shape) for pair in pairs] for half in (0, 1))
        at = torch.stack([self._row, columns.repeat_interleave(self._kv_heads)])
        wide = bias.expand(-1, self._kv_heads, -1, -1).flatten(0, 1)
        out, slots = self._layers(x, cos, sin, wide, keys, values, at)
        return out, slots.unflatten(0, (len(pairs), len(x)))
