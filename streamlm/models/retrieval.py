"""Retrieval heads: what an archive keeps of a Llama-family model's keys, and how a question asks.

A retrieval head attends from a question to the place of its answer (Wu et al. 2024). Keys are kept
before rotation, so they have no position; a question's queries are rotated to one distance from all
of them. Which heads of a model are retrieval heads is measured: see `lab.calibration`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamlm.models.cache import Cache
from streamlm.models.layers.rotary import rotate, rotation
from streamlm.models.llama import QUERIES, LlamaModel
from streamlm.models.llama_config import LlamaConfig
from streamlm.models.slot_grid import pack, snap, unpack
from streamlm.state import State

DISTANCE = 512  # positions from a question to every key


@dataclass(frozen=True)
class RetrievalHeads:
    """Some heads of a model.

    Attributes:
        heads: (layer, query head) of each.
    """

    heads: tuple[tuple[int, int], ...]

    @property
    def digest(self) -> str:
        """8 hex digits that name the choice."""
        return hashlib.sha256(repr(sorted(self.heads)).encode()).hexdigest()[:8]

    def check(self, config: LlamaConfig) -> None:
        """Raise ValueError unless the model has these heads, each given once."""
        good = all(
            0 <= layer < config.n_layers and 0 <= head < config.n_heads
            for layer, head in self.heads
        )
        if not good or not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError(
                f"retrieval heads {list(self.heads)}; allowed: different (layer, head) pairs, "
                f"layers 0 to {config.n_layers - 1}, heads 0 to {config.n_heads - 1}"
            )

    def key_heads(self, config: LlamaConfig) -> list[tuple[int, int]]:
        """(layer, key head) of the K keys that are kept of a token, ascending."""
        group = config.n_heads // config.n_kv_heads
        return sorted({(layer, head // group) for layer, head in self.heads})

    def which_keys(self, config: LlamaConfig) -> list[int]:
        """For each head, the index of its keys in `key_heads`."""
        group, kept = config.n_heads // config.n_kv_heads, self.key_heads(config)
        return [kept.index((layer, head // group)) for layer, head in self.heads]

    def bytes_per_token(self, config: LlamaConfig) -> int:
        """Size of `packed` keys: 8 bits a number, and an exponent for each head."""
        return len(self.key_heads(config)) * (config.head_dim + 1)


def segment_keys(model: LlamaModel, state: State, heads: RetrievalHeads) -> Tensor:
    """Keys of the open segment of a state of one row, before rotation: [n, K, E]."""
    config = model.config
    slots = state.segment[:, 0, : state.phase].unflatten(-1, (config.n_kv_heads, 2, -1))
    kept = [slots[layer, :, head, 0] for layer, head in heads.key_heads(config)]
    return torch.stack(kept, dim=1)


def pack_keys(keys: Tensor) -> np.ndarray:
    """Keys as bytes: [n, K, E] → [n, K · (E + 1)] int8; see `models.slot_grid`."""
    size = keys.shape[-1]
    return pack(snap(keys.float().flatten(1), size), size)


def unpack_keys(rows: np.ndarray, model: LlamaModel) -> Tensor:
    """The inverse of `pack_keys`, on the model's device: [n, K, E] float32."""
    size = model.config.head_dim
    return unpack(rows, size, torch.float32).unflatten(1, (-1, size)).to(model.device)


@torch.no_grad()
def question_queries(
    model: LlamaModel, tokens: Tensor, state: State, heads: Sequence[tuple[int, int]]
) -> Tensor:
    """Queries of a question, at `DISTANCE` from keys without a position: [H, n, E] float32.

    They are scaled, so that their products with keys are attention scores.

    Args:
        tokens: [1, n] ids that the stream would read next.
        state: of the stream, one row; it is not changed.
        heads: (layer, query head) of each.
    """
    config = model.config
    shape = (config.n_layers, 1, config.n_heads, config.segment_len, config.head_dim)
    recorded = torch.zeros(shape, device=model.device, dtype=model.attention_dtype)
    state = replace(state, carried={**state.carried, QUERIES: recorded})
    layers, of_layer = (
        torch.tensor(column, device=model.device) for column in zip(*heads, strict=True)
    )
    cache, found, at = Cache(), [], 0
    while at < tokens.shape[1]:
        if state.phase == config.segment_len:
            state = model.commit(state, cache)[0]
        begin = state.phase
        part = tokens[:, at : at + config.segment_len - begin]
        _, state = model.hidden(part, state, cache)
        rotated = state.carried[QUERIES][:, 0, :, begin : state.phase]
        chosen = rotated[layers, of_layer].float()
        first = config.columns - config.segment_len + begin
        positions = torch.arange(first, first + part.shape[1], device=model.device)
        found.append(rotate(chosen, *rotation(model.frequencies, 1.0, DISTANCE - positions)))
        at += part.shape[1]
    # Queries have the factor of rotated ones; keys are not rotated.
    return torch.cat(found, dim=1) * (model.rotation_factor * config.head_dim**-0.5)
