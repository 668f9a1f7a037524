"""The other heads: their literal formulas, gradients and bytes, and sessions with them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import streamlm
from memory_store import Corrupt, DirectoryStore
from streamlm.checkpoint import load_checkpoint, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.heads import build_model
from streamlm.heads.recurrent import MATRICES, Retention
from streamlm.session import Session
from tests.invariants import assert_same_state, random_tokens, read, tiny_model
from tokenizer import Tokenizer

RECURRENT = {"head": "recurrent", "memory_len": 0, "compressed_len": 0}


def test_each_number_is_what_the_recurrence_says() -> None:
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


def test_memory_outlives_every_window() -> None:
    """A token changes what comes hundreds of tokens later, in as many bytes as ever."""
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


HEADS = {
    name: {"head": name, "memory_len": 0, "compressed_len": 0} for name in ("recurrent", "full")
}
everywhere = pytest.mark.parametrize("head", HEADS)


@everywhere
def test_gradients_reach_every_weight(head: str) -> None:
    model = tiny_model(**HEADS[head]).train()
    tokens = random_tokens(model, 12)
    logits, _ = read(model, tokens, model.init_state(1))
    logits.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


def test_full_attention_is_that_of_a_transformer() -> None:
    """Read in segments, it is one pass over all tokens, formula by formula."""
    model = tiny_model(**HEADS["full"], n_layers=1, norm="post")
    tokens = random_tokens(model, 11)
    with torch.no_grad():
        found, state = read(model, tokens, model.init_state(1))
    assert state.past.shape == (1, 1, 8, 8) and state.length == 3
    layer = model.layers[0]
    x = model.embedding(tokens)[0] * 8**0.5
    rates = [10_000 ** (-2 * i / 8) for i in range(4)]
    for p in range(11):
        angles = [p * rate for rate in rates]
        x[p] += torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
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


def test_nothing_is_projected_twice() -> None:
    for head, options in HEADS.items():
        model, seen = tiny_model(**options, n_layers=1), []
        attention = model.layers[0].attention
        attention.key_value.register_forward_hook(
            lambda _, given, out, seen=seen: seen.append(given[0].shape[1])
        )
        tokens = random_tokens(model, 26)
        with torch.no_grad():
            _, state = read(model, tokens[:, :20], model.init_state(1))
            assert [n for n in seen if n] == [4] * 5, head
            seen.clear()
            for column in range(20, 23):  # token by token, within a segment
                _, state = model(tokens[:, column : column + 1], state)
            assert seen == [1, 1, 1], head


def test_settings_are_refused() -> None:
    for head in HEADS:
        message = f"memory_len with head '{head}' = 128; allowed: 0"
        with pytest.raises(ValueError, match=message):
            ModelConfig(vocab_size=9, head=head)
    with pytest.raises(ValueError, match="head = 'lstm'; allowed: 'relative' or 'recurrent'"):
        ModelConfig(vocab_size=9, head="lstm")


def save_model(head: str, tiny: streamlm.Checkpoint, folder: Path) -> Path:
    torch.manual_seed(3)
    config = ModelConfig(
        **{"vocab_size": tiny.tokenizer.vocab_size, "n_layers": 2, "d_model": 32, "n_heads": 2},
        **{"head_dim": 16, "d_ff": 64, "segment_len": 16, "init_std": 0.2},
        **HEADS[head],
    )
    save_checkpoint(folder, build_model(config), Tokenizer(tiny.tokenizer.model_bytes))
    return folder


@everywhere
def test_sessions_go_on_where_they_were(
    head: str, tiny: streamlm.Checkpoint, tmp_path: Path, prose: Callable[..., str]
) -> None:
    folder, text = save_model(head, tiny, tmp_path / "model"), prose(120)
    checkpoint = load_checkpoint(folder, device="cpu")
    with streamlm.open(tmp_path / "s.zarr", checkpoint, save_every=32) as session:
        session.feed([text])
        twin = session.fork()
        wanted = "".join(twin.generate(max_tokens=12, temperature=0))
        score = session.score(["The sea."], details=True).log_probs
    with streamlm.open(tmp_path / "s.zarr", load_checkpoint(folder, device="cpu")) as again:
        assert again.state.digest() == session.state.digest()
        assert again.score(["The sea."], details=True).log_probs == score
        assert "".join(again.fork().generate(max_tokens=12, temperature=0)) == wanted
        again.rewind(tokens=50)
        fresh = Session(checkpoint)
        ids = again._bound("look").store.tokens(again.history()[-1], 0, 50)
        fresh._stream = fresh._stream.read_ids(checkpoint, np.asarray(ids))
        assert_same_state(fresh.state, again.state, tolerance=1e-4)
        with pytest.raises(ValueError, match="only a memory of slots can be looked at"):
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
