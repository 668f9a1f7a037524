"""The static step computes what `advance` computes, in buffers that never move."""

from typing import cast

import pytest
import torch

from benchmarks.tools.parity import seeded_model, small_config, some_tokens
from benchmarks.tools.static_step import StaticStep
from streamlm.models.transformer_xl import RelativeModel
from streamlm.runtime.stream import advance

WAYS = {
    "conv": {},
    "dilated": {},
    "mean": {"norm": "post", "final_norm": False},
    "max": {"compressed_len": 0},
    "select": {"shared_bias": True},
}


@pytest.mark.parametrize("kind", WAYS)
def test_equals_advance(kind: str) -> None:
    config = small_config(kind, **WAYS[kind])
    model = cast(RelativeModel, seeded_model(config))
    t, begun = config.segment_len, 21  # begins in the midst of a segment, the past not yet full
    tokens = some_tokens(config, begun + 7 * t)
    _, state = advance(model, tokens[:, :begun], model.init_state(len(tokens)))
    step = StaticStep(model, state)
    before = [buffer.data_ptr() for buffer in (*step.buffers, step.past, step.length)]
    for index in range(begun, tokens.shape[1]):
        hidden, state = advance(model, tokens[:, index : index + 1], state)
        found = step.step(tokens[:, index : index + 1])
        torch.testing.assert_close(found, model.logits(hidden), rtol=1e-4, atol=1e-5)
        if int(step.length) == t:
            step.commit()
        assert int(step.length) == state.length
        torch.testing.assert_close(step.past, state.past, rtol=1e-4, atol=1e-5)
    assert int(step.filled[0]) == config.past_len, "the past is full, and has been for long"
    assert torch.equal(step.filled, state.filled) and torch.equal(step.position, state.position)
    after = [buffer.data_ptr() for buffer in (*step.buffers, step.past, step.length)]
    assert before == after


def test_takes_another_state() -> None:
    config = small_config()
    model = cast(RelativeModel, seeded_model(config))
    tokens = some_tokens(config, 90)
    token, found = tokens[:, :1], []
    states = [advance(model, tokens[:, :n], model.init_state(3))[1] for n in (20, 90)]
    step = StaticStep(model, states[0])
    for state in states:
        step.take(state)
        found.append(step.step(token))
        wanted = model.logits(advance(model, token, state)[0])
        torch.testing.assert_close(found[-1], wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*found)


def test_refuses_what_needs_weights() -> None:
    model = cast(RelativeModel, seeded_model(small_config("most-used")))
    with pytest.raises(ValueError, match="most-used"):
        StaticStep(model, model.init_state(1))
