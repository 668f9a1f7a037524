"""The linear recurrence: its literal formula, its gradients, its bytes, and sessions with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import streamlm
from streamlm.checkpoint import load_checkpoint, save_checkpoint
from streamlm.config import ModelConfig
from streamlm.heads import build_model
from streamlm.heads.recurrent import MATRICES, Retention
from streamlm.session import Session
from tests.invariants import random_tokens, read, tiny_model
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


def test_gradients_reach_every_weight() -> None:
    model = tiny_model(**RECURRENT).train()
    tokens = random_tokens(model, 12)
    logits, _ = read(model, tokens, model.init_state(1))
    logits.square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters())


def test_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_len with head 'recurrent' = 128; allowed: 0"):
        ModelConfig(vocab_size=9, head="recurrent")
    with pytest.raises(ValueError, match="head = 'lstm'; allowed: 'relative' or 'recurrent'"):
        ModelConfig(vocab_size=9, head="lstm")


@pytest.fixture
def folder(tiny: streamlm.Checkpoint, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    config = ModelConfig(
        **{"vocab_size": tiny.tokenizer.vocab_size, "n_layers": 2, "d_model": 32, "n_heads": 2},
        **{"head_dim": 16, "d_ff": 64, "segment_len": 16, "init_std": 0.2},
        **RECURRENT,
    )
    save_checkpoint(tmp_path / "model", build_model(config), Tokenizer(tiny.tokenizer.model_bytes))
    return tmp_path / "model"


def test_sessions_go_on_where_they_were(
    folder: Path, tmp_path: Path, prose: Callable[..., str]
) -> None:
    checkpoint, text = load_checkpoint(folder, device="cpu"), prose(120)
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
        difference = fresh.state.carried[MATRICES] - again.state.carried[MATRICES]
        assert float(difference.abs().max()) < 1e-4
        with pytest.raises(ValueError, match="only a memory of slots can be looked at"):
            again.memory_report()
