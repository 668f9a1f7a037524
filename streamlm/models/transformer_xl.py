"""Transformer-XL with compressed memory (Compressive Transformer)."""

from dataclasses import replace
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import TRAINED_BY, ModelConfig, any_of, check_compression, require
from streamlm.memory.compression import COMPRESSORS, Conv, Dilated, Select
from streamlm.memory.eviction import Eviction
from streamlm.models.base import Observer
from streamlm.models.cache import (
    Cache,
    CacheWriter,
    Pair,
    columns,
    newest,
    project_blocks,
    standard,
)
from streamlm.models.call import Attended, Call, PositionKeys, Projected
from streamlm.models.compressed import CompressedModel
from streamlm.models.compression_losses import compression_loss, compression_weight
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import sinusoid
from streamlm.models.layers.products import infers_on_cpu
from streamlm.models.layers.relative_step import RelativeStep
from streamlm.state import State


class _RelativeContext(NamedTuple):
    """Mask and relative distances of one call.

    Attributes:
        mask: see `RelativeAttention.attend`.
        distances: slice of the position keys.
        column: [B, 1, t, K] position key of each query and key; None if all rows are in the same
            phase.
    """

    mask: Tensor
    distances: slice
    column: Tensor | None


class TransformerXL(CompressedModel):
    """A Transformer-XL with memory and compressed memory (Compressive Transformer)."""

    reads_any_phase = True
    reports_memory = True
    position_table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        width, rate = config.d_model, config.compression_rate
        n_compressors = config.n_layers if config.compressed_len else 0
        self.compressors = nn.ModuleList(
            COMPRESSORS[config.compression](config) for _ in range(n_compressors)
        )
        auto_encoding = config.compression_loss == "auto-encoding"
        self.decoders = nn.ModuleList(
            # A transposed convolution with kernel = stride = c is this matrix.
            nn.Linear(width, rate * width, bias=False)
            for _ in range(n_compressors if auto_encoding else 0)
        )
        longest = config.past_len + config.segment_len
        table = sinusoid(longest + 1, width, clamp=config.clamp_len)
        self.register_buffer("position_table", table, persistent=False)
        self.step: RelativeStep | None = None
        self.reset_parameters()

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Validate segment and memory lengths, and the loss for the compression."""
        check_compression(config)
        if not config.compressed_len:
            return
        name = f"compression_loss with compression {config.compression!r}"
        losses = TRAINED_BY.get(config.compression, ("none",))
        require(config.compression_loss in losses, name, config.compression_loss, any_of(losses))

    def auxiliary_loss(self, eviction: Eviction) -> tuple[Tensor, Tensor]:
        """The configured compression loss; see `Model.auxiliary_loss`."""
        return compression_loss(self, eviction), compression_weight(self, eviction)

    def reset_parameters(self) -> None:
        """As `Model.reset_parameters`; each compressor has its own initialisation."""
        super().reset_parameters()
        for compressor in self.compressors:
            if isinstance(compressor, (Conv, Dilated, Select)):
                compressor.reset(self.config.init_std)

    def compression_parameters(self) -> list[nn.Parameter]:
        """Parameters that the compression loss (or, with BPTT, the language model) trains."""
        return [*self.compressors.parameters(), *self.decoders.parameters()]

    # -- reading ----------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """See `Model.freeze`."""
        super().freeze()
        self.step = None
        if self.device.type == "cpu" and not self.config.wants_usage:
            biases = [self.biases(index) for index in range(self.config.n_layers)]
            columns = self.config.past_len + self.config.segment_len
            self.step = RelativeStep(self.layers, biases, columns=columns)
        return self

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        finish: bool = True,
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`. Single tokens take `RelativeStep` if the model has one."""
        step, slow = self.step, not infers_on_cpu(self.device) or observe is not None
        if step is None or slow or self.frozen is None or x.shape[:2] != (1, 1):
            return super().read(x, state, cache=cache, observe=observe, finish=finish)
        writer = CacheWriter(self._cache_of(state, cache), state, 1)
        config, phase, own = self.config, state.phase, writer.cache
        n_keys = config.past_len + config.segment_len
        visible = attention_mask(state.filled, config.past_len, phase, 1, n_keys=n_keys)[0]
        first = config.segment_len - phase  # of the distances of all columns
        hidden, slots = step(
            x[0],
            bias=torch.zeros(1, 1, n_keys, dtype=x.dtype).masked_fill_(~visible, -torch.inf),
            keys=[key[0] for key in own.keys],
            values=[value[0] for value in own.values],
            positions=[each[:, first : first + n_keys] for (each,) in self.derived()],
            column=config.past_len + phase,
        )
        writer.segment[:, 0, phase] = slots
        own.calls = 2  # other products than those of a state that is loaded
        position, length = state.position + 1, (phase + 1,)
        after = replace(state, segment=writer.segment, position=position, length=length)
        own.follow(after, self.frozen)
        return hidden[None].clone(), after

    def call_context(self, call: Call) -> "_RelativeContext":
        """Mask, and the position key of each query and key."""
        state, t = call.state, call.n_queries
        past_len, segment_len = self.config.past_len, self.config.segment_len
        if state.aligned:
            mask = attention_mask(state.filled, past_len, state.phase, t, n_keys=call.n_keys)
            # The last query has column P + length + t - 1 and distance 0 to itself.
            first = segment_len - state.phase - t
            if infers_on_cpu(self.device):
                full = int(state.filled.min()) == past_len
                barred = ~(mask[..., past_len:] if full else mask)
                mask = torch.zeros(barred.shape, dtype=self.slot_dtype)
                mask.masked_fill_(barred, -torch.inf)
            return _RelativeContext(mask, slice(first, first + call.n_keys + 1), None)
        device = state.filled.device
        key = torch.arange(call.n_keys, device=device)
        query = state.lengths()[:, None] + past_len + torch.arange(t, device=device)  # [B, t]
        back = query[..., None] - key  # [B, t, K] distances
        mask = (back >= 0) & (key >= past_len - state.filled[:, None])[:, None]
        # Column m of the position keys belongs to the distance P + T - m.
        column = (past_len + segment_len - back).clamp(max=past_len + segment_len)
        return _RelativeContext(mask[:, None], slice(past_len + segment_len + 1), column[:, None])

    def project_training(self, index: int, x: Tensor, call: Call) -> Projected:
        """One product over all slots; see `SegmentedModel.project_training`.

        Past slots are constants; W_k and W_v get gradients through them.
        """
        layer, state = cast(Layer, self.layers[index]), call.state
        past = state.past[index]
        if state.phase:
            past = torch.cat([past, state.segment[index, :, : state.phase]], dim=1)
        return Projected(layer.read(x), x, layer.project_training(past, x))

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Relative attention; see `SegmentedModel.attend`."""
        (positions,) = call.position_keys[index]
        relative: _RelativeContext = call.context
        out, weights = cast(Layer, self.blocks[index]).attention.attend(
            inputs,
            *pair,
            positions=positions[:, relative.distances],
            biases=self.biases(index),
            mask=relative.mask,
            column=relative.column,
            want_weights=call.want_weights,
        )
        return Attended(out, weights)

    def derive(self) -> list[PositionKeys]:
        """W_R R for distances P + T, …, 0 of each layer: [H, P+T+1, E].

        For inference, T padding columns follow for keys after the query, which are masked.
        """
        table = self.dropout(self.position_table.to(self.output_bias.dtype))
        n_padding = 0 if torch.is_grad_enabled() else self.config.segment_len
        layers = cast("list[Layer]", list(self.layers))
        projected = [
            self.within(index, layer.attention.project_positions, table)
            for index, layer in enumerate(layers)
        ]
        return [(F.pad(each, (0, 0, 0, n_padding)),) for each in projected]

    # -- keys and values --------------------------------------------------------------------------

    def project_past(self, index: int, state: State) -> Pair:
        """Compressed slots in blocks of one commit, memory in whole segments."""
        config, layer = self.config, cast(Layer, self.blocks[index])
        parts = [super().project_past(index, state)]
        if config.compressed_len:
            old = state.past[index, :, : config.compressed_len]
            parts.append(project_blocks(layer.project, old, config.evicted_len))
        if config.memory_len:
            recent = state.past[index, :, config.compressed_len :]
            parts.append(project_blocks(layer.project, recent, config.segment_len))
        key, value = (torch.cat(halves, dim=2) for halves in zip(*parts, strict=True))
        return key, value

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Projects only new compressed slots; see `SegmentedModel.past_after`."""
        config, t, c_len = self.config, self.config.segment_len, self.config.compressed_len
        if config.memory_len < t:  # memory holds less than one block
            return [self.project_past(index, state)]
        # The newest M - T columns of memory, then the T of the segment.
        recent = [columns(past, slice(c_len + t, None)), segment]
        if eviction is None:
            return recent
        new = cast(Layer, self.blocks[index]).project(standard(eviction.compressed[index]))
        return [*newest(columns(past, slice(c_len)), new), *recent]
