"""Training a drafter: the backbone reads and stays as it is; what it will say is to be guessed."""

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
    Drafter,
    DrafterConfig,
    Known,
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

PLACES = 48  # of each row's segment, drawn anew each time, that are trained on
OTHERS = 512  # tokens compared besides those that came
UNUSED = {"accumulate": 1, "unroll": 1, "precision": "float32", "compile": False}


@dataclass(frozen=True)
class Places:
    """Places in a segment that was read, and what is to be guessed there.

    Attributes:
        known: of B · n places; see `Known`.
        targets: [B · n, N] the tokens that follow, IGNORED behind a document's end.
        hidden: [B · n, N, D] the backbone's output from which it predicts each of them.
    """

    known: Known
    targets: Tensor
    hidden: Tensor


class Reader:
    """Documents read side by side by the backbone, without gradients."""

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
    def read(self, at: Callable[[int], Tensor]) -> Places | None:
        """Read the next segment of every row; None at the end of the corpus.

        Args:
            at: from the number of places there are to [B, n] of them, or [1, n] for all rows alike.
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
        tail = torch.cat([tail[:, :-1], inputs[:, :1]], dim=1)  # where documents begin, bos
        tokens = torch.cat([tail, targets], dim=1)
        rows = torch.arange(len(inputs), device=model.device)[:, None]
        places = send(at(self.segment_len - config.n_tokens), model.device)
        places = places.expand(len(inputs), -1)
        found = self._places(rows, places, tokens, hidden, read)
        self.tail = tokens[:, -config.label_len :]
        self.state = model.commit(read, self.cache)[0]
        return found

    def _places(
        self, rows: Tensor, at: Tensor, tokens: Tensor, hidden: Tensor, read: State
    ) -> Places:
        """Args: at: [B, n], newest token read; tokens: [B, label_len + T]; read: after them."""
        config = self.config

        def window(start: Tensor, n: int) -> Tensor:
            return start[..., None] + torch.arange(n, device=start.device)  # [B, n, …]

        slots, real = newest_slots(read, config.context_len)
        seen = rows[..., None], window(at + 1, config.context_len)
        labels = tokens[rows[..., None], window(at + 1, config.label_len)]
        following = window(at + 1, config.n_tokens)
        targets = tokens[rows[..., None], config.label_len + following]
        known = Known(
            torch.where(labels == IGNORED, -1, labels).flatten(0, 1),
            slots[seen].flatten(0, 1),
            real[seen].flatten(0, 1),
            hidden[rows, at].flatten(0, 1),
        )
        # Nothing is known, so nothing asked, behind a document's end.
        over = tokens[rows, config.label_len + at] == IGNORED
        targets = targets.masked_fill(over[..., None], IGNORED)
        said = hidden[rows[..., None], following]
        return Places(known, targets.flatten(0, 1), said.flatten(0, 1))


def offset_losses(drafter: Drafter, model: Model, places: Places, others: Tensor) -> Tensor:
    """Cross-entropy in nats with what the backbone says, knowing all tokens before: [B · n, N].

    What it says is a better teacher than the one token that came, and what drafts are checked by.
    Both distributions are those among some of the vocabulary, which saves most of the time: the
    loss is least where they agree, whichever tokens are compared.

    Args:
        others: ids that are compared besides the targets.
    """
    compared = torch.cat([places.targets[places.targets != IGNORED], others]).unique()
    with torch.no_grad():
        wanted = _logits_of(model, places.hidden, compared).softmax(dim=-1)
    guessed = _logits_of(model, drafter(model, places.known), compared).log_softmax(dim=-1)
    losses = -(wanted * guessed).sum(dim=-1)
    return losses.masked_fill(places.targets == IGNORED, 0)


def _logits_of(model: Model, outputs: Tensor, ids: Tensor) -> Tensor:
    """Logits of some of the vocabulary: [..., D] → [..., n] float32."""
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
    """How well a drafter guesses documents: a conditionally independent likelihood.

    Its tokens do not know of each other, so this is no likelihood of the backbone's, and no bits
    per byte.

    Args:
        max_tokens: stop after about so many were read; stride: measure at every so many.

    Returns:
        Mean nats a token of each offset, and the number of places.
    """
    model = checkpoint.model
    reader = Reader(checkpoint, drafter.config, corpus, min(batch_size, len(corpus)))
    total, count, read = torch.zeros(drafter.config.n_tokens).double(), 0, 0
    with in_mode(drafter, training=False):
        while True:
            places = reader.read(lambda n: torch.arange(0, n, stride)[None])
            if places is None or (max_tokens is not None and read >= max_tokens):
                break
            whole = (places.targets != IGNORED).all(dim=1)
            found = -model.log_prob(drafter(model, places.known), places.targets)
            total += found[whole].sum(dim=0).double().cpu()
            count += int(whole.sum())
            n = len(reader.batches.document) * reader.segment_len
            read += n
            progress(n)
    if not count:
        raise ValueError("no place with enough text behind it; allowed: longer documents")
    return (total / count).tolist(), count


@dataclass(frozen=True)
class DraftStep:
    """What one step reports: cross-entropy of each offset with the backbone, nats."""

    step: int
    losses: list[float]
    learning_rate: float
    tokens: int
    seconds: float
    valid_nats: list[float] | None = None


class DraftTrainer:
    """One run in one folder: `log.jsonl`, `last/` (to go on from), `model/` (the drafter).

    Raises:
        ValueError: the configuration asks for what is not done here; says what.
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
        """Train to the end, yielding after every step; saves and evaluates on the way."""
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
        """Nats a token of each offset, over the first `eval_tokens` tokens of the validation."""
        config = self.config
        nats, _ = offset_nats(
            self.drafter, self.checkpoint, self.valid,
            batch_size=config.batch_size, max_tokens=config.eval_tokens,
        )  # fmt: skip
        return nats

    def _optimise(self, rate: float) -> list[float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Drawn by the number of the step, so that a run resumed draws the same.
        random = np.random.default_rng([self.config.seed, self.step])
        size = (self.config.batch_size, PLACES)
        places = self.reader.read(lambda n: torch.from_numpy(random.integers(0, n, size)))
        assert places is not None  # shuffled, it never ends
        model = self.checkpoint.model
        others = torch.from_numpy(random.integers(0, model.config.vocab_size, OTHERS))
        with in_mode(self.drafter, training=True):
            others = send(others, model.device)
            losses = offset_losses(self.drafter, model, places, others).sum(dim=0)
            losses = losses / (places.targets != IGNORED).sum(dim=0).clamp(min=1)
            losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.config.clip)
        # As in `Trainer`: the optimiser skips a step whose gradient is not finite.
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        found: list[float] = losses.detach().tolist()
        return found

    # -- stop and go on ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write everything needed to go on into `last/`, replacing it at once."""
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
        """Go on from `last/`.

        Raises:
            FileNotFoundError: nothing was saved there.
            ValueError: it was saved under another configuration, or for another backbone.
        """
        last = last_folder(self.folder)
        device = self.checkpoint.model.device
        saved = torch.load(last / "training.pt", weights_only=True, map_location=device)
        check_unchanged(self.config, saved["config"], self.folder)
        found = DrafterConfig.load(last / CONFIG)
        if found != self.drafter.config:
            raise ValueError(f"the run in {self.folder} was begun with another drafter: {found}")
        optimizer = regrouped(saved["optimizer"], self.optimizer, self.drafter)
        self.drafter.load_state_dict(load_file(last / WEIGHTS))
        self.optimizer.load_state_dict(optimizer)
        self.step = saved["step"]
        self.reader.batches.restore(saved["batches"])
        closed = {"length": [0] * self.config.batch_size}  # older runs do not say so
        self.reader.state = State.from_dict({**closed, **saved["state"]})
        self.reader.tail = saved["tail"]


def draft_trainer_for(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> DraftTrainer:
    """Load what a recipe names and build its trainer; [model] is the drafter's."""
    config = DrafterConfig.of(checkpoint, recipe.model)
    cache = Path(folder).parent / "cache"
    train, valid = recipe.corpora(checkpoint.tokenizer, cache=cache, progress=progress)
    return DraftTrainer(checkpoint, config, recipe.train, train=train, valid=valid, folder=folder)
