"""Keys that an archive keeps, and queries of a question, against the model's own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamlm.models.layers.llama_block import GroupedAttention
from streamlm.models.layers.rotary import rotate, rotation
from streamlm.models.llama import LlamaModel
from streamlm.models.retrieval import (
    DISTANCE,
    RetrievalHeads,
    pack_keys,
    question_queries,
    segment_keys,
    unpack_keys,
)
from streamlm.runtime.stream import advance
from tests.support.invariants import random_tokens, tiny_model

SHAPES: dict[str, dict[str, Any]] = {
    "select": {"compression": "select"},
    "qwen": {"qk_norm": True, "qkv_bias": True, "compressed_len": 0, "memory_len": 5},
    "yarn": {
        "rope_scaling": {
            **{"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
        }
    },
}
HEADS = [(0, 3), (1, 0), (1, 1)]


def llama(options: dict[str, Any]) -> LlamaModel:
    model = tiny_model(head="llama", pinned_len=2, n_heads=4, n_kv_heads=2, **options)
    assert isinstance(model, LlamaModel)
    return model


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> LlamaModel:
    return llama(SHAPES[request.param])


@pytest.mark.parametrize("n", [1, 3, 9])
def test_queries_are_those_of_the_model_at_one_distance(
    model: LlamaModel, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = random_tokens(model, 30 + n)
    _, state = advance(model, tokens[:, :30], model.init_state(1))
    digest, raw = state.digest(), dict[int, list[Tensor]]()
    project = GroupedAttention.project

    def recording(self: GroupedAttention, x: Tensor) -> tuple[Tensor, Tensor]:
        query, slots = project(self, x)
        at = [block.attention for block in model.layers].index(self)  # type: ignore[union-attr]
        raw.setdefault(at, []).append(query)
        return query, slots

    monkeypatch.setattr(GroupedAttention, "project", recording)
    found = question_queries(model, tokens[:, 30:], state, HEADS)
    monkeypatch.undo()
    assert state.digest() == digest
    assert found.shape == (3, n, model.config.head_dim) and found.dtype == torch.float32
    cos, sin = rotation(model.frequencies, model.rotation_factor, torch.tensor([DISTANCE]))
    scale = model.rotation_factor * model.config.head_dim**-0.5
    for query, (layer, head) in zip(found, HEADS, strict=True):
        wanted = rotate(torch.cat(raw[layer], dim=2)[0, head].float(), cos, sin) * scale
        # Angles are float32.
        assert torch.allclose(query, wanted, rtol=1e-3, atol=1e-4)


def test_keys_are_those_of_the_slots_and_survive_packing(model: LlamaModel) -> None:
    heads = RetrievalHeads(tuple(HEADS))
    config = model.config
    assert heads.key_heads(config) == [(0, 1), (1, 0)] and heads.which_keys(config) == [0, 1, 1]
    _, state = advance(model, random_tokens(model, 31), model.init_state(1))
    keys = segment_keys(model, state, heads)
    assert keys.shape == (state.phase, 2, config.head_dim)
    slots = state.segment[:, :, : state.phase]
    for at, (layer, head) in enumerate(heads.key_heads(config)):
        block: Any = model.layers[layer]
        assert torch.equal(keys[:, at], block.attention.split(slots[layer])[0][0, head])
    rows = pack_keys(keys)
    assert rows.shape == (len(keys), heads.bytes_per_token(config)) and rows.dtype.name == "int8"
    found = unpack_keys(rows, model)
    bound = keys.float().abs().amax(dim=2, keepdim=True) / 64
    assert ((found - keys.float()).abs() <= bound).all()
    assert (pack_keys(found) == rows).all()


def test_a_question_of_one_token_is_not_read_by_the_step() -> None:
    """`Int8Step` records no queries."""
    from streamlm.models.precision import set_precision

    model = llama(SHAPES["select"])
    try:
        used = set_precision(model, "int8")
    except ValueError:
        pytest.skip("this processor has no int8 engine")
    assert used == "int8"
    tokens = random_tokens(model, 20)
    _, state = advance(model, tokens[:, :18], model.init_state(1))
    one = question_queries(model, tokens[:, 18:19], state, HEADS)
    assert (one != 0).any(dim=2).all()


@pytest.mark.parametrize(
    "heads", [(), ((0, 0), (0, 0)), ((2, 0),), ((0, 4),), ((-1, 0),), ((0, -1),)]
)
def test_heads_that_the_model_lacks_are_refused(heads: tuple[tuple[int, int], ...]) -> None:
    model = llama(SHAPES["select"])
    with pytest.raises(ValueError, match=r"allowed: different .* layers 0 to 1, heads 0 to 3"):
        RetrievalHeads(heads).check(model.config)


def test_a_choice_has_one_digest_in_any_order() -> None:
    assert RetrievalHeads(((0, 1), (1, 0))).digest == RetrievalHeads(((1, 0), (0, 1))).digest
    assert RetrievalHeads(((0, 1),)).digest != RetrievalHeads(((0, 2),)).digest
    assert len(replace(RetrievalHeads(((0, 1),))).digest) == 8
