"""Functions that set a mode restore that of each submodule, also when interrupted."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.forecaster import MODELS, Forecaster
from streamlm.forecast.reading import load
from streamlm.forecast.series import Scale, Series
from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.recall import recall
from streamlm.lab.tasks.scoring import answer
from streamlm.models.modes import in_mode
from streamlm.runtime.drafter import Drafter, DrafterConfig
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.drafter import DraftTrainer, offset_nats
from streamlm.training.evaluate import evaluate
from streamlm.training.trainer import Trainer
from tests.support.invariants import tiny_model

Work = tuple[nn.Module, Callable[[], object]]
STEPS = TrainConfig(steps=2, batch_size=2)


class Interrupted(BaseException):
    """Raised in place of Ctrl-C."""


def interrupt(*_: object) -> None:
    raise Interrupted


def modes(module: nn.Module) -> list[bool]:
    return [each.training for each in module.modules()]


def set_modes(module: nn.Module, *, training: bool) -> list[bool]:
    """Set a mode, and the opposite one for every third submodule."""
    module.train(training)
    for index, each in enumerate(module.modules()):
        if index % 3 == 2:
            each.training = not training
    found = modes(module)
    assert len(set(found)) == 2 and found[0] == training
    return found


@pytest.fixture
def corpus(tiny: Checkpoint, prose: Callable[..., str]) -> Corpus:
    ids = [tiny.tokenizer.encode(prose(150, seed=seed)) for seed in range(3)]
    return Corpus(np.concatenate(ids), np.cumsum([0, *map(len, ids)]), 1, 1)


def evaluating(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    model, lengths = tiny_model(vocab_size=8192), tiny.tokenizer.token_lengths
    return model, lambda: evaluate(model, corpus, bos=1, token_lengths=lengths, progress=interrupt)


def answering(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    model = tiny_model(vocab_size=256, segment_len=16)
    alphabet = Alphabet.plain(256)
    questions = recall(alphabet, n=2, segment_len=16, distances=range(2), pairs=2)
    return model, lambda: answer(model, questions, bos=0, progress=interrupt)


def guessing(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    drafter = Drafter(DrafterConfig.of(tiny, {"d_model": 8, "n_heads": 2, "d_ff": 16}))
    return drafter, lambda: offset_nats(drafter, tiny, corpus, progress=interrupt)


def forecaster(folder: Path) -> tuple[Forecaster, Series]:
    dates = np.datetime64("2016-07-01T00:00:00") + np.arange(200) * np.timedelta64(60, "m")
    rows = [f"{date},{math.sin(n / 3)}".replace("T", " ") for n, date in enumerate(dates)]
    (folder / "wave.csv").write_text("\n".join(["date,a", *rows]) + "\n", encoding="utf-8")
    series = load(folder / "wave.csv")
    config = ForecastConfig(
        model="informer", columns=("a",), input_len=16, label_len=8, horizon=4,
        d_model=16, n_heads=2, d_ff=32,
    )  # fmt: skip
    return Forecaster(MODELS[config.model](config), config, Scale.of(series)), series


def erring(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    found, series = forecaster(folder)
    windows = found.windows(series, "test")
    return found.model, lambda: found.errors(windows, interrupt)


def forecasting(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    found, series = forecaster(folder)
    found.model.register_forward_hook(interrupt)
    return found.model, lambda: found.forecast(series)


def training(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    trainer = Trainer(
        replace(tiny.model.config, compression_loss="attention-reconstruction"),
        STEPS,
        tokenizer=tiny.tokenizer, train=corpus, valid=corpus, folder=folder, device="cpu",
    )  # fmt: skip
    trainer.model.final_norm.register_forward_hook(interrupt)
    return trainer.model, lambda: next(trainer.run())


def draft_training(tiny: Checkpoint, corpus: Corpus, folder: Path) -> Work:
    config = DrafterConfig.of(tiny, {"d_model": 8, "n_heads": 2, "d_ff": 16})
    trainer = DraftTrainer(tiny, config, STEPS, train=corpus, valid=corpus, folder=folder)
    trainer.drafter.register_forward_hook(interrupt)
    return trainer.drafter, lambda: next(trainer.run())


WORKS = (evaluating, answering, guessing, erring, forecasting, training, draft_training)


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("begin", WORKS)
def test_interrupted_work_restores_every_mode(
    begin: Callable[..., Work],
    in_training: bool,
    tiny: Checkpoint,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    module, work = begin(tiny, corpus, tmp_path)
    before = set_modes(module, training=in_training)
    with pytest.raises(Interrupted):
        work()
    assert modes(module) == before


def test_in_mode_restores_modes_at_the_end_of_the_block() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.ReLU()))
    before = set_modes(module, training=True)
    with in_mode(module, training=False):
        assert not any(modes(module))
        with in_mode(module, training=True):
            assert all(modes(module))
        assert not any(modes(module))
    assert modes(module) == before


def test_temporary_training_mode_unfreezes_the_model() -> None:
    """Derived tensors are dropped, although the mode is restored."""
    model = tiny_model(dtype=torch.float32)
    tokens = torch.arange(4)[None]
    with torch.no_grad():
        before, _ = model(tokens, model.init_state(1))
        with in_mode(model, training=True):
            model.layers[0].attention.position.weight.data.mul_(2)
        assert model.frozen is None and not model.training
        after, _ = model(tokens, model.init_state(1))
    assert not torch.equal(before, after)
