"""Linformer attention against its formulas, and the masked language model."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.models.encoder import TARGETS, Encoder, EncoderConfig, masked_windows
from streamlm.models.heads.linformer import (
    KINDS,
    SHARING,
    LengthProjection,
    SelfAttention,
    projections,
)

SMALL = {"vocab_size": 12, "n_layers": 2, "d_model": 8, "n_heads": 2, "d_ff": 12, "window": 8}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sharing", SHARING)
def test_attention_matches_the_reference(sharing: str) -> None:
    torch.manual_seed(0)
    lengths = projections(1, 2, 4, n=8, k=3, kind="linear", sharing=sharing)[0]
    attention = SelfAttention(8, 2, lengths).double()
    x = random(2, 6, 8)
    found = attention(x)
    weight, bias = attention.project.weight, attention.project.bias
    for b in range(2):
        heads = []
        for h in range(2):
            q, k, v = (
                x[b] @ weight[rows].T + bias[rows]
                for rows in (slice(8 * part + 4 * h, 8 * part + 4 * h + 4) for part in range(3))
            )
            e, f = (length.weight[h if sharing == "none" else 0][:, :6] for length in lengths)
            heads.append((q @ (e @ k).T / math.sqrt(4)).softmax(dim=1) @ (f @ v))
        wanted = torch.cat(heads, dim=1) @ attention.output.weight.T + attention.output.bias
        assert torch.allclose(found[b], wanted, atol=1e-12)


def test_identity_projections_give_full_attention() -> None:
    length = LengthProjection(8, 8, kind="linear")
    with torch.no_grad():
        length.weight.copy_(torch.eye(8))
    torch.manual_seed(1)
    short = SelfAttention(8, 2, (length, length)).double()
    full = SelfAttention(8, 2, None).double()
    full.load_state_dict(
        {name: w for name, w in short.state_dict().items() if "shorten" not in name}
    )
    x = random(3, 8, 8)
    assert torch.allclose(short(x), full(x), atol=1e-12)


def test_pooling_equals_a_linear_projection_and_a_convolution() -> None:
    slots = random(2, 3, 8, 4)
    pooled = LengthProjection(8, 2, kind="pool")(slots)
    linear = LengthProjection(8, 2, kind="linear").double()
    conv = LengthProjection(8, 2, kind="conv", head_dim=4).double()
    with torch.no_grad():
        linear.weight.copy_(torch.kron(torch.eye(2), torch.full((1, 4), 0.25)))
        conv.convolution.weight.copy_(torch.eye(4)[:, :, None].expand(4, 4, 4) / 4)
    assert torch.allclose(linear(slots), pooled, atol=1e-12)
    assert torch.allclose(conv(slots), pooled, atol=1e-12)
    assert torch.equal(pooled[:, :, 1], slots[:, :, 4:].mean(dim=2))
    assert LengthProjection(8, 2, kind="pool")(slots[:, :, :4]).shape[2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_matrices(kind: str) -> None:
    count = {"none": 2 * 3 * 2, "headwise": 2 * 3, "key-value": 3, "layerwise": 1}
    one = {"linear": 8 * 2, "pool": 0, "conv": 4 * 4 * 4}[kind]
    for sharing in SHARING:
        pairs = projections(3, 2, 4, n=8, k=2, kind=kind, sharing=sharing)
        modules = {id(module): module for pair in pairs for module in pair}
        n = sum(weight.numel() for module in modules.values() for weight in module.parameters())
        matrices = count[sharing] if kind == "linear" else min(count[sharing], 6)
        assert n == one * matrices, sharing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projected_len": 9}, "projected_len = 9; allowed: 1 to n = 8"),
        ({"projected_len": 3, "projection": "pool"}, "allowed: 1 to n = 8, a divisor of it"),
        ({"projected_len": 2, "projection": "dct"}, "projection = 'dct'; allowed: linear or pool"),
        ({"projected_len": 2, "sharing": "all"}, "sharing = 'all'; allowed: none or headwise"),
        ({"d_model": 9}, "d_model = 9; allowed: a multiple of n_heads = 2"),
    ],
)
def test_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(EncoderConfig(**{**SMALL, **options}))
    with pytest.raises(ValueError, match=r"9 slots; allowed: 1 to 8$"):
        LengthProjection(8, 2, kind="linear")(torch.zeros(1, 1, 9, 4))
    with pytest.raises(ValueError, match="6 slots; allowed: 1 to 8, multiples of 4"):
        LengthProjection(8, 2, kind="pool")(torch.zeros(1, 1, 6, 4))


def test_masking_proportions() -> None:
    tokens = np.arange(5000) % 90
    batches = list(
        islice(masked_windows(tokens, window=50, batch_size=20, vocab_size=100, seed=1), 40)
    )
    inputs, is_target = (
        torch.cat([getattr(b, n) for b in batches]) for n in ("inputs", "is_target")
    )
    targets = torch.cat([batch.targets for batch in batches])
    assert float(is_target.double().mean()) == pytest.approx(TARGETS, abs=0.01)
    given = inputs[is_target]
    assert float((given == 100).double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((given == targets).double().mean()) == pytest.approx(0.1, abs=0.02)
    # Tokens that are not targets are unchanged: consecutive numbers.
    steps = inputs[:, 1:] - inputs[:, :-1]
    both = ~is_target[:, 1:] & ~is_target[:, :-1]
    assert set(steps[both].tolist()) == {1, -89}
    again = next(masked_windows(tokens, window=50, batch_size=20, vocab_size=100, seed=1))
    assert torch.equal(again.inputs, batches[0].inputs)
    with pytest.raises(ValueError, match="9 tokens; allowed: at least 50, the window"):
        next(masked_windows(tokens[:9], window=50, batch_size=1, vocab_size=100, seed=1))


@pytest.mark.parametrize("projected", [0, 4])
def test_the_encoder_learns_and_all_weights_change(projected: int) -> None:
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(**SMALL, projected_len=projected, sharing="none"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tokens = np.arange(400) % 6
    batches = masked_windows(tokens, window=8, batch_size=16, vocab_size=12, seed=2)
    losses = []
    for batch in islice(batches, 400):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            gradients = [weight.grad for weight in model.parameters()]
            assert all(each is not None and bool(each.any()) for each in gradients)
        optimizer.step()
        losses.append(float(loss.detach()))
    # Only neighbours determine which of six tokens is correct.
    assert losses[0] > 2 and np.mean(losses[-40:]) < 0.75 * math.log(6)


def test_the_encoder_is_bidirectional() -> None:
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(**SMALL, projected_len=2)).eval()
    tokens = torch.arange(8)[None] % 12
    changed = tokens.clone()
    changed[0, 7] = 9
    assert not torch.equal(model.hidden(tokens)[0, 0], model.hidden(changed)[0, 0])
    short = model.hidden(tokens[:, :5])
    assert short.shape == (1, 5, 8) and bool(torch.isfinite(short).all())
    assert F.mse_loss(short, model.hidden(tokens)[:, :5]) > 0
