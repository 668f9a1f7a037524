"""A trainer made from a recipe."""

from collections.abc import Callable
from pathlib import Path

import torch

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.config import ModelConfig
from streamlm.training.ranks import Ranks
from streamlm.training.recipe import Recipe
from streamlm.training.run_folder import ONE
from streamlm.training.trainer import Trainer


def trainer_for(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "auto",
    progress: Callable[[str], None] = lambda message: None,
    tensorboard: str | Path | None = None,
    ranks: Ranks = ONE,
) -> Trainer:
    """Load the tokenizer, the data and, if there is one, the base model of a recipe.

    Args:
        tensorboard, ranks: see `Trainer`. Rank 0 encodes; the others read what it has cached.
    """
    cache = Path(folder).parent / "cache"
    ranks.check_shared(cache)
    if recipe.base is not None:
        base = load_checkpoint(
            recipe.base,
            device=ranks.device or device,
            dtype=torch.float32,
            settings=recipe.model,
        )
        with ranks.leader_first():
            train, valid = recipe.corpora(base.tokenizer, cache=cache, progress=progress)
        return Trainer(
            base.model.config,
            recipe.train,
            tokenizer=base.tokenizer,
            train=train,
            valid=valid,
            folder=folder,
            device=device,
            base=base,
            tensorboard=tensorboard,
            ranks=ranks,
        )
    tokenizer = recipe.own_tokenizer()
    values = {"vocab_size": tokenizer.vocab_size, **recipe.model}
    config = ModelConfig.from_dict(values)
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size = {config.vocab_size}; allowed: at least {tokenizer.vocab_size}, the "
            "tokens of the tokenizer"
        )
    with ranks.leader_first():
        train, valid = recipe.corpora(tokenizer, cache=cache, progress=progress)
    return Trainer(
        config,
        recipe.train,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        folder=folder,
        device=device,
        tensorboard=tensorboard,
        ranks=ranks,
    )
