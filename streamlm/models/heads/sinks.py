"""Attention sinks: a sliding window plus the pinned first tokens of the stream.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2024): models put surplus
attention on the first tokens, and degrade when these leave the window. A baseline for windows
without compression.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from streamlm.config import ModelConfig, require
from streamlm.memory.eviction import Eviction
from streamlm.models.cache import Pair, joined, newest, project_blocks
from streamlm.models.call import Attended, Call, PositionKeys
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import sinusoid
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State

PINNED = "pinned"  # carried tensor: layer inputs of the first tokens, [L, B, S, D]


class SinksModel(SegmentedModel):
    """A Transformer-XL with pinned slots: [pinned S | memory M | open segment].

    A pinned slot becomes visible when it leaves memory. Its position is then fixed, at most S
    columns to the left of memory (positions within the cache, as in the paper).
    """

    position_table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        longest = config.pinned_len + config.memory_len + config.segment_len
        table = sinusoid(longest + 1, config.d_model, clamp=config.clamp_len)
        self.register_buffer("position_table", table, persistent=False)
        self.reset_parameters()

    @classmethod
    def beside(cls, base: ModelConfig, slots: int) -> ModelConfig:
        """Pinned slots count; see `Model.beside`."""
        plain = super().beside(base, slots)
        return replace(plain, memory_len=slots - base.pinned_len)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """There is no compressed memory; see `Model.check`.

        `pinned_len` is S, the number of pinned first tokens.
        """
        given = config.compressed_len
        require(given == 0, f"compressed_len with head {config.head!r}", given, "0")
        good = 1 <= config.pinned_len <= config.segment_len
        allowed = f"1 to segment_len = {config.segment_len}"
        require(good, "pinned_len", config.pinned_len, allowed)

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        config = self.config
        state = self.empty_state(batch_size, past_len=config.memory_len)
        lead, width = state.past.shape[:2], config.d_model
        dtype = torch.promote_types(state.past.dtype, torch.float32)
        pinned = state.past.new_zeros(*lead, config.pinned_len, width, dtype=dtype)
        return replace(state, carried={PINNED: pinned})

    def past_columns(self, state: State) -> int:
        """Pinned slots and memory."""
        return self.config.pinned_len + self.config.memory_len

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of pinned slots and memory, including empty ones."""
        pinned = self._project_pinned(index, state)
        if not self.config.memory_len:
            return pinned
        layer = cast(Layer, self.blocks[index])
        memory = project_blocks(layer.project, state.past[index], self.config.segment_len)
        return joined(pinned, memory)

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Append the segment to memory; the few pinned slots are projected again."""
        pinned = self._project_pinned(index, state)
        if not self.config.memory_len:
            return [pinned]
        key, value = (half[:, :, self.config.pinned_len :] for half in past)
        return [pinned, *newest((key, value), segment)]

    def call_context(self, call: Call) -> Tensor:
        """Attention mask: [B, 1, t, K]."""
        state, t, memory_len = call.state, call.n_queries, self.config.memory_len
        near = attention_mask(state.filled, memory_len, state.phase, t)
        # Pinned slots are visible once they have left memory.
        evicted = (state.position - state.phase - memory_len)[:, None]  # [B, 1]
        real = torch.arange(self.config.pinned_len, device=evicted.device) < evicted  # [B, S]
        return torch.cat([real[:, None, None].expand(-1, -1, t, -1), near], dim=3)

    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Relative attention over pinned slots, memory and segment; see `SegmentedModel.attend`."""
        (key, value), (positions,) = pair, call.position_keys[index]
        out, _ = cast(Layer, self.blocks[index]).attention.attend(
            inputs,
            key,
            value,
            positions=positions[:, -(key.shape[2] + 1) :],
            biases=self.biases(index),
            mask=call.context,
        )
        return Attended(out)

    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> tuple[State, None]:
        """Move the segment into memory; the first segment sets the pinned slots."""
        first = (state.position == self.config.segment_len)[None, :, None, None]
        pinned = state.carried[PINNED]
        begun = state.segment[:, :, : self.config.pinned_len].to(pinned.dtype)
        carried = {PINNED: torch.where(first, begun, pinned)}
        return self.shifted(state, kept=self.config.memory_len, carried=carried), None

    def project_positions(self, index: int) -> PositionKeys:
        """W_R R, [H, S + M + T + 1, E]."""
        table = self.dropout(self.position_table.to(self.output_bias.dtype))
        return (cast(Layer, self.layers[index]).attention.project_positions(table),)

    def _project_pinned(self, index: int, state: State) -> Pair:
        slots = state.carried[PINNED][index].to(self.output_bias.dtype)
        return cast(Layer, self.blocks[index]).project(slots)
