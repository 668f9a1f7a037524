"""Relative attention against a literal reference, forward and backward."""

import pytest
import torch
from torch import Tensor

from streamlm.models.layers.attention import RelativeAttention, attention_mask, relative_shift
from tests.reference.attention import relative_attention, sinusoid

B, D, H, E = 2, 8, 2, 3


def leaf(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=random, dtype=torch.float64) * scale).requires_grad_()


def layer() -> RelativeAttention:
    attention = RelativeAttention(D, H, E, dropout=0.0).double()
    for seed, weight in enumerate(attention.parameters()):
        weight.data = leaf(*weight.shape, seed=seed, scale=0.5).detach()
    return attention


@pytest.mark.parametrize(("t", "k"), [(t, k) for t in (1, 2, 3, 5) for k in (1, 3, 5, 8) if t <= k])
def test_relative_shift_matches_naive_indexing(t: int, k: int) -> None:
    scores = leaf(2, 3, t, k + 1, seed=0).detach()
    shifted = relative_shift(scores)
    assert shifted.shape == (2, 3, t, k)
    for i in range(t):
        for j in range(i + k - t + 1):
            distance = (i + k - t) - j
            assert torch.equal(shifted[..., i, j], scores[..., i, k - distance])


def test_attention_mask() -> None:
    filled = torch.tensor([0, 1, 3])
    mask = attention_mask(filled, 3, 2, 4)
    assert mask.shape == (3, 1, 4, 9) and mask.dtype == torch.bool
    for row, n in enumerate(filled.tolist()):
        for i in range(4):
            for j in range(9):
                slot_is_real = j >= 3 - n
                assert bool(mask[row, 0, i, j]) == (slot_is_real and j <= 3 + 2 + i)


@pytest.mark.parametrize("want_weights", [False, True])
@pytest.mark.parametrize(
    ("past_len", "length", "t"), [(5, 0, 4), (5, 2, 2), (5, 2, 1), (5, 0, 1), (0, 0, 3), (0, 0, 1)]
)
def test_attention_matches_the_reference(
    past_len: int, length: int, t: int, want_weights: bool
) -> None:
    """Outputs and all gradients, with empty slots, partial segments and single queries."""
    attention = layer()
    filled = torch.tensor([past_len, past_len // 2])
    context = leaf(B, past_len + length + t, D, seed=10)
    u, w = leaf(H, E, seed=11), leaf(H, E, seed=12)
    leaves = [context, u, w, *attention.parameters()]
    direction = leaf(B, t, D, seed=13).detach()

    key, value = attention.project(context)
    n_keys = context.shape[1]
    table = torch.stack([sinusoid(n, D) for n in range(n_keys, -1, -1)])
    out, weights = attention.attend(
        context[:, -t:],
        key,
        value,
        positions=attention.project_positions(table),
        biases=(u, w),
        mask=attention_mask(filled, past_len, length, t),
        want_weights=want_weights,
    )
    gradients = torch.autograd.grad((out * direction).sum(), leaves)

    total = torch.zeros((), dtype=torch.float64)
    for row in range(B):
        slots = list(context[row, past_len - int(filled[row]) :])
        wanted, wanted_weights = relative_attention(
            slots[-t:],
            slots,
            w_q=attention.query.weight,
            w_kv=attention.key_value.weight,
            w_r=attention.position.weight,
            w_o=attention.output.weight,
            u=u,
            w=w,
        )
        assert torch.allclose(out[row], torch.stack(wanted), rtol=0, atol=1e-10)
        total = total + (torch.stack(wanted) * direction[row]).sum()
        if weights is not None:
            assert weights.shape == (B, H, t, n_keys)
            empty = n_keys - len(slots)
            for i in range(t):
                for h in range(H):
                    seen = [*[0.0] * empty, *wanted_weights[i][h]]
                    seen += [0.0] * (n_keys - len(seen))
                    found = weights[row, h, i].tolist()
                    assert found == pytest.approx(seen, rel=0, abs=1e-10)
                    assert all(a == 0.0 for a, b in zip(found, seen, strict=True) if b == 0.0)
    assert (weights is not None) == want_weights
    for name, found, wanted in zip(
        ["context", "u", "w", *dict(attention.named_parameters())],
        gradients,
        torch.autograd.grad(total, leaves),
        strict=True,
    ):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-10), name
        # With one key the softmax is constant, so only values have gradients.
        assert n_keys == 1 or bool(wanted.abs().max() > 1e-3), name


def test_empty_slots_and_future_tokens_are_masked_exactly() -> None:
    """Masked scores never contribute, not even NaN or infinity times zero."""
    attention = layer()
    filled = torch.tensor([2, 2])
    context = leaf(B, 8, D, seed=20).detach()
    positions = attention.project_positions(torch.stack([sinusoid(n, D) for n in range(8, -1, -1)]))
    biases = (leaf(H, E, seed=21), leaf(H, E, seed=22))

    def attend(context: Tensor) -> Tensor:
        key, value = attention.project(context)
        mask = attention_mask(filled, 5, 0, 3)
        options = {"positions": positions, "biases": biases, "mask": mask}
        return attention.attend(context[:, -3:], key, value, **options)[0]

    other = context.clone()
    other[:, :3] = 1e3
    other[:, 7] += 1.0
    assert torch.equal(attend(other)[:, :2], attend(context)[:, :2])
    assert not torch.equal(attend(other)[:, 2], attend(context)[:, 2])


@pytest.mark.parametrize("want_weights", [False, True])
def test_attention_dropout_only_in_training(want_weights: bool) -> None:
    torch.manual_seed(0)
    attention = RelativeAttention(D, H, E, dropout=0.5).double()
    context = leaf(B, 6, D, seed=30)
    table = torch.stack([sinusoid(n, D) for n in range(6, -1, -1)])

    def attend() -> Tensor:
        key, value = attention.project(context)
        zero = torch.zeros(H, E, dtype=torch.float64)
        mask = attention_mask(torch.tensor([0, 0]), 0, 0, 6)
        positions = attention.project_positions(table)
        options = {"positions": positions, "biases": (zero, zero), "mask": mask}
        return attention.attend(context, key, value, want_weights=want_weights, **options)[0]

    attention.train()
    assert not torch.equal(attend(), attend())
    attention.eval()
    assert torch.equal(attend(), attend())
