"""SegmentedModel: base of models that read in segments and attend to keys and values.

Key columns are [past | open segment]; some models have no past columns. Without gradients, keys and
values are kept in the caller's cache. With gradients, all of them are recomputed in each call,
because the projections are trained. The file is long because reading and closing are one for all.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from streamlm.memory.eviction import Eviction
from streamlm.models.base import Model, Observer, Windows
from streamlm.models.cache import (
    Cache,
    CacheWriter,
    Pair,
    columns,
    joined,
    standard,
    with_room,
)
from streamlm.models.call import Attended, Call, PositionKeys, Projected
from streamlm.models.layers.block import Block
from streamlm.models.layers.ordered import OrderedLinear, can_order, ordered
from streamlm.models.layers.packed import Frozen
from streamlm.models.layers.products import infers_on_cpu
from streamlm.models.token_reading import read_token
from streamlm.state import State

Result = TypeVar("Result")


class SegmentedModel(Model):
    """A model of Blocks whose `attention.project` maps slots to keys and values [B, H, n, E].

    Attributes:
        closes_with_keys: `closed` needs keys and values, also in training.
        orders_weights: on a CPU, frozen weights are kept in a second, faster order too.
    """

    closes_with_keys = False
    orders_weights = True

    @property
    def blocks(self) -> list[Block[Any]]:
        """The blocks, for inference with weights in another order where that is faster."""
        if self._frozen is not None and self._frozen.layers and infers_on_cpu(self.device):
            return cast("list[Block[Any]]", self._frozen.layers)
        return cast("list[Block[Any]]", list(cast(Any, self).layers))

    def freeze(self) -> Self:
        """See `Model.freeze`."""
        self._frozen = None
        super().freeze()
        packed = any(isinstance(module, Frozen) for module in self.modules())
        if self.orders_weights and not packed and can_order(self.output_bias, self.config.d_model):
            self._frozen.layers = [ordered(layer) for layer in cast(Any, self).layers]
            if isinstance(self.embedding, nn.Embedding) and self.output is None:
                self._frozen.output = OrderedLinear(self.embedding.weight, self.output_bias)
        return self

    def within(self, index: int, work: Callable[..., Result], *args: Any) -> Result:
        """`work(*args)`, which uses the weights of a layer; in training, inside its `forward`."""
        if not torch.is_grad_enabled():
            return work(*args)
        return cast(Result, self.blocks[index](work, *args))

    # -- implemented by heads ---------------------------------------------------------------------

    @abstractmethod
    def attend(self, index: int, inputs: Tensor, pair: Pair, call: Call) -> Attended:
        """Attention of layer `index`.

        Args:
            inputs: of the new tokens; see `Projected`.
            pair: keys and values [B, H, K, E] of the past and of the open segment, including
                the new tokens.
        """

    @abstractmethod
    def closed(
        self, state: State, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[State, Eviction | None]:
        """The state after closing its full segment.

        Args:
            keys, values: per layer, of the past and the whole segment; empty in training unless
                `closes_with_keys` is set.
        """

    def call_context(self, call: Call) -> Any:
        """Compute what `attend` needs once per call, such as the mask; see `Call.context`."""
        return None

    def project_past(self, index: int, state: State) -> Pair:
        """Keys and values of the past, projected in the same blocks as by `past_after`."""
        config = self.config
        none = state.past.new_zeros(state.batch_size, config.n_heads, 0, config.head_dim)
        return none, none

    def past_after(
        self, index: int, past: Pair, segment: Pair, state: State, eviction: Eviction | None
    ) -> list[Pair]:
        """Keys and values of the past after a commit, in parts, oldest first.

        Args:
            past, segment: keys and values before the commit.
            state: after the commit.
        """
        return [past]

    def project_positions(self, index: int) -> PositionKeys:
        """Tensors of layer `index` that depend only on positions and weights."""
        return ()

    def project_new(self, index: int, x: Tensor, call: Call) -> Projected:
        """Project the new tokens of a layer: their slots, keys and values; without gradients.

        Args:
            x: [B, t, D] input of the layer.
        """
        layer = self.blocks[index]
        inputs = layer.read(x)
        return Projected(inputs, x, layer.attention.project(inputs))

    def project_training(self, index: int, x: Tensor, call: Call) -> Projected:
        """As `project_new`, with gradients and with the keys and values of all slots."""
        layer, state = self.blocks[index], call.state
        inputs = layer.read(x)
        before = layer.read(state.segment[index, :, : state.phase])
        new = layer.attention.project(torch.cat([before, inputs], dim=1))
        return Projected(inputs, x, joined(self.project_past(index, state), new))

    def derive(self) -> Any:
        """`project_positions` of every layer."""
        return [
            self.within(index, self.project_positions, index)
            for index in range(self.config.n_layers)
        ]

    # -- states -----------------------------------------------------------------------------------

    def windows(self, position: int, carried: Mapping[str, Tensor]) -> Windows:
        """Each closed segment adds T slots to memory; c evicted slots become one.

        See `Model.windows`.
        """
        config = self.config
        end = position // config.segment_len * config.segment_len
        evicted = max(0, end - config.memory_len)
        compressed_end = evicted // config.compression_rate if config.compressed_len else 0
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
        """The state of new streams, with the given past columns and carried tensors."""
        config, device, dtype = self.config, self.device, self.slot_dtype
        lead, width = (config.n_layers, batch_size), config.slot_width
        usage = config.memory_len if config.wants_usage else 0
        counts = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return State(
            past=torch.zeros(*lead, past_len, width, device=device, dtype=dtype),
            segment=torch.zeros(*lead, config.segment_len, width, device=device, dtype=dtype),
            usage=torch.zeros(*lead, usage, device=device, dtype=torch.float32),
            filled=counts,
            position=counts.clone(),
            length=(0,) * batch_size,
            carried=carried or {},
        )

    def shifted(self, state: State, *, kept: int, **changes: Any) -> State:
        """Append the full segment to the past, and keep the newest `kept` slots."""
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

    def attention_changes(self, state: State) -> bool:
        """Whether the state depends on the attention of the last layer."""
        return self.config.wants_usage

    def rows_step(self, rows: int) -> Any:
        """A fast way to read single tokens in so many rows, for `Cache.step`; None without one."""
        return None

    def read(
        self,
        x: Tensor,
        state: State,
        *,
        cache: Cache | None = None,
        observe: Observer | None = None,
        finish: bool = True,
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`. On CUDA, single tokens take `read_token`."""
        if x.shape[1] == 1 and observe is None and self.reads_alike(state):
            return read_token(self, x, state, self._cache_of(state, cache))
        training = torch.is_grad_enabled()
        writer = None if training else CacheWriter(self._cache_of(state, cache), state, x.shape[1])
        finish = finish or training or self.attention_changes(state)
        past_len, t = self._past_columns(state, writer), x.shape[1]
        n_keys = n_real = past_len + max(state.length) + t
        if writer is not None and self.reads_any_phase and self.fixes_columns(state, t):
            n_keys = past_len + self.config.segment_len
        call = Call(
            state, t, n_keys, self.derived(), want_weights=self.config.wants_usage or bool(observe)
        )
        call = replace(call, context=self.call_context(call))
        recorded: list[Tensor] = []
        received: list[Tensor] = []
        updates: dict[str, list[Tensor]] = {}
        for index, layer in enumerate(self.blocks):
            if writer is None:
                x, slots, weights, carried = layer(self._train_layer, index, x, call)
                recorded.append(slots)
            else:
                inputs, slots, new = self.project_new(index, x, call)
                pair = writer.write(index, slots, new, n_keys)
                if index == self.config.n_layers - 1 and not finish:
                    break  # of the last layer, the state has what attention would read
                out, weights, carried = self.attend(index, inputs, pair, call)
                x = layer.finish(x, out)
            if weights is not None and self.config.wants_usage:
                received.append(self.received(weights, past_len))
            if weights is not None and observe is not None:
                observe(index, weights[..., past_len - self.config.past_len : n_real])
            for name, part in carried.items():
                updates.setdefault(name, []).append(part)
        if writer is None:
            start, stop = state.phase, state.phase + t
            segment = torch.stack(recorded)
            if t < self.config.segment_len:
                parts = [state.segment[:, :, :start], segment, state.segment[:, :, stop:]]
                segment = torch.cat(parts, dim=2)
        else:
            segment = writer.segment
        after = replace(
            state,
            segment=segment,
            usage=state.usage + torch.stack(received) if received else state.usage,
            position=state.position + t,
            length=tuple(n + t for n in state.length),
            carried={**state.carried, **{key: torch.stack(new) for key, new in updates.items()}},
        )
        if writer is not None:
            writer.cache.follow(after, self.frozen)
        return x, after

    def reads_alike(self, state: State) -> bool:
        """Whether single tokens are read in one way, wherever rows stand: by `read_token`."""
        own_precision = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"))
        on_cuda = state.filled.device.type == "cuda"
        return on_cuda and self.reads_any_phase and self.frozen is not None and own_precision

    def _train_layer(
        self, index: int, x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor, Tensor | None, Mapping[str, Tensor]]:
        """A layer with gradients: output, slots, attention weights, updates of `carried`."""
        inputs, slots, pair = self.project_training(index, x, call)
        out, weights, carried = self.attend(index, inputs, pair, call)
        return self.blocks[index].finish(x, out), slots.detach(), weights, carried

    def fixes_columns(self, state: State, t: int) -> bool:
        """Whether t tokens attend over all columns, so that products have the same shape."""
        return t == 1 or not state.aligned

    def received(self, weights: Tensor, past_len: int) -> Tensor:
        """Attention received by memory slots, mean over heads, sum over queries: [B, M]."""
        memory = slice(past_len - self.config.memory_len, past_len)
        return weights.detach()[..., memory].float().mean(dim=1).sum(dim=1)

    def _past_columns(self, state: State, writer: CacheWriter | None) -> int:
        """Key columns of the past, from the cache if there is one."""
        if writer is not None:
            return writer.cache.keys[0].shape[2] - self.config.segment_len
        return self.past_columns(state)

    def past_columns(self, state: State) -> int:
        """Key columns that `project_past` returns."""
        return state.past.shape[2]

    @torch.no_grad()
    def truncate(
        self, before: State, tokens: Tensor, after: State, n: int, cache: Cache | None = None
    ) -> State:
        """Reduces only the counters unless the call changed usage or carried tensors.

        See `Model.truncate`.
        """
        changed = any(after.carried[name] is not each for name, each in before.carried.items())
        if changed or self.config.wants_usage or n == tokens.shape[1]:
            return super().truncate(before, tokens, after, n, cache)
        length = tuple(each + n for each in before.length)
        return replace(after, position=before.position + n, length=length)

    # -- closing a segment ------------------------------------------------------------------------

    def commit(self, state: State, cache: Cache | None = None) -> tuple[State, Eviction | None]:
        """Close all full segments; see `Model.commit`."""
        t = self.config.segment_len
        full = [row for row, n in enumerate(state.length) if n == t]
        if not full:
            raise ValueError(
                f"open segments of {' or '.join(map(str, sorted(set(state.length))))} tokens; "
                f"allowed: at least one full segment of {t} tokens"
            )
        if len(full) < state.batch_size:
            return self._commit_rows(state, full, cache), None
        if torch.is_grad_enabled():
            keys: list[Tensor] = []
            values: list[Tensor] = []
            for index in range(len(self.blocks)) if self.closes_with_keys else ():
                key, value = self.within(index, self._project_all, index, state)
                keys.append(key)
                values.append(value)
            return self.closed(state, keys, values)
        if cache is None and not self.closes_with_keys:
            return self.closed(state, [], [])
        cache = self._cache_of(state, cache)
        self._settle(state, cache)
        committed, eviction = self.closed(state, cache.keys, cache.values)
        cache.clear()  # an interruption must not leave a half-moved cache bound to `state`
        spare: Tensor | None = None
        for index, pair in enumerate(zip(cache.keys, cache.values, strict=True)):
            past, segment = columns(pair, slice(-t)), columns(pair, slice(-t, None))
            parts = self.past_after(index, past, segment, committed, eviction)
            halves = zip((cache.keys, cache.values), zip(*parts, strict=True), strict=True)
            for buffers, half in halves:
                if cache.stays:
                    buffers[index][:, :, :-t] = torch.cat(half, dim=2)
                else:  # what stays is copied once, into the buffer that the last columns left
                    buffers[index], spare = with_room(spare, half, t), buffers[index]
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
        """Project the open segment again as a whole if several calls wrote it."""
        if not any(state.length) or cache.calls == 1:
            return
        n, t = max(state.length), self.config.segment_len
        for index, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            start = key.shape[2] - t
            new_key, new_value = self.project_open(index, state)
            key[:, :, start : start + n] = new_key
            value[:, :, start : start + n] = new_value
        cache.calls = 1

    def project_open(self, index: int, state: State) -> Pair:
        """Keys and values of the open segment so far."""
        layer = self.blocks[index]
        slots = state.segment[index, :, : max(state.length)]
        if not torch.is_grad_enabled():
            slots = standard(slots)
        pair: Pair = layer.attention.project(layer.read(slots))
        return pair

    def _project_all(self, index: int, state: State) -> Pair:
        return joined(self.project_past(index, state), self.project_open(index, state))

    def fill(self, state: State, cache: Cache) -> None:
        """Compute the keys and values of a state from it alone, unless the cache has them."""
        self._cache_of(state, cache)

    def _cache_of(self, state: State, cache: Cache | None) -> Cache:
        """The caller's cache or a temporary one, filled for `state`."""
        cache = Cache() if cache is None else cache
        if cache.follows(state, self.frozen):
            return cache
        n, t = max(state.length), self.config.segment_len
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for index in range(len(self.blocks)):
            pair = self.project_past(index, state)
            if n:
                pair = joined(pair, self.project_open(index, state))
            for buffers, part in zip((keys, values), pair, strict=True):
                room = part.new_zeros(*part.shape[:2], t - n, part.shape[3])
                buffers.append(torch.cat([part, room], dim=2))
        segment = state.segment.clone()
        cache.hold(keys, values, segment=segment, length=state.length, calls=1)
        cache.follow(state, self.frozen)
        return cache
