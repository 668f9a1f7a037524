"""The trainer: documents read in parallel rows, with memory carried from segment to segment."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from streamlm.checkpoints.checkpoint import (
    Checkpoint,
    choose_device,
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
from streamlm.training.copies import Copies
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.training.evaluate import evaluate
from streamlm.training.group_step import GroupStep
from streamlm.training.parameter_groups import choose_parameters, parameter_groups, regrouped
from streamlm.training.ranks import Ranks
from streamlm.training.rows import DeviceMemory, fitting_rows, read_in_parts
from streamlm.training.run_folder import (
    ONE,
    groups_of,
    last_folder,
    put_in_place,
    read_rows,
    rows_file,
)
from streamlm.training.schedule import scheduled_rate
from streamlm.training.step import BegunStep, Pace, Step
from streamlm.training.tensorboard import EventLog, load_writer
from streamlm.transfer import Fetch
from tokenizer import Tokenizer


class Trainer:
    """A run in a folder: `log.jsonl`, `last/` (to resume from), `model/` (the checkpoint).

    The loss of a step is the mean over all its targets, however they are split into groups and
    segments. A resumed run ends with the same weights as an uninterrupted one, on the same machine
    with the same number of threads.

    On several ranks, each reads groups of rows of its own. Groups are numbered over all ranks: rank
    r of n has groups r, r + n, …, and group i shuffles documents with seed + i.

    Args:
        tensorboard: a folder for event files as well; needs the extra `tensorboard`.
        ranks: the processes of this run; their device comes before `device`.
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
        ranks: Ranks = ONE,
    ) -> None:
        if tensorboard is not None:
            load_writer()  # what is missing is missing before anything is trained
        if model_config.compression_loss == "bptt" and config.unroll < 2:
            raise ValueError("unroll = 1; allowed with compression_loss 'bptt': at least 2")
        self.config, self.tokenizer, self.valid = config, tokenizer, valid
        self.ranks, self.device = ranks, ranks.device or choose_device(device)
        self.folder = Path(folder)
        ranks.check_shared(self.folder)
        torch.manual_seed(config.seed)
        self._base = base
        self._tensorboard = tensorboard
        self._events: EventLog | None = None
        if base is None:
            self.model = build_model(model_config).to(self.device)
            self.model.prepare(tokenizer)
        else:
            self.model = base.model.to(self.device).train()
        choose_parameters(self.model, config)
        self._reading = GroupStep(self.model, config, self.device)
        self._group_step = self._on_all_ranks(self._reading)
        self._fitting: int | None = None
        self._found: tuple[int, int] | None = None  # as saved: these, and bytes of the device
        self._compression = self.model.compression_parameters()
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
        self._train = train
        self._open_groups(config.accumulate)
        if not ranks.leads:  # the weights are alike on all ranks, what dropout draws is not
            torch.manual_seed(config.seed + ranks.rank)

    def _on_all_ranks(self, step: GroupStep) -> Copies:
        if not self.config.shard:
            return Copies(step, self.ranks)
        from streamlm.training.parts import Parts

        return Parts(step, self.config, self.ranks)

    def _open_groups(self, n: int) -> None:
        """Begin n groups of rows on this rank."""
        ranks, config = self.ranks, self.config
        self.batches = [
            SegmentBatches(
                self._train,
                config.batch_size,
                segment_len=self.model.config.segment_len,
                bos=self.tokenizer.bos_id,
                shuffle=config.seed + index * ranks.n + ranks.rank,
            )
            for index in range(n)
        ]
        self.states = [self.model.init_state(config.batch_size) for _ in self.batches]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; see `scheduled_rate`."""
        return scheduled_rate(self.config, step)

    def run(self) -> Iterator[Step]:
        """Train to the end, yielding after every step; saves and evaluates periodically.

        On CUDA a step is yielded after the next one is queued, so that the device never idles.
        Steps that are saved or evaluated, and the last one, are yielded before the next is queued.
        """
        self.rows_at_once()
        if self.ranks.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self._tensorboard is not None and self.ranks.leads:
            self._events = EventLog(self._tensorboard, step=self.step)
        try:
            yield from self._steps()
        finally:
            if self._events is not None:
                self._events.close()
                self._events = None
        weights = self._whole_weights()
        if self.ranks.leads:
            self._save_weights(self.folder / "model", weights)
        self.ranks.wait()

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

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = self._group_step.whole(self.model.state_dict())
        return weights

    def _save_weights(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """A checkpoint; of a base model whose compression alone is trained, the gates."""
        if self._base is None or not self.config.only:
            save_checkpoint(folder, self.model, self.tokenizer, weights=weights)
            return
        assert isinstance(self.model, LlamaModel)
        digest = self._base.fingerprints["weights"]
        save_gates(folder / GATES_FILE, self.model, weights_digest=digest, weights=weights)
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
        if not self.ranks.leads:
            return
        last = report.step == self.config.steps
        if report.step % self.config.log_steps == 0 or report.valid_bits_per_byte or last:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(report.__dict__) + "\n")
            if self._events is not None:
                self._events.add(report)

    def validate(self) -> float:
        """Bits per byte of the first `eval_tokens` validation tokens.

        Every rank reads them, so that none waits for another for longer than a step.
        """
        with self._group_step.gathered():
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
        config, rows = self.config, self.rows_at_once()
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # All targets weigh the same, so they are counted first, on the CPU, where they are.
        groups = [[next(batches) for _ in range(config.unroll)] for batches in self.batches]
        scored = np.concatenate([b.targets[b.targets != IGNORED] for each in groups for b in each])
        n_tokens, n_bytes = self.ranks.total(
            len(scored), int(self.tokenizer.token_lengths[scored].sum())
        )
        share = 1 / (len(groups) * self.ranks.n * config.unroll)
        sums = torch.zeros(4, device=self.device, dtype=torch.float64)
        for index, batches in enumerate(groups):
            self.states[index], found = read_in_parts(
                self._group_step,
                batches,
                self.states[index],
                rows=rows,
                n_tokens=n_tokens,
                share=share,
                last=index == len(groups) - 1,
            )
            sums += found
        self.ranks.add_(sums)
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
            sums=Fetch(torch.cat([sums, self._group_step.norm(norm.detach()).double()[None]])),
            learning_rate=lr,
            n_tokens=n_tokens,
            n_bytes=n_bytes,
            tokens=self.tokens,
        )

    def rows_at_once(self) -> int:
        """The rows that are read at once; see `TrainConfig.rows_at_once`.

        What fits is found once. A resumed run goes on with what it had found, on a device of the
        same size. All ranks call this, and have the same number.

        Raises:
            ValueError: not even one row fits.
        """
        rows, most = self.config.rows_at_once, self.config.batch_size
        if rows >= 0 or self.device.type != "cuda":
            return min(rows, most) if rows > 0 else most
        if self._fitting is None:
            memory = DeviceMemory(self.device)
            if self._found is not None and self._found[1] == memory.total():
                rows = self._found[0]
            else:
                rows = fitting_rows(
                    self._group_step,
                    self._reading,
                    self.optimizer,
                    self.batches[0],
                    self.states[0],
                    unroll=self.config.unroll,
                    memory=memory,
                )
            self._fitting = self.ranks.least(rows)
            self._found = self._fitting, memory.total()
        return self._fitting

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self) -> None:
        """Replace `last/` atomically with everything that `resume` needs."""
        weights, training = self._whole_weights(), self._training()
        with put_in_place(self.folder, self.ranks) as fresh:
            if self.ranks.leads:
                self._save_weights(fresh, weights)
                torch.save(training, fresh / "training.pt")
            torch.save(self._rows(), fresh / rows_file(self.ranks.rank))

    def _training(self) -> dict[str, Any]:
        """What all ranks share, apart from the weights."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "optimizer": self._group_step.whole(self.optimizer.state_dict()),
            "config": self.config.to_dict(),
            "ranks": self.ranks.n,
            "groups": len(self.batches) * self.ranks.n,
            "rows_at_once": self._found,
        }

    def _rows(self) -> dict[str, Any]:
        """What belongs to the rows of this rank."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "batches": [batches.state() for batches in self.batches],
            "states": [state.to_dict() for state in self.states],
            "random": random,
        }

    def resume(self) -> None:
        """Resume from `last/`, which may have been saved by another number of ranks.

        Raises:
            FileNotFoundError: there is no save.
            ValueError: the save has another model, another setting outside
                `run_folder.MAY_CHANGE`, or rows that these ranks cannot divide.
        """
        last = last_folder(self.folder)
        saved = torch.load(last / "training.pt", weights_only=True, map_location=self.device)
        begun = own_config(read_json(last / "config.json"))
        groups = groups_of(saved, self.config, self.model.config, self.ranks, folder=self.folder)
        if begun != self.model.config:
            raise ValueError(f"the run in {self.folder} was begun with another model: {begun}")
        optimizer = regrouped(saved["optimizer"], self.optimizer, self.model)
        gates = last / GATES_FILE
        weights = load_file(gates if gates.exists() else last / "model.safetensors")
        own = self.model.state_dict()
        parts = {name: self._group_step.part(each, own[name]) for name, each in weights.items()}
        self.model.load_state_dict(parts, strict=not gates.exists())
        self.optimizer.load_state_dict(self._group_step.own_moments(optimizer, self.optimizer))
        self.step, self.tokens = saved["step"], saved["tokens"]
        self._fitting, self._found = None, saved.get("rows_at_once")
        self._open_groups(len(groups))
        rows = read_rows(last, saved, groups, self.ranks, device=self.device)
        for batches, state in zip(self.batches, rows["batches"], strict=True):
            batches.restore(state)
        closed = {"length": [0] * self.config.batch_size}  # missing in older runs
        self.states = [State.from_dict({**closed, **state}) for state in rows["states"]]
        if random := rows.get("random"):
            torch.set_rng_state(random["cpu"].cpu())
            if "cuda" in random and self.device.type == "cuda":
                torch.cuda.set_rng_state(random["cuda"].cpu(), self.device)
