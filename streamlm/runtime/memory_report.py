"""What a stream still remembers: every slot, the tokens it represents, and its use.

Attention is not observed while text is read, so reading stays fast. The newest tokens are read
again from an earlier state, and the attention weights are observed. Slots and their losses need no
attention weights: a `SlotWatch` follows them while text is read.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.memory.compression import MostUsed, Select
from streamlm.memory.eviction import Eviction
from streamlm.memory.selection import HeadSelect
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.layers.block import Layer
from streamlm.runtime.steps import Steps, finish
from streamlm.runtime.stream import pieces
from streamlm.state import State


@dataclass(frozen=True, eq=False)
class MemoryReport:
    """Every real slot, oldest first: compressed memory, memory, the open segment.

    Attributes:
        position: tokens of the stream.
        start, stop: [L, n] the tokens that a slot represents, start ≤ i < stop. Layers differ only
            if the compression selects slots; a layer's slots may then leave gaps.
        compressions: [n] how often a slot was compressed: 0 or 1.
        attention: [L, H, n] mean attention weight of the slot, over the queries that could attend
            to it in its present form; [L, 0, n] if attention was not observed.
        error: [L, n] the loss by compression: the relative error, in norm, of the content attention
            that the closing segment's queries pay to the slot's group of tokens; 0 for slots that
            are not compressed.
        slot_bytes: bytes of a slot in the state, over all layers.
        first: position of the first of `ids`.
        ids: the newest tokens, if known.
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

    def covered(self, start: int, stop: int) -> float:
        """The share of the tokens start ≤ i < stop that still have a slot, over all layers.

        The newest token, which the model has not read, counts as 1. A slot is no proof that the
        model can use the token.

        Raises:
            ValueError: not 0 ≤ start < stop ≤ position.
        """
        return self._share(np.ones_like(self.error), start, stop)

    def kept(self, start: int, stop: int) -> float:
        """What compression has left of the tokens start ≤ i < stop, from 0 (nothing) to 1 (all).

        It is the mean over tokens and layers of 1 - error of the slot that represents a token, and
        0 where no slot does. The newest token, which the model has not read, counts as 1.

        Raises:
            ValueError: not 0 ≤ start < stop ≤ position.
        """
        return self._share(np.clip(1 - self.error, 0, 1), start, stop)

    def _share(self, whole: np.ndarray, start: int, stop: int) -> float:
        """The mean over tokens and layers of `whole` [L, n] of the slot that represents a token."""
        if not 0 <= start < stop <= self.position:
            raise ValueError(f"tokens {start} to {stop}; allowed: a part of 0 to {self.position}")
        total = 0.0
        for token in range(start, min(stop, self.position - 1)):
            covers = (self.start <= token) & (token < self.stop)
            total += float((whole * covers).max(axis=1).mean())
        total += stop == self.position
        return total / (stop - start)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON, with one object per slot."""
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
    """Tokens to read again so that every slot is formed under observation."""
    t = config.segment_len
    commits = -(-config.memory_len // t)
    if config.compressed_len:
        commits += -(-config.compressed_len // config.evicted_len)
    return (commits + 1) * t


def observe(model: Model, tokens: Tensor, state: State) -> MemoryReport:
    """Read tokens, and report on the slots after the last.

    Args:
        tokens: [1, n] ids, the pending one first; at least `window` of them, unless the state is
            empty.
        state: before them.

    Raises:
        ValueError: there are too few tokens to know what the oldest slots represent, or the model
            has no memory of slots.
    """
    return finish(observing(model, tokens, state))


@torch.no_grad()
def observing(model: Model, tokens: Tensor, state: State) -> Steps[MemoryReport]:
    """`observe` in steps."""
    config, n = model.config, tokens.shape[1]
    if not model.reports_memory:
        raise ValueError(
            "a memory report needs a memory of slots; allowed: head 'relative', and head 'llama' "
            "unless its compression is 'mean'"
        )
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
        yield t
    return seen.report(int(state.position), int(state.filled), slot_bytes=slot_bytes(config, state))


def slot_bytes(config: ModelConfig, state: State) -> int:
    """Bytes of a slot in a state, over all layers."""
    return config.n_layers * config.slot_width * state.past.element_size()


class SlotWatch:
    """The slots of a stream while it reads on, and their losses; attention is not observed.

    Set `commit` as the stream's `Cache.on_commit`. Commits may happen on one thread while another
    asks for reports.

    Args:
        model: one that reports on its memory.
        state: of the stream at present. What its compressed slots represent is not known, and shown
            as no tokens; a few segments later all of them have been formed anew.
    """

    def __init__(self, model: Model, state: State) -> None:
        self._model = model
        config, filled = model.config, int(state.filled)
        begin = int(state.position) - state.phase
        columns = _Columns.empty(config, heads=0)
        memory = min(filled, config.memory_len)
        columns.put(slice(config.past_len - memory, config.past_len), begin - memory)
        columns.compressions[: config.past_len - memory] = 1
        self._slot_bytes = slot_bytes(config, state)
        self._commits = deque([(begin, filled, columns)], maxlen=16)

    def commit(self, state: State, eviction: Eviction | None) -> None:
        """Follow a commit; `state` is the one after it."""
        length, position = self._model.config.segment_len, int(state.position)
        seen = self._commits[-1][2].copy()
        seen.enter(0, length, position=position - length)
        self._commits.append((position, int(state.filled), seen.commit(self._model, eviction)))

    def report(self, position: int) -> MemoryReport | None:
        """The slots after `position` tokens; None if that was more than a few commits ago."""
        config = self._model.config
        for begin, filled, columns in reversed(tuple(self._commits)):
            if 0 <= position - begin < config.segment_len:
                seen = columns.copy()
                seen.enter(0, position - begin, position=begin)
                return seen.report(position, filled, slot_bytes=self._slot_bytes)
        return None


@dataclass(eq=False)
class _Columns:
    """Observations on the columns [compressed | memory | segment]."""

    config: ModelConfig
    start: np.ndarray  # [L, P+T] inputs that the slot represents
    stop: np.ndarray  # [L, P+T]
    compressions: np.ndarray  # [P+T]
    attention: np.ndarray  # [L, H, P+T], sums over queries
    queries: np.ndarray  # [P+T] queries that could attend to it
    error: np.ndarray  # [L, P+T]

    @classmethod
    def empty(cls, config: ModelConfig, *, heads: int | None = None) -> "_Columns":
        n, n_layers = config.past_len + config.segment_len, config.n_layers
        heads = config.n_heads if heads is None else heads
        return cls(
            config,
            start=np.zeros((n_layers, n), np.int64),
            stop=np.zeros((n_layers, n), np.int64),
            compressions=np.zeros(n, np.int64),
            attention=np.zeros((n_layers, heads, n)),
            queries=np.zeros(n, np.int64),
            error=np.zeros((n_layers, n)),
        )

    def copy(self) -> "_Columns":
        arrays = {name: getattr(self, name).copy() for name in ("start", "stop")}
        return replace(self, **arrays)

    def put(self, columns: slice, first: int) -> None:
        """Let columns represent one input each, from `first` on."""
        self.start[:, columns] = first + np.arange(columns.stop - columns.start)
        self.stop[:, columns] = self.start[:, columns] + 1

    def report(self, position: int, filled: int, *, slot_bytes: int) -> MemoryReport:
        """The real slots: the last `filled` of the past, and those of the open segment."""
        config = self.config
        columns = slice(config.past_len - filled, config.past_len + position % config.segment_len)
        return MemoryReport(
            position=position,
            start=np.maximum(self.start[:, columns] - 1, 0),  # the first input is bos, not a token
            stop=np.maximum(self.stop[:, columns] - 1, 0),
            compressions=self.compressions[columns],
            attention=self.attention[:, :, columns] / np.maximum(self.queries[columns], 1),
            error=self.error[:, columns],
            slot_bytes=slot_bytes,
        )

    def enter(self, begin: int, t: int, *, position: int) -> None:
        """Add t inputs to the open segment."""
        first = self.config.past_len + begin
        self.put(slice(first, first + t), position)

    def look(self, index: int, weights: Tensor) -> None:
        """Add the attention weights of a layer, [1, H, t, K]."""
        received = weights[0].sum(dim=1).cpu().double().numpy()
        self.attention[index, :, : received.shape[1]] += received

    def count(self, begin: int, t: int) -> None:
        """Count t queries, which attend to all columns before them and to themselves."""
        own = self.config.past_len + begin
        self.queries[:own] += t
        self.queries[own : own + t] += np.arange(t, 0, -1)

    def commit(self, model: Any, eviction: Eviction | None) -> "_Columns":
        """The observations after a commit."""
        config, t, c_len = self.config, self.config.segment_len, self.config.compressed_len
        moved = _Columns.empty(config, heads=self.attention.shape[1])
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
    """Start, stop and error of the slots that a commit formed in a layer."""
    config, t = model.config, model.config.segment_len
    start = before.start[index, first : first + t]
    stop = before.stop[index, first : first + t]
    compressor = model.compressors[index]
    if isinstance(compressor, (MostUsed, Select, HeadSelect)):
        columns = compressor.columns(eviction.evicted[index], eviction.usage[index], eviction.real)
        which = np.atleast_2d(columns[0].cpu().numpy())  # [heads that choose for themselves, T/c]
        return start[which].min(axis=0), stop[which].max(axis=0), np.zeros(which.shape[1])
    groups = start.reshape(-1, config.compression_rate), stop.reshape(-1, config.compression_rate)
    return groups[0].min(axis=1), groups[1].max(axis=1), _error(model, index, eviction)


def _error(model: Any, index: int, eviction: Eviction) -> np.ndarray:
    """‖attention to the slot - attention to its group‖ / ‖attention to its group‖: [T/c]."""
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
    """‖weights @ values‖² of each group, summed over heads: [H, n, T, s], [H, n, s, E] → [n]."""
    # Through the small Gram matrices: the products themselves are T × E for each group.
    return ((weights.mT @ weights) * (values @ values.mT)).sum(dim=(0, 2, 3)).clamp(min=0)
