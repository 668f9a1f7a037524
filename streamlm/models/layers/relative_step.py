"""RelativeStep: one token of one stream through all blocks of a Transformer-XL, on a CPU.

The same products over all columns for every token, in few operations: the modules of the blocks
call three times as many. With 8-bit weights, which are read in less time than Python takes to call
even these, TorchScript calls them (`int8_step.traced`). Results differ from those of the modules by
rounding.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.models.layers.block import Layer
from streamlm.models.layers.int8_step import traced
from streamlm.models.layers.packed import TINY, Int8Linear

Biases = tuple[Tensor, Tensor]
Norm = tuple[Tensor, Tensor, float]


class _StepLayer(nn.Module):
    """A block with relative attention; it shares the weights of the modules.

    Args:
        biases: u and w, each [H, E].
    """

    def __init__(self, layer: Layer, biases: Biases) -> None:
        super().__init__()
        attention, width = layer.attention, layer.attention.head_dim
        self.pre_norm, self.heads, self.head_dim = layer.pre_norm, attention.n_heads, width
        u, w = (bias.detach()[:, None] * width**-0.5 for bias in biases)
        self.content_bias, self.position_bias = u, w
        self.norms: list[Norm] = [
            (norm.weight.detach(), norm.bias.detach(), norm.eps)
            for norm in (layer.attention_norm, layer.feed_forward_norm)
        ]
        inner, outer = layer.feed_forward[0], layer.feed_forward[3]
        self._share("query", attention.query)
        self._share("key_value", attention.key_value)
        self._share("output", attention.output)
        self._share("inner", inner)
        self._share("outer", outer)

    def _share(self, name: str, linear: nn.Module) -> None:
        plain = cast(nn.Linear, linear)
        bias = None if plain.bias is None else plain.bias.detach()
        setattr(self, name, (plain.weight.detach(), bias))

    def product(self, x: Tensor, name: str) -> Tensor:
        """[1, k] → [1, n]."""
        return F.linear(x, *getattr(self, name))

    def norm(self, x: Tensor, which: int) -> Tensor:
        """LayerNorm: that of attention, 0, or of the feed-forward network, 1."""
        weight, bias, eps = self.norms[which]
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        at: Tensor,
    ) -> Tensor:
        """One layer; see `RelativeStep`."""
        h, e = self.heads, self.head_dim
        inputs = self.norm(x, 0) if self.pre_norm else x
        query = self.product(inputs, "query").view(h, 1, e) * e**-0.5
        new_key, new_value = self.product(inputs, "key_value").view(2, h, 1, e).unbind(0)
        key.index_copy_(1, at, new_key)
        value.index_copy_(1, at, new_value)
        scores = torch.baddbmm(bias, query + self.position_bias, positions.mT)
        scores = torch.baddbmm(scores, query + self.content_bias, key.mT)
        heads = torch.bmm(scores.softmax(-1), value).view(1, -1)
        x = x + self.product(heads, "output")
        if self.pre_norm:
            return x + self._feed_forward(self.norm(x, 1))
        x = self.norm(x, 0)
        return self.norm(x + self._feed_forward(x), 1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.product(F.relu(self.product(x, "inner")), "outer")


class _Int8StepLayer(_StepLayer):
    """A block with 8-bit weights."""

    def _share(self, name: str, linear: nn.Module) -> None:
        packed = cast(Int8Linear, linear)
        self.digits = packed.digits
        setattr(self, name, packed.packed)
        setattr(self, f"{name}_bias", packed.bias)
        setattr(self, f"{name}_edges", packed.digits.edges(packed.in_features))
        self.sum = torch.tensor([[1.0, 1 / packed.digits.base, 0.0]])  # of the digits' products

    def product(self, x: Tensor, name: str) -> Tensor:
        """As `Int8Linear` of [1, k]."""
        scale = torch.linalg.vector_norm(x).clamp(min=TINY) / self.digits.half
        high = x / scale
        low = (high - high.round()) * self.digits.base
        rows = torch.cat([high, low, getattr(self, f"{name}_edges")])
        out = torch.ops.quantized.linear_dynamic(rows, getattr(self, name), self.digits.narrow)
        bias = getattr(self, f"{name}_bias")
        y = (self.sum @ out) * scale
        return y if bias is None else y + bias


class _StepLayers(nn.Module):
    """All blocks, one after the other."""

    def __init__(self, layers: Sequence[_StepLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        positions: list[Tensor],
        at: Tensor,
    ) -> tuple[Tensor, Tensor]:
        slots: list[Tensor] = []
        for layer, key, value, r in zip(self.layers, keys, values, positions, strict=True):
            slots.append(x)
            x = layer(x, bias, key, value, r, at)
        return x, torch.cat(slots)


class RelativeStep:
    """The blocks of a frozen Transformer-XL.

    Args:
        biases: u and w of each layer.
        columns: K, key columns.
    """

    def __init__(self, blocks: nn.ModuleList, biases: Sequence[Biases], *, columns: int) -> None:
        modules = cast("list[Layer]", list(blocks))
        packed = isinstance(modules[0].attention.query, Int8Linear)
        kind = _Int8StepLayer if packed else _StepLayer
        layers = [kind(*each) for each in zip(modules, biases, strict=True)]
        self._packed = packed
        self._layers: Any = _StepLayers(layers).eval()
        if packed:
            first = layers[0]
            pairs = torch.zeros(len(layers), first.heads, columns, first.head_dim)
            lists = [list(pairs.clone().unbind()) for _ in range(3)]
            x = torch.ones(1, cast(Int8Linear, modules[0].attention.query).in_features)
            example = x, torch.zeros(1, 1, columns), *lists, torch.zeros(1, dtype=torch.long)
            self._layers = traced(self._layers, example)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self._packed:
            return self  # nothing in it changes
        other = copy(self)  # the weights of the model that is copied may be trained
        other._layers = deepcopy(self._layers, memo)
        return other

    @torch.inference_mode()
    def __call__(
        self,
        x: Tensor,
        *,
        bias: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        positions: list[Tensor],
        column: int,
    ) -> tuple[Tensor, Tensor]:
        """Read a token; its keys and values are written to `keys` and `values`.

        Args:
            x: [1, D].
            bias: [1, 1, K], -inf where masked.
            keys, values: of each layer, [H, K, E].
            positions: of each layer, for the distance of each column, [H, K, E].
            column: where the token's keys and values go.

        Returns:
            x after all blocks [1, D], and slots [L, D].
        """
        found = self._layers(x, bias, keys, values, positions, torch.tensor([column]))
        return cast("tuple[Tensor, Tensor]", found)
