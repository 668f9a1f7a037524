"""What a stream still remembers: every slot, what it stands for, and what it is worth.

Nothing of this is measured while text is read. The newest tokens are read again, from a state
before them, with the attention weights in sight; reading goes on as fast as ever.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.memory.compression import MostUsed, Select
from streamlm.memory.eviction import Eviction
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.layers.block import Layer
from streamlm.runtime.stream import pieces
from streamlm.state import State


@dataclass(frozen=True, eq=False)
class MemoryReport:
    """Every real slot, oldest first: compressed memory, memory, the open segment.

    Attributes:
        position: tokens of the stream.
        start, stop: [L, n] the tokens of the stream that a slot stands for, start ≤ i < stop.
            Layers differ only where a compression selects; a layer's slots may then leave gaps.
        compressions: [n] how often a slot was compressed: 0 or 1.
        attention: [L, H, n] mean weight that the queries which could see the slot gave it since it
            is what it is.
        error: [L, n] what compressing cost: the relative error (a norm over its norm) of what the
            queries of the segment then closed took from the slot's group of tokens, by content. 0
            for slots that are whole.
        slot_bytes: bytes of a slot in the state, over all layers.
        ids: the tokens at positions `first` and after, where known.
    """

    position: int
    start: np.ndarray
    stop: np.ndarray
    compressions: np.ndarray
    attention: np.ndarray
    error: np.ndarray
    slot_bytes: int
    first: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.compressions)

    def kept(self, start: int, stop: int) -> float:
        """How much of the tokens start ≤ i < stop is left, from 0 (gone) to 1 (whole).

        The mean over tokens and layers of 1 - error of the slot that stands for a token, and 0
        where none does. The newest token, which the model has yet to read, counts as whole.
        """
        if not 0 <= start < stop <= self.position:
            raise ValueError(f"tokens {start} to {stop}; allowed: a part of 0 to {self.position}")
        whole = np.clip(1 - self.error, 0, 1)  # [L, n]
        total = 0.0
        for token in range(start, min(stop, self.position - 1)):
            covers = (self.start <= token) & (token < self.stop)
            total += float((whole * covers).max(axis=1).mean())
        total += stop == self.position
        return total / (stop - start)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: one object a slot."""
        slots = [
            {
                "start": self.start[:, i].tolist(),
                "stop": self.stop[:, i].tolist(),
                "compressions": int(self.compressions[i]),
                "attention": self.attention[:, :, i].tolist(),
                "error": self.error[:, i].tolist(),
            }
            for i in range(len(self))
        ]
        return {"position": self.position, "slot_bytes": self.slot_bytes, "slots": slots}


def window(config: ModelConfig) -> int:
    """Tokens to read again until every slot was made under observation."""
    t = config.segment_len
    commits = -(-config.memory_len // t)
    if config.compressed_len:
        commits += -(-config.compressed_len // config.evicted_len)
    return (commits + 1) * t


@torch.no_grad()
def observe(model: Model, tokens: Tensor, state: State) -> MemoryReport:
    """Read tokens, and report on the slots at their end.

    Args:
        tokens: [1, n] ids as `advance` takes them, the pending one first; at least `window` of
            them, unless the state is empty.
        state: before them.

    Raises:
        ValueError: too few, so that what the oldest slots stand for is not known; or the model has
            no slots to look at.
    """
    config, n = model.config, tokens.shape[1]
    if not model.reports_memory:
        raise ValueError("only a memory of slots can be looked at: head 'relative'")
    if int(state.position) and n < window(config):
        raise ValueError(f"{n} tokens; allowed: at least {window(config)}")
    seen, cache = _Columns.empty(config), Cache()
    for piece in pieces(model, tokens, state):
        begin, t = state.phase, piece.shape[1]
        seen.enter(begin, t, position=int(state.position))
        _, state = model.hidden(piece, state, cache, observe=seen.look)
        seen.count(begin, t)
        if state.phase == config.segment_len:
            state, eviction = model.commit(state, cache)
            seen = seen.commit(model, eviction)
    columns = np.arange(config.past_len + state.phase)
    columns = columns[config.past_len - int(state.filled) :]
    queries = np.maximum(seen.queries[columns], 1)
    return MemoryReport(
        position=int(state.position),
        start=np.maximum(seen.start[:, columns] - 1, 0),  # the first input is bos, no token
        stop=seen.stop[:, columns] - 1,
        compressions=seen.compressions[columns],
        attention=seen.attention[:, :, columns] / queries,
        error=seen.error[:, columns],
        slot_bytes=config.n_layers * config.d_model * state.past.element_size(),
    )


@dataclass(eq=False)
class _Columns:
    """What is known of the columns [compressed | memory | segment]."""

    config: ModelConfig
    start: np.ndarray  # [L, P+T] inputs that the slot stands for
    stop: np.ndarray  # [L, P+T]
    compressions: np.ndarray  # [P+T]
    attention: np.ndarray  # [L, H, P+T], sums over queries
    queries: np.ndarray  # [P+T] queries that could see it
    error: np.ndarray  # [L, P+T]

    @classmethod
    def empty(cls, config: ModelConfig) -> "_Columns":
        n, n_layers = config.past_len + config.segment_len, config.n_layers
        return cls(
            config,
            start=np.zeros((n_layers, n), np.int64),
            stop=np.zeros((n_layers, n), np.int64),
            compressions=np.zeros(n, np.int64),
            attention=np.zeros((n_layers, config.n_heads, n)),
            queries=np.zeros(n, np.int64),
            error=np.zeros((n_layers, n)),
        )

    def enter(self, begin: int, t: int, *, position: int) -> None:
        """t inputs come into the open segment."""
        at = slice(self.config.past_len + begin, self.config.past_len + begin + t)
        self.start[:, at] = position + np.arange(t)
        self.stop[:, at] = self.start[:, at] + 1

    def look(self, index: int, weights: Tensor) -> None:
        """The attention of a layer: [1, H, t, K]."""
        received = weights[0].sum(dim=1).cpu().double().numpy()
        self.attention[index, :, : received.shape[1]] += received

    def count(self, begin: int, t: int) -> None:
        """t queries have looked at all before them, and at themselves."""
        own = self.config.past_len + begin
        self.queries[:own] += t
        self.queries[own : own + t] += np.arange(t, 0, -1)

    def commit(self, model: Any, eviction: Eviction | None) -> "_Columns":
        """The columns after a commit."""
        config, t, c_len = self.config, self.config.segment_len, self.config.compressed_len
        moved = _Columns.empty(config)
        slots = slice(c_len, None)  # memory and segment move left by a segment
        for name in ("start", "stop", "compressions", "attention", "queries", "error"):
            old, new = getattr(self, name), getattr(moved, name)
            new[..., c_len : config.past_len] = old[..., slots][..., t:]
            kept = c_len - config.evicted_len
            if kept > 0:
                new[..., :kept] = old[..., c_len - kept : c_len]
        if eviction is None:
            return moved
        made = slice(max(0, c_len - config.evicted_len), c_len)
        n_made = made.stop - made.start
        moved.compressions[made] = 1
        for index in range(config.n_layers):
            start, stop, error = _compressed(model, index, eviction, self, c_len)
            moved.start[index, made] = start[-n_made:]
            moved.stop[index, made] = stop[-n_made:]
            moved.error[index, made] = error[-n_made:]
        return moved


def _compressed(
    model: Any, index: int, eviction: Eviction, before: _Columns, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start, stop and error of the slots that a commit made in a layer."""
    config, t = model.config, model.config.segment_len
    start = before.start[index, first : first + t]
    stop = before.stop[index, first : first + t]
    compressor = model.compressors[index]
    if isinstance(compressor, (MostUsed, Select)):
        columns = compressor.columns(eviction.evicted[index], eviction.usage[index], eviction.real)
        which = columns[0].cpu().numpy()
        return start[which], stop[which], np.zeros(len(which))
    groups = start.reshape(-1, config.compression_rate), stop.reshape(-1, config.compression_rate)
    return groups[0].min(axis=1), groups[1].max(axis=1), _error(model, index, eviction)


def _error(model: Any, index: int, eviction: Eviction) -> np.ndarray:
    """‖taken from the compressed slot - taken from its group‖ / ‖taken from its group‖: [T/c]."""
    layer, rate = cast(Layer, model.layers[index]), model.config.compression_rate
    query = layer.attention.queries(layer.read(eviction.queries[index]))[0]  # [H, T, E]

    def attended(slots: Tensor, real: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Weights [H, n, T, size] and values [H, n, size, E] of n groups of slots."""
        key, value = (half[0] for half in layer.project(slots))
        scores = (query @ key.mT).masked_fill(~real, -torch.inf)
        weights = scores.softmax(dim=2).nan_to_num().unflatten(2, (-1, size))
        return weights.transpose(1, 2), value.unflatten(1, (-1, size))

    old = attended(eviction.evicted[index], eviction.real, rate)
    new = attended(eviction.compressed[index], eviction.real_compressed, 1)
    weights, values = torch.cat([old[0], -new[0]], dim=3), torch.cat([old[1], new[1]], dim=2)
    lost, whole = _square(weights, values), _square(*old)
    error: np.ndarray = (lost / whole.clamp(min=1e-24)).sqrt().cpu().double().numpy()
    return error


def _square(weights: Tensor, values: Tensor) -> Tensor:
    """‖weights @ values‖² of each group, over heads too: [H, n, T, s], [H, n, s, E] → [n]."""
    # By the small Gram matrices: the products themselves would be T × E for every group.
    return ((weights.mT @ weights) * (values @ values.mT)).sum(dim=(0, 2, 3)).clamp(min=0)
