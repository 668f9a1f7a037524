"""Attention in blocks against the plain formula: outputs and gradients, masks and dropout."""

import pytest
import torch
from torch import Tensor

from streamlm.models.layers import blocked_attention as blocked
from streamlm.models.layers.attention import attention_mask, relative_shift
from streamlm.models.layers.blocked_attention import blocked_attention
from streamlm.models.transformer_xl import TransformerXL
from tests.support.invariants import random_tokens, tiny_model

B, H = 3, 2


def inputs(t: int, k: int, width: int) -> list[Tensor]:
    """Queries for keys and positions, keys, values and positions."""
    random = torch.Generator().manual_seed(0)
    shapes = (B, H, t, width), (B, H, t, width), (B, H, k, width), (B, H, k, width)
    return [
        torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in (*shapes, (H, k + 1, width))
    ]


def plain(tensors: list[Tensor], mask: Tensor, kept: Tensor | float = 1.0) -> Tensor:
    content, query, key, value, positions = tensors
    scores = content @ key.mT + relative_shift(query @ positions.mT)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) * kept @ value


def compare(found: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.sin().sum(), leaves) for out in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("past_len", "length", "t"), [(6, 0, 4), (5, 2, 3), (0, 0, 4), (7, 0, 1)])
def test_outputs_and_gradients(past_len: int, length: int, t: int) -> None:
    tensors = inputs(t, past_len + length + t, 5)
    filled = torch.tensor([0, past_len // 2, past_len])
    for mask in (
        attention_mask(filled, past_len, length, t),
        attention_mask(filled[2:], past_len, length, t),  # one for all rows
    ):
        content, query, key, value, positions = tensors
        found = blocked_attention(content, query, key, value, positions=positions, mask=mask)
        compare(found, plain(tensors, mask), tensors)


def test_dropout_of_the_weights() -> None:
    t, k, dropout = 4, 8, 0.4
    tensors = inputs(t, k, k)
    mask = attention_mask(torch.tensor([1, 2, 4]), 4, 0, t)

    def attend(value: Tensor) -> Tensor:
        content, query, key, _, positions = tensors
        torch.manual_seed(1)
        return blocked_attention(
            content, query, key, value, positions=positions, mask=mask, dropout=dropout
        )

    identity = torch.eye(k, dtype=torch.float64).expand(B, H, k, k)
    kept = (attend(identity) != 0).double() / (1 - dropout)
    assert 0 < int((kept == 0).logical_and(mask).sum()) < int(mask.expand(B, H, t, k).sum())
    compare(attend(tensors[3]), plain(tensors, mask, kept), tensors)


@pytest.mark.parametrize(
    ("query", "suitable"),
    [
        (torch.zeros(1, 1, 2**7, 1), True),
        (torch.zeros(1, 1, 2**6, 1), False),
        (torch.zeros(1, 1, 2**7, 1, dtype=torch.bfloat16), False),
        (torch.zeros(1, 1, 2**7, 1, device="meta"), False),
    ],
)
def test_what_it_suits(query: Tensor, suitable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "LEAST", 2**14 // torch.get_num_threads())
    assert blocked.suits(query, 2**7) == suitable
    with torch.no_grad():
        assert not blocked.suits(query, 2**7)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("loss", ["bptt", "attention-reconstruction"])
def test_a_model_learns_the_same(norm: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different age read segments in two pieces, one of them a single token."""
    found = []
    for least in (0, 2**30):
        monkeypatch.setattr(blocked, "LEAST", least)
        model = tiny_model(norm=norm, compression_loss=loss).train()
        assert isinstance(model, TransformerXL)
        t = model.config.segment_len
        tokens = random_tokens(model, 7 * t, rows=2)
        state, total = model.init_state(2), 0.0
        for start in range(0, 7 * t, t):
            if start == 4 * t:
                state = state.reset_rows(torch.tensor([True, False]))
            for piece in tokens[:, start : start + t].split([1, t - 1], dim=1):
                hidden, state = model.hidden(piece, state)
                total = total + hidden.sin().sum()
            state, eviction = model.commit(state)
            assert eviction is not None
            total = total + model.auxiliary_loss(eviction)[0]
        total.backward()
        found.append([w.grad for w in model.parameters() if w is not model.output_bias])
    assert all(gradient is not None for gradient in found[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
