"""Heads against literal references: outputs, gradients, state sizes, and sessions."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamlm
from memory_store import Corrupt, DirectoryStore
from streamlm.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.build import build_model, check_config
from streamlm.models.cache import Cache
from streamlm.models.heads.recurrent import MATRICES, Retention
from streamlm.models.heads.sketch import SketchModel
from streamlm.sessions.session import Session
from streamlm.sessions.snapshots import to_snapshot, to_state
from tests.support.invariants import assert_same_state, random_tokens, read, tiny_model
from tokenizer import load_tokenizer
from tokenizer.kinds import token_types

RECURRENT = {"head": "recurrent", "memory_len": 0, "compressed_len": 0}


def test_retention_matches_the_recurrence() -> None:
    config = ModelConfig(
        **{"vocab_size": 9, "d_model": 8, "n_heads": 2, "head_dim": 3, "segment_len": 5},
        **RECURRENT,
    )
    torch.manual_seed(0)
    layer = Retention(config).double()
    x = torch.randn(1, 13, 8, dtype=torch.float64)
    decay = [1 - 2.0**-5, 1 - 2.0**-6]
    assert layer.decay.tolist() == decay
    q = layer.query(x)[0].unflatten(1, (2, 3))
    k, v = layer.key_value(x)[0].unflatten(1, (2, 2, 3)).unbind(1)
    wanted = []
    for h in range(2):
        matrix = torch.zeros(3, 3, dtype=torch.float64)
        for i in range(13):
            matrix = decay[h] * matrix + k[i, h][:, None] * v[i, h][None]
            o = q[i, h] @ matrix / 3**0.5
            wanted.append((o - o.mean()) / (o.var(unbiased=False) + 1e-5).sqrt())
    heads = torch.stack(wanted).unflatten(0, (2, 13)).transpose(0, 1).flatten(1)
    found, state = [], torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    for start in range(0, 13, 5):
        piece = x[:, start : start + 5]
        key, value = layer.project(piece)
        found.append(layer.read(piece, key, value, state))
        state = layer.closed(key, value, state)
    assert torch.allclose(torch.cat(found, dim=1)[0], layer.output(heads), atol=1e-10)


def test_recurrence_has_unlimited_reach() -> None:
    """A token affects logits hundreds of tokens later, with a state of constant size."""
    model = tiny_model(**RECURRENT, n_layers=1)
    tokens = random_tokens(model, 203)
    other = tokens.clone()
    other[0, 1] = (other[0, 1] + 1) % 11
    with torch.no_grad():
        logits, state = read(model, tokens, model.init_state(1))
        changed, _ = read(model, other, model.init_state(1))
    assert state.nbytes == model.init_state(1).nbytes
    assert state.carried[MATRICES].shape == (1, 1, 2, 3, 3)
    far = (logits - changed)[0, 200:].abs().max()
    assert 1e-9 < float(far) < 1.0


HEADS: dict[str, dict[str, Any]] = {
    **{
        name: {"head": name, "memory_len": 0, "compressed_len": 0} for name in ("recurrent", "full")
    },
    "linformer": {
        **{"head": "linformer", "memory_len": 32, "compressed_len": 0, "projected_len": 2},
        **{"sharing": "headwise"},
    },
    "informer": {"head": "informer", "memory_len": 32, "compressed_len": 0, "factor": 1},
    "sinks": {"head": "sinks", "memory_len": 20, "compressed_len": 0, "pinned_len": 3},
    "sketch": {
        **{"head": "sketch", "memory_len": 16, "compressed_len": 8, "compression_loss": "none"},
        "coverage": 0.1,
    },
}
everywhere = pytest.mark.parametrize("head", HEADS)


@everywhere
def test_gradients_reach_every_weight(head: str) -> None:
    model = tiny_model(**HEADS[head]).train()
    tokens = random_tokens(model, 24)
    logits, _ = read(model, tokens, model.init_state(1))
    logits.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


def test_full_attention_tracks_its_length_on_the_host() -> None:
    """A state without the host copy synchronizes and gives bitwise equal results."""
    model = tiny_model(**HEADS["full"])
    tokens, begun = random_tokens(model, 6 * 4, rows=3), {8: (1,), 12: (0, 2), 20: (0, 1, 2)}
    known = asked = model.init_state(3)
    with torch.no_grad():
        for start in range(0, 6 * 4, 4):
            rows = torch.tensor([row in begun.get(start, ()) for row in range(3)])
            asked = replace(asked.reset_rows(rows), filled_known=None)
            known = known.reset_rows(rows)
            assert known.filled_known == tuple(known.filled.tolist())
            known = model.commit(model(tokens[:, start : start + 4], known)[1])[0]
            asked = model.commit(model(tokens[:, start : start + 4], asked)[1])[0]
            assert known.past.shape == asked.past.shape
            assert known.digest() == asked.digest()
            assert known.filled_known == asked.filled_known == tuple(known.filled.tolist())
    assert known.past.shape[2] == 4  # all rows restarted
    one = random_tokens(model, 10)
    with torch.no_grad():
        _, state = read(model, one, model.init_state(1))
    saved = to_snapshot(state, model, arrays={}, tokens=one[0].numpy(), attributes={})
    assert to_state(saved, model).filled_known == state.filled_known == (8,)


def test_full_attention_matches_a_transformer() -> None:
    """Reading in segments equals one literal pass over all tokens."""
    model = tiny_model(**HEADS["full"], n_layers=1, norm="post")
    tokens = random_tokens(model, 11)
    with torch.no_grad():
        found, state = read(model, tokens, model.init_state(1))
    assert state.past.shape == (1, 1, 8, 8) and state.length == (3,)
    layer = model.layers[0]
    x = model.embedding(tokens)[0] * 8**0.5
    rates = [10_000 ** (-2 * i / 8) for i in range(4)]
    for p in range(11):
        angles = [p * rate for rate in rates]
        place = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        x[p] += place * model.config.init_std * 8**0.5  # scaled to the initial embeddings
    q = layer.attention.query(x).unflatten(1, (2, 3))
    k, v = layer.attention.key_value(x).unflatten(1, (2, 2, 3)).unbind(1)
    rows = []
    for i in range(11):
        heads = []
        for h in range(2):
            p = torch.stack([q[i, h] @ k[j, h] for j in range(i + 1)]).div(3**0.5).softmax(0)
            heads.append(p @ v[: i + 1, h])
        rows.append(torch.cat(heads))
    attended = layer.attention.output(torch.stack(rows))
    x = layer.attention_norm(x + attended)
    x = layer.feed_forward_norm(x + layer.feed_forward(x))
    assert torch.allclose(found[0], model.logits(x), atol=1e-10)


def same_weights(model: Any, other: Any) -> None:
    """Copies the weights of the first model to the second, with positions disabled."""
    theirs = other.state_dict()
    given = {name: weight for name, weight in model.state_dict().items() if name in theirs}
    assert len(given) == len(theirs)
    other.load_state_dict(given)
    for each in (model, other):
        for layer in each.layers:
            torch.nn.init.zeros_(layer.attention.position.weight)
        each.freeze()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_linformer_with_identity_projections_is_a_transformer_xl(norm: str) -> None:
    options: dict[str, Any] = {"memory_len": 8, "compressed_len": 0, "norm": norm}
    model = tiny_model(**options, head="linformer", projected_len=4, sharing="key-value")
    with torch.no_grad():
        for length in model.lengths:
            length.weight.copy_(torch.eye(4))
    other = tiny_model(**options)
    same_weights(model, other)
    tokens = random_tokens(model, 23, rows=2)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
        wanted, _ = read(other, tokens, other.init_state(2))
    assert torch.allclose(found, wanted, atol=1e-10)


def test_a_pooling_linformer_is_a_compressive_transformer() -> None:
    """Without positions and with post-norm, where plain layer inputs are averaged."""
    options: dict[str, Any] = {"memory_len": 8, "compressed_len": 0, "projection": "pool"}
    model = tiny_model(**options, head="linformer", projected_len=2)
    other = tiny_model(memory_len=0, compressed_len=4, compression="mean", compression_rate=2)
    same_weights(model, other)
    tokens = random_tokens(model, 23, rows=2)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
        wanted, _ = read(other, tokens, other.init_state(2))
    assert torch.allclose(found, wanted, atol=1e-10)


def test_a_projected_segment_has_the_distance_of_its_middle() -> None:
    model = tiny_model(**{**HEADS["linformer"], "memory_len": 8}, n_layers=1)
    near, far = model.project_positions(0)
    weight = model.layers[0].attention.position.weight
    for i in range(4):  # a token of the open segment and the two segments before it
        for m, oldest_first in ((1, 1), (2, 0)):
            distance = i + 4 * m - 1.5
            angles = [distance * 10_000 ** (-2 * j / 8) for j in range(4)]
            row = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
            wanted = (weight @ row.double()).unflatten(0, (2, 3))
            assert torch.allclose(far[:, oldest_first, i], wanted, atol=1e-6)
    assert near.shape == (2, 5, 3)


def test_nothing_is_projected_twice() -> None:
    for head, options in HEADS.items():
        model, seen = tiny_model(**options, n_layers=1), []
        attention = model.layers[0].attention
        attention.key_value.register_forward_hook(
            lambda _, given, out, seen=seen: seen.append(given[0].shape[1])
        )
        tokens, cache = random_tokens(model, 26), Cache()
        with torch.no_grad():
            _, state = read(model, tokens[:, :12], model.init_state(1), cache=cache)
            seen.clear()
            _, state = read(model, tokens[:, 12:20], state, cache=cache)
            # In addition, the Informer projects distilled slots, the sketch head all global slots,
            # and the sinks head all pinned slots.
            wanted = {"informer": [4, 2, 4, 2], "sketch": [4, 8, 4, 8], "sinks": [4, 3, 4, 3]}
            assert seen == wanted.get(head, [4, 4]), head
            seen.clear()
            for column in range(20, 23):  # single tokens within a segment
                _, state = model(tokens[:, column : column + 1], state, cache)
            assert seen == [1, 1, 1], head


def test_sinks_match_the_reference() -> None:
    """Pinned slots precede the window, at the end of a stream of six windows."""
    options: dict[str, Any] = {"memory_len": 6, "compressed_len": 0}
    model = tiny_model(**options, head="sinks", pinned_len=3, n_layers=1)
    tokens = random_tokens(model, 39)  # 36 in closed segments, so memory contains tokens 30 to 35
    with torch.no_grad():
        found, state = read(model, tokens, model.init_state(1))
    layer, (u, w) = model.layers[0], model.biases(0)
    x = model.embedding(tokens)[0] * 8**0.5
    assert torch.equal(state.carried["pinned"][0, 0], x[:3])
    q = layer.attention.query(x).unflatten(1, (2, 3))
    k, v = layer.attention.key_value(x).unflatten(1, (2, 2, 3)).unbind(1)
    columns = [0, 1, 2, *range(30, 39)]
    rows = []
    for i in range(36, 39):
        heads = []
        for h in range(2):
            scores = []
            for column, j in enumerate(columns[: i - 26]):
                angles = [(i - 27 - column) * 10_000 ** (-2 * n / 8) for n in range(4)]
                place = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                r = layer.attention.position(torch.tensor(place).double()).unflatten(0, (2, 3))[h]
                scores.append(((q[i, h] + u[h]) @ k[j, h] + (q[i, h] + w[h]) @ r) / 3**0.5)
            share = torch.stack(scores).softmax(0)
            heads.append(share @ v[columns[: i - 26], h])
        rows.append(torch.cat(heads))
    attended = layer.attention.output(torch.stack(rows))
    y = layer.attention_norm(x[36:] + attended)
    y = layer.feed_forward_norm(y + layer.feed_forward(y))
    assert torch.allclose(found[0, 36:], model.logits(y), atol=1e-6)  # its table is float32


def test_sinks_equal_a_window_until_the_first_tokens_leave_it() -> None:
    options: dict[str, Any] = {"memory_len": 10, "compressed_len": 0}
    model = tiny_model(**options, head="sinks", pinned_len=2)
    other = tiny_model(**options)
    other.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 20, rows=2)
    with torch.no_grad():
        found, _ = read(model, tokens, model.init_state(2))
        wanted, _ = read(other, tokens, other.init_state(2))
    assert torch.allclose(found[:, :12], wanted[:, :12], atol=1e-10)
    # After 12 tokens, memory contains tokens 2 to 11, and tokens 0 and 1 are pinned slots.
    assert float((found - wanted)[:, 12:].abs().amax(dim=2).min()) > 1e-4


def test_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="pinned_len = 9; allowed: 1 to segment_len = 8"):
        check_config(
            ModelConfig(vocab_size=9, head="sinks", compressed_len=0, segment_len=8, pinned_len=9)
        )
    for head in ("recurrent", "full"):
        message = f"memory_len with head '{head}' = 128; allowed: 0"
        with pytest.raises(ValueError, match=message):
            check_config(ModelConfig(vocab_size=9, head=head, compressed_len=0))
    with pytest.raises(ValueError, match="compressed_len with head 'linformer' = 128; allowed: 0"):
        check_config(ModelConfig(vocab_size=9, head="linformer"))
    with pytest.raises(ValueError, match="'linformer' = 100; allowed: a multiple of segment_len"):
        check_config(ModelConfig(vocab_size=9, head="linformer", compressed_len=0, memory_len=100))
    with pytest.raises(ValueError, match="projected_len = 200; allowed: 1 to n = 128"):
        options: dict[str, Any] = {"head": "linformer", "compressed_len": 0, "projected_len": 200}
        build_model(ModelConfig(vocab_size=9, **options))
    with pytest.raises(ValueError, match="head = 'lstm'; allowed: 'relative' or 'recurrent'"):
        check_config(ModelConfig(vocab_size=9, head="lstm"))


def save_model(head: str, tiny: streamlm.Checkpoint, folder: Path) -> Path:
    torch.manual_seed(3)
    config = ModelConfig(
        **{"vocab_size": tiny.tokenizer.vocab_size, "n_layers": 2, "d_model": 32, "n_heads": 2},
        **{"head_dim": 16, "d_ff": 64, "segment_len": 16, "init_std": 0.2},
        **HEADS[head],
    )
    model = build_model(config)
    if isinstance(model, SketchModel):
        model.set_token_types(torch.from_numpy(token_types(tiny.tokenizer)))
    save_checkpoint(folder, model, load_tokenizer(tiny.tokenizer.model_bytes))
    return folder


@everywhere
def test_sessions_resume(
    head: str, tiny: streamlm.Checkpoint, tmp_path: Path, prose: Callable[..., str]
) -> None:
    folder, text = save_model(head, tiny, tmp_path / "model"), prose(120)
    checkpoint = load_checkpoint(folder, device="cpu")
    with streamlm.open(tmp_path / "s.zarr", checkpoint, save_every=32) as session:
        session.feed([text])
        session.save()  # from here on it computes the same bits as one that is resumed
        twin = session.fork()
        wanted = "".join(twin.generate(max_tokens=12, temperature=0))
        score = session.score(["The sea."], logprobs=True).logprobs
    with streamlm.open(tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")) as again:
        assert again.state.digest() == session.state.digest()
        assert again.score(["The sea."], logprobs=True).logprobs == score
        assert "".join(again.fork().generate(max_tokens=12, temperature=0)) == wanted
        again.rewind(to=50)
        fresh = Session(checkpoint)
        ids = again._live.store.store.tokens(again.history()[-1], 0, 50)
        fresh._live.stream = fresh._live.stream.read_ids(checkpoint, np.asarray(ids))
        assert_same_state(fresh.state, again.state, tolerance=1e-4)
        with pytest.raises(ValueError, match="a memory report needs a memory of slots"):
            again.memory_report()


@everywhere
def test_damaged_states_are_refused(head: str, tiny: streamlm.Checkpoint, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_model(head, tiny, tmp_path / "model"), device="cpu")
    with streamlm.open(tmp_path / "s.zarr", checkpoint) as session:
        session.feed(["Call me Ishmael. Some years ago, never mind how long precisely. " * 3])
        honest = session.save()
    store = DirectoryStore.open(tmp_path / "s.zarr")
    whole = store.load(honest)
    part = MATRICES if head == "recurrent" else "segment"
    arrays = {**whole.arrays, part: whole.arrays[part][:, :, :-1]}
    bad = replace(whole, arrays=arrays, tokens=np.zeros(0, np.int32))
    store.commit(bad, parent=honest, fingerprints=checkpoint.fingerprints)
    with pytest.raises(Corrupt, match=part):
        streamlm.open(tmp_path / "s.zarr", checkpoint)
