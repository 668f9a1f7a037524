"""Linformer attention (Wang et al., 2020): keys and values projected along their length.

    softmax(Q (E K)ᵀ / √e) F V,    E and F [k, n]

Each projected column mixes all n positions, so the projection is not causal. `SelfAttention` is
therefore for encoders only, and `LinformerModel` projects closed segments only; attention within
the open segment is exact and causal.
"""

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Pair, newest, project_blocks, standard
from streamlm.models.call import Attended, Call, PositionKeys
from streamlm.models.layers.attention import attention_mask, by_head, relative_shift
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import absolute, sinusoid
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State

SHARING = ("none", "headwise", "key-value", "layerwise")
KINDS = ("linear", "pool", "conv")


class LengthProjection(nn.Module):
    """Projects keys or values along their length: [B, H, m, e] → [B, H, k, e] for m ≤ n.

    Args:
        n: maximum input length; k: output length for n.
        kind: "linear" is a learned [k, n] matrix; "pool" is mean pooling and "conv" a convolution,
            both over windows of n / k.
        n_heads: number of matrices; 1 shares one between all heads.
        head_dim: e, channels of the convolution.

    Raises:
        ValueError: names the given and the allowed value.
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
        """Project; for m < n, "linear" uses the first m columns, the others keep their windows."""
        m = slots.shape[2]
        if not 1 <= m <= self.n or (self.kind != "linear" and m % self.width):
            allowed = f"1 to {self.n}" + f", multiples of {self.width}" * (self.kind != "linear")
            raise ValueError(f"{m} slots; allowed: {allowed}")
        if self.kind == "linear":
            return self.weight[..., :m] @ slots
        if self.kind == "pool":
            return slots.unflatten(2, (-1, self.width)).mean(dim=3)
        rows = slots.flatten(0, 1).mT  # [B·H, e, m]
        projected: Tensor = self.convolution(rows).mT
        return projected.unflatten(0, slots.shape[:2])


def projections(
    n_layers: int, n_heads: int, head_dim: int, *, n: int, k: int, kind: str, sharing: str
) -> list[tuple[LengthProjection, LengthProjection]]:
    """E and F of each layer: 2·L·H matrices with sharing "none", 2·L "headwise", L "key-value", 1
    "layerwise".

    Raises:
        ValueError: unknown sharing.
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
    """Multi-head self-attention of an encoder, full or with projected keys and values.

    Args:
        lengths: E and F; None gives full attention.
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


class LinformerModel(SegmentedModel):
    """A language model that attends to each segment in memory through E and F.

    Memory contains the layer inputs of whole segments. Attention uses k projected keys and values
    per segment, all at the distance of the segment's middle. Keys and values are recomputed in
    training, so every later segment trains E and F.
    """

    near_table: Tensor
    far_table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        t, width = config.segment_len, config.d_model
        pairs = projections(
            config.n_layers,
            config.n_heads,
            config.head_dim,
            n=t,
            k=config.projected_len,
            kind=config.projection,
            sharing=config.sharing,
        )
        # Shared projections are registered once, so that they are saved once.
        own = list(dict.fromkeys(length for pair in pairs for length in pair))
        self.lengths = nn.ModuleList(own)
        self._lengths_of = [(own.index(e), own.index(f)) for e, f in pairs]
        self.register_buffer("near_table", sinusoid(t + 1, width), persistent=False)
        # From token i of a segment to the middle of the m-th one before: i + m·T - (T-1)/2.
        ages = torch.arange(config.memory_len, device="cpu") + (t + 1) / 2
        self.register_buffer("far_table", absolute(ages, width).float(), persistent=False)
        self.reset_parameters()

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Whole segments, shortened by the base's rate; see `Model.beside`."""
        plain = super().beside(base, slots // base.segment_len * base.segment_len)
        return replace(plain, projected_len=max(1, base.segment_len // base.compression_rate))

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory consists of whole segments without compression; see `Model.check`.

        `projected_len` is k, projected keys and values per segment; `projection` is one of KINDS,
        `sharing` one of SHARING.
        """
        given = config.compressed_len
        require(given == 0, f"compressed_len with head {config.head!r}", given, "0")
        multiple = f"a multiple of segment_len = {config.segment_len}"
        good = config.memory_len % config.segment_len == 0
        require(good, f"memory_len with head {config.head!r}", config.memory_len, multiple)

    @property
    def n_blocks(self) -> int:
        """Segments in memory."""
        return self.config.memory_len // self.config.segment_len

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        return self.empty_state(batch_size, past_len=self.config.memory_len)

    def past_columns(self, state: State) -> int:
        """k for each segment in memory."""
        return self.n_blocks * self.config.projected_len

    def project_past(self, index: int, state: State) -> Pair:
        """Projected keys and values of all segments in memory, including empty ones."""
        if not self.n_blocks:
            return super().project_past(index, state)
        layer = cast(Layer, self.blocks[index])
        pair = project_blocks(layer.project, state.past[index], self.config.segment_len)
        return self._projected(index, pair)

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Append the projected closed segment; see `SegmentedModel.past_after`."""
        if not self.n_blocks:
            return [past]
        return newest(past, self._projected(index, segment))

    def call_context(self, call: Call) -> Tensor:
        """Attention mask: [B, 1, t, K]."""
        state, k = call.state, self.config.projected_len
        filled = state.filled // self.config.segment_len * k
        return attention_mask(filled, self.n_blocks * k, state.phase, call.n_queries)

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Relative attention to projected segments and the open one.

        See `SegmentedModel.attend`.
        """
        attention, k = cast(Layer, self.blocks[index]).attention, self.config.projected_len
        (key, value), (near, far) = pair, call.position_keys[index]
        n_far, t = self.n_blocks * k, inputs.shape[1]
        n_open = key.shape[2] - n_far
        u, w = (bias[:, None] * self.config.head_dim**-0.5 for bias in self.biases(index))
        query = attention.queries(inputs)
        scores = relative_shift(by_head(query + w, near[:, -(n_open + 1) :]))  # [B, H, t, n_open]
        if n_far:
            own = far[:, :, n_open - t : n_open]  # [H, m, t, E], oldest segment first
            old = torch.einsum("bhte,hmte->bhtm", query + w, own)
            scores = torch.cat([old.repeat_interleave(k, dim=3), scores], dim=3)
        heads = F.scaled_dot_product_attention(
            query + u,
            key,
            value,
            attn_mask=scores.masked_fill(~call.context, -torch.inf),
            dropout_p=attention.dropout if self.training else 0.0,
            scale=1.0,
        )
        out: Tensor = attention.output(heads.transpose(1, 2).flatten(2))
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Move the segment into memory, dropping the oldest; see `SegmentedModel.closed`."""
        return self.shifted(state, kept=self.config.memory_len), None

    def _projected(self, index: int, pair: Pair) -> Pair:
        """Project each segment of [B, H, m·T, E] separately: [B, H, m·k, E]."""
        parts = []
        for which, part in zip(self._lengths_of[index], pair, strict=True):
            shorten, (b, h, _, width) = self.lengths[which], part.shape
            if torch.is_grad_enabled():
                blocks = part.unflatten(2, (-1, self.config.segment_len)).transpose(1, 2)
                made = shorten(blocks.flatten(0, 1))  # [B·m, H, k, E]
                made = made.unflatten(0, (b, -1)).transpose(1, 2).reshape(b, h, -1, width)
            else:  # each in the shape of its commit; see `streamlm.models.cache`
                segments = part.split(self.config.segment_len, dim=2)
                made = torch.cat([shorten(standard(each)) for each in segments], dim=2)
            parts.append(made)
        return parts[0], parts[1]

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R of the open segment [H, T+1, E], and of memory [H, m, T, E], oldest first."""
        attention, dtype = cast(Layer, self.layers[index]).attention, self.output_bias.dtype
        near, far = (
            attention.project_positions(self.dropout(table.to(dtype)))
            for table in (self.near_table, self.far_table)
        )
        far = far.unflatten(1, (self.n_blocks, -1)) if self.n_blocks else far[:, None]
        return near, far.flip(1)
