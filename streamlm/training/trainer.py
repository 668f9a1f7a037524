"""The trainer: documents read in parallel rows, with memory carried from segment to segment."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from streamlm.checkpoints.checkpoint import (
    Checkpoint,
    choose_device,
    load_checkpoint,
    save_checkpoint,
)
from streamlm.checkpoints.gates import GATES_FILE, save_gates
from streamlm.checkpoints.json_file import read_json
from streamlm.checkpoints.own import own_config
from streamlm.config import ModelConfig
from streamlm.models.build import build_model
from streamlm.models.llama import LlamaModel
from streamlm.models.modes import in_mode
from streamlm.state import State
from streamlm.training.config import TrainConfig
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.training.evaluate import evaluate
from streamlm.training.losses import target_loss
from streamlm.training.parameter_groups import parameter_groups, regrouped
from streamlm.training.recipe import Recipe
from streamlm.training.run_folder import check_unchanged, last_folder, put_in_place
from streamlm.training.schedule import scheduled_rate
from streamlm.training.step import BegunStep, Pace, Step
from streamlm.training.tensorboard import EventLog, load_writer
from streamlm.transfer import Fetch, send
from tokenizer import Tokenizer


class Trainer:
    """A run in a folder: `log.jsonl`, `last/` (to resume from), `model/` (the checkpoint).

    The loss of a step is the mean over all its targets, however they are split into groups and
    segments. A resumed run ends with the same weights as an uninterrupted one, on the same machine
    with the same number of threads.

    Args:
        tensorboard: a folder for event files as well; needs the extra `tensorboard`.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        tokenizer: Tokenizer,
        train: Corpus,
        valid: Corpus,
        folder: str | Path,
        device: str = "auto",
        base: Checkpoint | None = None,
        tensorboard: str | Path | None = None,
    ) -> None:
        if tensorboard is not None:
            load_writer()  # what is missing is missing before anything is trained
        if model_config.compression_loss == "bptt" and config.unroll < 2:
            raise ValueError("unroll = 1; allowed with compression_loss 'bptt': at least 2")
        self.config, self.tokenizer, self.valid = config, tokenizer, valid
        self.folder, self.device = Path(folder), choose_device(device)
        torch.manual_seed(config.seed)
        self._base = base
        self._tensorboard = tensorboard
        self._events: EventLog | None = None
        if base is None:
            self.model = build_model(model_config).to(self.device)
            self.model.prepare(tokenizer)
        else:
            self.model = base.model.to(self.device).train()
        self._compression = self.model.compression_parameters()
        self._choose_parameters()
        apart = set(map(id, self._compression))
        self._backbone = [
            each for each in self.model.parameters() if each.requires_grad and id(each) not in apart
        ]
        self.step = self.tokens = 0
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, weight_decay=config.weight_decay),
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        self.batches = [
            SegmentBatches(
                train,
                config.batch_size,
                segment_len=model_config.segment_len,
                bos=tokenizer.bos_id,
                shuffle=config.seed + index,
            )
            for index in range(config.accumulate)
        ]
        self.states = [self.model.init_state(config.batch_size) for _ in self.batches]
        self._read: Callable[..., Any] = self._read_segment
        if config.compile:
            self._read = torch.compile(self._read_segment, dynamic=False)

    def _choose_parameters(self) -> None:
        """Which parameters have gradients; see `TrainConfig.only`."""
        self.model.requires_grad_(not self.config.only)
        if not self.config.only:
            return
        if not self._compression or self.model.config.compression_loss in ("none", "bptt"):
            trained = f"{self.model.config.compression!r}, {self.model.config.compression_loss!r}"
            raise ValueError(
                f"only = 'compression' with compression and compression_loss {trained}; allowed: "
                "a compression with parameters, and a loss of its own"
            )
        for parameter in self._compression:
            parameter.requires_grad_(True)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; see `scheduled_rate`."""
        return scheduled_rate(self.config, step)

    def run(self) -> Iterator[Step]:
        """Train to the end, yielding after every step; saves and evaluates periodically.

        On CUDA a step is yielded after the next one is queued, so that the device never idles.
        Steps that are saved or evaluated, and the last one, are yielded before the next is queued.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._tensorboard is not None:
            self._events = EventLog(self._tensorboard, step=self.step)
        try:
            yield from self._steps()
        finally:
            if self._events is not None:
                self._events.close()
                self._events = None
        self._save_weights(self.folder / "model")

    def _steps(self) -> Iterator[Step]:
        config, pace = self.config, Pace()
        running: BegunStep | None = None
        while self.step < config.steps:
            with in_mode(self.model, training=True):
                begun = self._optimise()
            if running is not None:
                report = self._settle(running, pace)
                self._log(report)
                yield report
                running = None
            finished = self.step == config.steps
            evaluates = self.step % config.eval_steps == 0 or finished
            saves = self.step % config.checkpoint_steps == 0 or finished
            if not (begun.sums.arrived or evaluates or saves):
                running = begun
                continue
            report = self._settle(begun, pace)
            if evaluates:
                report = replace(report, valid_bits_per_byte=self.validate())
            self._log(report)
            if saves:
                self.save()
            if evaluates:
                pace.restart()
            yield report

    def _save_weights(self, folder: Path) -> None:
        """A checkpoint; of a base model whose compression alone is trained, the gates."""
        if self._base is None or not self.config.only:
            save_checkpoint(folder, self.model, self.tokenizer)
            return
        assert isinstance(self.model, LlamaModel)
        digest = self._base.fingerprints["weights"]
        save_gates(folder / GATES_FILE, self.model, weights_digest=digest)
        (folder / "config.json").write_text(self.model.config.to_json(), encoding="utf-8")

    def _settle(self, begun: BegunStep, pace: Pace) -> Step:
        """Wait for a queued step and report it.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        report = begun.report(pace, of=self.config.steps)
        if not math.isfinite(report.loss):
            last_good = self.folder / "last"
            remedy = "begin again with a lower learning_rate"
            if last_good.exists():
                remedy = f"resume from {last_good} with a lower learning_rate"
            raise FloatingPointError(f"the loss is {report.loss} at step {report.step}; {remedy}")
        return report

    def _log(self, report: Step) -> None:
        last = report.step == self.config.steps
        if report.step % self.config.log_steps == 0 or report.valid_bits_per_byte or last:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(report.__dict__) + "\n")
            if self._events is not None:
                self._events.add(report)

    def validate(self) -> float:
        """Bits per byte of the first `eval_tokens` validation tokens."""
        report = evaluate(
            self.model,
            self.valid,
            bos=self.tokenizer.bos_id,
            token_lengths=self.tokenizer.token_lengths,
            batch_size=self.config.batch_size,
            max_tokens=self.config.eval_tokens,
        )
        return report.bits_per_byte

    def _optimise(self) -> BegunStep:
        """Queue the next step on the device, without waiting for it."""
        config = self.config
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # All targets weigh the same, so they are counted first, on the CPU, where they are.
        groups = [[next(batches) for _ in range(config.unroll)] for batches in self.batches]
        scored = np.concatenate([b.targets[b.targets != IGNORED] for each in groups for b in each])
        n_tokens, n_bytes = len(scored), int(self.tokenizer.token_lengths[scored].sum())
        share = 1 / (config.accumulate * config.unroll)
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        for index, batches in enumerate(groups):
            state, loss = self.states[index], torch.zeros((), device=self.device)
            for batch in batches:
                inputs, targets = (
                    send(each, self.device) for each in (batch.inputs, batch.targets)
                )
                if bool(batch.begins.any()):
                    state = state.reset_rows(batch.begins)
                wanted = batch.targets if self.model.config.cutoffs else targets
                nats, added, compression, weight, state = self._read(inputs, wanted, state)
                compression = compression * weight  # a sum, divided below
                loss = loss + nats / max(n_tokens, 1) + added * share + compression
                parts = (nats, added * share, compression, weight)
                sums += torch.stack([part.detach().double() for part in parts])
            if (
                loss.requires_grad
            ):  # not before the first eviction, with only the compression trained
                loss.backward()
            self.states[index] = state.detach()
        self.tokens += n_tokens
        if self.model.config.compression_loss not in ("none", "bptt"):
            # The number of rows is known only on the device, so the gradients are divided there,
            # afterwards. With this loss, these parameters have no other gradient.
            total = sums[3].clamp(min=1)
            for parameter in self._compression:
                if parameter.grad is not None:
                    parameter.grad.div_(total)
        # Clipped separately: the compression loss must not shorten the language model's steps.
        norm = torch.nn.utils.clip_grad_norm_(self._backbone, config.clip)
        apart = torch.nn.utils.clip_grad_norm_(self._compression, config.clip)
        # A fused optimiser skips a step with a gradient that is not finite; it checks on the
        # device, as for torch's GradScaler.
        found_inf = (~torch.isfinite(norm + apart)).float()
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return BegunStep(
            step=self.step,
            sums=Fetch(torch.cat([sums, norm.detach().double()[None]])),
            learning_rate=lr,
            n_tokens=n_tokens,
            n_bytes=n_bytes,
            tokens=self.tokens,
        )

    def _read_segment(self, inputs: torch.Tensor, targets: torch.Tensor, state: State) -> Any:
        bfloat16 = self.config.precision == "bfloat16"
        context: Any = contextlib.nullcontext()
        if bfloat16:
            context = torch.autocast(self.device.type, dtype=torch.bfloat16)
        with context:
            hidden, state = self.model.hidden(inputs, state)
            nats = target_loss(self.model, hidden, targets)
            added = self.model.segment_loss(state)
            state, eviction = self.model.commit(state)
            added = nats.new_zeros(()) if added is None else added.float()
            compression = weight = nats.new_zeros(())
            if eviction is not None:
                compression, weight = self.model.auxiliary_loss(eviction)
                compression, weight = compression.float(), weight.float()
        return nats, added, compression, weight, state

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self) -> None:
        """Replace `last/` atomically with everything that `resume` needs."""
        with put_in_place(self.folder) as fresh:
            self._save_weights(fresh)
            torch.save(self._training(), fresh / "training.pt")

    def _training(self) -> dict[str, Any]:
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self.optimizer.state_dict(),
            "batches": [batches.state() for batches in self.batches],
            "states": [state.to_dict() for state in self.states],
            "random": random,
            "config": self.config.to_dict(),
        }

    def resume(self) -> None:
        """Resume from `last/`.

        Raises:
            FileNotFoundError: there is no save.
            ValueError: the save has another model, or another setting outside
                `run_folder.MAY_CHANGE`.
        """
        last = last_folder(self.folder)
        saved = torch.load(last / "training.pt", weights_only=True, map_location=self.device)
        check_unchanged(self.config, saved["config"], self.folder)
        begun = own_config(read_json(last / "config.json"))
        if begun != self.model.config:
            raise ValueError(f"the run in {self.folder} was begun with another model: {begun}")
        optimizer = regrouped(saved["optimizer"], self.optimizer, self.model)
        gates = last / GATES_FILE
        weights = load_file(gates if gates.exists() else last / "model.safetensors")
        self.model.load_state_dict(weights, strict=not gates.exists())
        self.optimizer.load_state_dict(optimizer)
        self.step, self.tokens = saved["step"], saved["tokens"]
        for batches, state in zip(self.batches, saved["batches"], strict=True):
            batches.restore(state)
        closed = {"length": [0] * self.config.batch_size}  # missing in older runs
        self.states = [State.from_dict({**closed, **state}) for state in saved["states"]]
        torch.set_rng_state(saved["random"]["cpu"].cpu())
        if "cuda" in saved["random"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random"]["cuda"].cpu(), self.device)


def trainer_for(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "auto",
    progress: Callable[[str], None] = lambda message: None,
    tensorboard: str | Path | None = None,
) -> Trainer:
    """Load the tokenizer, the data and, if there is one, the base model of a recipe.

    Args:
        tensorboard: see `Trainer`.
    """
    cache = Path(folder).parent / "cache"
    if recipe.base is not None:
        base = load_checkpoint(
            recipe.base, device=device, dtype=torch.float32, settings=recipe.model
        )
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
        )
    tokenizer = recipe.own_tokenizer()
    values = {"vocab_size": tokenizer.vocab_size, **recipe.model}
    config = ModelConfig.from_dict(values)
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size = {config.vocab_size}; allowed: at least {tokenizer.vocab_size}, the "
            "tokens of the tokenizer"
        )
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
    )
