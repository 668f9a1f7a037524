"""A linear recurrence: attention without softmax, whose past is one matrix for each head.

    S_i = γ S_{i-1} + k_iᵀ v_i,    o_i = q_i S_i / √E

Retention (Sun et al., "Retentive Network", 2023, eq. 6 to 9) without its rotation of positions and
its gate: distance shows in the decays γ alone. A control: it remembers in as few bytes as can be.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig
from streamlm.eviction import Eviction
from streamlm.layer import AnyLayer
from streamlm.model import Model, Observer
from streamlm.state import Cache, State

MATRICES = "retention"  # what is carried: [L, B, H, E, E]


class Retention(nn.Module):
    """One layer's recurrence over the tokens of a segment, and the matrix of all before it."""

    decay: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        inner = config.n_heads * config.head_dim
        self.query = nn.Linear(config.d_model, inner, bias=False)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.output = nn.Linear(inner, config.d_model, bias=False)
        # The paper's: heads forget by half within some 22, 44, 88, … tokens.
        decay = 1 - 2.0 ** (-5 - torch.arange(config.n_heads, dtype=torch.float64))
        self.register_buffer("decay", decay.to(torch.get_default_dtype()), persistent=False)

    def project(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values: [B, n, D] → two [B, H, n, E]."""
        both = self.key_value(slots).unflatten(2, (2, self.n_heads, self.head_dim))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def read(self, x: Tensor, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        """[B, t, D], the last t tokens of a segment's first n, → [B, t, D].

        Args:
            key, value: [B, H, n, E]; matrix: [B, H, E, E], S before the segment.
        """
        n, t = key.shape[2], x.shape[1]
        query = self.query(x).unflatten(2, (self.n_heads, self.head_dim)).transpose(1, 2)
        query = query * self.head_dim**-0.5
        at = torch.arange(n - t, n, device=x.device)
        distance = at[:, None] - torch.arange(n, device=x.device)  # [t, n]
        weight = self._powers(distance.clamp(min=0)) * (distance >= 0)
        near = ((query @ key.mT) * weight) @ value
        far = (query @ matrix.to(query.dtype)) * self._powers(at + 1)[..., None]
        heads = F.layer_norm(near + far, (self.head_dim,))
        out: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return out

    def closed(self, key: Tensor, value: Tensor, matrix: Tensor) -> Tensor:
        """S after a whole segment."""
        n = key.shape[2]
        ages = torch.arange(n - 1, -1, -1, device=key.device)
        weighted = (key * self._powers(ages)[..., None]).to(matrix.dtype)
        decayed = matrix * self._powers(torch.tensor([n], device=key.device))[..., None]
        return decayed + weighted.mT @ value.to(matrix.dtype)

    def _powers(self, exponents: Tensor) -> Tensor:
        """γ to these powers, for each head: [...] → [H, ...]."""
        decay = self.decay.view(-1, *[1] * exponents.ndim)
        return decay**exponents


class RecurrentModel(Model):
    """A language model that carries matrices instead of slots."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            AnyLayer(config, Retention(config)) for _ in range(config.n_layers)
        )
        self._add_output()
        self.reset_parameters()

    @property
    def _layers(self) -> list["AnyLayer[Retention]"]:
        return cast("list[AnyLayer[Retention]]", list(self.layers))

    def init_state(self, batch_size: int = 1) -> State:
        """Streams that have read nothing."""
        config, weight = self.config, self.output_bias
        lead = (config.n_layers, batch_size)
        counts = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        dtype = torch.promote_types(weight.dtype, torch.float32)  # sums of all that was read
        shape = (*lead, config.n_heads, config.head_dim, config.head_dim)
        return State(
            past=weight.new_zeros(*lead, 0, config.d_model).detach(),
            segment=weight.new_zeros(*lead, config.segment_len, config.d_model).detach(),
            usage=torch.zeros(*lead, 0, device=weight.device, dtype=torch.float32),
            filled=counts,
            position=counts.clone(),
            length=0,
            carried={MATRICES: torch.zeros(shape, dtype=dtype, device=weight.device)},
        )

    def read(
        self, x: Tensor, state: State, *, observe: Observer | None = None
    ) -> tuple[Tensor, State]:
        """All layers; see `Model.read`. There are no weights to observe."""
        length, t = state.length, x.shape[1]
        cache = None if torch.is_grad_enabled() else self._own_cache(state, t)
        inputs = []
        for index, layer in enumerate(self._layers):
            inputs.append(x.detach())
            seen = layer.read(x)
            if cache is None:
                before = layer.read(state.segment[index, :, :length])
                key, value = layer.attention.project(torch.cat([before, seen], dim=1))
            else:
                new = layer.attention.project(seen)
                for store, part in zip((cache.keys, cache.values), new, strict=True):
                    store[index][:, :, length : length + t] = part
                key, value = (
                    each[index][:, :, : length + t] for each in (cache.keys, cache.values)
                )
            x = layer.finish(x, layer.attention.read(seen, key, value, self._matrix(state, index)))
        tail = state.segment[:, :, length + t :]
        segment = torch.cat([state.segment[:, :, :length], torch.stack(inputs), tail], dim=2)
        return x, replace(
            state,
            segment=segment,
            position=state.position + t,
            length=length + t,
            cache=cache,
        )

    def commit(self, state: State) -> tuple[State, Eviction | None]:
        """Take the full open segment into the matrices; see `Model.commit`."""
        t = self.config.segment_len
        if state.length != t:
            raise ValueError(f"a segment of {t} tokens is closed when full; it has {state.length}")
        cache = state.cache if not torch.is_grad_enabled() else None
        matrices = []
        for index, layer in enumerate(self._layers):
            if cache is not None and cache.weights_version == self._weights_version:
                key, value = cache.keys[index], cache.values[index]
            else:
                key, value = layer.attention.project(layer.read(state.segment[index]))
            matrix = layer.attention.closed(key, value, self._matrix(state, index))
            matrices.append(matrix.detach())
        committed = replace(
            state,
            segment=torch.zeros_like(state.segment),
            length=0,
            carried={MATRICES: torch.stack(matrices)},
            cache=None,
        )
        return committed, None

    @torch.no_grad()
    def canonical(self, state: State) -> State:
        """The same state with keys and values of the open segment as they are after loading it."""
        if not state.length or (state.cache is not None and state.cache.calls == 1):
            return state
        return replace(state, cache=self._built_cache(state))

    def _matrix(self, state: State, index: int) -> Tensor:
        return state.carried[MATRICES][index]

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

    def _built_cache(self, state: State) -> Cache:
        config, length = self.config, state.length
        shape = (state.batch_size, config.n_heads, config.segment_len, config.head_dim)
        keys, values = [], []
        for index, layer in enumerate(self._layers):
            pair = state.past.new_zeros(2, *shape)
            if length:
                slots = state.segment[index, :, :length].contiguous()
                key, value = layer.attention.project(layer.read(slots))
                pair[0, :, :, :length], pair[1, :, :, :length] = key, value
            keys.append(pair[0])
            values.append(pair[1])
        return Cache(keys, values, state.segment[:, :, :0], length, 1, self._weights_version)

    @property
    def _weights_version(self) -> int:
        """Changes whenever the weights that keys and values are derived from may have."""
        weights = [
            weight
            for layer in self._layers
            for weight in (layer.attention.key_value.weight, *layer.attention_norm.parameters())
        ]
        marks = [(weight.data_ptr(), weight.dtype, weight._version) for weight in weights]
        return hash((self._mode_changes, *marks))
