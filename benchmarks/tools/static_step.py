"""Decoding as a static step: the same addresses, shapes and operations for every token.

Whatever a stream carries lies in buffers that never move, and the length of its open segment is a
number on the device. One step can therefore be captured in a CUDA graph once and replayed for every
token; closing a segment is a second graph, replayed once a segment. Attention covers all P + T
columns under a mask: once a stream is old, that is nearly what it covers anyway.

Shapes: L layers, B batch, T segment, P past, H heads, E head_dim, W slot width, V vocabulary.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.models.cache import Cache, standard
from streamlm.models.layers.block import Layer
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State

CARRIED = ("past", "filled", "position")  # tensors of a state that lie in one buffer each


class StaticStep:
    """A stream of a frozen model, advanced token by token.

    Args:
        model: its weights must not change as long as this is used.
        state: where the stream stands; it is copied. Its open segment must have room.

    Raises:
        ValueError: the model is not frozen, its compression needs the attention weights, which the
            fused kernel keeps, or the rows are in different phases.
    """

    def __init__(self, model: TransformerXL, state: State) -> None:
        config = model.config
        if config.wants_usage:
            raise ValueError(f"compression {config.compression!r}; allowed: one without usage")
        if model.frozen is None:
            raise ValueError("a model that is not frozen; allowed: a frozen one (`Model.freeze`)")
        self.model, self.usage = model, state.usage
        self.layers = cast("list[Layer]", list(model.layers))
        # A buffer for each layer: the compiler would copy one of all layers to write to a part.
        self.keys, self.values = ([x.clone() for x in each] for each in derived(model, state))
        self.segment = [each.clone() for each in state.segment]  # L × [B, T, W]
        self.past, self.filled, self.position = (getattr(state, name).clone() for name in CARRIED)
        self.length = torch.full((), state.phase, dtype=torch.int64, device=model.device)
        self._derive()

    @torch.no_grad()
    def _derive(self) -> None:
        """What depends on the weights alone."""
        model, config = self.model, self.model.config
        scale = config.head_dim**-0.5
        n_keys = config.past_len + config.segment_len
        self.column = torch.arange(n_keys, device=model.device)
        # Without the void ones behind: [L, H, P+T+1, E].
        self.positions = torch.stack([keys[:, : n_keys + 1] for (keys,) in model.derived()])
        biases = [model.biases(index) for index in range(config.n_layers)]
        self.u, w = (torch.stack(each)[:, :, None] * scale for each in zip(*biases, strict=True))
        # One product for q, k and v: [3·H·E, W] of each layer.
        self.projections = [
            torch.cat([layer.attention.query.weight * scale, layer.attention.key_value.weight])
            for layer in self.layers
        ]
        # w·r does not depend on the query: [L, H, 1, P+T+1].
        self.fixed = w @ self.positions.mT

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Stand where `state` stands, in the same buffers; B must be the same."""
        self._copy(state, *derived(self.model, state))

    def _copy(self, state: State, keys: list[Tensor], values: list[Tensor]) -> None:
        for mine, given in zip(self.buffers, [*keys, *values, *state.segment], strict=True):
            mine.copy_(given)
        for name in CARRIED:
            getattr(self, name).copy_(getattr(state, name))
        self.length.fill_(state.phase)

    @property
    def buffers(self) -> list[Tensor]:
        """Keys, values and the open segment of every layer."""
        return [*self.keys, *self.values, *self.segment]

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Read a token of every row: [B, 1] ids → logits [B, V].

        The caller closes the segment when it is full; nothing here asks the device how far it is.
        """
        model, config = self.model, self.model.config
        h, e, p, t = config.n_heads, config.head_dim, config.past_len, config.segment_len
        at = (self.length + p).view(1)
        seen = (self.column <= at) & (self.column >= p - self.filled[:, None])  # [B, P+T]
        blind = torch.zeros_like(seen, dtype=self.past.dtype).masked_fill_(~seen, -torch.inf)
        blind = blind[:, None, None]  # [B, 1, 1, P+T]
        # Column of `positions` that holds the distance to each key.
        back = (self.column + (t - self.length)).clamp_(max=p + t)
        x = model.embedding(token) * config.d_model**0.5
        for index, layer in enumerate(self.layers):
            self.segment[index].index_copy_(1, self.length.view(1), x)
            heads = F.linear(layer.read(x), self.projections[index])
            heads = heads.view(-1, 1, 3, h, e).permute(2, 0, 3, 1, 4)  # [3, B, H, 1, E]
            query, key, value = heads.unbind(0)
            self.keys[index].index_copy_(2, at, key)
            self.values[index].index_copy_(2, at, value)
            by_distance = query @ self.positions[index].mT + self.fixed[index]
            bias = by_distance.index_select(3, back) + blind
            attended = F.scaled_dot_product_attention(
                query + self.u[index],
                self.keys[index],
                self.values[index],
                attn_mask=bias,
                scale=1.0,
            )
            x = layer.finish(x, layer.attention.output(attended.transpose(1, 2).flatten(2)))
        self.length += 1
        self.position += 1
        return model.logits(model.final_norm(x))[:, 0]

    @torch.no_grad()
    def commit(self) -> None:
        """Close the full open segment, in place."""
        state, cache = self.state(), Cache()
        # Copies: the cache moves what is kept to buffers of other layers. Read in pieces (calls=2),
        # the segment is projected again as a whole.
        keys, values = ([each.clone() for each in which] for which in (self.keys, self.values))
        cache.hold(keys, values, segment=state.segment, length=state.length, calls=2)
        cache.follow(state, self.model.frozen)
        committed, _ = self.model.commit(state, cache)
        self._copy(committed, cache.keys, cache.values)

    def state(self) -> State:
        """The stream with a full open segment, as the model knows it."""
        return State(
            past=self.past,
            segment=torch.stack(self.segment),
            usage=self.usage,
            filled=self.filled,
            position=self.position,
            length=(self.model.config.segment_len,) * len(self.filled),
        )

    @property
    def bytes_read(self) -> int:
        """Bytes of weights, keys and values that one step reads."""
        model = self.model
        parts = [
            *(*self.keys, *self.values, self.positions, self.fixed, *self.projections),
            *model.embedding.parameters(),  # the output layer reads all of it
            model.output_bias,
            *model.final_norm.parameters(),
            *(weight for layer in self.layers for weight in layer.feed_forward.parameters()),
            *(layer.attention.output.weight for layer in self.layers),
        ]
        return sum(part.nbytes for part in parts)


@torch.no_grad()
def derived(model: TransformerXL, state: State) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of a state's slots, L × [B, H, P+T, E] each; void ones behind the last."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for index, layer in enumerate(cast("list[Layer]", list(model.layers))):
        past = model.project_past(index, state)
        segment = layer.project(standard(state.segment[index]))
        key, value = (torch.cat(both, dim=2) for both in zip(past, segment, strict=True))
        keys.append(key)
        values.append(value)
    return keys, values
