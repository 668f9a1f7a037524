"""SegmentedModel: what all models share that read segment by segment over keys and values.

Key columns are those of the past, if the model keeps any, then those of the open segment. Without
gradients they are kept in the caller's cache; with gradients all of them are projected anew,
because the projections learn.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from streamlm.memory.eviction import Eviction
from streamlm.models.base import Model, Observer, Windows
from streamlm.models.cache import Cache, Pair, standard
from streamlm.models.layers.block import AnyLayer
from streamlm.state import State

PositionKeys = tuple[Tensor, ...]
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Call:
    """What all layers of one call share.

    Attributes:
        state: before the call.
        n_queries: t, tokens that are read.
        n_keys: K, key columns that the layers see.
        keys_of_positions: by layer, what was derived from positions alone.
        look: what the head made of all this once for the call, such as a mask.
        want_weights: whether attention weights are asked for.
    """

    state: State
    n_queries: int
    n_keys: int
    keys_of_positions: list[PositionKeys]
    look: Any = None
    want_weights: bool = False


class Attended(NamedTuple):
    """A layer's attention [B, t, D], its weights [B, H, t, K] if there are any, and what of
    `State.carried` it changes, [B, ...] each."""

    out: Tensor
    weights: Tensor | None = None
    carried: Mapping[str, Tensor] = NOTHING


class SegmentedModel(Model):
    """A model whose layers have `attention.project`: slots → keys and values, [B, H, n, E] each.

    Attributes:
        closes_with_keys: `closed` looks at keys and values, in training too.
    """

    closes_with_keys = False

    @property
    def _layers(self) -> list[AnyLayer[Any]]:
        return cast("list[AnyLayer[Any]]", list(cast(Any, self).layers))

    # -- what a head does -------------------------------------------------------------------------

    @abstractmethod
    def attend(self, index: int, seen: Tensor, pair: Pair, call: Call) -> Attended:
        """Attention of layer `index`.

        Args:
            seen: [B, t, D] inputs of the new tokens, normalised as the layer reads them.
            pair: keys and values [B, H, K, E], of the past and of the open segment up to these
                tokens.
        """

    @abstractmethod
    def closed(
        self, state: State, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[State, Eviction | None]:
        """The state after its full segment was closed.

        Args:
            keys, values: of each layer, of the past and of the whole segment; empty in training
                unless `closes_with_keys`.
        """

    def look(self, call: Call) -> Any:
        """What `attend` needs that is the same for all layers; see `Call.look`."""
        return None

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of the past, projected in the same blocks however they came to be."""
        config = self.config
        none = state.past.new_zeros(state.batch_size, config.n_heads, 0, config.head_dim)
        return none, none

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> Pair:
        """Keys and values of the past after a commit, from those before it and of the segment.

        Args:
            state: after it.
        """
        return past

    def project_positions(self, index: int) -> PositionKeys:
        """What layer `index` derives from positions alone."""
        return ()

    def project_training(self, index: int, x: Tensor, state: State) -> tuple[Tensor, Pair]:
        """Inputs [B, t, D] as the layer reads them, and all keys and values, with their graph."""
        layer = self._layers[index]
        seen = layer.read(x)
        before = layer.read(state.segment[index, :, : state.phase])
        new = layer.attention.project(torch.cat([before, seen], dim=1))
        return seen, joined(self.project_past(index, state), new)

    def derive(self) -> list[PositionKeys]:
        """`project_positions` of every layer."""
        return [self.project_positions(index) for index in range(self.config.n_layers)]

    # -- states -----------------------------------------------------------------------------------

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """Every closed segment appended T slots to memory; of what left it, c became one.

        See `Model.windows`.
        """
        config = self.config
        end = position // config.segment_len * config.segment_len
        gone = max(0, end - config.memory_len)
        compressed_end = gone // config.compression_rate if config.compressed_len else 0
        return Windows(
            memory=min(end, config.memory_len),
            memory_end=end,
            memory_capacity=config.memory_len,
            compressed=min(compressed_end, config.compressed_len),
            compressed_end=compressed_end,
            compressed_capacity=config.compressed_len,
        )

    def empty_state(
        self, batch_size: int, *, past_len: int = 0, carried: dict[str, Tensor] | None = None
    ) -> State:
        """Streams that have read nothing."""
        config, weight = self.config, self.output_bias
        lead = (config.n_layers, batch_size)
        usage = config.memory_len if config.wants_usage else 0
        counts = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return State(
            past=weight.new_zeros(*lead, past_len, config.d_model).detach(),
            segment=weight.new_zeros(*lead, config.segment_len, config.d_model).detach(),
            usage=torch.zeros(*lead, usage, device=weight.device, dtype=torch.float32),
            filled=counts,
            position=counts.clone(),
            length=(0,) * batch_size,
            carried=carried or {},
        )

    def shifted(self, state: State, *, kept: int, **changes: Any) -> State:
        """The state with its full segment behind the past, of which the newest slots are kept."""
        past = torch.cat([state.past, state.segment], dim=2)
        return replace(
            state,
            past=past[:, :, past.shape[2] - kept :],
            segment=torch.zeros_like(state.segment),
            filled=(state.filled + self.config.segment_len).clamp(max=kept),
            length=(0,) * state.batch_size,
            **changes,
        )

    # -- reading ----------------------------------------------------------------------------------

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`."""
        training = torch.is_grad_enabled()
        writer = None if training else _Writer(self._cache_of(state, cache), state, x.shape[1])
        past_len, t = self._past_columns(state, writer), x.shape[1]
        n_keys = n_seen = past_len + max(state.length) + t
        if writer is not None and self.reads_any_phase and (t == 1 or not state.aligned):
            n_keys = past_len + self.config.segment_len  # one shape for every token
        call = Call(
            state, t, n_keys, self.derived(), want_weights=self.config.wants_usage or bool(observe)
        )
        call = replace(call, look=self.look(call))
        inputs: list[Tensor] = []
        received: list[Tensor] = []
        noted: dict[str, list[Tensor]] = {}
        for index, layer in enumerate(self._layers):
            if writer is None:
                inputs.append(x.detach())
                seen, pair = self.project_training(index, x, state)
            else:
                seen = layer.read(x)
                pair = writer.write(index, x, layer.attention.project(seen), n_keys)
            out, weights, carried = self.attend(index, seen, pair, call)
            if weights is not None and self.config.wants_usage:
                received.append(self._received(weights))
            if weights is not None and observe is not None:
                observe(index, weights[..., :n_seen])
            for name, part in carried.items():
                noted.setdefault(name, []).append(part)
            x = layer.finish(x, out)
        if writer is None:
            start, stop = state.phase, state.phase + t
            parts = [state.segment[:, :, :start], torch.stack(inputs), state.segment[:, :, stop:]]
            segment = torch.cat(parts, dim=2)
        else:
            segment = writer.segment
        after = replace(
            state,
            segment=segment,
            usage=state.usage + torch.stack(received) if received else state.usage,
            position=state.position + t,
            length=tuple(n + t for n in state.length),
            carried={
                **state.carried,
                **{name: torch.stack(parts) for name, parts in noted.items()},
            },
        )
        if writer is not None:
            writer.cache.follow(after, self.frozen)
        return x, after

    def _received(self, weights: Tensor) -> Tensor:
        """Attention that memory slots received, mean over heads, sum over queries: [B, M]."""
        memory = slice(self.config.compressed_len, self.config.past_len)
        return weights.detach()[..., memory].float().mean(dim=1).sum(dim=1)

    def _past_columns(self, state: State, writer: "_Writer | None") -> int:
        """Key columns of the past."""
        if writer is not None:
            return writer.cache.keys[0].shape[2] - self.config.segment_len
        return self.past_columns(state)

    def past_columns(self, state: State) -> int:
        """Key columns that `project_past` makes of a state's past."""
        return state.past.shape[2]

    @torch.no_grad()
    def truncate(
        self, before: State, tokens: Tensor, after: State, n: int, cache: Cache | None = None
    ) -> State:
        """Only counted back, if nothing is known of all tokens together; see `Model.truncate`."""
        changed = any(after.carried[name] is not each for name, each in before.carried.items())
        if changed or self.config.wants_usage or n == tokens.shape[1]:
            return super().truncate(before, tokens, after, n, cache)
        length = tuple(each + n for each in before.length)
        return replace(after, position=before.position + n, length=length)

    # -- closing a segment ------------------------------------------------------------------------

    def commit(self, state: State, cache: Cache | None = None) -> tuple[State, Eviction | None]:
        """Close every open segment that is full; see `Model.commit`."""
        t = self.config.segment_len
        full = [row for row, n in enumerate(state.length) if n == t]
        if not full:
            raise ValueError(
                f"a segment of {t} tokens is closed when full; "
                f"it has {' or '.join(map(str, sorted(set(state.length))))}"
            )
        if len(full) < state.batch_size:
            return self._commit_rows(state, full, cache), None
        if torch.is_grad_enabled():
            keys: list[Tensor] = []
            values: list[Tensor] = []
            for index in range(len(self._layers)) if self.closes_with_keys else ():
                key, value = joined(
                    self.project_past(index, state), self._project_open(index, state)
                )
                keys.append(key)
                values.append(value)
            return self.closed(state, keys, values)
        if cache is None and not self.closes_with_keys:
            return self.closed(state, [], [])
        cache = self._cache_of(state, cache)
        self._settle(state, cache)
        committed, eviction = self.closed(state, cache.keys, cache.values)
        cache.clear()  # an interruption must not leave columns moved that still count as `state`'s
        for index, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            past = key[:, :, :-t], value[:, :, :-t]
            segment = key[:, :, -t:], value[:, :, -t:]
            after = self.past_after(index, past, segment, committed, eviction)
            for buffers, part in zip((cache.keys, cache.values), after, strict=True):
                buffers[index] = _with_room(buffers[index], part, t)
        length = committed.length
        cache.hold(cache.keys, cache.values, segment=committed.segment, length=length, calls=0)
        cache.follow(committed, self.frozen)
        return committed, eviction

    def _commit_rows(self, state: State, rows: list[int], cache: Cache | None) -> State:
        """Close the segments of some rows."""
        some, own = state.rows(rows), None
        if cache is not None and self.reads_any_phase and cache.follows(state, self.frozen):
            own = cache.rows(rows)
            own.follow(some, self.frozen)
        committed = state.put(rows, self.commit(some, own)[0])
        if cache is not None and own is not None:
            cache.put(rows, own, committed)
            cache.follow(committed, self.frozen)
        return committed

    # -- keys and values --------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, state: State, cache: Cache) -> None:
        """See `Model.settle`."""
        if cache.follows(state, self.frozen):
            self._settle(state, cache)
        else:
            cache.clear()

    def _settle(self, state: State, cache: Cache) -> None:
        """Project the open segment at once, where it was read in pieces."""
        if not any(state.length) or cache.calls == 1:
            return
        n, t = max(state.length), self.config.segment_len
        for index, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            start = key.shape[2] - t
            new_key, new_value = self._project_open(index, state)
            key[:, :, start : start + n] = new_key
            value[:, :, start : start + n] = new_value
        cache.calls = 1

    def _project_open(self, index: int, state: State) -> Pair:
        """Keys and values of the open segment so far."""
        layer = self._layers[index]
        slots = state.segment[index, :, : max(state.length)]
        if not torch.is_grad_enabled():
            slots = standard(slots)
        pair: Pair = layer.attention.project(layer.read(slots))
        return pair

    def _cache_of(self, state: State, cache: Cache | None) -> Cache:
        """The caller's cache, or one for this call, that follows the state."""
        cache = Cache() if cache is None else cache
        if cache.follows(state, self.frozen):
            return cache
        n, t = max(state.length), self.config.segment_len
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index in range(len(self._layers)):
            pair = self.project_past(index, state)
            if n:
                pair = joined(pair, self._project_open(index, state))
            for buffers, part in zip((keys, values), pair, strict=True):
                room = part.new_zeros(*part.shape[:2], t - n, part.shape[3])
                buffers.append(torch.cat([part, room], dim=2))
        segment = state.segment.clone()
        cache.hold(keys, values, segment=segment, length=state.length, calls=1)
        cache.follow(state, self.frozen)
        return cache


class _Writer:
    """Writes the slots, keys and values of one call to a cache."""

    def __init__(self, cache: Cache, state: State, t: int) -> None:
        self.cache = cache
        self.segment = cache.extend(t)
        self._stop = max(state.length) + t
        self._columns: slice | Tensor
        if state.aligned:
            self._columns = slice(self._stop - t, self._stop)
        else:
            device = self.segment.device
            start = torch.tensor(state.length, device=device)[:, None]
            self._columns = start + torch.arange(t, device=device)  # [B, t]
            self._rows = torch.arange(len(state.length), device=device)[:, None]

    def write(self, index: int, x: Tensor, new: Pair, n_keys: int) -> Pair:
        """Put in what is new of a layer; returns its first n_keys keys and values."""
        buffers = self.cache.keys[index], self.cache.values[index]
        columns = self._columns
        first = buffers[0].shape[2] - self.segment.shape[2]  # of the open segment
        if isinstance(columns, slice):
            self.segment[index, :, columns] = x
            at = slice(first + columns.start, first + columns.stop)
            for buffer, part in zip(buffers, new, strict=True):
                buffer[:, :, at] = part
        else:
            self.segment[index].index_put_((self._rows, columns), x)
            for buffer, part in zip(buffers, new, strict=True):
                # [B, t] indices on either side of a slice lead: [B, t, H, E].
                buffer[self._rows, :, first + columns] = part.transpose(1, 2)
        return buffers[0][:, :, :n_keys], buffers[1][:, :, :n_keys]


def _with_room(buffer: Tensor, past: Tensor, t: int) -> Tensor:
    """Columns of the past with t empty ones behind: in the same buffer, if it has this size."""
    n = past.shape[2]
    if buffer.shape[2] == n + t:
        # `past` may be a view of the buffer itself, further right.
        buffer[:, :, :n] = past.clone() if past.data_ptr() != buffer.data_ptr() else past
        return buffer
    return torch.cat([past, past.new_zeros(*past.shape[:2], t, past.shape[3])], dim=2)


def joined(left: Pair, right: Pair) -> Pair:
    """Keys and values side by side."""
    key, value = (torch.cat(both, dim=2) for both in zip(left, right, strict=True))
    return key, value


def newest(past: Pair, new: Pair) -> Pair:
    """Columns of the past, as many as there were, with the new ones behind."""
    key, value = (
        torch.cat([old, part], dim=2)[:, :, -old.shape[2] :]
        for old, part in zip(past, new, strict=True)
    )
    return key, value
