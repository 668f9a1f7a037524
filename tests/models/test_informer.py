"""The Informer head: active and lazy queries, its threshold, and distillation."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from streamlm.models.cache import joined
from streamlm.models.call import Call
from streamlm.models.heads.informer import MEASURES, SUM, THRESHOLD, Distil, position_noise
from tests.support.invariants import random_tokens, read, tiny_model

INFORMER: dict[str, Any] = {"head": "informer", "memory_len": 32, "compressed_len": 0, "factor": 1}


def test_an_informer_with_all_queries_active_is_a_transformer_xl() -> None:
    options: dict[str, Any] = {"memory_len": 0, "compressed_len": 0, "norm": "pre"}
    model = tiny_model(**options, head="informer", factor=9)
    other = tiny_model(**options)
    other.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 23, rows=2)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
        wanted, _ = read(other, tokens, other.init_state(2))
    assert torch.allclose(found, wanted, atol=1e-10)


def test_a_threshold_below_all_measures_gives_full_attention() -> None:
    options: dict[str, Any] = {"memory_len": 0, "compressed_len": 0}
    model = tiny_model(**options, head="informer", factor=1)
    other = tiny_model(**options)
    other.load_state_dict(model.state_dict())
    tokens, state = random_tokens(model, 12, rows=2), model.init_state(2)
    found = []
    with torch.no_grad():
        for start in range(0, 12, 4):
            low = torch.full_like(state.carried[THRESHOLD], -torch.inf)
            state = replace(state, carried={**state.carried, THRESHOLD: low})
            logits, state = read(model, tokens[:, start : start + 4], state)
            found.append(logits)
        wanted, _ = read(other, tokens, other.init_state(2))
        usual, _ = read(model, tokens, model.init_state(2))
    assert torch.allclose(torch.cat(found, dim=1), wanted, atol=1e-10)
    assert not torch.allclose(usual, wanted, atol=1e-3)


def test_lazy_queries_get_the_mean_of_all_values_so_far() -> None:
    model = tiny_model(**INFORMER, n_layers=1)
    layer, tokens = model.layers[0], random_tokens(model, 12)
    with torch.no_grad():
        _, state = read(model, tokens, model.init_state(1))
        embedded = model.embedding(tokens) * 8**0.5
        total = layer.attention.project(layer.read(embedded))[1][0].sum(dim=1)
        assert torch.allclose(state.carried[SUM][0, 0], total, atol=1e-10)
        never = {**state.carried, THRESHOLD: torch.full_like(state.carried[THRESHOLD], torch.inf)}
        seen = torch.randn(1, 2, 8, dtype=torch.float64)
        new, past = layer.attention.project(seen), model.project_past(0, state)
        call = Call(replace(state, carried=never), 2, model.n_far + 2, model.derived())
        call = replace(call, context=model.call_context(call))
        attended = model.attend(0, seen, joined(past, new), call)
    for i in range(2):
        mean = (total + new[1][0, :, : i + 1].sum(dim=1)) / (13 + i)
        wanted = layer.attention.output(mean.flatten())
        assert torch.allclose(attended.out[0, i], wanted, atol=1e-10)
    assert attended.carried[MEASURES].shape == (1, 2, 4)


def test_the_share_of_active_queries_is_near_its_target() -> None:
    model = tiny_model(**INFORMER, n_layers=1)
    assert model.active_share == 0.5
    tokens, state = random_tokens(model, 1200), model.init_state(1)
    n_active = n_all = 0
    with torch.no_grad():
        for start in range(0, 1200, 4):
            threshold = state.carried[THRESHOLD]
            _, full = model(tokens[:, start : start + 4], state)
            if start > 400:
                n_active += int((full.carried[MEASURES] >= threshold[..., None]).sum())
                n_all += full.carried[MEASURES].numel()
            state, _ = model.commit(full)
    assert 0.4 < n_active / n_all < 0.6


def test_sampled_keys_depend_only_on_the_position() -> None:
    noise = position_noise(torch.arange(10_000), 7)
    assert torch.equal(position_noise(torch.arange(5000, 5010), 7), noise[5000:5010])
    assert float(noise.min()) >= 0 and float(noise.max()) < 1
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.01)
    counts = torch.histc(noise, bins=10, min=0, max=1) / noise.numel()
    assert float((counts - 0.1).abs().max()) < 0.01
    assert abs(float(torch.corrcoef(noise[:, :2].T)[0, 1])) < 0.05
    assert abs(float(torch.corrcoef(torch.stack([noise[1:, 0], noise[:-1, 0]]))[0, 1])) < 0.05


def test_distillation_is_local_to_a_segment() -> None:
    torch.manual_seed(0)
    distil = Distil(6).double()
    slots = torch.randn(2, 8, 6, dtype=torch.float64)
    found = distil(slots)
    assert found.shape == (2, 4, 6)
    padded = torch.nn.functional.pad(slots, (0, 0, 1, 1))
    kernel, bias = distil.convolution.weight, distil.convolution.bias
    made = torch.stack(
        [sum(padded[:, i + j] @ kernel[:, :, j].T for j in range(3)) + bias for i in range(8)],
        dim=1,
    )
    made = torch.where(made > 0, made, made.exp() - 1)
    wanted = [made[:, max(0, 2 * i - 1) : 2 * i + 2].amax(dim=1) for i in range(4)]
    assert torch.allclose(found, torch.stack(wanted, dim=1), atol=1e-12)
