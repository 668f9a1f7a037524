"""A causal Informer: only active queries attend, and memory is distilled.

The published masked ProbSparse attention is not causal: its sparsity measure uses all keys, and the
top queries are chosen among all queries. Here both are causal. The max-mean measure of a query
(Zhou et al., 2021, eq. 4) uses keys up to the query, sampled by its absolute position, so that it
does not depend on chunking. A query is active if its measure reaches a threshold estimated from
earlier segments. All other queries ("lazy" in the paper) get the mean of all values so far. Closed
segments are distilled to half their length (eq. 5, without batch normalisation, which would mix
streams).

This saves no time here, because all scores of a window are computed at once.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Pair, newest, project_blocks
from streamlm.models.call import Attended, Call, PositionKeys
from streamlm.models.layers.attention import attention_mask, by_head, relative_shift
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import sinusoid
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State

# Carried tensors: measures of the open segment's queries [L, B, H, T], threshold [L, B, H], and sum
# of all values of closed segments [L, B, H, E].
MEASURES, THRESHOLD, SUM = "measures", "threshold", "sum"
RATE = 0.1  # weight of a new segment in the moving average of the threshold


class Distil(nn.Module):
    """Distil a segment to half its length: [B, T, W] → [B, T/2, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, slots: Tensor) -> Tensor:
        """Convolution, ELU and max pooling within one segment."""
        out = F.max_pool1d(F.elu(self.convolution(slots.mT)), 3, stride=2, padding=1)
        return out.mT


class InformerModel(SegmentedModel):
    """A language model with distilled memory and sparse causal queries."""

    closes_with_keys = True

    position_table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        n_distils = config.n_layers if config.memory_len else 0
        self.distils = nn.ModuleList(Distil(config.d_model) for _ in range(n_distils))
        table = sinusoid(config.memory_len + config.segment_len + 1, config.d_model)
        self.register_buffer("position_table", table, persistent=False)
        self.reset_parameters()

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Whole segments; see `Model.beside`."""
        return super().beside(base, slots // base.segment_len * base.segment_len)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Memory consists of whole segments of even length; see `Model.check`.

        `factor` is c: about c·⌈ln T⌉ of a segment's T queries are active.
        """
        given = config.compressed_len
        require(given == 0, f"compressed_len with head {config.head!r}", given, "0")
        multiple = f"a multiple of segment_len = {config.segment_len}"
        good = config.memory_len % config.segment_len == 0
        require(good, f"memory_len with head {config.head!r}", config.memory_len, multiple)
        name, even = "segment_len with head 'informer'", config.segment_len % 2 == 0
        require(even, name, config.segment_len, "an even number")
        require(config.factor >= 1, "factor", config.factor, "an integer of at least 1")

    @property
    def active_share(self) -> float:
        """Target share of active queries: c·⌈ln T⌉ / T, at most 1."""
        t = self.config.segment_len
        return min(1.0, self.config.factor * math.ceil(math.log(max(t, 2))) / t)

    @property
    def n_far(self) -> int:
        """Past key columns: half of the slots in memory."""
        return self.config.memory_len // 2

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        config = self.config
        lead = (config.n_layers, batch_size, config.n_heads)
        weight = self.output_bias
        dtype = torch.promote_types(weight.dtype, torch.float32)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*lead, *shape, dtype=dtype, device=weight.device)

        carried = {
            MEASURES: zeros(config.segment_len),
            THRESHOLD: zeros(),
            SUM: zeros(config.head_dim),
        }
        return self.empty_state(batch_size, past_len=config.memory_len, carried=carried)

    def past_columns(self, state: State) -> int:
        """Half of the slots in memory; see `SegmentedModel.past_columns`."""
        return self.n_far

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of distilled segments, including empty ones."""
        if not self.n_far:
            return super().project_past(index, state)
        return project_blocks(
            lambda slots: self._distilled(index, slots),
            state.past[index],
            self.config.segment_len,
            made=self.config.segment_len // 2,
        )

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Append the distilled closed segment; see `SegmentedModel.past_after`."""
        if not self.n_far:
            return [past]
        closed = state.past[index, :, -self.config.segment_len :].contiguous()
        return newest(past, self._distilled(index, closed))

    def call_context(self, call: Call) -> Tensor:
        """Attention mask: [B, 1, t, K]."""
        return attention_mask(call.state.filled // 2, self.n_far, call.state.phase, call.n_queries)

    def attention_changes(self, state: State) -> bool:
        """Measures are of attention scores; see `SegmentedModel.attention_changes`."""
        return True

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Attention of active queries, mean values of others; see `SegmentedModel.attend`."""
        attention = cast(Layer, self.blocks[index]).attention
        (key, value), (projected,), state = pair, call.position_keys[index], call.state
        n_far, t = self.n_far, inputs.shape[1]
        n_open = key.shape[2] - n_far
        length = n_open - t
        u, w = (bias[:, None] * self.config.head_dim**-0.5 for bias in self.biases(index))
        query = attention.queries(inputs)
        memory = self.config.memory_len
        projected = projected[:, -(memory + n_open + 1) :]
        near = relative_shift(by_head(query + w, projected))  # [B, H, t, M + n_open]
        # A distilled slot has the position of the newer of its two tokens.
        bias = torch.cat([near[..., 1:memory:2], near[..., memory:]], dim=3)
        scores = ((query + u) @ key.mT + bias).masked_fill(~call.context, -torch.inf)
        with torch.no_grad():
            measures = self._measured(scores, state, length)
        dropout = attention.dropout if self.training else 0.0
        attended = F.dropout(scores.softmax(dim=-1), dropout) @ value
        first = state.position[:, None] - length < self.config.segment_len  # no threshold yet
        above = measures >= state.carried[THRESHOLD][index][..., None]
        active = above | first[..., None] | (self.active_share >= 1)
        lazy = self._means(value[:, :, n_far:], state, index)[:, :, length:]
        heads = torch.where(active[..., None], attended, lazy.to(attended.dtype))
        out: Tensor = attention.output(heads.transpose(1, 2).flatten(2))
        old = state.carried[MEASURES][index]
        updated = torch.cat([old[..., :length], measures.to(old.dtype), old[..., n_open:]], dim=2)
        return Attended(out, carried={MEASURES: updated})

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Move the segment into memory; update the sum of values and the threshold."""
        total = state.carried[SUM]
        new = torch.stack([value[:, :, self.n_far :].sum(dim=2) for value in values])
        quantile = state.carried[MEASURES].quantile(1 - self.active_share, dim=3)
        old = state.carried[THRESHOLD]
        first = (state.position <= self.config.segment_len)[None, :, None]
        carried = {
            MEASURES: torch.zeros_like(state.carried[MEASURES]),
            THRESHOLD: torch.where(first, quantile, old + RATE * (quantile - old)),
            SUM: total + new.detach().to(total.dtype),
        }
        return self.shifted(state, kept=self.config.memory_len, carried=carried), None

    def _measured(self, scores: Tensor, state: State, length: int) -> Tensor:
        """Max-mean measure of each query over sampled earlier keys: [B, H, t]."""
        t, n_keys = scores.shape[2:]
        n_sampled = min(
            n_keys, self.config.factor * math.ceil(math.log(self.n_far + self.config.segment_len))
        )
        at = torch.arange(t, device=scores.device)
        visible = state.filled[:, None] // 2 + length + 1 + at  # [B, t]
        position = state.position[:, None] + at
        chance = position_noise(position, n_sampled)  # [B, t, U] in [0, 1)
        back = (chance * visible[..., None]).long()
        column = (self.n_far + length + at)[None, :, None] - back
        sampled = scores.gather(3, column[:, None].expand(-1, scores.shape[1], -1, -1))
        return sampled.amax(dim=3) - sampled.mean(dim=3)

    def _means(self, value: Tensor, state: State, index: int) -> Tensor:
        """The mean of all values up to each token of the open segment: [B, H, n, E]."""
        total = state.carried[SUM][index]
        n_before = (state.position - state.phase)[:, None]  # tokens of closed segments
        count = n_before + torch.arange(1, value.shape[2] + 1, device=value.device)
        summed = total[:, :, None] + value.to(total.dtype).cumsum(dim=2)
        return summed / count[:, None, :, None]

    def _distilled(self, index: int, slots: Tensor) -> Pair:
        layer = cast(Layer, self.blocks[index])
        distil = cast(Distil, self.distils[index])
        return layer.attention.project(distil(layer.read(slots)))

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R, [H, M + T + 1, E]."""
        table = self.dropout(self.position_table.to(self.output_bias.dtype))
        return (cast(Layer, self.layers[index]).attention.project_positions(table),)


def position_noise(positions: Tensor, n: int) -> Tensor:
    """n deterministic pseudo-random numbers in [0, 1) per position: [...] → [..., n] float64.

    A multiplicative hash with two rounds (SplitMix, Steele et al., 2014).
    """
    x = positions[..., None] * n + torch.arange(n, device=positions.device) + 1
    x = x * _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return ((x >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
