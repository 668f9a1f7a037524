"""Training of small models on memory tasks, with the ordinary trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from streamlm.config import ModelConfig
from streamlm.lab.tasks.questions import Questions
from streamlm.training.config import TrainConfig
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer


class Ids:
    """The part of a tokenizer that training needs, for ids without text."""

    model_bytes = b""

    def __init__(self, vocab_size: int, bos_id: int) -> None:
        self.vocab_size, self.bos_id = vocab_size, bos_id
        self.token_lengths = np.ones(vocab_size, dtype=np.int32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """No bytes: all ids are of one kind to the `sketch` head, which merges by kind."""
        return b""


def trainer_on(
    questions: Questions,
    valid: Questions,
    *,
    model: ModelConfig,
    train: TrainConfig,
    bos: int,
    folder: str | Path,
    device: str = "auto",
) -> Trainer:
    """A trainer whose only targets are answers, so that bits per byte are bits per answer token.

    Its checkpoint has no tokenizer: load it with `Model.load_state_dict`, not `streamlm.load`.
    """
    return Trainer(
        model,
        train,
        tokenizer=cast(Tokenizer, Ids(model.vocab_size, bos)),
        train=questions.corpus(),
        valid=valid.corpus(),
        folder=folder,
        device=device,
    )
