"""Small drafters, and one whose drafts are known to be right or wrong."""

from typing import Any

import torch
from torch import Tensor

from streamlm.models.base import Model
from streamlm.runtime.drafter import (
    DraftContext,
    Drafter,
    DrafterConfig,
)
from streamlm.runtime.stream import advance
from streamlm.state import State

SMALL = {"d_model": 8, "n_heads": 2, "d_ff": 16, "label_len": 3, "context_len": 4}


class Oracle(Drafter):
    """Drafts with the model: the first `right` tokens are the model's, the others are wrong."""

    def __init__(self, model: Model, config: DrafterConfig, right: int, wrong: int = 0) -> None:
        super().__init__(config)
        self.model, self.right, self.wrong = model, right, wrong
        self.guesses: list[int] = []

    def context(self, tokens: Tensor, hidden: Tensor, state: State) -> DraftContext:
        self.at = tokens[:, -1:], state
        return super().context(tokens, hidden, state)

    @torch.no_grad()
    def forward(self, model: Model, context: DraftContext) -> Tensor:
        token, state = self.at
        found = []
        for index in range(self.config.n_tokens):
            hidden, state = advance(self.model, token, state)
            found.append(hidden if index < self.right else -hidden.roll(self.wrong, dims=1))
            self.guesses.append(int(self.model.logits(found[-1]).argmax()))
            token = self.model.logits(hidden).argmax(dim=-1)[None]
        return torch.stack(found, dim=1)


def config_for(model: Model, **settings: Any) -> DrafterConfig:
    bound = {"slot_width": model.config.d_model, "backbone": "tiny", "weights": "none"}
    return DrafterConfig(**{**SMALL, **bound, **settings})
