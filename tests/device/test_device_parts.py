"""Evaluation, costs, drafters, forecasters and encoders on a pretended CUDA device."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.series import Series
from streamlm.forecast.training import train
from streamlm.lab import costs
from streamlm.models.encoder import Encoder, EncoderConfig, masked_windows
from streamlm.runtime.drafter import DrafterConfig, load_drafter
from streamlm.sessions.session import Session
from streamlm.training.config import TrainConfig
from streamlm.training.drafter import DraftTrainer
from streamlm.training.evaluate import evaluate
from tests.device.cases import BOOK, ROOT, bundled_tokenizer, corpus, loaded
from tests.support.pretended_cuda import Log, counting, pretended_cuda

DEVICES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "cpu": contextlib.nullcontext,
    "cuda": pretended_cuda,
}
SAME = 1e-5


@pytest.mark.parametrize("variant", ["relative", "adaptive", "full"])
def test_evaluation(tmp_path: Path, variant: str) -> None:
    tokenizer, found = bundled_tokenizer(), {}
    for device, there in DEVICES.items():
        with there():
            checkpoint = loaded(tmp_path, variant, device)
            with counting() as log:
                found[device] = evaluate(
                    checkpoint.model,
                    corpus(3),
                    bos=tokenizer.bos_id,
                    token_lengths=tokenizer.token_lengths,
                    batch_size=2,
                    token_losses=True,
                )
        if device == "cuda":  # one wait per batch, for its losses
            assert {reason for reason, _ in log.waits} == {"copy to the host"}, log.offenders()
            assert len(log.waits) == 1, log.offenders()
    one, other = found["cuda"], found["cpu"]
    assert one.nats == pytest.approx(other.nats, rel=SAME) and one.tokens == other.tokens
    assert one.losses is not None and other.losses is not None
    for losses, wanted in zip(one.losses, other.losses, strict=True):
        assert np.allclose(losses, wanted, rtol=1e-4, atol=1e-4)


def test_what_a_model_costs_and_remembers(
    cuda: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "LENGTHS", (3, 6))
    monkeypatch.setattr(costs, "DISTANCES", (0, 2))
    monkeypatch.setattr(costs, "REPEATS", 1)
    monkeypatch.setattr(costs, "DECODED", 4)
    # Real prose, because the recall task needs many different letters.
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = " ".join("".join(c if c.isalpha() else " " for c in text).split())[:4000]
    ids = bundled_tokenizer().encode(prose).astype(np.uint16)
    read = copy.copy(corpus(1))
    object.__setattr__(read, "tokens", ids)
    object.__setattr__(read, "offsets", np.array([0, len(ids)]))
    checkpoint = loaded(tmp_path, "relative", "cuda")
    found = costs.measure(checkpoint, read, sequences=2)
    assert [row["tokens"] for row in found["stream"]] == [48, 96]
    assert all(row["peak_bytes"] > row["state_bytes"] > 0 for row in found["stream"])
    assert len(found["recall"]) == 2


def test_a_drafter_learns_and_writes(tmp_path: Path) -> None:
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "n_tokens": 3}
    config = TrainConfig.from_dict(
        {
            **{"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1},
            **{"checkpoint_steps": 2, "eval_steps": 3, "eval_tokens": 200},
        }
    )
    losses: dict[str, list[list[float]]] = {}
    texts: dict[str, str] = {}
    for device, there in DEVICES.items():
        with there():
            checkpoint = loaded(tmp_path, "relative", device)

            def trainer(device: str = device, checkpoint: Any = checkpoint) -> DraftTrainer:
                return DraftTrainer(
                    checkpoint,
                    DrafterConfig.of(checkpoint, {**shape, "label_len": 8, "context_len": 16}),
                    config,
                    train=corpus(),
                    valid=corpus(2),
                    folder=tmp_path / device,
                )

            run = trainer().run()
            with counting() as log:
                first = next(run)
            if device == "cuda":
                assert log.n_waits <= 4, log.offenders()
            found = [first, *run]
            resumed = trainer()
            resumed.resume()
            assert resumed.step == 3
            losses[device] = [step.losses for step in found]
            drafter = load_drafter(tmp_path / device / "model", checkpoint)
            session = Session(checkpoint)
            session.feed(BOOK)
            session.generate("And", max_tokens=0)
            options: dict[str, Any] = {"drafter": drafter, "repetition_penalty": 1.2}
            with counting() as waits:
                pieces = list(session.generate(" so", max_tokens=30, seed=2, **options))
            texts[device] = "".join(pieces)
    assert np.allclose(losses["cuda"], losses["cpu"], rtol=1e-4)
    assert texts["cuda"] == texts["cpu"]
    # A pass of the model waits twice at most and yields at least one token.
    assert 15 < waits.n_waits <= 2 * 31 + 1, waits.offenders()


def series() -> Series:
    n = 200
    dates = np.datetime64("2016-07-01T00:00:00", "s") + np.arange(n) * np.timedelta64(3600, "s")
    values = np.stack([np.sin(np.arange(n) / 7), np.cos(np.arange(n) / 11)], axis=1)
    return Series(dates, values, ("a", "b"), (120, 160, n))


@pytest.mark.parametrize("model", ["informer", "transformer", "dlinear", "nlinear"])
def test_a_forecaster(tmp_path: Path, model: str) -> None:
    shape: dict[str, Any] = {
        **{"model": model, "columns": ("a", "b"), "input_len": 24, "horizon": 8, "label_len": 12},
        **{"d_model": 16, "n_heads": 2, "d_ff": 32, "encoder_layers": (2,), "decoder_layers": 1},
        **{"epochs": 1, "batch_size": 32, "n_marks": 4, "factor": 2},
    }
    config = ForecastConfig(**shape)
    errors, forecasts = {}, {}
    for device, there in DEVICES.items():
        with there():
            where = torch.device(device)
            found = train(series(), config, tmp_path / device, device=where)
            assert found.device.type == device
            train(series(), config, tmp_path / device, device=where, resume=True)
            errors[device] = found.errors(found.windows(series(), "test")).mse
            forecasts[device] = found.forecast(series())[1]
    assert errors["cuda"] == pytest.approx(errors["cpu"], rel=1e-4)
    assert np.allclose(forecasts["cuda"], forecasts["cpu"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("projected_len", "projection", "sharing"),
    [
        (0, "linear", "layerwise"),
        (16, "linear", "none"),
        (16, "conv", "headwise"),
        (16, "pool", "key-value"),
    ],
)
def test_an_encoder(cuda: Log, projected_len: int, projection: str, sharing: str) -> None:
    shape: dict[str, Any] = {
        **{"vocab_size": 50, "n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 64, "window": 64},
        **{"projected_len": projected_len, "projection": projection, "sharing": sharing},
    }
    config = EncoderConfig(**shape)
    torch.manual_seed(0)
    here = Encoder(config)
    there = copy.deepcopy(here).to("cuda")
    options = {"window": 64, "batch_size": 3, "vocab_size": 50, "seed": 0}
    windows = next(masked_windows(np.arange(2000) % 50, **options))
    for model, given in ((here, windows), (there, windows.to(torch.device("cuda")))):
        model.loss(given).backward()
    for one, other in zip(there.parameters(), here.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert torch.allclose(one.grad.cpu(), other.grad, rtol=1e-4, atol=1e-6)
