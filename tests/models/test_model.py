"""TransformerXL against a literal reference: outputs, gradients, equivalences, caching."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from streamlm.config import COMPRESSIONS, NORMS
from streamlm.models.compression_losses import compression_loss
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from streamlm.training.losses import language_model_loss
from tests.reference import losses as literal
from tests.reference.transformer import Reference
from tests.support.invariants import (
    assert_same_state,
    largest_difference,
    random_tokens,
    read,
    tiny_model,
)

# Edge-case shapes besides the default one (T 4, M 6, C 5, c 2).
SHAPES: dict[str, dict[str, object]] = {
    "no compression": {"compressed_len": 0, "memory_len": 5, "compression_rate": 3},
    "memory of a segment": {"memory_len": 4, "compressed_len": 4},
    "memory shorter than a segment": {"memory_len": 2},
    "no memory": {"memory_len": 0},
    "compressed shorter than one commit": {"compressed_len": 1},
    "rate 1": {"compression_rate": 1},
    "rate 4": {"compression_rate": 4, "memory_len": 8, "compressed_len": 2},
    "one-token segments": {"segment_len": 1, "compression_rate": 1},
    "shared biases, final norm": {"shared_bias": True, "final_norm": True, "norm": "pre"},
    "one layer": {"n_layers": 1},
}
KINDS = [{"compression": c, "norm": n} for c in COMPRESSIONS for n in NORMS]


def of(options: dict[str, object]) -> str:
    return "-".join(str(value) for value in options.values())


def reference(model: TransformerXL, weights: dict[str, Tensor] | None = None) -> Reference:
    config = model.config
    return Reference(
        dict(model.named_parameters()) if weights is None else weights,
        n_layers=config.n_layers,
        segment_len=config.segment_len,
        memory_len=config.memory_len,
        compressed_len=config.compressed_len,
        rate=config.compression_rate,
        kind=config.compression,
        norm=config.norm,
        bptt=config.compression_loss == "bptt",
    )


def segments(model: TransformerXL, tokens: Tensor) -> Iterator[list[int]]:
    for piece in tokens[0].split(model.config.segment_len):
        yield piece.tolist()


def assert_slots(model: TransformerXL, state: State, wanted: Reference) -> None:
    """The occupied slots equal the reference; for most-used, so does usage."""
    for index in range(model.config.n_layers):
        memory = [slot.vector for slot in wanted.memory[index]]
        slots = wanted.compressed[index] + memory
        assert int(state.filled) == len(slots)
        start = state.past.shape[2] - len(slots)
        assert not state.past[index, 0, :start].any(), "empty slots are zero"
        if slots:
            found = state.past[index, 0, start:]
            assert largest_difference(found, torch.stack(slots)) <= 1e-10
        if state.usage.shape[2]:
            received = [sum(slot.received) for slot in wanted.memory[index]]
            received = [0.0] * (state.usage.shape[2] - len(received)) + received
            assert state.usage[index, 0].tolist() == pytest.approx(received, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("options", [*KINDS, *SHAPES.values()], ids=[*map(of, KINDS), *SHAPES])
def test_model_matches_the_reference(options: dict[str, object]) -> None:
    """Logits and slots over six and a half segments, with and without gradients."""
    model = tiny_model(**options)
    tokens = random_tokens(model, 6 * model.config.segment_len + 2)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    literal_model = reference(model, weights)
    states = {gradients: model.init_state(1) for gradients in (False, True)}
    for piece in segments(model, tokens):
        wanted = torch.stack(literal_model.read(piece)[0])
        for gradients, state in states.items():
            with torch.set_grad_enabled(gradients):
                logits, states[gradients] = read(model, torch.tensor([piece]), state)
            assert largest_difference(logits[0], wanted) <= 1e-10
            assert_slots(model, states[gradients], literal_model)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("compression", "loss"),
    [
        ("conv", "attention-reconstruction"),
        ("conv", "auto-encoding"),
        ("conv", "bptt"),
        ("dilated", "bptt"),
        ("most-used", "none"),
    ],
)
def test_gradients_match_the_reference(compression: str, loss: str, norm: str) -> None:
    """Every weight, through two unrolled segments after two that have filled the memory."""
    model = tiny_model(compression=compression, compression_loss=loss, norm=norm)
    t, config = model.config.segment_len, model.config
    tokens, targets = random_tokens(model, 4 * t), random_tokens(model, 4 * t, seed=9)
    literal_model, state = reference(model), model.init_state(1)
    for start in range(0, 2 * t, t):
        literal_model.read(tokens[0, start : start + t].tolist())
        _, state = read(model, tokens[:, start : start + t], state)
    state = state.detach()
    for row in literal_model.compressed:
        row[:] = [slot.detach() for slot in row]

    total, wanted = torch.zeros(()), torch.zeros(())
    for start in range(2 * t, 4 * t, t):
        piece, right = tokens[:, start : start + t], targets[:, start : start + t]
        logits, state = model(piece, state)
        nats = torch.nn.functional.cross_entropy(logits[0], right[0], reduction="sum")
        state, eviction = model.commit(state)
        assert eviction is not None
        total = total + nats + compression_loss(model, eviction)

        logits_of_token, evicted = literal_model.read(piece[0].tolist())
        for row, target in zip(logits_of_token, right[0].tolist(), strict=True):
            wanted = wanted + literal.negative_log_likelihood(row, target)
        for index, what in enumerate(evicted):
            wanted = wanted + literal_loss(model, index, what) / config.n_layers
    assert total.item() == pytest.approx(wanted.item(), abs=1e-9)
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total, weights)
    right = torch.autograd.grad(wanted, weights, materialize_grads=True)
    for name, a, b in zip(names, found, right, strict=True):
        assert bool(b.any()), f"{name} has no gradient"
        assert largest_difference(a, b) <= 1e-9 * max(1.0, float(b.abs().max())), name


def literal_loss(model: TransformerXL, index: int, what: object) -> Tensor:
    queries, slots, compressed = what.queries, what.slots, what.compressed  # type: ignore
    layer, kind = model.layers[index], model.config.compression_loss
    if kind == "auto-encoding":
        decoder = model.decoders[index].weight.unflatten(0, (model.config.compression_rate, -1))
        return literal.auto_encoding(slots, compressed, decoder=decoder)
    if kind != "attention-reconstruction":
        return torch.zeros(())

    def seen(slot: Tensor) -> Tensor:
        if model.config.norm == "post":
            return slot
        norm = layer.attention_norm
        centred = slot - slot.mean()
        scaled = centred / (centred.square().mean() + 1e-5).sqrt()
        return scaled * norm.weight.detach() + norm.bias.detach()

    return literal.attention_reconstruction(
        [seen(slot) for slot in queries],
        [seen(slot) for slot in slots],
        [seen(slot) for slot in compressed],
        w_q=layer.attention.query.weight,
        w_kv=layer.attention.key_value.weight,
        n_heads=model.config.n_heads,
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("compression", "loss"),
    [
        ("mean", "none"),
        ("max", "none"),
        ("most-used", "none"),
        ("dilated", "none"),
        ("conv", "attention-reconstruction"),
        ("conv", "auto-encoding"),
        ("dilated", "bptt"),
        ("select", "joint-attention-reconstruction"),
    ],
)
def test_all_weights_keep_learning(compression: str, loss: str, norm: str) -> None:
    """Once compression has started, every weight has a gradient and changes at every step.

    (A known implementation detached its key and value weights in the first compression loss,
    in place, and never trained them again.)
    """
    model = tiny_model(compression=compression, compression_loss=loss, norm=norm).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    t = model.config.segment_len
    still = {id(weight) for weight in model.compression_parameters()} if loss == "none" else set()
    tokens, state = random_tokens(model, 10 * t + 1, rows=2), model.init_state(2)
    for step in range(5):
        total = torch.zeros(())
        for segment in (2 * step, 2 * step + 1):
            at = segment * t
            logits, state = model(tokens[:, at : at + t], state)
            total = total + language_model_loss(logits, tokens[:, at + 1 : at + t + 1])
            state, eviction = model.commit(state)
            assert eviction is not None
            total = total + compression_loss(model, eviction)
        before = [weight.detach().clone() for weight in model.parameters()]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        state = state.detach()
        assert not state.past.requires_grad
        if step < 2:
            continue
        for (name, weight), old in zip(model.named_parameters(), before, strict=True):
            assert weight.requires_grad
            if id(weight) in still:
                assert torch.equal(weight, old), f"{name} is not trained, but changed"
                continue
            assert weight.grad is not None and bool(weight.grad.any()), f"{step}: {name}"
            assert not torch.equal(weight, old), f"{step}: {name} did not change"


@pytest.mark.parametrize("compression", ["conv", "dilated"])
@pytest.mark.parametrize("loss", ["none", "attention-reconstruction", "auto-encoding", "bptt"])
def test_language_model_loss_reaches_compressors_only_with_bptt(
    compression: str, loss: str
) -> None:
    model = tiny_model(compression=compression, compression_loss=loss)
    t, state = model.config.segment_len, model.init_state(1)
    tokens = random_tokens(model, 4 * t)
    for start in range(0, 3 * t, t):
        _, state = model(tokens[:, start : start + t], state)
        state, _ = model.commit(state)
    assert state.past.requires_grad == (loss == "bptt")

    def reached(state: State) -> list[bool]:
        model.zero_grad()
        logits, _ = model(tokens[:, 3 * t :], state)
        logits.logsumexp(dim=2).sum().backward(retain_graph=True)
        return [
            weight.grad is not None and bool(weight.grad.any())
            for weight in model.compressors.parameters()
        ]

    assert set(reached(state)) == {loss == "bptt"}
    assert set(reached(state.detach())) == {False}


def test_memory_is_detached_but_trains_key_and_value_projections() -> None:
    """sg on the slots, not on their projections (Transformer-XL, §3.2)."""
    model = tiny_model(compression="mean")
    tokens = random_tokens(model, 25)
    _, state = read(model, tokens[:, :24], model.init_state(1))
    assert not state.past.requires_grad and not state.segment.requires_grad
    weight = model.layers[0].attention.key_value.weight

    def gradient(state: State) -> Tensor:
        logits, _ = model(tokens[:, 24:], state)
        return torch.autograd.grad(logits.logsumexp(dim=2).sum(), weight)[0]

    # A single token attends only to itself, so its keys get no gradient.
    keys = slice(0, len(weight) // 2)
    alone = gradient(replace(state, filled=torch.zeros_like(state.filled)))
    assert float(alone[keys].abs().max()) < 1e-12 < float(gradient(state)[keys].abs().max())


# -- equivalences ---------------------------------------------------------------------------------


def twin(model: TransformerXL, **options: object) -> TransformerXL:
    """A model of another shape that shares all common weights."""
    other = tiny_model(**{**model.config.to_dict(), **options})
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert all(name.startswith("compressors") for name in missing)
    return other


def test_identity_compression_is_a_longer_memory() -> None:
    options = {"compression_rate": 1, "memory_len": 8, "compressed_len": 6}
    compressive = tiny_model(compression="conv", **options)
    for compress in compressive.compressors:
        compress.weight.data = torch.eye(8, dtype=torch.float64)
    plain = twin(compressive, compressed_len=0, memory_len=14)
    tokens = random_tokens(plain, 40)
    with torch.no_grad():
        wanted, end = read(plain, tokens, plain.init_state(1))
        logits, state = read(compressive, tokens, compressive.init_state(1))
    assert largest_difference(logits, wanted) <= 1e-12
    assert_same_state(state, end, tolerance=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_identity_conv_is_mean_pooling(norm: str) -> None:
    conv = tiny_model(compression="conv", norm=norm)
    for compress in conv.compressors:
        compress.weight.data = torch.eye(8, dtype=torch.float64).repeat(1, 2) / 2
    mean = twin(conv, compression="mean")
    tokens = random_tokens(mean, 40)
    with torch.no_grad():
        wanted, end = read(mean, tokens, mean.init_state(1))
        logits, state = read(conv, tokens, conv.init_state(1))
    assert largest_difference(logits, wanted) <= 1e-12
    assert_same_state(state, end, tolerance=1e-12)


def test_most_used_keeps_evicted_slots_bit_for_bit() -> None:
    model = tiny_model(compression="most-used", dtype=torch.float32)
    state = model.init_state(1)
    tokens = random_tokens(model, 40)
    chosen = []
    for start in range(0, 40, 4):
        _, state = model(tokens[:, start : start + 4], state)
        state, eviction = model.commit(state)
        assert eviction is not None
        n = int(eviction.real.sum())
        assert int(eviction.real_compressed.sum()) == n // 2
        for index in range(2):
            old = eviction.evicted[index, 0, 4 - n :]
            new = eviction.compressed[index, 0, 2 - n // 2 :]
            places = [[i for i, slot in enumerate(old) if torch.equal(slot, kept)] for kept in new]
            assert all(len(found) == 1 for found in places)
            where = [found[0] for found in places]
            assert where == sorted(set(where))
            chosen.append(tuple(where))
    assert len(set(chosen)) > 3, "the selection depends on attention"


def test_unbounded_memory_is_one_pass() -> None:
    """If nothing is evicted, reading in segments equals one segment as long as the text."""
    whole = tiny_model(compressed_len=0, memory_len=0, segment_len=21)
    parts = twin(whole, memory_len=20, segment_len=4)
    tokens = random_tokens(whole, 21)
    with torch.no_grad():
        wanted, _ = whole(tokens, whole.init_state(1))
        logits, _ = read(parts, tokens, parts.init_state(1))
    assert largest_difference(logits, wanted) <= 1e-12


def test_filled_follows_from_the_position() -> None:
    for shape in ({}, SHAPES["memory shorter than a segment"], SHAPES["no compression"]):
        model = tiny_model(**shape)
        config, state = model.config, model.init_state(1)
        for _ in range(9):
            state = read(model, random_tokens(model, config.segment_len), state)[1]
            position = int(state.position)
            compressed = max(0, position - config.memory_len) // config.compression_rate
            wanted = min(position, config.memory_len) + min(compressed, config.compressed_len)
            assert int(state.filled) == wanted
