"""As `parity`, of all that is no compression: heads, training, encoder, forecast, drafter."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tools.parity import distance, exact, seeded_model, small_config, some_tokens
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import ModelConfig
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.forecaster import MODELS
from streamlm.forecast.series import Batch
from streamlm.models.base import Model
from streamlm.models.encoder import Encoder, EncoderConfig, masked_windows
from streamlm.runtime.drafter import DrafterConfig
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.drafter import DraftTrainer
from streamlm.training.losses import target_loss
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer

# Settings of each head beside those of `small_config`.
OF_HEADS: dict[str, dict[str, Any]] = {
    "relative": {"compression_loss": "attention-reconstruction"},
    "recurrent": {"memory_len": 0, "compressed_len": 0},
    "full": {"memory_len": 0, "compressed_len": 0},
    "linformer": {"compressed_len": 0, "projected_len": 4},
    "informer": {"compressed_len": 0, "factor": 2},
    "sinks": {"compressed_len": 0, "pinned_len": 4},
    "sketch": {"coverage": 0.1},
}
ENCODERS = ((0, "linear", "layerwise"), (16, "linear", "none"), (16, "conv", "headwise"))
FORECASTERS = ("transformer", "dlinear", "nlinear")  # the Informer draws other keys elsewhere


def head_config(head: str, **options: Any) -> ModelConfig:
    """A small model of a head."""
    of_head = {**OF_HEADS[head], **options}
    return small_config(loss=of_head.pop("compression_loss", "none"), head=head, **of_head)


def head_gradient(head: str, device: str, *, precision: str = "float32") -> dict[str, float]:
    """Gradient of four segments on `device` and on the CPU, in the same precision."""
    model = seeded_model(head_config(head))
    with exact():
        here = _gradient(model, precision)
        there = _gradient(copy.deepcopy(model).to(device), precision)
    return {"gradient": distance(there, here)}


def _gradient(model: Model, precision: str) -> Tensor:
    t, device = model.config.segment_len, model.device
    tokens = some_tokens(model.config, 4 * t + 1).to(device)
    state, total = model.init_state(len(tokens)), torch.zeros((), device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        for start in range(0, 4 * t, t):
            hidden, state = model.hidden(tokens[:, start : start + t], state)
            loss = target_loss(model, hidden, tokens[:, start + 1 : start + t + 1])
            added = model.segment_loss(state)
            total = total + loss + (0 if added is None else added)
            state, _ = model.commit(state)
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def trainer(tokenizer: Tokenizer, corpus: Corpus, device: str) -> dict[str, float]:
    """Losses of the trainer's first steps on `device` and on the CPU."""
    config = head_config("relative", vocab_size=tokenizer.vocab_size)
    train = TrainConfig(steps=5, batch_size=2, learning_rate=1e-3, warmup_steps=2, eval_tokens=100)
    losses = []
    for where in ("cpu", device):
        with tempfile.TemporaryDirectory() as folder, exact():
            made = Trainer(
                config, train, tokenizer=tokenizer, train=corpus, valid=corpus, folder=folder,
                device=where,
            )  # fmt: skip
            losses.append(torch.tensor([step.loss for step in made.run()]))
    return {"losses": distance(losses[1], losses[0])}


def drafter(tokenizer: Tokenizer, corpus: Corpus, device: str) -> dict[str, float]:
    """Losses of a drafter's first steps on `device` and on the CPU."""
    model = seeded_model(head_config("relative", vocab_size=tokenizer.vocab_size))
    shape = {"d_model": 32, "n_heads": 2, "d_ff": 64, "n_tokens": 3, "label_len": 8}
    train = TrainConfig(steps=3, batch_size=2, learning_rate=1e-3, warmup_steps=1, eval_tokens=100)
    losses = []
    for where in ("cpu", device):
        checkpoint = Checkpoint(copy.deepcopy(model).to(where).requires_grad_(False), tokenizer)
        with tempfile.TemporaryDirectory() as folder, exact():
            made = DraftTrainer(
                checkpoint, DrafterConfig.of(checkpoint, shape), train, train=corpus, valid=corpus,
                folder=Path(folder),
            )  # fmt: skip
            losses.append(torch.tensor([step.losses for step in made.run()]))
    return {"losses": distance(losses[1], losses[0])}


def encoder(device: str) -> dict[str, float]:
    """Losses of encoders with full attention and with Linformer's."""
    found = {}
    for k, kind, sharing in ENCODERS:
        torch.manual_seed(0)
        model = Encoder(
            EncoderConfig(
                vocab_size=50, n_layers=2, d_model=32, n_heads=2, d_ff=64, window=64,
                projected_len=k, projection=kind, sharing=sharing,
            )
        )  # fmt: skip
        windows = next(
            masked_windows(np.arange(2000) % 50, window=64, batch_size=3, vocab_size=50, seed=0)
        )
        other = copy.deepcopy(model).to(device)
        with exact():
            there = other.loss(windows.to(torch.device(device)))
            found[f"{kind} {k}, {sharing}"] = distance(there, model.loss(windows))
    return found


def forecast(device: str) -> dict[str, float]:
    """Forecasts of models with fresh weights."""
    generator, found = torch.Generator().manual_seed(0), {}
    shapes = ((4, 48, 2), (4, 48, 4), (4, 12, 2), (4, 12, 4))
    given = [torch.randn(*shape, generator=generator) for shape in shapes]
    for name in FORECASTERS:
        config = ForecastConfig(
            model=name, columns=("a", "b"), input_len=48, label_len=24, horizon=12, d_model=32,
            n_heads=2, d_ff=64,
        )  # fmt: skip
        torch.manual_seed(0)
        model = MODELS[name](config).eval()
        other = copy.deepcopy(model).to(device)
        with torch.no_grad(), exact():
            there = other(Batch(*(each.to(device) for each in given)))
            found[name] = distance(there, model(Batch(*given)))
    return found
