"""Sketch head: runs, a literal reference, coverage loss, and token types in checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import streamlm
from streamlm.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.build import check_config
from streamlm.models.heads.sketch import COVERAGE, COVERED, LENGTHS, MADE, TYPES, SketchModel
from tests.reference.sketch import Reference, runs
from tests.support.invariants import random_tokens, read, tiny_model
from tokenizer import Tokenizer
from tokenizer.kinds import token_types

# T = 4, M = 8, C = 5, c = 3: runs end by type, by c and by segment, and some are dropped.
SHAPE: dict[str, Any] = {
    **{"head": "sketch", "memory_len": 8, "compressed_len": 5, "compression_rate": 3},
}


def make(**options: Any) -> SketchModel:
    model = tiny_model(**{**SHAPE, **options})
    assert isinstance(model, SketchModel)
    return model


# -- global slots ---------------------------------------------------------------------------------


def lengths_of(state: Any, row: int = 0) -> list[int]:
    return [n for n in state.carried[LENGTHS][0, row].tolist() if n]


@pytest.mark.parametrize("kinds", ["one", "three", "each"])
def test_global_slots_are_the_means_of_evicted_runs(kinds: str) -> None:
    """After every token: no overlap, no gap, and no run with tokens still in memory."""
    model = make(compressed_len=40)
    ids = torch.arange(11)
    model.set_token_types({"one": ids * 0, "three": ids % 3, "each": ids}[kinds])
    types, tokens = model.token_types, random_tokens(model, 43)
    if kinds == "each":
        tokens = torch.arange(43)[None] % 11  # no two adjacent tokens of one type
    inputs, state = torch.zeros(2, 0, 8, dtype=torch.float64), model.init_state(1)
    with torch.no_grad():
        for i in range(43):
            _, state = model(tokens[:, i : i + 1], state)
            inputs = torch.cat([inputs, state.segment[:, 0, i % 4 : i % 4 + 1]], dim=1)
            if state.phase == 4:
                state, _ = model.commit(state)
            n_gone = max(0, (i + 1) // 4 * 4 - 8)  # evicted tokens
            wanted = [
                [start + at for at in run]
                for start in range(0, n_gone, 4)
                for run in runs(types[tokens[0, start : start + 4]].tolist(), 3)
            ]
            assert lengths_of(state) == [len(run) for run in wanted]
            assert sum(lengths_of(state)) == n_gone
            assert state.carried[MADE].tolist() == [[len(wanted)]]
            n_memory = min((i + 1) // 4 * 4, 8)
            assert state.filled.tolist() == [n_memory + len(wanted)]
            start = i + 1 - state.phase - n_memory
            known = state.carried[TYPES][0, 0, 8 - n_memory : 8 + state.phase]
            assert torch.equal(known, types[tokens[0, start : i + 1]])
            if wanted:
                slots = state.past[:, 0, 40 - len(wanted) : 40]
                means = torch.stack([inputs[:, run].mean(dim=1) for run in wanted], dim=1)
                assert torch.allclose(slots, means, atol=1e-12)
                if kinds == "each":  # no merging
                    assert torch.allclose(slots, inputs[:, :n_gone], atol=1e-12)
    if kinds == "one":
        assert lengths_of(state) == [3, 1] * 8
    if kinds == "each":
        assert lengths_of(state) == [1] * 32


def test_the_oldest_runs_are_dropped() -> None:
    model, other = make(), make(compressed_len=40)
    tokens = random_tokens(model, 44, rows=3)
    with torch.no_grad():
        _, few = read(model, tokens, model.init_state(3))
        other.load_state_dict(
            {**model.state_dict(), "bucket_table": other.bucket_table}, strict=True
        )
        _, all_ = read(other, tokens, other.init_state(3))
    for row in range(3):
        assert lengths_of(few, row) == lengths_of(all_, row)[-5:]
        assert torch.equal(few.past[0, row, :5], all_.past[0, row, 35:40])


def test_types_have_no_effect_before_eviction() -> None:
    """Types are recorded earlier, but no run is visible yet."""
    model, other = make(), make()
    other.set_token_types(torch.zeros(11, dtype=torch.int64))
    tokens = random_tokens(model, 16)
    for sizes in ([16], [1] * 16):
        with torch.no_grad():
            found, _ = read(model, tokens, model.init_state(1), sizes=sizes)
            wanted, _ = read(other, tokens, other.init_state(1), sizes=sizes)
        same = (found == wanted).all(dim=2)[0].tolist()
        assert same == [True] * 12 + [False] * 4  # M + T, and the segment after


# -- reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_model_matches_the_reference(norm: str) -> None:
    model = make(norm=norm, coverage=0.5)
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    literal = Reference(weights, model.config, model.token_types.tolist())
    tokens, state = random_tokens(model, 39), model.init_state(1)
    total = 0.0
    for start in range(0, 39, 4):
        piece = tokens[:, start : start + 4]
        wanted, again = literal.read_segment(piece[0].tolist())
        assert all(0 <= each <= 1 + 1e-12 for of_layer in again for each in of_layer)
        with torch.no_grad():
            first, state = model(piece[:, :1], state)
            rest, state = model(piece[:, 1:], state)
        found = torch.cat([first, rest], dim=1)[0]
        assert torch.allclose(found, torch.stack(wanted), atol=1e-10), start
        sums = torch.tensor([sum(of_layer) for of_layer in again], dtype=torch.float64)
        assert torch.allclose(state.carried[COVERED][:, 0], sums, atol=1e-10)
        loss = model.segment_loss(state)
        assert loss is not None
        n = piece.shape[1]
        assert float(loss) == pytest.approx(0.5 * float(sums.sum()) / (2 * n), abs=1e-10)
        total += float(sums.sum())
        if n == 4:
            state, _ = model.commit(state)
        for layer in range(2):
            keys = [*literal.far[layer], *literal.memory[layer]]
            received = torch.tensor([key.received for key in keys], dtype=torch.float64)
            carried = state.carried[COVERAGE][layer, 0]
            stop = 13 + state.phase
            assert torch.allclose(carried[stop - len(keys) : stop], received, atol=1e-10)
            assert not bool(carried[: stop - len(keys)].any() or carried[stop:].any())
    assert total > 5 and len(literal.far[0]) == 5


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_local_gate_gives_a_transformer_xl(norm: str) -> None:
    model = make(norm=norm)
    other = tiny_model(memory_len=8, compressed_len=0, norm=norm)
    with torch.no_grad():
        for gate in model.gates:
            gate.bias.fill_(1e4)
    names = set(other.state_dict())
    other.load_state_dict({n: w for n, w in model.state_dict().items() if n in names})
    tokens = random_tokens(model, 39, rows=2)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            found, state = read(model, tokens, model.init_state(2))
            wanted, _ = read(other, tokens, other.init_state(2))
        assert min(lengths_of(state, 1)) > 0
        assert torch.allclose(found, wanted, atol=1e-10)


def test_a_global_gate_with_one_type_is_mean_pooling() -> None:
    """Queries attend only to means of c tokens, at the buckets of their first tokens."""
    model = make(n_layers=1, compression_rate=2, memory_len=4, compressed_len=6)
    model.set_token_types(torch.zeros(11, dtype=torch.int64))
    with torch.no_grad():
        model.length_table.zero_()
        model.gates[0].bias.fill_(-1e4)
    tokens = random_tokens(model, 18)
    with torch.no_grad():
        found, state = read(model, tokens, model.init_state(1))
    layer, x = model.layers[0], model.embedding(tokens)[0] * 8**0.5
    means = x[:12].unflatten(0, (6, 2)).mean(dim=1)
    assert torch.allclose(state.past[0, 0, :6], means, atol=1e-12)
    k, v = layer.attention.key_value(means).unflatten(1, (2, 2, 3)).unbind(1)
    for at in (16, 17):
        q = layer.attention.query(x[at]).unflatten(0, (2, 3))
        places = model.bucket_table[model.bucket_of[at - torch.arange(0, 12, 2)]]
        r = layer.attention.position(places).unflatten(1, (2, 3))
        content = torch.einsum("he,khe->hk", q + model.content_bias[0], k)
        place = torch.einsum("he,khe->hk", q + model.position_bias[0], r)
        p = ((content + place) / 3**0.5).softmax(dim=1)
        attended = layer.attention.output(torch.einsum("hk,khe->he", p, v).flatten())
        y = layer.attention_norm(x[at] + attended)
        y = layer.feed_forward_norm(y + layer.feed_forward(y))
        assert torch.allclose(found[0, at], model.logits(y), atol=1e-10)


def test_buckets_cover_exactly_the_possible_distances() -> None:
    for options in ({}, {"memory_len": 4, "compressed_len": 9}, {"segment_len": 1}):
        model = make(**options, n_layers=1)
        c = model.config
        farthest = c.memory_len + c.segment_len - 1 + c.compression_rate * c.compressed_len
        assert len(model.bucket_of) == farthest + 1
        assert len(model.bucket_table) == int(model.bucket_of.max()) + 1


# -- coverage and gradients -----------------------------------------------------------------------


def test_coverage_is_computed_only_with_its_loss() -> None:
    model, covered = make(), make(coverage=0.5)
    tokens = random_tokens(model, 30)
    state = model.init_state(1)
    assert set(state.carried) == {TYPES, LENGTHS, MADE} and model.segment_loss(state) is None
    assert set(covered.init_state(1).carried) == {TYPES, LENGTHS, MADE, COVERAGE, COVERED}
    with torch.no_grad():
        found, after = read(model, tokens, state)
        wanted, _ = read(covered, tokens, covered.init_state(1))
    assert set(after.carried) == set(state.carried) and model.segment_loss(after) is None
    assert torch.allclose(found, wanted, atol=1e-10)  # the loss does not change attention
    relative = tiny_model()
    assert relative.segment_loss(relative.init_state(1)) is None


def test_the_loss_of_a_token_is_between_0_and_1() -> None:
    model = make(coverage=1.0)
    tokens, state, seen = random_tokens(model, 60, rows=3), model.init_state(3), []
    with torch.no_grad():
        for i in range(60):
            before = state.carried[COVERED]
            _, state = model(tokens[:, i : i + 1], state)
            seen.append(state.carried[COVERED] - before)
            if state.phase == 4:
                state, _ = model.commit(state)
                assert not bool(state.carried[COVERED].any())
    shares = torch.stack(seen)
    assert not bool(shares[0].any())  # the first token cannot repeat attention
    assert float(shares.min()) >= 0 and float(shares.max()) <= 1 + 1e-12
    assert float(shares[20:].min()) > 0.01


def test_gradients_reach_gates_lengths_and_buckets() -> None:
    model = make(compression_rate=2, compressed_len=20).train()
    tokens = random_tokens(model, 32)
    _, state = read(model, tokens[:, :28], model.init_state(1))
    assert set(lengths_of(state)) == {1, 2}
    logits, _ = model(tokens[:, 28:], state)
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and bool(weight.grad.any()), name
    assert model.length_table.grad is not None
    assert bool(model.length_table.grad.any(dim=2).all())  # runs of 1 and of 2, in both layers


def test_the_coverage_loss_has_no_gradient_to_earlier_segments() -> None:
    model = make(coverage=0.5).train()
    tokens = random_tokens(model, 32)
    _, state = read(model, tokens[:, :28], model.init_state(1))
    assert not any(tensor.requires_grad for tensor in state.carried.values())
    _, state = model.hidden(tokens[:, 28:30], state)
    _, state = model.hidden(tokens[:, 30:], state)
    loss = model.segment_loss(state)
    assert loss is not None
    loss.backward()
    for name in ("gates.0.weight", "bucket_table", "layers.0.attention.query.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None and bool(gradient.any()), name
    assert not any(tensor.requires_grad for tensor in state.detach().carried.values())


# -- types of tokens ------------------------------------------------------------------------------


def saved(folder: Path, tokenizer: Tokenizer, *, types: bool = True) -> Path:
    torch.manual_seed(3)
    config = ModelConfig(
        **{"vocab_size": tokenizer.vocab_size, "n_layers": 2, "d_model": 32, "n_heads": 2},
        **{"head_dim": 16, "d_ff": 64, "segment_len": 16, "memory_len": 16, "compressed_len": 24},
        **{"head": "sketch", "compression_loss": "none", "init_std": 0.2, "coverage": 0.1},
    )
    model = SketchModel(config)
    if types:
        model.set_token_types(torch.from_numpy(token_types(tokenizer)))
    save_checkpoint(folder, model, tokenizer)
    return folder


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpoints_contain_token_types(
    dtype: torch.dtype | None, books_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "one", books_tokenizer), device="cpu")
    save_checkpoint(tmp_path / "two", checkpoint.model, books_tokenizer, dtype=dtype)
    stored = load_file(tmp_path / "two" / "model.safetensors")
    assert stored["token_types"].dtype == torch.int64
    again = load_checkpoint(tmp_path / "two", device="cpu")
    assert isinstance(again.model, SketchModel)
    assert again.model.token_types.dtype == torch.int64
    assert again.model.token_types.tolist() == token_types(books_tokenizer).tolist()
    blind = load_checkpoint(saved(tmp_path / "blind", books_tokenizer, types=False), device="cpu")
    assert blind.fingerprints["weights"] != checkpoint.fingerprints["weights"]
    one, other = (replace(each, weights_digest="") for each in (checkpoint, blind))
    assert one.fingerprints["weights"] != other.fingerprints["weights"]


# -- sessions -------------------------------------------------------------------------------------


def test_a_session_resumes_bit_for_bit(
    books_tokenizer: Tokenizer, tmp_path: Path, prose: Callable[..., str]
) -> None:
    """Saved within a segment, at its end, and before the first run; then rewound."""
    checkpoint = load_checkpoint(saved(tmp_path / "model", books_tokenizer), device="cpu")
    text, path = prose(200), tmp_path / "s.zarr"
    digests: dict[int, str] = {}
    with streamlm.open(path, checkpoint) as session:
        at = 0
        for n in (3, 40, 300, 7, 500):
            session.feed([text[at : at + n]])
            session.save()
            digests[session.position] = session.state.digest()
            at += n
        made = int(session.state.carried[MADE])
        assert made > 24 and len(lengths_of(session.state)) == 24
        assert len(set(lengths_of(session.state))) > 2
        wanted = session.fork().score([" The sea, the sea."], logprobs=True).logprobs
    with streamlm.open(path, checkpoint) as again:
        assert again.fork().score([" The sea, the sea."], logprobs=True).logprobs == wanted
        for position, digest in reversed(digests.items()):
            again.rewind(to=position)
            assert again.state.digest() == digest
        assert again.position == min(digests)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_len": 100}, "memory_len with head 'sketch' = 100; allowed: a multiple of segm"),
        ({"memory_len": 0}, "memory_len with head 'sketch' = 0; allowed: at least segment_len"),
        ({"compression_loss": "bptt"}, "with head 'sketch' = 'bptt'; allowed: 'none'"),
        ({"coverage": -0.1}, "coverage = -0.1; allowed: a number of at least 0"),
        ({"head": "relative", "coverage": 0.1}, "head 'relative' = 0.1; allowed: 0"),
    ],
)
def test_settings_are_refused(options: dict[str, Any], message: str) -> None:
    settings = {"vocab_size": 9, "head": "sketch", "compression_loss": "none", **options}
    with pytest.raises(ValueError, match=message):
        check_config(ModelConfig(**settings))


def test_more_types_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="12 types; allowed: up to 11"):
        make().set_token_types(torch.zeros(12))


def test_fingerprints_of_older_models_are_unchanged() -> None:
    plain = ModelConfig(vocab_size=9)
    assert "coverage" not in plain.architecture
    sketch = ModelConfig(vocab_size=9, head="sketch", compression_loss="none", coverage=0.1)
    assert sketch.architecture["coverage"] == 0.1
