"""Training of drafters: the backbone is frozen, and the drafter learns to predict its output."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.layers.adaptive import AdaptiveEmbedding
from streamlm.models.modes import in_mode
from streamlm.runtime.drafter import (
    CONFIG,
    WEIGHTS,
    DraftContext,
    Drafter,
    DrafterConfig,
    newest_slots,
    save_drafter,
)
from streamlm.state import State
from streamlm.training.config import TrainConfig
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.training.parameter_groups import parameter_groups, regrouped
from streamlm.training.recipe import Recipe
from streamlm.training.run_folder import check_unchanged, last_folder, put_in_place
from streamlm.training.schedule import scheduled_rate
from streamlm.transfer import send

POSITIONS = 48  # trained per row and segment, drawn anew for every step
OTHERS = 512  # ids that are compared besides the targets
UNUSED = {
    **{"accumulate": 1, "rows_at_once": 0, "unroll": 1},
    **{"precision": "float32", "compile": False, "shard": ""},
}


@dataclass(frozen=True)
class DraftBatch:
    """Positions of a segment that the backbone has read, with the drafter's inputs and targets.

    Attributes:
        context: the drafter's input at B · n positions.
        targets: [B · n, N] the tokens that follow, IGNORED after a document's end.
        hidden: [B · n, N, D] the backbone's output that predicts each of them.
    """

    context: DraftContext
    targets: Tensor
    hidden: Tensor


class DraftReader:
    """The backbone reads documents in parallel rows, without gradients."""

    def __init__(
        self, checkpoint: Checkpoint, config: DrafterConfig, corpus: Corpus, batch_size: int,
        *, shuffle: int | None = None,
    ) -> None:  # fmt: skip
        self.checkpoint, self.config = checkpoint, config
        model = checkpoint.model
        self.segment_len = model.config.segment_len
        if config.n_tokens >= self.segment_len:
            raise ValueError(
                f"n_tokens = {config.n_tokens}; allowed: below segment_len = {self.segment_len}"
            )
        self.batches = SegmentBatches(
            corpus, batch_size, segment_len=self.segment_len, bos=checkpoint.tokenizer.bos_id,
            shuffle=shuffle,
        )  # fmt: skip
        self.state, self.cache = model.init_state(batch_size), Cache()
        self.tail = torch.full((batch_size, config.label_len), IGNORED, device=model.device)

    @torch.no_grad()
    def read(self, at: Callable[[int], Tensor]) -> DraftBatch | None:
        """Read the next segment of every row; None at the end of the corpus.

        Args:
            at: chooses positions: from their number to [B, n] of them, or [1, n] for all rows.
        """
        batch = next(self.batches, None)
        if batch is None:
            return None
        model, config = self.checkpoint.model, self.config
        begins = send(batch.begins, model.device)
        state, tail = self.state, self.tail.masked_fill(begins[:, None], IGNORED)
        if bool(batch.begins.any()):
            state = state.reset_rows(batch.begins)
        inputs, targets = (send(each, model.device) for each in (batch.inputs, batch.targets))
        hidden, read = model.hidden(inputs, state, self.cache)
        tail = torch.cat([tail[:, :-1], inputs[:, :1]], dim=1)  # bos where a document begins
        tokens = torch.cat([tail, targets], dim=1)
        rows = torch.arange(len(inputs), device=model.device)[:, None]
        positions = send(at(self.segment_len - config.n_tokens), model.device)
        positions = positions.expand(len(inputs), -1)
        drafts = self._batch(rows, positions, tokens, hidden, read)
        self.tail = tokens[:, -config.label_len :]
        self.state = model.commit(read, self.cache)[0]
        return drafts

    def _batch(
        self, rows: Tensor, at: Tensor, tokens: Tensor, hidden: Tensor, read: State
    ) -> DraftBatch:
        """The drafter's inputs and targets at the given positions.

        Args:
            at: [B, n] positions of the newest token read.
            tokens: [B, label_len + T]; read: the state after them.
        """
        config = self.config

        def window(start: Tensor, n: int) -> Tensor:
            return start[..., None] + torch.arange(n, device=start.device)  # [B, n, …]

        slots, real = newest_slots(read, config.context_len)
        seen = rows[..., None], window(at + 1, config.context_len)
        labels = tokens[rows[..., None], window(at + 1, config.label_len)]
        following = window(at + 1, config.n_tokens)
        targets = tokens[rows[..., None], config.label_len + following]
        context = DraftContext(
            torch.where(labels == IGNORED, -1, labels).flatten(0, 1),
            slots[seen].flatten(0, 1),
            real[seen].flatten(0, 1),
            hidden[rows, at].flatten(0, 1),
        )
        # After a document's end there is no input, so there are no targets.
        over = tokens[rows, config.label_len + at] == IGNORED
        targets = targets.masked_fill(over[..., None], IGNORED)
        predicting = hidden[rows[..., None], following]
        return DraftBatch(context, targets.flatten(0, 1), predicting.flatten(0, 1))


def offset_losses(drafter: Drafter, model: Model, batch: DraftBatch, others: Tensor) -> Tensor:
    """Cross-entropy in nats with the backbone's distribution given all earlier tokens: [B · n, N].

    The backbone's distribution teaches more than the single token that follows, and it is what
    drafts are verified against. Both distributions are restricted to a part of the vocabulary,
    which saves most of the time: the minimum is where they agree, for any choice of ids.

    Args:
        others: ids that are compared besides the targets.
    """
    compared = torch.cat([batch.targets[batch.targets != IGNORED], others]).unique()
    with torch.no_grad():
        wanted = _logits_of(model, batch.hidden, compared).softmax(dim=-1)
    drafted = _logits_of(model, drafter(model, batch.context), compared).log_softmax(dim=-1)
    losses = -(wanted * drafted).sum(dim=-1)
    return losses.masked_fill(batch.targets == IGNORED, 0)


def _logits_of(model: Model, outputs: Tensor, ids: Tensor) -> Tensor:
    """Logits of the given ids: [..., D] → [..., n] float32."""
    if isinstance(model.embedding, AdaptiveEmbedding):
        return model.logits(outputs)[..., ids].float()
    return F.linear(outputs, model.embedding.weight[ids], model.output_bias[ids]).float()


@torch.no_grad()
def offset_nats(
    drafter: Drafter,
    checkpoint: Checkpoint,
    corpus: Corpus,
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    stride: int = 8,
    progress: Callable[[int], object] = lambda tokens: None,
) -> tuple[list[float], int]:
    """Evaluate a drafter on documents: its conditionally independent likelihood.

    The tokens of a draft do not depend on each other, so this compares neither with the backbone's
    likelihood nor with bits per byte.

    Args:
        max_tokens: stop after about this many tokens; stride: tokens between measured positions.
        progress: called with the number of tokens of each segment.

    Returns:
        Mean nats per token for each offset, and the number of positions.

    Raises:
        ValueError: no document is long enough.
    """
    model = checkpoint.model
    reader = DraftReader(checkpoint, drafter.config, corpus, min(batch_size, len(corpus)))
    total, count, read = torch.zeros(drafter.config.n_tokens).double(), 0, 0
    with in_mode(drafter, training=False):
        while True:
            batch = reader.read(lambda n: torch.arange(0, n, stride)[None])
            if batch is None or (max_tokens is not None and read >= max_tokens):
                break
            whole = (batch.targets != IGNORED).all(dim=1)
            nats = -model.log_prob(drafter(model, batch.context), batch.targets)
            total += nats[whole].sum(dim=0).double().cpu()
            count += int(whole.sum())
            n = len(reader.batches.document) * reader.segment_len
            read += n
            progress(n)
    if not count:
        raise ValueError("no document has enough text after a position; allowed: longer documents")
    return (total / count).tolist(), count


@dataclass(frozen=True)
class DraftStep:
    """The report of a step; losses are cross-entropy with the backbone in nats, by offset."""

    step: int
    losses: list[float]
    learning_rate: float
    tokens: int
    seconds: float
    valid_nats: list[float] | None = None


class DraftTrainer:
    """A run in a folder: `log.jsonl`, `last/` (to resume from), `model/` (the drafter).

    Raises:
        ValueError: the configuration has a setting that drafters do not support; names it.
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
        self.reader = DraftReader(
            checkpoint, drafter_config, train, config.batch_size, shuffle=config.seed
        )
        self.step = 0

    def run(self) -> Iterator[DraftStep]:
        """Train to the end, yielding after every step; saves and evaluates periodically."""
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
        """Nats per token by offset, over the first `eval_tokens` validation tokens."""
        config = self.config
        nats, _ = offset_nats(
            self.drafter, self.checkpoint, self.valid,
            batch_size=config.batch_size, max_tokens=config.eval_tokens,
        )  # fmt: skip
        return nats

    def _optimise(self, rate: float) -> list[float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Seeded by the step, so that a resumed run draws the same positions.
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
        by_offset: list[float] = losses.detach().tolist()
        return by_offset

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self) -> None:
        """Replace `last/` atomically with everything that `resume` needs."""
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
            ValueError: the save has another configuration or another drafter.
        """
        last = last_folder(self.folder)
        device = self.checkpoint.model.device
        saved = torch.load(last / "training.pt", weights_only=True, map_location=device)
        check_unchanged(self.config, saved["config"], self.folder)
        begun = DrafterConfig.load(last / CONFIG)
        if begun != self.drafter.config:
            raise ValueError(f"the run in {self.folder} was begun with another drafter: {begun}")
        optimizer = regrouped(saved["optimizer"], self.optimizer, self.drafter)
        self.drafter.load_state_dict(load_file(last / WEIGHTS))
        self.optimizer.load_state_dict(optimizer)
        self.step = saved["step"]
        self.reader.batches.restore(saved["batches"])
        closed = {"length": [0] * self.config.batch_size}  # missing in older runs
        self.reader.state = State.from_dict({**closed, **saved["state"]})
        self.reader.tail = saved["tail"]


def draft_trainer_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> DraftTrainer:
    """Load the data of a recipe and build its trainer; [model] is the drafter's."""
    config = DrafterConfig.of(checkpoint, recipe.model)
    cache = Path(folder).parent / "cache"
    train, valid = recipe.corpora(checkpoint.tokenizer, cache=cache, progress=progress)
    return DraftTrainer(checkpoint, config, recipe.train, train=train, valid=valid, folder=folder)
