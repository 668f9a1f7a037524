"""Linformer attention (Wang et al., 2020): keys and values shortened along their length.

    softmax(Q (E K)ᵀ / √e) F V,    E and F [k, n]

Every shortened slot mixes all n positions. So `SelfAttention` is an encoder's and must not be used
where the future is hidden, and `LinformerModel` shortens segments once they are closed; within the
open segment attention is exact and causal.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Pair, project_blocks, standard
from streamlm.models.layers.attention import attention_mask, by_head, relative_shift
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import absolute, sinusoid
from streamlm.models.segmented import Attended, Call, PositionKeys, SegmentedModel, newest
from streamlm.state import State

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


class LinformerModel(SegmentedModel):
    """A language model whose memory is seen through E and F, segment by segment.

    Memory holds the layer inputs of whole segments; what attention sees of each are k shortened
    keys and values, all at the distance of the segment's middle. E and F learn from every segment
    that looks at them, because keys and values are derived anew in training.
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
        # Each one once, however many layers share it: weights are saved by their names.
        own = list(dict.fromkeys(length for pair in pairs for length in pair))
        self.lengths = nn.ModuleList(own)
        self._lengths_of = [(own.index(e), own.index(f)) for e, f in pairs]
        self.register_buffer("near_table", sinusoid(t + 1, width), persistent=False)
        # From token i of a segment to the middle of the m-th one before: i + m·T - (T-1)/2.
        ages = torch.arange(config.memory_len, device="cpu") + (t + 1) / 2
        self.register_buffer("far_table", absolute(ages, width).float(), persistent=False)
        self.reset_parameters()

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory holds whole segments, uncompressed; see `Model.check`.

        `projected_len` is k, keys and values that each segment is shortened to; `projection` is one
        of KINDS, `sharing` one of SHARING.
        """
        given = config.compressed_len
        require(given == 0, f"compressed_len with head {config.head!r}", given, "0")
        multiple = f"a multiple of segment_len = {config.segment_len}"
        good = config.memory_len % config.segment_len == 0
        require(good, f"memory_len with head {config.head!r}", config.memory_len, multiple)

    @property
    def n_blocks(self) -> int:
        """Segments that memory holds."""
        return self.config.memory_len // self.config.segment_len

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        return self.empty_state(batch_size, past_len=self.config.memory_len)

    def past_columns(self, state: State) -> int:
        """k for each segment in memory."""
        return self.n_blocks * self.config.projected_len

    def project_past(self, index: int, state: State) -> Pair:
        """Shortened keys and values of every segment in memory, empty ones too."""
        if not self.n_blocks:
            return super().project_past(index, state)
        layer = cast(Layer, self.layers[index])
        pair = project_blocks(layer.project, state.past[index], self.config.segment_len)
        return self._shortened(index, pair)

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> Pair:
        """The newest segments; see `SegmentedModel.past_after`."""
        if not self.n_blocks:
            return past
        return newest(past, self._shortened(index, segment))

    def look(self, call: Call) -> Tensor:
        """Where queries may look: [B, 1, t, K]."""
        state, k = call.state, self.config.projected_len
        filled = state.filled // self.config.segment_len * k
        return attention_mask(filled, self.n_blocks * k, state.phase, call.n_queries)

    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        """Relative attention, the past by its segments' middles; see `SegmentedModel.attend`."""
        attention, k = cast(Layer, self.layers[index]).attention, self.config.projected_len
        (key, value), (near, far) = pair, call.keys_of_positions[index]
        n_far, t = self.n_blocks * k, seen.shape[1]
        n_open = key.shape[2] - n_far
        u, w = (bias[:, None] * self.config.head_dim**-0.5 for bias in self.biases(index))
        query = attention.queries(seen)
        scores = relative_shift(by_head(query + w, near[:, -(n_open + 1) :]))  # [B, H, t, n_open]
        if n_far:
            own = far[:, :, n_open - t : n_open]  # [H, m, t, E], oldest segment first
            old = torch.einsum("bhte,hmte->bhtm", query + w, own)
            scores = torch.cat([old.repeat_interleave(k, dim=3), scores], dim=3)
        heads = F.scaled_dot_product_attention(
            query + u,
            key,
            value,
            attn_mask=scores.masked_fill(~call.look, -torch.inf),
            dropout_p=attention.dropout if self.training else 0.0,
            scale=1.0,
        )
        out: Tensor = attention.output(heads.transpose(1, 2).flatten(2))
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """The segment put into memory, the oldest one let go; see `SegmentedModel.closed`."""
        return self.shifted(state, kept=self.config.memory_len), None

    def _shortened(self, index: int, pair: Pair) -> Pair:
        """Each segment of [B, H, m·T, E] by itself: [B, H, m·k, E]."""
        shorter = []
        for which, part in zip(self._lengths_of[index], pair, strict=True):
            shorten = self.lengths[which]
            b, h, _, width = part.shape
            blocks = part.unflatten(2, (-1, self.config.segment_len)).transpose(1, 2)
            made = shorten(standard(blocks.flatten(0, 1)))  # [B·m, H, k, E]
            shorter.append(made.unflatten(0, (b, -1)).transpose(1, 2).reshape(b, h, -1, width))
        return shorter[0], shorter[1]

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R of the open segment [H, T+1, E], and of memory [H, m, T, E], oldest first."""
        attention, dtype = cast(Layer, self.layers[index]).attention, self.output_bias.dtype
        near, far = (
            attention.project_positions(self.dropout(table.to(dtype)))
            for table in (self.near_table, self.far_table)
        )
        far = far.unflatten(1, (self.n_blocks, -1)) if self.n_blocks else far[:, None]
        return near, far.flip(1)
