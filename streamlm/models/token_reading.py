"""Single tokens on CUDA: one way of reading them, wherever rows stand.

Shapes, addresses and operations are the same for every token, and nothing waits for the device. So
CUDA can repeat them as a graph (`Captured`), for one row and for many.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from streamlm.models.cache import Cache, TokenWriter
from streamlm.models.call import Call
from streamlm.models.captured import Captured
from streamlm.state import State


@dataclass(frozen=True, eq=False)
class Standing(State):
    """Rows as `through_layers` knows them: where they stand is on the device alone.

    Attributes:
        at: [B] tokens in each row's open segment. `length` and all slots are void.
    """

    at: Tensor = field(kw_only=True)

    @property
    def aligned(self) -> bool:
        return False

    def lengths(self) -> Tensor:
        return self.at


def read_token(model: Any, x: Tensor, state: State, cache: Cache) -> tuple[Tensor, State]:
    """Read a token of each row; see `Model.read`.

    Args:
        model: a frozen `SegmentedModel`.
        x: [B, 1, D].
        cache: follows `state`; its step captures the layers.
    """
    if not isinstance(cache.step, Captured) or cache.step.weights is not model.frozen:
        cache.step = captured_step(model)
    at, segment = state.lengths(), cache.extend(1)
    inputs = (x, at, state.filled, state.position)
    hidden, slots, *received = cache.step(inputs, (*cache.keys, *cache.values))
    segment[:, torch.arange(state.batch_size, device=x.device), at] = slots
    cache.calls = 2  # other products than those of a state that is loaded
    after = replace(
        state,
        segment=segment,
        usage=state.usage + received[0] if received else state.usage,
        position=state.position + 1,
        length=tuple(n + 1 for n in state.length),
    )
    cache.follow(after, model.frozen)
    return hidden, after


def captured_step(model: Any, *, after: int | None = None) -> Captured:
    """`through_layers` of a frozen model, captured after some calls; see `Captured`."""
    return Captured(lambda *inputs: through_layers(model, *inputs), model.frozen, after=after)


def through_layers(
    model: Any,
    x: Tensor,
    at: Tensor,
    filled: Tensor,
    position: Tensor,
    *buffers: Tensor,
) -> tuple[Tensor, ...]:
    """All layers for a token of each row.

    Args:
        model: a frozen `SegmentedModel`.
        x: [B, 1, D]; at: [B] tokens in each open segment, which has room for one more.
        filled, position: of the state.
        buffers: keys, then values of each layer, [B, H, N + T, E]; the new ones are written.

    Returns:
        The output [B, 1, D], slots [L, B, W], and the attention that memory slots received,
        [L, B, M], if the compression uses it.
    """
    config, n_layers = model.config, model.config.n_layers
    keys, values = buffers[:n_layers], buffers[n_layers:]
    n_keys = keys[0].shape[2]
    past_len = n_keys - config.segment_len
    state = Standing(x, x, x, filled, position, (0,) * len(x), at=at)
    call = Call(state, 1, n_keys, model.derived(), want_weights=config.wants_usage)
    call = replace(call, context=model.call_context(call))
    writer = TokenWriter(keys, values, at + past_len)
    received: list[Tensor] = []
    for index, layer in enumerate(model.blocks):
        inputs, slots, new = model.project_new(index, x, call)
        pair = writer.write(index, slots, new)
        out, weights, _ = model.attend(index, inputs, pair, call)
        x = layer.finish(x, out)
        if weights is not None and config.wants_usage:
            received.append(model.received(weights, past_len))
    slots = torch.stack(writer.slots)[:, :, 0]
    return (x, slots, torch.stack(received)) if received else (x, slots)
