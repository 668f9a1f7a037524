"""The losses against their formulas, and the parameters that their gradients reach."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from streamlm.config import JOINT, TRAINED_BY
from streamlm.memory.compression import Select
from streamlm.memory.eviction import Eviction
from streamlm.models.compression_losses import (
    attention_reconstruction,
    auto_encoding,
    compression_loss,
)
from streamlm.models.transformer_xl import TransformerXL
from streamlm.training.losses import language_model_loss
from tests.reference import losses as literal
from tests.reference.attention import softmax
from tests.reference.compression import worth
from tests.support.invariants import random_tokens, read, tiny_model

KINDS = ("attention-reconstruction", "auto-encoding")
everywhere = pytest.mark.parametrize(
    ("kind", "compression", "norm"),
    [
        (kind, compression, norm)
        for kind in (*KINDS, JOINT)
        for compression, losses in TRAINED_BY.items()
        if kind in losses
        for norm in ("post", "pre")
    ],
)


def an_eviction(model: TransformerXL, rows: tuple[str, ...] = ("old", "new", "young")) -> Eviction:
    """A commit at which the rows evict a full segment, nothing, and half a segment."""
    t = model.config.segment_len
    begins = torch.tensor([{"old": 0, "young": 3, "new": 4}[row] for row in rows])
    tokens = random_tokens(model, 5 * t, rows=len(rows))
    state, eviction = model.init_state(len(rows)), None
    for index in range(5):
        state = state.reset_rows((begins == index) & (begins > 0))
        _, state = model(tokens[:, index * t : (index + 1) * t], state)
        state, eviction = model.commit(state)
    assert eviction is not None
    wanted = {"old": 4, "new": 0, "young": 2}
    assert eviction.real.sum(dim=1).tolist() == [wanted[row] for row in rows]
    assert eviction.real_compressed.sum(dim=1).tolist() == [wanted[row] // 2 for row in rows]
    return eviction


def reference(model: TransformerXL, eviction: Eviction, kind: str) -> torch.Tensor:
    """Each layer, row and slot separately, with slots normalised as the queries read them."""
    weights = dict(model.named_parameters())
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index, layer in enumerate(model.layers):
        for row in range(eviction.real.shape[0]):
            evicted = list(eviction.evicted[index, row][eviction.real[row]])
            compressed = list(eviction.compressed[index, row][eviction.real_compressed[row]])
            if not evicted:
                continue
            if kind == "auto-encoding":
                decoder = weights[f"decoders.{index}.weight"].unflatten(0, (2, -1))
                share = literal.auto_encoding(evicted, compressed, decoder=decoder)
                total, count = total + share * len(evicted), count + len(evicted)
                continue
            norm = layer.attention_norm.requires_grad_(False)
            seen = norm if model.config.norm == "pre" else (lambda slot: slot)
            if kind == JOINT:
                share = joint(model, eviction, index, row, seen)
                norm.requires_grad_(True)
                total, count = total + share, count + 1
                continue
            share = literal.attention_reconstruction(
                [seen(slot) for slot in eviction.queries[index, row]],
                [seen(slot) for slot in evicted],
                [seen(slot) for slot in compressed],
                w_q=layer.attention.query.weight,
                w_kv=layer.attention.key_value.weight,
                n_heads=model.config.n_heads,
            )
            norm.requires_grad_(True)
            total, count = total + share, count + 1
    return total / count


def joint(
    model: TransformerXL,
    eviction: Eviction,
    index: int,
    row: int,
    seen: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The joint loss of one layer and row, with the replacement of each group of slots."""
    config, attention = model.config, model.layers[index].attention
    rate, first, t = config.compression_rate, config.compressed_len, config.segment_len
    inner, e = config.n_heads * config.head_dim, config.head_dim
    real = torch.arange(config.past_len) >= config.past_len - eviction.filled[row]
    past, at = eviction.past[index, row], torch.arange(config.past_len)
    before = past[real & (at < first)]
    after = past[real & (at >= first + t)]
    evicted = list(eviction.evicted[index, row][eviction.real[row]])
    compressed = list(eviction.compressed[index, row][eviction.real_compressed[row]])
    w_kv = attention.key_value.weight.detach()

    def group(g: int, h: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | float]:
        rows = slice(h * e, (h + 1) * e)
        select = model.compressors[index]
        if not isinstance(select, Select):
            slot = seen(compressed[g])
            return w_kv[:inner][rows] @ slot, w_kv[inner:][rows] @ slot, 0.0
        slots = evicted[g * rate : (g + 1) * rate]
        gates = softmax([worth(slot, select.gate) for slot in slots])
        slot = sum(p * seen(slot) for p, slot in zip(gates, slots, strict=True))
        return w_kv[:inner][rows] @ slot, w_kv[inner:][rows] @ slot, select.mass[h]

    return literal.joint_attention_reconstruction(
        [seen(slot) for slot in eviction.queries[index, row]],
        [seen(slot) for slot in before],
        [seen(slot) for slot in evicted],
        [seen(slot) for slot in after],
        [partial(group, g) for g in range(len(evicted) // rate)],
        w_q=attention.query.weight,
        w_kv=w_kv,
        w_r=attention.position.weight,
        u=model.biases(index)[0],
        w=model.biases(index)[1],
    )


@everywhere
def test_compression_losses_are_their_formulas(kind: str, compression: str, norm: str) -> None:
    model = tiny_model(compression_loss=kind, compression=compression, norm=norm)
    eviction = an_eviction(model)
    loss, wanted = compression_loss(model, eviction), reference(model, eviction, kind)
    assert float(wanted.detach()) > 1e-3
    assert loss.item() == pytest.approx(wanted.item(), rel=0, abs=1e-10)
    trained = model.compression_parameters()
    for found, right in zip(
        torch.autograd.grad(loss, trained, retain_graph=True),
        torch.autograd.grad(wanted, trained),
        strict=True,
    ):
        assert torch.allclose(found, right, rtol=0, atol=1e-10)


@everywhere
def test_compression_losses_reach_only_the_compressor(
    kind: str, compression: str, norm: str
) -> None:
    model = tiny_model(compression_loss=kind, compression=compression, norm=norm)
    compression_loss(model, an_eviction(model)).backward()
    trained = {id(weight) for weight in model.compression_parameters()}
    assert len(trained) >= model.config.n_layers
    for name, weight in model.named_parameters():
        if id(weight) in trained:
            assert weight.grad is not None and bool(weight.grad.any()), name
        else:
            assert weight.grad is None or not bool(weight.grad.any()), name


@everywhere
def test_rows_without_evicted_slots_have_no_weight(kind: str, compression: str, norm: str) -> None:
    model = tiny_model(compression_loss=kind, compression=compression, norm=norm)
    alone = compression_loss(model, an_eviction(model, ("old",)))
    twice = compression_loss(model, an_eviction(model, ("old", "new")))
    assert float(twice.detach()) == pytest.approx(float(alone.detach()), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_loss_without_evicted_slots_is_zero_with_finite_gradients(kind: str, norm: str) -> None:
    model = tiny_model(compression_loss=kind, compression="dilated", norm=norm)
    loss = compression_loss(model, an_eviction(model, ("new", "new")))
    assert float(loss.detach()) == 0.0
    if loss.requires_grad:
        loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is None or not bool(weight.grad.any()), name


@pytest.mark.parametrize("loss", ["none", "bptt"])
def test_other_kinds_have_no_compression_loss(loss: str) -> None:
    model = tiny_model(compression_loss=loss)
    found = compression_loss(model, an_eviction(model))
    assert float(found) == 0.0 and not found.requires_grad


def test_a_lossless_compression_has_loss_zero() -> None:
    model = tiny_model(
        compression_rate=1, memory_len=6, compression_loss="auto-encoding", compression="conv"
    )
    with torch.no_grad():
        for compress, decoder in zip(model.compressors, model.decoders, strict=True):
            compress.weight.copy_(torch.eye(8))
            decoder.weight.copy_(torch.eye(8))
    state = model.init_state(1)
    for start in range(0, 12, 4):
        _, state = model(random_tokens(model, 12)[:, start : start + 4], state)
        state, eviction = model.commit(state)
    assert eviction is not None and bool(eviction.real.all())
    assert float(auto_encoding(model, eviction).detach()) == 0.0
    assert float(attention_reconstruction(model, eviction).detach()) < 1e-25


def test_language_model_loss() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=random, dtype=torch.float64)
    targets = torch.tensor([[1, 6, -100], [0, -100, 3]])
    wanted = sum(
        float(literal.negative_log_likelihood(logits[row, i], int(targets[row, i])))
        for row, i in ((0, 0), (0, 1), (1, 0), (1, 2))
    )
    assert float(language_model_loss(logits, targets)) == pytest.approx(wanted, rel=1e-6)
    assert float(language_model_loss(logits, torch.full((2, 3), -100))) == 0.0
    certain = torch.tensor([[[0.0, 50.0]]])
    assert float(language_model_loss(certain, torch.tensor([[0]]))) == pytest.approx(50.0)
    even = torch.zeros(1, 1, 8)
    assert float(language_model_loss(even, torch.tensor([[5]]))) == pytest.approx(math.log(8))


def test_language_model_loss_is_summed_in_float32() -> None:
    logits = torch.zeros(1, 1000, 3, dtype=torch.bfloat16)
    loss = language_model_loss(logits, torch.zeros(1, 1000, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1000 * math.log(3), rel=1e-5)


def test_the_tiny_model_has_a_long_past() -> None:
    """The model of these tests evicts slots; otherwise the tests would check less."""
    model = tiny_model()
    _, state = read(model, random_tokens(model, 24), model.init_state(1))
    assert int(state.filled) == state.past.shape[2]
