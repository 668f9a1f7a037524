"""LlamaModel against a plain reference, its slots, its gates, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from streamlm.config import JOINT
from streamlm.models import slot_grid
from streamlm.models.llama import PINNED, QUERIES, LlamaModel
from streamlm.models.llama_config import LlamaConfig, with_windows
from streamlm.runtime.stream import advance
from tests.reference import llama as reference
from tests.support.invariants import random_tokens, read, tiny_model

LLAMA: dict[str, Any] = {"head": "llama", "pinned_len": 2}
GROUPS: dict[str, Any] = {**LLAMA, "n_heads": 4, "n_kv_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "select": GROUPS,
    "mean": {**GROUPS, "compression": "mean", "memory_len": 6},
    "window": {**GROUPS, "compressed_len": 0, "memory_len": 5},
    "short-memory": {**GROUPS, "compressed_len": 0, "memory_len": 2, "pinned_len": 3},
    "no-pinned": {**GROUPS, "pinned_len": 0},
    "all-visible": {**GROUPS, "memory_len": 60, "compressed_len": 0},
    "qwen": {**GROUPS, "qk_norm": True, "qkv_bias": True, "tied": False, "rope_theta": 50.0},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_model_matches_the_reference(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    tokens = random_tokens(model, 43)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(1))
    # Angles are float32, as in other implementations.
    assert torch.allclose(found[0], reference.logits(model, tokens[0]), rtol=0, atol=1e-5)


def test_pinned_slots_are_the_first_tokens() -> None:
    model = tiny_model(**GROUPS)
    tokens = random_tokens(model, 40)
    _, early = advance(model, tokens[:, :4], model.init_state(1))
    _, late = advance(model, tokens, model.init_state(1))
    assert torch.equal(late.carried[PINNED], early.carried[PINNED])
    assert late.carried[PINNED].abs().min() > 0


def test_compressed_slots_are_whole_slots_and_never_pinned_ones() -> None:
    model = tiny_model(**GROUPS)
    config = model.config
    tokens = torch.tensor([[5, 3, 8, 1, 9, 2, 7, 10, 0, 4, 6, 5]])
    seen, state = [], model.init_state(1)
    for start in range(0, 12, 4):
        _, state = model(tokens[:, start : start + 4], state)
        seen.append(state.segment.clone())
        state, _ = model.commit(state)
    heads = torch.cat(seen, dim=2).unflatten(3, (config.n_kv_heads, -1))[:, 0]  # [L, 12, H, 2E]
    new = state.past[:, 0, config.compressed_len - 2 : config.compressed_len]
    for layer, slots in enumerate(new.unflatten(2, (config.n_kv_heads, -1))):
        for head in range(config.n_kv_heads):
            places = [
                (heads[layer, :, head] == slot[head]).all(dim=1).nonzero()[:, 0].tolist()
                for slot in slots
            ]
            assert places[0] < places[1]  # in time order
            assert all(2 <= place < 4 for place, *_ in places)  # evicted, and not pinned


def test_gates_get_the_only_gradient_of_the_loss() -> None:
    model = tiny_model(**GROUPS, compression_loss=JOINT).train()
    model.embedding.weight.requires_grad_(False)
    state, losses = model.init_state(2), []
    for start in range(0, 20, 4):
        _, state = model.hidden(random_tokens(model, 20, rows=2)[:, start : start + 4], state)
        assert QUERIES in state.carried
        state, eviction = model.commit(state)
        loss, weight = model.auxiliary_loss(eviction)
        losses.append((loss.item(), int(weight)))
    # Memory holds two segments; the third commit evicts the pinned tokens, which are left out.
    assert [weight for _, weight in losses] == [0, 0, 0, 2, 2]
    loss.backward()
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "compressors" in name}
    assert all(float(each.grad.abs().max()) > 0 for each in model.compression_parameters())


def test_the_loss_is_zero_when_nothing_is_lost() -> None:
    """With a rate of 1, each group is one slot; without its mass of 1 = exp(0), nothing changes."""
    model = tiny_model(**GROUPS, compression_loss=JOINT, compression_rate=1).train()
    for compressor in model.compressors:
        torch.nn.init.zeros_(compressor.mass)
    state = model.init_state(1)
    tokens = random_tokens(model, 24)
    for start in range(0, 24, 4):
        _, state = model.hidden(tokens[:, start : start + 4], state)
        state, eviction = model.commit(state)
        loss, weight = model.auxiliary_loss(eviction)
    assert int(weight) == 1 and loss.item() < 1e-20


def test_inference_keeps_no_queries() -> None:
    model = tiny_model(**GROUPS, compression_loss=JOINT)
    assert QUERIES not in model.init_state(1).carried


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4])
def test_slots_on_the_grid_are_packed_without_loss(scale: float) -> None:
    random = torch.Generator().manual_seed(3)
    slots = (torch.randn(2, 5, 12, generator=random) * scale).to(torch.bfloat16)
    slots[0, 0] = 0
    slots[0, 1, :3] *= -1e-5
    snapped = slot_grid.snap(slots, 4)
    assert torch.equal(slot_grid.snap(snapped, 4), snapped)
    error = (snapped.float() - slots.float()).unflatten(2, (3, 4)).abs().amax(dim=3)
    largest = slots.float().unflatten(2, (3, 4)).abs().amax(dim=3)
    assert bool((error <= largest / 64).all())
    packed = slot_grid.pack(snapped, 4)
    assert packed.shape == (2, 5, 15) and packed.itemsize == 1
    unpacked = slot_grid.unpack(packed, 4, torch.bfloat16)
    assert torch.equal(unpacked.view(torch.int16), snapped.view(torch.int16))  # -0 is not 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_kv_heads": 3}, "n_kv_heads = 3; allowed: a divisor of n_heads = 4"),
        ({"head_dim": 3}, "head_dim = 3; allowed: an even number"),
        ({"slots": "int4"}, "slots = 'int4'; allowed: 'weights' or"),
        ({"pinned_len": 5}, "pinned_len = 5; allowed: 0 to segment_len = 4"),
        ({"context_len": 12}, r"memory_len \+ segment_len = 19; allowed: at most context_len = 12"),
        ({"compression": "conv"}, "compression = 'conv'; allowed: 'mean' or"),
        ({"compression_loss": "bptt"}, "compression_loss = 'bptt'; allowed: 'none' or 'joint"),
        (
            {"memory_len": 2, "compression": "most-used"},
            "memory_len = 2; allowed: at least segment_len = 4 with 'most-used'",
        ),
        ({"memory_len": 7}, "memory_len = 7; allowed: a multiple of compression_rate = 2"),
        ({"norm": "post"}, "norm with head 'llama' = 'post'; allowed: 'pre'"),
        ({"dropout": 0.1}, "dropout with head 'llama' = 0.1; allowed: 0.0"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type = 'dynamic'; allowed: 'default'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor = None; allowed: a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "x": 1}}, "'linear' = 'x'; allow"),
    ],
)
def test_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    config = tiny_model(**GROUPS).config
    with pytest.raises(ValueError, match=message):
        replace(config, **changed)


def test_windows_change_without_the_weights() -> None:
    model = tiny_model(**GROUPS)
    other = LlamaModel(with_windows(model.config, {"memory_len": 12, "compression": "mean"}))
    weights = {n: w for n, w in model.state_dict().items() if "compressors" not in n}
    other.double().load_state_dict(weights)
    with pytest.raises(ValueError, match="setting = 'd_model'; allowed: 'segment_len' or"):
        with_windows(model.config, {"d_model": 3})


def test_configurations_are_kept_as_json() -> None:
    config = tiny_model(**GROUPS, rope_scaling={"rope_type": "linear", "factor": 2.0}).config
    assert LlamaConfig.from_dict(config.to_dict()) == config
