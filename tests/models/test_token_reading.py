"""`through_layers`: one token of each row, as `read` reads it, and as one graph of a compiler."""

from functools import partial

import pytest
import torch

from streamlm.models.cache import Cache
from streamlm.models.token_reading import through_layers
from streamlm.runtime.stream import advance
from streamlm.state import State
from tests.support.invariants import largest_difference, random_tokens, tiny_model

MODELS = {
    "relative": {},
    "post": {"norm": "post"},
    "most-used": {"compression": "most-used"},
    "llama": {"head": "llama", "pinned_len": 2},
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_equals_reading(options: dict[str, object], compiled: bool) -> None:
    model, layers = tiny_model(**options), through_layers
    tokens = random_tokens(model, 40, rows=2)
    alone = [advance(model, tokens[:1, :n], model.init_state(1))[1] for n in (6, 35)]
    state = State.stack(alone)  # in phases 2 and 3 of 4
    cache, token = Cache(), tokens[:, :1]
    model.fill(state, cache)
    buffers = [each.clone() for each in (*cache.keys, *cache.values)]
    hidden, after = model.read(model.embed(token), state, cache=cache)
    if compiled:
        layers = torch.compile(layers, dynamic=False, fullgraph=True, backend="eager")
    inputs = (model.embed(token), state.lengths(), state.filled, state.position)
    found, slots, *received = partial(layers, model)(*inputs, *buffers)
    assert largest_difference(found, hidden) < 1e-12
    for row, n in enumerate(state.length):
        assert largest_difference(slots[:, row], after.segment[:, row, n]) < 1e-12
    for mine, wanted in zip(buffers, (*cache.keys, *cache.values), strict=True):
        assert largest_difference(mine, wanted) < 1e-12
    if received:
        assert largest_difference(state.usage + received[0], after.usage) < 1e-5
    assert bool(received) == model.config.wants_usage
