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

from streamlm.heads.relative import RelativeModel
from streamlm.state import Cache, State

CARRIED = ("past", "segment", "filled", "position")  # tensors of a state that a step changes


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
        self.keys, self.values = keys_and_values(model, state)
        self.past, self.segment, self.filled, self.position = (
            getattr(state, name).clone() for name in CARRIED
        )
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
        for mine, given in zip(
            (self.keys, self.values), keys_and_values(self.model, state), strict=True
        ):
            mine.copy_(given)
        for name in CARRIED:
            getattr(self, name).copy_(getattr(state, name))
        self.length.fill_(state.length)

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Read a token of every row: [B, 1] ids → logits [B, V].

        The caller closes the segment when it is full; nothing here asks the device how far it is.
        """
        model, config = self.model, self.model.config
        h, e, p, t = config.n_heads, config.head_dim, config.past_len, config.segment_len
        at = (self.length + p).view(1)
        seen = (self.column <= at) & (self.column >= p - self.filled[:, None])  # [B, P+T]
        blind = torch.zeros_like(seen, dtype=self.keys.dtype).masked_fill_(~seen, -torch.inf)
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
        after, keys, values = closed(self.model, self.state(), self.keys, self.values)
        self.keys.copy_(keys)
        self.values.copy_(values)
        for name in ("past", "segment", "filled"):
            getattr(self, name).copy_(getattr(after, name))
        self.length.zero_()

    def state(self) -> State:
        """The stream with a full open segment, as the model knows it; it shares the buffers."""
        return State(
            past=self.past,
            segment=self.segment,
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
            *(self.keys, self.values, self.positions, self.fixed, *self.projections),
            *model.embedding.parameters(),  # the output layer reads all of it
            model.output_bias,
            *model.final_norm.parameters(),
            *(weight for layer in model._layers for weight in layer.feed_forward.parameters()),
            *(layer.attention.output.weight for layer in model._layers),
        ]
        return sum(part.nbytes for part in parts)


# -- the model's own keys and values: the only place that knows how they are kept -----------------


def keys_and_values(model: RelativeModel, state: State) -> tuple[Tensor, Tensor]:
    """Of every layer and column, derived if need be: two new tensors [L, B, H, P+T, E]."""
    with torch.no_grad():
        cache = model._cache_of(state)
        return torch.stack(cache.keys), torch.stack(cache.values)


def closed(
    model: RelativeModel, state: State, keys: Tensor, values: Tensor
) -> tuple[State, Tensor, Tensor]:
    """The state after its segment was closed, and its keys and values, [L, B, H, P+T, E] each."""
    cache = Cache(
        keys=list(keys.unbind(0)),
        values=list(values.unbind(0)),
        segment=state.segment,
        used=model.config.segment_len,
        calls=2,  # read in pieces: `commit` projects the segment again as a whole
        weights_version=model._weights_version,
    )
    after, _ = model.commit(replace(state, cache=cache))
    return after, *keys_and_values(model, after)
