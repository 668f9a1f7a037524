"""Training a drafter to predict the outputs of a backbone, which is not modified."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import TrainConfig
from streamlm.models.modes import in_mode
from streamlm.runtime.drafter import (
    CONFIG,
    WEIGHTS,
    Drafter,
    DrafterConfig,
    save_drafter,
)
from streamlm.state import State
from streamlm.training.data import IGNORED, Corpus
from streamlm.training.draft_reading import Reader, offset_losses, offset_nats
from streamlm.training.parameter_groups import parameter_groups, regrouped
from streamlm.training.recipe import Recipe
from streamlm.training.trainer import (
    MAY_CHANGE,
    last_folder,
    put_in_place,
    scheduled_rate,
)
from streamlm.transfer import send

POSITIONS = 48  # trained on per row and segment, drawn at random in each step
OTHERS = 512  # ids compared besides the targets
UNUSED = {"accumulate": 1, "unroll": 1, "precision": "float32", "compile": False}


@dataclass(frozen=True)
class DraftStep:
    """The report of one step; `losses` is the cross-entropy with the backbone by offset, nats."""

    step: int
    losses: list[float]
    learning_rate: float
    tokens: int
    seconds: float
    valid_nats: list[float] | None = None


class DraftTrainer:
    """A training run in a folder: `log.jsonl`, `last/` (to resume from), `model/` (the drafter).

    Raises:
        ValueError: a setting of the configuration is not supported for drafters.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        drafter_config: DrafterConfig,
        config: TrainConfig,
        *,
        train: Corpus,
        valid: Corpus,
        folder: str | Path,
    ) -> None:
        for name, allowed in UNUSED.items():
            if getattr(config, name) != allowed:
                given = f"{name} = {getattr(config, name)!r}"
                raise ValueError(f"{given}; allowed for a drafter: {allowed!r}")
        self.checkpoint, self.config, self.valid = checkpoint, config, valid
        self.folder = Path(folder)
        torch.manual_seed(config.seed)
        self.drafter = Drafter(drafter_config).to(checkpoint.model.device)
        groups = parameter_groups(self.drafter, weight_decay=config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), fused=True)
        self.reader = Reader(
            checkpoint, drafter_config, train, config.batch_size, shuffle=config.seed
        )
        self.step = 0

    def run(self) -> Iterator[DraftStep]:
        """Train to the end, with regular saves and evaluations; yields after every step."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        started, per_step = time.perf_counter(), config.batch_size * self.reader.segment_len
        while self.step < config.steps:
            rate = scheduled_rate(config, self.step)
            losses = self._optimise(rate)
            self.step += 1
            spent = time.perf_counter() - started
            report = DraftStep(self.step, losses, rate, self.step * per_step, spent)
            if not math.isfinite(sum(losses)):
                remedy = "begin again with a lower learning_rate"
                raise FloatingPointError(f"the loss is {losses} at step {self.step}; {remedy}")
            finished = self.step == config.steps
            if self.step % config.eval_steps == 0 or finished:
                report = replace(report, valid_nats=self.validate())
            if self.step % config.log_steps == 0 or report.valid_nats:
                with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(asdict(report)) + "\n")
            if self.step % config.checkpoint_steps == 0 or finished:
                self.save()
            yield report
        save_drafter(self.folder / "model", self.drafter)

    def validate(self) -> list[float]:
        """Nats per token by offset, over the first `eval_tokens` tokens of the validation data."""
        config = self.config
        nats, _ = offset_nats(
            self.drafter, self.checkpoint, self.valid,
            batch_size=config.batch_size, max_tokens=config.eval_tokens,
        )  # fmt: skip
        return nats

    def _optimise(self, rate: float) -> list[float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Seeded by the step, so that a resumed run draws the same.
        random = np.random.default_rng([self.config.seed, self.step])
        size = (self.config.batch_size, POSITIONS)
        batch = self.reader.read(lambda n: torch.from_numpy(random.integers(0, n, size)))
        assert batch is not None  # a shuffled reader never ends
        model = self.checkpoint.model
        others = torch.from_numpy(random.integers(0, model.config.vocab_size, OTHERS))
        with in_mode(self.drafter, training=True):
            others = send(others, model.device)
            losses = offset_losses(self.drafter, model, batch, others).sum(dim=0)
            losses = losses / (batch.targets != IGNORED).sum(dim=0).clamp(min=1)
            losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.config.clip)
        # As in `Trainer`: the optimiser skips a step whose gradient is not finite.
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        found: list[float] = losses.detach().tolist()
        return found

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self) -> None:
        """Write everything needed to resume into `last/`, replacing it atomically."""
        with put_in_place(self.folder) as fresh:
            save_drafter(fresh, self.drafter)
            training = {
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
                "batches": self.reader.batches.state(),
                "state": self.reader.state.to_dict(),
                "tail": self.reader.tail,
                "config": self.config.to_dict(),
            }
            torch.save(training, fresh / "training.pt")

    def resume(self) -> None:
        """Resume from `last/`.

        Raises:
            FileNotFoundError: there is no save.
            ValueError: it was saved with another configuration, or for another backbone.
        """
        last = last_folder(self.folder)
        device = self.checkpoint.model.device
        saved = torch.load(last / "training.pt", weights_only=True, map_location=device)
        for name, value in self.config.to_dict().items():
            if name not in MAY_CHANGE and saved["config"][name] != value:
                raise ValueError(
                    f"{name} = {value!r}, but the run in {self.folder} was "
                    f"begun with {saved['config'][name]!r}"
                )
        found = DrafterConfig.load(last / CONFIG)
        if found != self.drafter.config:
            raise ValueError(f"the run in {self.folder} was begun with another drafter: {found}")
        optimizer = regrouped(saved["optimizer"], self.optimizer, self.drafter)
        self.drafter.load_state_dict(load_file(last / WEIGHTS))
        self.optimizer.load_state_dict(optimizer)
        self.step = saved["step"]
        self.reader.batches.restore(saved["batches"])
        closed = {"length": [0] * self.config.batch_size}  # absent in older runs
        self.reader.state = State.from_dict({**closed, **saved["state"]})
        self.reader.tail = saved["tail"]


def draft_trainer_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> DraftTrainer:
    """Build the trainer for a recipe, whose [model] describes the drafter."""
    config = DrafterConfig.of(checkpoint, recipe.model)
    cache = Path(folder).parent / "cache"
    train, valid = recipe.corpora(checkpoint.tokenizer, cache=cache, progress=progress)
    return DraftTrainer(checkpoint, config, recipe.train, train=train, valid=valid, folder=folder)
