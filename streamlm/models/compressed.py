"""CompressedModel: base of models whose past is [compressed C | memory M].

A closed segment enters memory; what it evicts is compressed (Compressive Transformer, Algorithm 1).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from streamlm.memory.eviction import Eviction, evict
from streamlm.models.segmented import SegmentedModel
from streamlm.state import State


class CompressedModel(SegmentedModel):
    """A model with memory and compressed memory; `compressors` has one module per layer."""

    compressors: nn.ModuleList

    def init_state(self, batch_size: int = 1) -> State:
        """The state of new streams."""
        return self.empty_state(batch_size, past_len=self.config.past_len)

    def barred(self, state: State) -> Tensor | None:
        """[B, T], True for slots that the next commit evicts and must not keep; None for none."""
        return None

    def closed(
        self, state: State, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[State, Eviction | None]:
        """Move the segment into memory, and compress the evicted slots.

        New compressed slots keep their gradient in the eviction; in the state, only with
        compression_loss "bptt".
        """
        config, t = self.config, self.config.segment_len
        c_len, m_len = config.compressed_len, config.memory_len
        n_memory = state.filled.clamp(max=m_len)
        n_evicted = (n_memory + t - m_len).clamp(min=0)
        memory, filled = state.past[:, :, c_len:], (n_memory + t).clamp(max=m_len)
        # Each slot of the new past is copied once.
        slots, parts = memory, [memory[:, :, t:], state.segment]
        if m_len < t:  # the segment has slots that are evicted
            slots = torch.cat([memory, state.segment], dim=2)  # [L, B, M+T, W]
            parts = [slots[:, :, t:]]
        eviction: Eviction | None = None
        if c_len:
            barred = self.barred(state)
            eviction = evict(config, self.compressors, state, slots, n_evicted, barred=barred)
            new = eviction.compressed
            kept = new if config.compression_loss == "bptt" else new.detach()
            parts = [state.past[:, :, kept.shape[2] : c_len], kept[:, :, -c_len:], *parts]
            n_compressed = state.filled - n_memory + n_evicted // config.compression_rate
            filled = filled + n_compressed.clamp(max=c_len)
        past = torch.cat(parts, dim=2)
        usage = state.usage
        if config.wants_usage:
            empty = usage.new_zeros(*usage.shape[:2], t)
            usage = torch.cat([usage, empty], dim=2)[:, :, t:]
        committed = replace(
            state,
            past=past,
            segment=torch.zeros_like(state.segment),
            usage=usage,
            filled=filled,
            length=(0,) * state.batch_size,
        )
        return committed, eviction
