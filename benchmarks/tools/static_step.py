"""Decoding as a static step: the same addresses, shapes and operations for every token.

Whatever a stream carries lies in buffers that never move, and the length of its open segment is a
number on the device. One step can therefore be captured in a CUDA graph once and replayed for every
token; closing a segment is a second graph, replayed once a segment. Attention covers all P + T
columns under a mask: once a stream is old, that is nearly what it covers anyway.

Shapes: L layers, B batch, T segment, P past, H heads, E head_dim, W slot width, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.models.transformer_xl import RelativeModel
from streamlm.state import Cache, State

CARRIED = ("past", "filled", "position")  # tensors of a state that lie in one buffer each


class StaticStep:
    """A stream of a model in evaluation mode, advanced token by token.

    Args:
        state: where the stream stands; it is copied. Its open segment must have room.

    Raises:
        ValueError: the compression needs the attention weights, which the fused kernel keeps.
    """

    def __init__(self, model: RelativeModel, state: State) -> None:
        config = model.config
        if config.wants_usage:
            raise ValueError(f"compression {config.compression!r}; allowed: one without usage")
        self.model, self.usage = model, state.usage
        # A buffer for each layer: the compiler would copy one of all layers to write to a part.
        self.keys, self.values = ([x.clone() for x in each] for each in derived(model, state))
        self.segment = [each.clone() for each in state.segment]  # L × [B, T, W]
        self.past, self.filled, self.position = (getattr(state, name).clone() for name in CARRIED)
        self.length = torch.full((), state.length, dtype=torch.int64, device=model.device)
        self._derive()

    @torch.no_grad()
    def _derive(self) -> None:
        """What depends on the weights alone."""
        model, config = self.model, self.model.config
        scale = config.head_dim**-0.5
        self.column = torch.arange(config.past_len + config.segment_len, device=model.device)
        self.positions = torch.stack(model._positions())  # [L, H, P+T+1, E]
        biases = [model.biases(index) for index in range(config.n_layers)]
        self.u, w = (torch.stack(each)[:, :, None] * scale for each in zip(*biases, strict=True))
        # One product for q, k and v: [3·H·E, W] of each layer.
        self.projections = [
            torch.cat([layer.attention.query.weight * scale, layer.attention.key_value.weight])
            for layer in model._layers
        ]
        # w·r does not depend on the query: [L, H, 1, P+T+1].
        self.fixed = w @ self.positions.mT

    @torch.no_grad()
    def take(self, state: State) -> None:
        """Stand where `state` stands, in the same buffers; B must be the same."""
        keys, values = derived(self.model, state)
        for mine, given in zip(self.buffers, [*keys, *values, *state.segment], strict=True):
            mine.copy_(given)
        for name in CARRIED:
            getattr(self, name).copy_(getattr(state, name))
        self.length.fill_(state.length)

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
        for index, layer in enumerate(model._layers):
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
        self.take(closed(self.model, self.state(), self.keys, self.values))

    def state(self) -> State:
        """The stream with a full open segment, as the model knows it."""
        return State(
            past=self.past,
            segment=torch.stack(self.segment),
            usage=self.usage,
            filled=self.filled,
            position=self.position,
            length=self.model.config.segment_len,
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
            *(weight for layer in model._layers for weight in layer.feed_forward.parameters()),
            *(layer.attention.output.weight for layer in model._layers),
        ]
        return sum(part.nbytes for part in parts)


# -- the model's own keys and values: the only place that knows how they are kept -----------------


def derived(model: RelativeModel, state: State) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer, L × [B, H, P+T, E] each; they are the state's, not copies."""
    with torch.no_grad():
        cache = model._cache_of(state)
        return cache.keys, cache.values


def closed(model: RelativeModel, state: State, keys: list[Tensor], values: list[Tensor]) -> State:
    """The state after its segment was closed, with its keys and values.

    Args:
        keys, values: of `state`, whose tokens were read one by one.
    """
    cache = Cache(
        keys=keys,
        values=values,
        segment=state.segment,
        used=model.config.segment_len,
        calls=2,  # read in pieces: `commit` projects the segment again as a whole
        weights_version=model._weights_version,
    )
    return model.commit(replace(state, cache=cache))[0]
