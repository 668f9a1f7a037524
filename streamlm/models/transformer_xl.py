"""The Transformer-XL head: relative attention over memory, which is compressed instead of dropped.

With gradients on, the past is projected anew in every call, because the projections learn through
it; without, projected keys and values travel with the state, and nothing is projected twice.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from streamlm.config import ModelConfig
from streamlm.memory.compression import COMPRESSORS, Conv, Dilated, Select
from streamlm.memory.eviction import Eviction, evict
from streamlm.models.base import Model, Observer
from streamlm.models.cache import build_cache, committed_cache, counted_back
from streamlm.models.layers.attention import attention_mask
from streamlm.models.layers.block import Layer
from streamlm.models.layers.positions import sinusoid
from streamlm.state import Cache, State


class RelativeModel(Model):
    """A Transformer-XL with memory and compressed memory (Compressive Transformer)."""

    position_table: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self._add_biases()
        self._add_output()
        width, rate = config.d_model, config.compression_rate
        n_compressors = config.n_layers if config.compressed_len else 0
        self.compressors = nn.ModuleList(
            COMPRESSORS[config.compression](config) for _ in range(n_compressors)
        )
        auto_encoding = config.compression_loss == "auto-encoding"
        self.decoders = nn.ModuleList(
            # A transposed convolution with kernel = stride = c is this matrix.
            nn.Linear(width, rate * width, bias=False)
            for _ in range(n_compressors if auto_encoding else 0)
        )
        longest = config.past_len + config.segment_len
        table = sinusoid(longest + 1, width, clamp=config.clamp_len)
        self.register_buffer("position_table", table, persistent=False)
        self._projected_positions: tuple[int, list[Tensor]] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `Model.reset_parameters`, and the compressors as each begins."""
        super().reset_parameters()
        for compressor in self.compressors:
            if isinstance(compressor, (Conv, Dilated, Select)):
                compressor.reset(self.config.init_std)

    def compression_parameters(self) -> list[nn.Parameter]:
        """Parameters that the compression loss (or, with BPTT, the language model) trains."""
        return [*self.compressors.parameters(), *self.decoders.parameters()]

    @property
    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        config, weight = self.config, self.output_bias
        lead = (config.n_layers, batch_size)
        usage = config.memory_len if config.wants_usage else 0
        counts = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return State(
            past=weight.new_zeros(*lead, config.past_len, config.d_model).detach(),
            segment=weight.new_zeros(*lead, config.segment_len, config.d_model).detach(),
            usage=torch.zeros(*lead, usage, device=weight.device, dtype=torch.float32),
            filled=counts,
            position=counts.clone(),
            length=0,
        )

    # -- reading ----------------------------------------------------------------------------------

    def read(
        self, x: Tensor, state: State, *, observe: Observer | None = None
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`."""
        if torch.is_grad_enabled():
            return self._read_training(x, state)
        return self._read_cached(x, state, observe)

    def _read_training(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        config, length, t = self.config, state.length, x.shape[1]
        mask = attention_mask(state.filled, config.past_len, length, t)
        table = self.dropout(self.position_table)[-(config.past_len + length + t + 1) :]
        inputs, usage = [], []
        for index, layer in enumerate(self._layers):
            inputs.append(x.detach())
            # Only this segment's own inputs carry gradient; through the past, W_k and W_v still do.
            context = torch.cat([state.past[index], state.segment[index, :, :length], x], dim=1)
            context = layer.read(context)
            key, value = layer.attention.project(context)
            attended, weights = layer.attention.attend(
                context[:, -t:],
                key,
                value,
                positions=layer.attention.project_positions(table),
                biases=self.biases(index),
                mask=mask,
                want_weights=self.config.wants_usage,
            )
            usage.append(self._received(weights))
            x = layer.finish(x, attended)
        tail = state.segment[:, :, length + t :]
        segment = torch.cat([state.segment[:, :, :length], torch.stack(inputs), tail], dim=2)
        return x, self._extended(state, t, segment=segment, usage=usage, cache=None)

    def _read_cached(
        self, x: Tensor, state: State, observe: Observer | None
    ) -> tuple[Tensor, State]:
        config, length, t = self.config, state.length, x.shape[1]
        cache = self._cache_of(state)
        if cache.used != length:
            cache = cache.copy()
        start, stop = config.past_len + length, config.past_len + length + t
        cache.used, cache.calls = length + t, cache.calls + 1 if length else 1
        mask = attention_mask(state.filled, config.past_len, length, t)
        all_positions = self._positions()
        usage = []
        for index, layer in enumerate(self._layers):
            cache.segment[index, :, length : length + t] = x
            seen = layer.read(x)
            key, value = layer.attention.project(seen)
            cache.keys[index][:, :, start:stop] = key
            cache.values[index][:, :, start:stop] = value
            attended, weights = layer.attention.attend(
                seen,
                cache.keys[index][:, :, :stop],
                cache.values[index][:, :, :stop],
                positions=all_positions[index][:, -(stop + 1) :],
                biases=self.biases(index),
                mask=mask,
                want_weights=self.config.wants_usage or observe is not None,
            )
            usage.append(self._received(weights))
            if observe is not None and weights is not None:
                observe(index, weights)
            x = layer.finish(x, attended)
        return x, self._extended(state, t, segment=cache.segment, usage=usage, cache=cache)

    def _extended(
        self, state: State, t: int, *, segment: Tensor, usage: list[Tensor], cache: Cache | None
    ) -> State:
        return replace(
            state,
            segment=segment,
            usage=state.usage + torch.stack(usage) if self.config.wants_usage else state.usage,
            position=state.position + t,
            length=state.length + t,
            cache=cache,
        )

    def _received(self, weights: Tensor | None) -> Tensor:
        """Attention that memory slots received, mean over heads, sum over queries: [B, M]."""
        if weights is None or not self.config.wants_usage:
            return self.output_bias.new_empty(0)
        memory = slice(self.config.compressed_len, self.config.past_len)
        return weights.detach()[..., memory].float().mean(dim=1).sum(dim=1)

    @torch.no_grad()
    def cut(self, before: State, tokens: Tensor, after: State, n: int) -> State:
        """Only counted back, unless usage is known of all tokens together; see `Model.cut`."""
        if self.config.wants_usage:
            return super().cut(before, tokens, after, n)
        return counted_back(before, after, n)

    # -- closing a segment ------------------------------------------------------------------------

    def commit(self, state: State) -> tuple[State, Eviction | None]:
        """Close the full open segment: memory moves on by T slots, and what leaves is compressed.

        Returns:
            The state with an empty open segment, and what was evicted (None when C = 0). With
            compression_loss "bptt" the new compressed slots keep their graph, else they are
            detached in the state and keep it only in the eviction.

        Raises:
            ValueError: the open segment is not full.
        """
        config, t = self.config, self.config.segment_len
        if state.length != t:
            raise ValueError(f"a segment of {t} tokens is closed when full; it has {state.length}")
        cache = None if torch.is_grad_enabled() else self._cache_of(state)
        c_len, m_len = config.compressed_len, config.memory_len
        n_memory = state.filled.clamp(max=m_len)
        n_evicted = (n_memory + t - m_len).clamp(min=0)
        slots = torch.cat([state.past[:, :, c_len:], state.segment], dim=2)  # [L, B, M+T, W]
        memory = slots[:, :, t:]
        eviction: Eviction | None = None
        usage = state.usage
        if c_len:
            eviction = evict(config, self.compressors, state, slots, n_evicted)
            new = eviction.compressed
            kept = new if config.compression_loss == "bptt" else new.detach()
            compressed = torch.cat([state.past[:, :, :c_len], kept], dim=2)[:, :, -c_len:]
            past = torch.cat([compressed, memory], dim=2)
            n_compressed = state.filled - n_memory + n_evicted // config.compression_rate
            filled = (n_memory + t).clamp(max=m_len) + n_compressed.clamp(max=c_len)
        else:
            past, filled = memory, (n_memory + t).clamp(max=m_len)
        if config.wants_usage:
            empty = usage.new_zeros(*usage.shape[:2], t)
            usage = torch.cat([usage, empty], dim=2)[:, :, t:]
        committed = replace(
            state,
            past=past,
            segment=torch.zeros_like(state.segment),
            usage=usage,
            filled=filled,
            length=0,
            cache=None,
        )
        if cache is not None:
            made = None if eviction is None else eviction.compressed
            moved = committed_cache(config, self._layers, cache, state=committed, compressed=made)
            committed = replace(committed, cache=moved)
        return committed, eviction

    # -- derived keys and values ------------------------------------------------------------------

    @torch.no_grad()
    def canonical(self, state: State) -> State:
        """The same state with keys and values computed as they are after loading it.

        The last bits of a matrix product depend on how many rows are multiplied at once, so a
        session that read its open segment in pieces differs in them from one loaded from a
        snapshot. Going on from `canonical(state)` makes both the same, bit for bit. Keys and values
        of past slots need nothing: `commit` always leaves them as whole segments project them.
        """
        if state.cache is not None and (not state.length or state.cache.calls == 1):
            return state
        cache = build_cache(self.config, self._layers, state, version=self._weights_version)
        return replace(state, cache=cache)

    def _cache_of(self, state: State) -> Cache:
        cache = state.cache
        if cache is None or cache.weights_version != self._weights_version:
            cache = build_cache(self.config, self._layers, state, version=self._weights_version)
        return cache

    @property
    def _weights_version(self) -> int:
        """Changes whenever the weights that keys, values and positions are derived from may have.

        Writes show in a tensor's version and moves in its address; but fused optimisers write
        without a trace, so each change between training and evaluation counts too.
        """
        weights = [
            weight
            for layer in self._layers
            for weight in (
                layer.attention.key_value.weight,
                layer.attention.position.weight,
                *layer.attention_norm.parameters(),
            )
        ]
        marks = [(weight.data_ptr(), weight.dtype, weight._version) for weight in weights]
        return hash((self._mode_changes, *marks))

    def _positions(self) -> list[Tensor]:
        """`project_positions` of every layer and distance, computed once per weights."""
        version = self._weights_version
        held = self._projected_positions
        if held is None or held[0] != version:
            table = self.position_table.to(self.output_bias.dtype)
            held = (version, [layer.attention.project_positions(table) for layer in self._layers])
            self._projected_positions = held
        return held[1]
