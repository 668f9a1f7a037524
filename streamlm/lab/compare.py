"""Controlled comparisons for `streamlm compare`: variants of one model, trained seed by seed.

All variants have the same backbone with the same initial weights and read the same tokens in the
same order; they differ only in what becomes of slots that leave memory. A difference between two of
them, taken seed by seed, is due to that part.

Distant context helps a model only after millions of tokens of training. For smaller budgets, the
recipe's [backbone] is trained first, once per seed, with uncompressed memory, and every variant
starts from its weights.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import ModelConfig
from streamlm.lab.costs import measure
from streamlm.lab.variants import PLAIN, Variant
from streamlm.models.build import build_model
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.evaluate import evaluate
from streamlm.training.recipe import Recipe
from streamlm.training.step import Step
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer

Note = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One trained variant; JSON.

    Attributes:
        measures: the results of `costs.measure`, and loss by position; None if not measured.
    """

    variant: str
    seed: int
    bits_per_byte: float
    train_bits_per_byte: float
    parameters: int
    tokens: int
    seconds: float
    measures: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def runs_of(
    recipe: Recipe,
    variants: Sequence[Variant],
    *,
    seeds: Sequence[int],
    folder: Path,
    device: str = "auto",
    alike: bool = True,
    measured: bool = False,
    note: Note = lambda message: None,
    done: Sequence[Run] = (),
) -> Iterator[Run]:
    """Train and evaluate every variant with every seed, seed by seed, except the runs in `done`.

    Args:
        recipe: the data and the training settings.
        folder: for the files of a run, which are removed when it is finished.
        alike: the variants can share initial weights; see `Comparison`.
        measured: also measure costs and recall.

    Raises:
        ValueError: the recipe has a [backbone], and the variants cannot share its weights.
    """
    if recipe.backbone is not None and not alike:
        raise ValueError("[backbone] in the recipe; allowed where all variants have one head")
    tokenizer = recipe.own_tokenizer()
    corpora = recipe.corpora(tokenizer, cache=folder.parent / "cache", progress=note)
    finished = {(run.variant, run.seed) for run in done}
    shared: dict[str, Any] = {
        "tokenizer": tokenizer, "corpora": corpora, "device": device, "note": note
    }  # fmt: skip
    for seed in seeds:
        missing = [variant for variant in variants if (variant.name, seed) not in finished]
        weights = None
        if missing and recipe.backbone is not None:
            where = folder / f"backbone-{seed}"
            weights = train_backbone(
                missing[0].config, recipe, seed=seed, folder=where, **shared
            )  # fmt: skip
        for variant in missing:
            where = folder / f"{variant.name.replace(', ', '_').replace(' ', '-')}-{seed}"
            yield run_variant(
                variant,
                recipe.train,
                seed=seed,
                begin=weights,
                alike=alike,
                measured=measured,
                folder=where,
                **shared,
            )


def train_backbone(
    config: ModelConfig,
    recipe: Recipe,
    *,
    seed: int,
    tokenizer: Tokenizer,
    corpora: tuple[Corpus, Corpus],
    folder: Path,
    device: str = "auto",
    note: Note = lambda message: None,
) -> dict[str, torch.Tensor]:
    """Train the recipe's [backbone], or resume it, and return its weights."""
    assert recipe.backbone is not None
    values = {**recipe.train.to_dict(), **recipe.backbone, "seed": seed}
    lengths = {name: values.pop(name) for name in ("segment_len", "memory_len")}
    trainer = Trainer(
        replace(config, **lengths, **PLAIN),
        TrainConfig.from_dict(values),
        tokenizer=tokenizer,
        train=corpora[0],
        valid=corpora[1],
        folder=folder,
        device=device,
    )
    if (folder / "last").exists():
        trainer.resume()
    for step in trainer.run():
        note(_progress("backbone", seed, step, trainer.config.steps))
    return trainer.model.state_dict()


def run_variant(
    variant: Variant,
    config: TrainConfig,
    *,
    seed: int,
    tokenizer: Tokenizer,
    corpora: tuple[Corpus, Corpus],
    folder: Path,
    begin: Mapping[str, torch.Tensor] | None = None,
    alike: bool = True,
    measured: bool = False,
    device: str = "auto",
    note: Note = lambda message: None,
) -> Run:
    """Train one variant and evaluate it on `eval_tokens` validation tokens.

    Args:
        begin: the backbone's weights; None takes the initial weights of the seed.
        alike: share the backbone's initial weights with all variants, not only the seed.
        measured: also measure costs and recall.
    """
    eval_tokens, eval_rows = config.eval_tokens, config.batch_size
    config = replace(
        config, seed=seed, checkpoint_steps=config.steps, eval_steps=config.steps, eval_tokens=1
    )
    if variant.config.compression_loss == "bptt" and variant.config.compressed_len:
        # Two segments per step and half the rows: the same tokens per step (paper, §4.1).
        config = replace(config, unroll=2, batch_size=config.batch_size // 2)
    trainer = Trainer(
        variant.config,
        config,
        tokenizer=tokenizer,
        train=corpora[0],
        valid=corpora[1],
        folder=folder,
        device=device,
    )
    if alike:
        begin_alike(trainer, begin, seed=seed)
    seconds, bits = 0.0, [0.0]
    for step in trainer.run():
        seconds = step.tokens / step.tokens_per_second
        bits = [*bits[-19:], step.bits_per_byte]
        note(_progress(variant.name, seed, step, config.steps))
    report = evaluate(
        trainer.model,
        corpora[1],
        bos=tokenizer.bos_id,
        token_lengths=tokenizer.token_lengths,
        batch_size=eval_rows,
        max_tokens=eval_tokens,
    )
    measures = None
    if measured:
        note(f"{variant.name}, seed {seed}: measuring")
        checkpoint = Checkpoint(trainer.model.requires_grad_(False).freeze(), tokenizer)
        places = [{"place": at, "nats": nats} for at, nats, _ in report.loss_by_position]
        measures = {**measure(checkpoint, corpora[1]), "loss_by_position": places}
    shutil.rmtree(folder)
    return Run(
        variant=variant.name,
        seed=seed,
        bits_per_byte=report.bits_per_byte,
        train_bits_per_byte=sum(bits) / len(bits),
        parameters=sum(weight.numel() for weight in trainer.model.parameters()),
        tokens=trainer.tokens,
        seconds=seconds,
        measures=measures,
    )


def _progress(name: str, seed: int, step: Step, steps: int) -> str:
    return (
        f"{name}, seed {seed}: step {step.step} of {steps}, "
        f"{step.bits_per_byte:.3f} bits per byte, {step.tokens_per_second:,.0f} tokens/s"
    )


def begin_alike(
    trainer: Trainer, weights: Mapping[str, torch.Tensor] | None = None, *, seed: int
) -> None:
    """Load the backbone's weights, by default the initial ones of the seed.

    The compressor keeps its own, which it drew from the seed.
    """
    if weights is None:
        torch.manual_seed(seed)
        weights = build_model(replace(trainer.model.config, **PLAIN)).state_dict()
    loaded = trainer.model.load_state_dict(weights, strict=False)
    own = ("compressors.", "decoders.")
    assert not loaded.unexpected_keys
    assert all(name.startswith(own) for name in loaded.missing_keys)
    torch.manual_seed(seed)  # so that dropout draws the same numbers in all variants


def load_runs(path: Path) -> list[Run]:
    """The runs of a results file; empty if there is no file."""
    if not path.exists():
        return []
    results = json.loads(path.read_text(encoding="utf-8"))
    return [Run(**run) for run in results["figures"]["runs"]]
