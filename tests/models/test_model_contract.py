"""What a model promises its callers: caches, shapes, refusals, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamlm.config import COMPRESSIONS
from streamlm.models.cache import Cache
from streamlm.models.transformer_xl import TransformerXL
from streamlm.runtime.stream import advance
from tests.support.invariants import (
    random_tokens,
    read,
    tiny_model,
)
from tests.support.projections import count_projections

# -- caching --------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("shape", [{}, {"memory_len": 8, "compressed_len": 6}])
@torch.no_grad()
def test_nothing_is_projected_twice(
    compression: str,
    shape: dict[str, object],
) -> None:
    model, cache = tiny_model(compression=compression, **shape), Cache()
    tokens = random_tokens(model, 40)
    _, state = read(model, tokens, model.init_state(1), cache=cache)
    calls = count_projections(model)
    positions: list[int] = []
    for layer in model.layers:
        layer.attention.position.register_forward_hook(lambda *_: positions.append(1))

    def seen() -> list[list[int]]:
        found = [list(layer) for layer in calls]
        for layer in calls:
            layer.clear()
        return found

    for token in range(4):  # a token at a time
        _, state = model(tokens[:, token : token + 1], state, cache)
        assert seen() == [[1], [1]]
    state, _ = model.commit(state, cache)  # projects the segment again, as a whole
    assert [sorted(layer) for layer in seen()] == [[2, 4], [2, 4]]
    _, state = model(tokens[:, 4:8], state, cache)
    assert seen() == [[4], [4]]
    state, _ = model.commit(state, cache)
    assert seen() == [[2], [2]]
    own = cache.copy()  # a fork's
    _, fork = model(tokens[:, 8:9], state, own)
    _, other = model(tokens[:, 9:10], state, cache)
    assert seen() == [[1, 1], [1, 1]]
    model(tokens[:, 10:11], fork, own), model(tokens[:, 10:11], other, cache)
    assert seen() == [[1, 1], [1, 1]] and not positions


@pytest.mark.parametrize("head", ["relative", "llama"])
@torch.no_grad()
def test_the_last_layer_is_not_finished_for_a_state(head: str) -> None:
    model, calls = tiny_model(head=head), list[int]()
    for index, layer in enumerate(model.layers):
        norm = layer.feed_forward_norm
        norm.register_forward_hook(lambda *_, index=index: calls.append(index))
    model.prefill(random_tokens(model, 3), model.init_state(1))
    assert calls == [0]
    advance(model, random_tokens(model, 10), model.init_state(1))  # in pieces of 4, 4 and 2
    assert calls == [0, 0, 0, 0, 1]


# -- contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 0), (1, 5), (2, 2), (3,)])
def test_tokens_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"tokens.*; allowed: "):
        model(torch.zeros(shape, dtype=torch.int64), model.init_state(1))


def test_too_many_tokens_for_the_open_segment_are_refused() -> None:
    model = tiny_model()
    _, state = model(random_tokens(model, 3), model.init_state(1))
    with pytest.raises(ValueError, match="2 tokens; allowed: 1 to 1, the room of the open segment"):
        model(random_tokens(model, 2), state)


def test_a_partial_segment_cannot_be_closed() -> None:
    model = tiny_model()
    _, state = model(random_tokens(model, 3), model.init_state(1))
    with pytest.raises(ValueError, match="segments of 3 tokens; allowed: at least one full"):
        model.commit(state)


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    model = tiny_model(dropout=0.5, attention_dropout=0.5)
    tokens = random_tokens(model, 4)

    def logits() -> Tensor:
        return model(tokens, model.init_state(1))[0].detach()

    assert torch.equal(logits(), logits())
    model.train()
    assert not torch.equal(logits(), logits())


def test_initial_weights() -> None:
    """N(0, std) everywhere, LayerNorm N(1, std), biases 0; compressors start near mean pooling."""
    torch.manual_seed(0)
    options = {"vocab_size": 500, "d_model": 64, "d_ff": 200, "head_dim": 32, "init_std": 0.05}
    model = TransformerXL(replace(tiny_model().config, compression_loss="auto-encoding", **options))
    for name, weight in model.named_parameters():
        values = weight.detach()
        if name.startswith("compressors"):
            assert 0 < float((values - torch.eye(64).repeat(1, 2) / 2).abs().max()) < 0.2
        elif "norm" in name and name.endswith("weight"):
            assert float(values.mean()) == pytest.approx(1.0, abs=0.05)
            assert float(values.std()) == pytest.approx(0.05, rel=0.5)
        elif name.endswith("bias") and name not in ("content_bias", "position_bias"):
            assert not values.any(), name
        else:
            assert float(values.std()) == pytest.approx(0.05, rel=0.25), name


def test_models_hold_no_stream_state() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        read(model, random_tokens(model, 30), model.init_state(1))
    after = model.state_dict()
    assert before.keys() == after.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
