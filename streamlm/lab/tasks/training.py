"""Training a small model on questions: the trainer as it is, over sequences instead of books."""

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
    """As much of a tokenizer as training needs, for ids that stand for no text."""

    model_bytes = b""

    def __init__(self, vocab_size: int, bos_id: int) -> None:
        self.vocab_size, self.bos_id = vocab_size, bos_id
        self.token_lengths = np.ones(vocab_size, dtype=np.int32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """No text: to the `sketch` head, which merges neighbours of one kind, all are alike."""
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
    """A trainer whose only targets are answers; its bits per byte are bits per answer token.

    It stops and goes on like any other. Its folder holds weights without a tokenizer, so the
    checkpoint is for `Model.load_state_dict`, not for `streamlm.load`.
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
