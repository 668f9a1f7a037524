"""What heads share whose layers project keys and values: reading, and what is derived meanwhile.

Columns of keys and values are those of the past, if the head keeps any, then those of the open
segment. Without gradients they travel with the state; with, all of them are projected anew, because
the projections learn.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from streamlm.config import ModelConfig
from streamlm.memory.eviction import Eviction
from streamlm.models.base import Model, Observer
from streamlm.models.cache import counted_back
from streamlm.models.layers.block import AnyLayer
from streamlm.state import Cache, State

Pair = tuple[Tensor, Tensor]  # keys and values, [B, H, n, E] each
Places = tuple[Tensor, ...]


class KeyValueModel(Model):
    """A head whose layers have `attention.project`: slots → keys and values, [B, H, n, E] each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._places: tuple[int, list[Places]] | None = None

    @property
    def _layers(self) -> list[AnyLayer[Any]]:
        return cast("list[AnyLayer[Any]]", list(cast(Any, self).layers))

    @abstractmethod
    def attend(
        self, index: int, seen: Tensor, pair: Pair, state: State, places: Places
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Attention of layer `index`: [B, t, D], and what of `carried` it changes, [B, ...] each.

        Args:
            seen: inputs of the newest t tokens, normalised as the layer reads them.
            pair: keys and values [B, H, past + n, E], of the past and of the open segment up to
                these tokens.
            state: before them.
            places: of the layer; see `project_places`.
        """

    @abstractmethod
    def closed(self, state: State, keys: list[Tensor], values: list[Tensor]) -> State:
        """The state after its full segment was closed, without a cache.

        Args:
            keys, values: of each layer, of the past and of the whole segment.
        """

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of the past, projected in the same blocks however they came to be."""
        config = self.config
        none = state.past.new_zeros(state.batch_size, config.n_heads, 0, config.head_dim)
        return none, none

    def past_after(self, index: int, past: Pair, segment: Pair, state: State) -> Pair:
        """Keys and values of the past after a commit, from those before it and of the segment.

        Args:
            state: after it.
        """
        return past

    def project_places(self, index: int) -> Places:
        """What layer `index` derives from positions alone, once while the weights stand still."""
        return ()

    def derived_from(self) -> list[Tensor]:
        """The weights that keys, values and places are derived from."""
        return [
            weight
            for layer in self._layers
            for weight in (*layer.attention.parameters(), *layer.attention_norm.parameters())
        ]

    def shifted(self, state: State, *, kept: int, **changes: Any) -> State:
        """The state with its full segment behind the past, of which the newest slots are kept."""
        past = torch.cat([state.past, state.segment], dim=2)
        return replace(
            state,
            past=past[:, :, past.shape[2] - kept :],
            segment=torch.zeros_like(state.segment),
            filled=(state.filled + self.config.segment_len).clamp(max=kept),
            length=0,
            cache=None,
            **changes,
        )

    def empty_state(self, batch_size: int, carried: dict[str, Tensor] | None = None) -> State:
        """Streams that have read nothing and keep no slots."""
        config, weight = self.config, self.output_bias
        lead = (config.n_layers, batch_size)
        counts = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return State(
            past=weight.new_zeros(*lead, 0, config.d_model).detach(),
            segment=weight.new_zeros(*lead, config.segment_len, config.d_model).detach(),
            usage=torch.zeros(*lead, 0, device=weight.device, dtype=torch.float32),
            filled=counts,
            position=counts.clone(),
            length=0,
            carried=carried or {},
        )

    def read(
        self, x: Tensor, state: State, *, observe: Observer | None = None
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`. Nothing is observed."""
        length, t = state.length, x.shape[1]
        cache = None if torch.is_grad_enabled() else self._own_cache(state, t)
        places = self._projected_places()
        inputs: list[Tensor] = []
        noted: dict[str, list[Tensor]] = {}
        for index, layer in enumerate(self._layers):
            inputs.append(x.detach())
            seen = layer.read(x)
            if cache is None:
                before = layer.read(state.segment[index, :, :length])
                past = self.project_past(index, state)
                new = layer.attention.project(torch.cat([before, seen], dim=1))
                key, value = (torch.cat(both, dim=2) for both in zip(past, new, strict=True))
            else:
                new = layer.attention.project(seen)
                stop = cache.keys[index].shape[2] - self.config.segment_len + length + t
                for store, part in zip((cache.keys, cache.values), new, strict=True):
                    store[index][:, :, stop - t : stop] = part
                key, value = cache.keys[index][:, :, :stop], cache.values[index][:, :, :stop]
            attended, changed = self.attend(index, seen, (key, value), state, places[index])
            for name, part in changed.items():
                noted.setdefault(name, []).append(part)
            x = layer.finish(x, attended)
        tail = state.segment[:, :, length + t :]
        segment = torch.cat([state.segment[:, :, :length], torch.stack(inputs), tail], dim=2)
        return x, replace(
            state,
            segment=segment,
            position=state.position + t,
            length=length + t,
            carried={
                **state.carried,
                **{name: torch.stack(parts) for name, parts in noted.items()},
            },
            cache=cache,
        )

    @torch.no_grad()
    def cut(self, before: State, tokens: Tensor, after: State, n: int) -> State:
        """Only counted back, unless what is carried has changed; see `Model.cut`."""
        if any(after.carried[name] is not each for name, each in before.carried.items()):
            return super().cut(before, tokens, after, n)
        return counted_back(before, after, n)

    def commit(self, state: State) -> tuple[State, Eviction | None]:
        """Close the full open segment; see `Model.commit`."""
        t = self.config.segment_len
        if state.length != t:
            raise ValueError(f"a segment of {t} tokens is closed when full; it has {state.length}")
        if torch.is_grad_enabled():
            pairs = [self._projected(index, state) for index in range(len(self._layers))]
            keys, values = ([pair[half] for pair in pairs] for half in (0, 1))
            return self.closed(state, keys, values), None
        cache = state.cache
        if cache is None or cache.weights_version != self._weights_version or cache.calls > 1:
            # Read in pieces, its last bits are not those of the whole segment that it is now.
            cache = self._built_cache(state)
        committed = self.closed(state, cache.keys, cache.values)
        halves: list[list[Tensor]] = [[], []]
        for index, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            past = key[:, :, :-t], value[:, :, :-t]
            segment = key[:, :, -t:], value[:, :, -t:]
            after = self.past_after(index, past, segment, committed)
            for half, part, read in zip(halves, after, segment, strict=True):
                half.append(torch.cat([part, torch.zeros_like(read)], dim=2))
        empty = committed.segment[:, :, :0]
        cache = Cache(halves[0], halves[1], empty, 0, 0, cache.weights_version)
        return replace(committed, cache=cache), None

    @torch.no_grad()
    def canonical(self, state: State) -> State:
        """The same state with keys and values as they are after loading it."""
        if state.cache is not None and (not state.length or state.cache.calls == 1):
            return state
        return replace(state, cache=self._built_cache(state))

    def _projected(self, index: int, state: State) -> Pair:
        """Keys and values of the past and of the open segment so far."""
        layer = self._layers[index]
        slots = state.segment[index, :, : state.length].contiguous()
        new = layer.attention.project(layer.read(slots))
        past = self.project_past(index, state)
        key, value = (torch.cat(both, dim=2) for both in zip(past, new, strict=True))
        return key, value

    def _built_cache(self, state: State) -> Cache:
        free = self.config.segment_len - state.length
        halves: list[list[Tensor]] = [[], []]
        for index in range(len(self._layers)):
            for half, part in zip(halves, self._projected(index, state), strict=True):
                room = part.new_zeros(*part.shape[:2], free, part.shape[3])
                half.append(torch.cat([part, room], dim=2))
        empty = state.segment[:, :, :0]
        return Cache(halves[0], halves[1], empty, state.length, 1, self._weights_version)

    def _projected_places(self) -> list[Places]:
        """`project_places` of every layer."""
        layers = range(self.config.n_layers)
        if torch.is_grad_enabled():
            return [self.project_places(index) for index in layers]
        version = self._weights_version
        if self._places is None or self._places[0] != version:
            self._places = version, [self.project_places(index) for index in layers]
        return self._places[1]

    def _own_cache(self, state: State, t: int) -> Cache:
        """A cache to write the next t columns to."""
        cache = state.cache
        if cache is None or cache.weights_version != self._weights_version:
            cache = self._built_cache(state)
        if cache.used != state.length:
            cache = cache.copy()
        cache.used = state.length + t
        cache.calls = cache.calls + 1 if state.length else 1
        return cache

    @property
    def _weights_version(self) -> int:
        """Changes whenever the weights that anything is derived from may have."""
        marks = [(each.data_ptr(), each.dtype, each._version) for each in self.derived_from()]
        return hash((self._mode_changes, *marks))


def newest(past: Pair, new: Pair) -> Pair:
    """Columns of the past, as many as there were, with the new ones behind."""
    key, value = (
        torch.cat([old, part], dim=2)[:, :, -old.shape[2] :]
        for old, part in zip(past, new, strict=True)
    )
    return key, value
