"""Eviction: the slots that leave memory when a segment is closed, and their compression."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.state import State


@dataclass(frozen=True, eq=False)
class Eviction:
    """Slots that a commit evicted and compressed, for the compression losses.

    Attributes:
        queries: [L, B, T, W] layer inputs of the closed segment.
        evicted: [L, B, T, W] slots that left memory (with M < T, also of the segment).
        compressed: [L, B, T/c, W] their compressed slots, with gradients.
        real: [B, T] True for occupied columns of `evicted`; real_compressed: [B, T/c] likewise.
        usage: [L, B, T] mean attention they received; zeros unless the compression uses it.
        past: [L, B, P, W] past slots before this commit; filled: [B] occupied slots of `past`.
    """

    queries: Tensor
    evicted: Tensor
    compressed: Tensor
    real: Tensor
    real_compressed: Tensor
    usage: Tensor
    past: Tensor
    filled: Tensor


def evict(
    config: ModelConfig,
    compressors: Iterable[torch.nn.Module],
    state: State,
    slots: Tensor,
    n_evicted: Tensor,
    *,
    barred: Tensor | None = None,
) -> Eviction:
    """Compress the oldest T slots of memory and segment, layer by layer.

    Args:
        compressors: one per layer.
        state: before the commit, with a full segment.
        slots: [L, B, M or M+T, W] memory, with M < T also the segment.
        n_evicted: [B] occupied slots among the oldest T, right-aligned.
        barred: [B, T], True for slots that must not be kept; their usage becomes -1.
    """
    t = config.segment_len
    evicted = slots[:, :, :t].detach()
    column = torch.arange(t, device=evicted.device)
    real = column[None] >= t - n_evicted[:, None]  # [B, T]
    new_column, n_new = column[: config.evicted_len], n_evicted // config.compression_rate
    real_compressed = new_column[None] >= config.evicted_len - n_new[:, None]
    if config.wants_usage:
        # Mean over the queries that could attend to a slot: those of all segments since it entered.
        segments = (config.memory_len - 1 - column) // t + 1
        usage = state.usage[:, :, :t] / (segments * t)
    else:
        usage = evicted.new_zeros(config.n_layers, evicted.shape[1], t)
    if barred is not None:
        usage = usage.float().masked_fill(barred, -1)
    compressed = torch.stack(
        [
            compress(evicted[index].contiguous(), usage[index], real)
            for index, compress in enumerate(compressors)
        ]
    )
    return Eviction(
        queries=state.segment.detach(),
        evicted=evicted,
        compressed=compressed,
        real=real,
        real_compressed=real_compressed,
        usage=usage,
        past=state.past.detach(),
        filled=state.filled,
    )
