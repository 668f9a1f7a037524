"""Loss of learned selection for models whose slots are keys and values: joint reconstruction.

Compares the closed segment's attention to itself with the evicted slots replaced by pooled ones.
One softmax covers all slots, so the attention that old slots deserve is part of the target. Only
the gates get a gradient. Original; `compression_losses.joint_attention_reconstruction` is the same
for relative positions.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.memory.eviction import Eviction
from streamlm.memory.selection import HeadSelect
from streamlm.models.cache import Pair, joined
from streamlm.models.layers.llama_block import LlamaBlock
from streamlm.models.layers.rotary import rotate, rotation
from streamlm.models.llama_config import LlamaConfig
from streamlm.state import State


class Selecting(Protocol):
    """What the loss needs of a model."""

    config: LlamaConfig
    layers: nn.ModuleList
    compressors: nn.ModuleList
    frequencies: Tensor
    rotation_factor: float

    def segment_bias(self, state: State) -> Tensor:
        """Bias of a whole segment's queries, [B, 1, T · H / H_kv, S + P + T]."""

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of pinned, compressed and memory slots."""

    def project_open(self, index: int, state: State) -> Pair:
        """Keys and values of the open segment."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionEviction(Eviction):
    """An eviction with what the loss needs.

    Attributes:
        before: the state with the full segment.
        heads: [L, B, H, T, E] rotated queries of the segment.
        rows: [B], True for rows that the loss covers: those that evicted slots, but not the first
            tokens of the stream, which stay visible as pinned slots.
    """

    before: State
    heads: Tensor
    rows: Tensor


def selection_loss(model: Selecting, eviction: SelectionEviction) -> Tensor:
    """Squared change of the attention output, relative to its square, in the mean over layers and
    `SelectionEviction.rows`: layers differ in scale by orders of magnitude.
    """
    config, state = model.config, eviction.before
    first, n_new = config.pinned_len + config.compressed_len, config.evicted_len
    stop = first + config.segment_len  # evicted columns: first to stop
    rows = eviction.rows
    with torch.no_grad():
        bias = model.segment_bias(state)
        # A pooled key has the mean position of its group.
        at = torch.arange(n_new, device=bias.device) * config.compression_rate
        at = first + at + (config.compression_rate - 1) / 2
        cos, sin = rotation(model.frequencies, model.rotation_factor, at)
        masked = torch.zeros(rows.shape[0], 1, 1, n_new, device=bias.device, dtype=bias.dtype)
        masked = masked.masked_fill(~eviction.real_compressed[:, None, None], -torch.inf)
    total = eviction.compressed.new_zeros((), dtype=torch.float32)
    for index, select in enumerate(cast("list[HeadSelect]", list(model.compressors))):
        attention = cast(LlamaBlock, model.layers[index]).attention
        with torch.no_grad():
            query = attention.grouped(eviction.heads[index])
            open_pair = model.project_open(index, state)
            key, value = joined(model.project_past(index, state), open_pair)
            target = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        new_key, new_value = select.pool(eviction.evicted[index])
        new_key = rotate(new_key, cos, sin).to(key.dtype)
        mass = select.mass[None, :, None, None] + masked
        new_bias = mass.expand(-1, -1, bias.shape[2], -1).to(bias.dtype)
        wide = bias.expand(rows.shape[0], config.n_kv_heads, -1, -1)
        actual = F.scaled_dot_product_attention(
            query,
            torch.cat([key[:, :, :first], new_key, key[:, :, stop:]], dim=2),
            torch.cat([value[:, :, :first], new_value.to(value.dtype), value[:, :, stop:]], dim=2),
            attn_mask=torch.cat([wide[..., :first], new_bias, wide[..., stop:]], dim=3),
        )
        change = (actual - target).float().square().mean(dim=(1, 2, 3))  # [B]
        size = target.float().square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
        total = total + (change / size * rows).sum()
    return total / (len(model.layers) * rows.sum().clamp(min=1))
