"""Compression functions against literal references, with and without empty slots."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamlm.config import COMPRESSIONS, ModelConfig
from streamlm.memory.compression import COMPRESSORS, Conv, Dilated, MostUsed, Select
from tests.reference import compression as literal

B, N, W = 3, 12, 4
REALS = (12, 6, 0)  # real slots of each row; multiples of every rate below
RATES = (1, 2, 3, 6)


def config(rate: int) -> ModelConfig:
    shape = {"segment_len": N, "memory_len": N, "compression_rate": rate}
    return ModelConfig(vocab_size=3, d_model=W, n_heads=2, **shape)


def build(name: str, rate: int) -> nn.Module:
    compress = COMPRESSORS[name](config(rate)).double()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in compress.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random, dtype=torch.float64))
    return compress


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Slots [B, N, W] (empty ones are zero), usage [B, N], real [B, N]."""
    random = torch.Generator().manual_seed(5)
    slots = torch.randn(B, N, W, generator=random, dtype=torch.float64)
    usage = torch.rand(B, N, generator=random)
    real = torch.arange(N)[None] >= N - torch.tensor(REALS)[:, None]
    return slots * real[..., None], usage * real, real


def kernel(weight: Tensor, rate: int) -> Tensor:
    """[W, c·W] → [W, W, c]"""
    return torch.stack([weight[:, k * W : (k + 1) * W] for k in range(rate)], dim=2)


def reference(name: str, compress: nn.Module, slots: list[Tensor], usage: Tensor) -> list[Tensor]:
    rate = compress.strided.rate if isinstance(compress, Dilated) else compress.rate
    assert isinstance(rate, int)
    functions: dict[str, Callable[[], list[Tensor]]] = {
        "max": lambda: literal.max_pool(slots, rate),
        "mean": lambda: literal.mean_pool(slots, rate),
        "conv": lambda: literal.conv(slots, rate, kernel=kernel(compress.weight, rate)),
        "dilated": lambda: literal.dilated(
            slots,
            rate,
            layers=[
                (dilation, conv.weight, conv.bias)
                for dilation, conv in zip((1, 2, 4), compress.dilated, strict=True)
            ],
            kernel=kernel(compress.strided.weight, rate),
        ),
        "most-used": lambda: literal.most_used(slots, rate, usage=usage.tolist()),
        "select": lambda: literal.select(slots, rate, gate=compress.gate),
    }
    return functions[name]()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compression_matches_the_reference(name: str, rate: int) -> None:
    compress = build(name, rate)
    slots, usage, real = example()
    out = compress(slots, usage, real)
    assert out.shape == (B, N // rate, W)
    for row, n in enumerate(REALS):
        wanted = reference(name, compress, list(slots[row, N - n :]), usage[row, N - n :])
        empty = N // rate - len(wanted)
        assert len(wanted) == n // rate
        assert not out[row, :empty].any(), "empty slots stay empty, on the left"
        for found, slot in zip(out[row, empty:], wanted, strict=True):
            assert torch.allclose(found, slot, rtol=0, atol=1e-12)


def test_dilated_is_causal() -> None:
    compress = build("dilated", 2)
    slots, usage, real = example()
    other = slots.clone()
    other[0, 7] += 1.0
    same = (compress(other, usage, real) == compress(slots, usage, real))[0].all(dim=1)
    assert same[:3].all() and not same[3:].any()


def test_most_used_keeps_slots_unchanged_in_time_order() -> None:
    slots, _, real = example()
    usage = torch.zeros(B, N)
    usage[0, [1, 3, 4, 9, 10, 11]] = torch.tensor([0.2, 0.9, 0.3, 0.8, 0.5, 0.1])
    out = MostUsed(W, 3)(slots, usage, real)
    assert torch.equal(out[0], slots[0, [3, 4, 9, 10]])
    assert torch.equal(out[1], torch.cat([torch.zeros(2, W), slots[1, [6, 7]]]))  # ties: the older


def test_most_used_never_keeps_an_empty_slot() -> None:
    """Even if no real slot received attention."""
    slots, usage, real = example()
    usage = torch.where(real, 0.0, 1.0)
    out = MostUsed(W, 2)(slots, usage, real)
    assert torch.equal(out[1, 3:], slots[1, 6:9])


@pytest.mark.parametrize("rate", RATES)
def test_identity_conv_is_the_mean(rate: int) -> None:
    conv = Conv(W, rate).double()
    conv.weight.data = torch.eye(W, dtype=torch.float64).repeat(1, rate) / rate
    arguments = example()
    mean = COMPRESSORS["mean"](config(rate))(*arguments)
    assert torch.allclose(conv(*arguments), mean, rtol=0, atol=1e-14)
    if rate == 1:
        assert torch.equal(mean, arguments[0])


@pytest.mark.parametrize("name", ["conv", "dilated"])
def test_reset_starts_near_the_mean(name: str) -> None:
    torch.manual_seed(0)
    compress = COMPRESSORS[name](config(3))
    assert isinstance(compress, Conv | Dilated)
    compress.reset(0.02)
    last = compress.strided if isinstance(compress, Dilated) else compress
    assert isinstance(last, Conv)
    difference = last.weight - torch.eye(W).repeat(1, 3) / 3
    assert 0 < float(difference.detach().abs().max()) < 0.05
    for weight in compress.parameters():
        assert bool(weight.isfinite().all())


def test_select_pools_with_the_softmax_of_its_gates() -> None:
    select = build("select", 3)
    assert isinstance(select, Select)
    slots, _, _ = example()
    projected = torch.randn(B, 2, N, 5, dtype=torch.float64)
    pooled = select.pool(slots, projected)
    assert pooled.shape == (B, 2, N // 3, 5)
    for group in range(N // 3):
        at = slice(3 * group, 3 * group + 3)
        weights = [literal.worth(slot, select.gate) for slot in slots[0, at]]
        powers = [weight.exp().item() for weight in weights]
        wanted = sum(p * x for p, x in zip(powers, projected[0, 1, at], strict=True)) / sum(powers)
        assert torch.allclose(pooled[0, 1, group], wanted, rtol=0, atol=1e-12)


def test_select_ignores_the_norm_of_a_slot() -> None:
    select = build("select", 2)
    slots, usage, real = example()
    larger = slots * (1 + torch.arange(N, dtype=torch.float64))[:, None]
    kept, other = select(slots, usage, real), select(larger, usage, real)
    assert torch.equal(kept != 0, other != 0)
    assert torch.allclose(
        kept[0] / kept[0].norm(dim=1, keepdim=True), other[0] / other[0].norm(dim=1, keepdim=True)
    )
