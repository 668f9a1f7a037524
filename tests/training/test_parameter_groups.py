"""Decaying parameters of every head, and moments that follow them when groups change."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from streamlm.config import ModelConfig
from streamlm.models.build import HEADS, build_model
from streamlm.training.parameter_groups import parameter_groups, regrouped

SMALL: dict[str, Any] = {
    **{"vocab_size": 11, "n_layers": 2, "d_model": 8, "n_heads": 2, "head_dim": 3, "d_ff": 12},
    **{"segment_len": 4, "memory_len": 8, "compressed_len": 0, "compression_loss": "none"},
}
COMPRESSED: dict[str, Any] = {"compressed_len": 4, "compression_rate": 2}

# Parameters of every model: those that decay, and those that do not.
MATRICES = {
    "embedding.weight",
    "layers.#.attention.key_value.weight",
    "layers.#.attention.output.weight",
    "layers.#.attention.query.weight",
    "layers.#.feed_forward.#.weight",
}
OTHERS = {
    "layers.#.attention_norm.bias",
    "layers.#.attention_norm.weight",
    "layers.#.feed_forward.#.bias",
    "layers.#.feed_forward_norm.bias",
    "layers.#.feed_forward_norm.weight",
    "output_bias",
}
POSITION, BIASES = "layers.#.attention.position.weight", {"content_bias", "position_bias"}

# For each kind: its settings, its other decaying parameters, and its other parameters.
KINDS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "relative": (
        {**COMPRESSED, "compression": "conv", "compression_loss": "attention-reconstruction"},
        {POSITION, "compressors.#.weight"},
        BIASES,
    ),
    "relative-shared-bias": ({"shared_bias": True}, {POSITION}, BIASES),
    "relative-dilated": (
        {**COMPRESSED, "compression": "dilated", "compression_loss": "auto-encoding"},
        {
            *{POSITION, "decoders.#.weight"},
            *{"compressors.#.dilated.#.weight", "compressors.#.strided.weight"},
        },
        {*BIASES, "compressors.#.dilated.#.bias"},
    ),
    "relative-select": (
        {
            **{**COMPRESSED, "compression": "select"},
            **{"compression_loss": "joint-attention-reconstruction"},
        },
        {POSITION},
        {*BIASES, "compressors.#.gate", "compressors.#.mass"},
    ),
    "relative-adaptive": (
        {"cutoffs": (4, 7), "div_val": 2, "final_norm": True, "norm": "pre"},
        {
            *{POSITION, "embedding.tables.#", "embedding.projections.#"},
            *{"embedding.head_projection", "embedding.cluster_weight"},
        },
        {*BIASES, "embedding.cluster_bias", "final_norm.bias", "final_norm.weight"},
    ),
    "recurrent": ({"memory_len": 0}, set(), set()),
    "full": ({"memory_len": 0}, set(), set()),
    "linformer": ({"projected_len": 2}, {POSITION, "lengths.#.weight"}, BIASES),
    "linformer-conv": (
        {"projected_len": 2, "projection": "conv", "sharing": "none"},
        {POSITION, "lengths.#.convolution.weight"},
        BIASES,
    ),
    "informer": (
        {"factor": 1},
        {POSITION, "distils.#.convolution.weight"},
        {*BIASES, "distils.#.convolution.bias"},
    ),
    "sinks": ({"pinned_len": 2}, {POSITION}, BIASES),
    "sketch": (
        {**COMPRESSED, "coverage": 0.5},
        {POSITION, "bucket_table", "length_table", "gates.#.weight"},
        {*BIASES, "gates.#.bias"},
    ),
}


def build(kind: str) -> nn.Module:
    config = {**SMALL, "head": kind.partition("-")[0], **KINDS[kind][0]}
    return build_model(ModelConfig.from_dict(config))


def names(group: dict[str, Any]) -> set[str]:
    """The names of a group's parameters, with "#" for each number."""
    return {re.sub(r"\b\d+\b", "#", name) for name, _ in group["params"]}


def test_every_head_is_covered() -> None:
    assert {kind.partition("-")[0] for kind in KINDS} == set(HEADS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_decay(kind: str) -> None:
    _, matrices, others = KINDS[kind]
    model = build(kind)
    decayed, rest = parameter_groups(model, weight_decay=0.1)
    common = MATRICES if "adaptive" not in kind else MATRICES - {"embedding.weight"}
    assert names(decayed) == common | matrices
    assert names(rest) == OTHERS | others
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    both = [id(each) for group in (decayed, rest) for _, each in group["params"]]
    assert sorted(both) == sorted(map(id, model.parameters()))


# -- an optimiser's state -------------------------------------------------------------------------


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-2)


def old_optimiser(model: nn.Module) -> torch.optim.Optimizer:
    """Groups of older runs: parameters of two or more dimensions decay; there are no names."""
    wide = [each for each in model.parameters() if each.ndim >= 2]
    flat = [each for each in model.parameters() if each.ndim < 2]
    groups = [{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    """One step with random gradients, for all parameters but one."""
    random = torch.Generator().manual_seed(seed)
    for name, each in model.named_parameters():
        gradient = torch.randn(each.shape, generator=random)
        each.grad = gradient if name != "output_bias" else None
    optimizer.step()


@pytest.mark.parametrize("began", [optimiser, old_optimiser])
def test_moments_follow_their_parameters(began: Any) -> None:
    model = build("relative-select")
    old = began(model)
    for seed in range(3):
        train(model, old, seed=seed)
    new = optimiser(model)
    new.load_state_dict(regrouped(old.state_dict(), new, model))
    for name, each in model.named_parameters():
        assert new.state[each].keys() == old.state[each].keys(), name
        for part in new.state[each]:
            assert torch.equal(new.state[each][part], old.state[each][part]), (name, part)
    decays = {id(p): group["weight_decay"] for group in new.param_groups for p in group["params"]}
    assert decays[id(model.content_bias)] == 0 and decays[id(model.embedding.weight)] == 0.1
    train(model, new, seed=9)  # training continues


@pytest.mark.parametrize("began", [optimiser, old_optimiser])
def test_moments_of_other_parameters_are_refused(began: Any) -> None:
    model, other = build("relative"), build("relative-select")
    saved = began(other).state_dict()
    with pytest.raises(ValueError, match=r"saved optimiser is of other parameters \(.*new run"):
        regrouped(saved, optimiser(model), model)
