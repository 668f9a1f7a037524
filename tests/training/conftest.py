"""A corpus of short documents, and a factory of trainers on it."""

from pathlib import Path

import numpy as np
import pytest

from streamlm.config import ModelConfig
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.trainer import Trainer
from tests.support.training import MODEL, TRAIN, MakeTrainer
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus(books_tokenizer: Tokenizer) -> Corpus:
    """Repetitive documents of a few segments."""
    texts = [f"Call me {name}. " * n for name, n in (("Ishmael", 9), ("Ahab", 14), ("Pip", 11))]
    parts = [books_tokenizer.encode(text) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return Corpus(np.concatenate(parts), offsets, sum(map(len, texts)), 100)


@pytest.fixture
def make(tmp_path: Path, corpus: Corpus, books_tokenizer: Tokenizer) -> MakeTrainer:
    """Makes trainers; options are settings of the model or of the training."""

    def make(folder: str = "run", *, tensorboard: Path | None = None, **options: object) -> Trainer:
        settings = {"vocab_size": books_tokenizer.vocab_size, **MODEL}
        names = ModelConfig(vocab_size=1).to_dict()
        settings |= {name: value for name, value in options.items() if name in names}
        training = {name: value for name, value in options.items() if name not in names}
        return Trainer(
            ModelConfig.from_dict(settings),
            TrainConfig.from_dict({**TRAIN, **training}),
            tokenizer=books_tokenizer,
            train=corpus,
            valid=corpus,
            folder=tmp_path / folder,
            device="cpu",
            tensorboard=tensorboard,
        )

    return make
