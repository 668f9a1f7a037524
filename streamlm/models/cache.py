"""Keys and values of past slots, derived from a state so that nothing is projected twice.

The last bits of a matrix product depend on how many rows are multiplied at once. So past slots are
always projected in the same blocks: memory by whole segments, compressed slots by the T / c of
one commit. A cache built from a loaded state then equals the one that grew with the stream, bit
for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.state import Cache, State


class Projector(Protocol):
    """A layer, as far as the cache is concerned."""

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots: [B, n, W] → two [B, H, n, E]."""


def build_cache(
    config: ModelConfig, layers: Sequence[Projector], state: State, *, version: int
) -> Cache:
    """The cache of a state that has none, as if it had been loaded."""
    shape = (state.batch_size, config.n_heads, config.past_len + config.segment_len)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for index, layer in enumerate(layers):
        past, parts = state.past[index], []
        if config.compressed_len:
            old = past[:, : config.compressed_len]
            parts.append(project_blocks(layer.project, old, config.evicted_len))
        if config.memory_len:
            recent = past[:, config.compressed_len :]
            parts.append(project_blocks(layer.project, recent, config.segment_len))
        if state.length:
            parts.append(layer.project(state.segment[index, :, : state.length].contiguous()))
        for store, column in ((keys, 0), (values, 1)):
            buffer = state.past.new_zeros(*shape, config.head_dim)
            if parts:
                filled = torch.cat([part[column] for part in parts], dim=2)
                buffer[:, :, : filled.shape[2]] = filled
            store.append(buffer)
    return Cache(keys, values, state.segment.clone(), state.length, 1, version)


def committed_cache(
    config: ModelConfig,
    layers: Sequence[Projector],
    cache: Cache,
    *,
    state: State,
    compressed: Tensor | None,
) -> Cache:
    """Move a cache on as `commit` moved the slots, projecting only what is new.

    Args:
        cache: of the state before the commit; state: after it.
        compressed: [L, B, T/c, W] the slots that the commit made, None when C = 0.
    """
    t, c_len, p_len = config.segment_len, config.compressed_len, config.past_len
    if config.memory_len < t or cache.used != t:
        return build_cache(config, layers, state, version=cache.weights_version)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for index, layer in enumerate(layers):
        old = cache.keys[index], cache.values[index]
        # Memory keeps its newest M - T columns; the segment's T follow.
        stop = p_len + t if cache.calls == 1 else p_len
        parts = [tuple(half[:, :, c_len + t : stop] for half in old)]
        if cache.calls > 1:  # read in pieces: project it as the whole segment that it is now
            parts.append(layer.project(state.past[index, :, -t:].contiguous()))
        if compressed is not None:
            new = layer.project(compressed[index].contiguous())
            kept = [
                torch.cat([o[:, :, :c_len], n], 2)[:, :, -c_len:]
                for o, n in zip(old, new, strict=True)
            ]
            parts.insert(0, tuple(kept))
        for store, column in ((keys, 0), (values, 1)):
            buffer = torch.zeros_like(old[0])
            buffer[:, :, :p_len] = torch.cat([part[column] for part in parts], dim=2)
            store.append(buffer)
    return replace(
        cache, keys=keys, values=values, segment=torch.zeros_like(cache.segment), used=0, calls=0
    )


def counted_back(before: State, after: State, n: int) -> State:
    """The state n tokens after `before`, where all that it had to say of more are void columns.

    The cache still counts them as taken: who goes on copies it first. See `freed`.
    """
    length = before.length + n
    if length == after.length:
        return after
    cache = after.cache
    if cache is not None:  # its columns were not projected by themselves
        cache = replace(cache, calls=max(cache.calls, 2))
    return replace(after, position=before.position + n, length=length, cache=cache)


def freed(state: State) -> State:
    """The state, with the columns behind its own free: for when nobody else goes on with them."""
    if state.cache is None or state.cache.used == state.length:
        return state
    return replace(state, cache=replace(state.cache, used=state.length))


def project_blocks(
    project: Callable[[Tensor], tuple[Tensor, Tensor]],
    slots: Tensor,
    block: int,
    *,
    made: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Project slots block by block from the right: every block has the shape of a commit.

    Args:
        made: keys that a block gives, if they are fewer; only of whole blocks.
    """
    n = slots.shape[1]
    padded = F.pad(slots, (0, 0, -n % block, 0))
    pairs = [project(part.contiguous()) for part in padded.split(block, dim=1)]
    keys, values = (torch.cat(halves, dim=2) for halves in zip(*pairs, strict=True))
    n_made = n if made is None else n // block * made
    return keys[:, :, keys.shape[2] - n_made :], values[:, :, values.shape[2] - n_made :]
