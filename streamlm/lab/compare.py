"""`streamlm compare`: one small model trained again and again, one part exchanged.

All variants have the same backbone, which begins with the same weights, and read the same tokens in
the same order; only what becomes of slots that leave memory differs. So a difference between two of
them, taken seed by seed, is due to that.

A model must have read millions of tokens before what is far away helps it at all. Where a budget
does not reach that far, the recipe's [backbone] is trained first, once for each seed, over memory
that nothing compresses, and every variant goes on from there.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.config import TRAINED_BY, ModelConfig, TrainConfig
from streamlm.lab.causality import gate
from streamlm.lab.costs import measure
from streamlm.models.build import build_model
from streamlm.training.data import Corpus
from streamlm.training.evaluate import evaluate
from streamlm.training.recipe import Recipe
from streamlm.training.step import Step
from streamlm.training.trainer import Trainer
from tokenizer import Tokenizer

UNTRAINED = ("max", "mean", "most-used")
# What the others are compared with: as many slots, none of them compressed.
DROP = "drop, same slots"
# A model that compresses nothing.
PLAIN: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}

# Student's t, two-sided 95 %, by degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Note = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A model that differs from the recipe's in its memory alone."""

    name: str
    config: ModelConfig


def ablation(base: ModelConfig) -> list[Variant]:
    """Compression × loss (Compressive Transformer, table 6), our own, and the three controls.

    The controls have no compressed memory, but more memory: as many slots as the others (what
    they drop is gone), or as many as all that the others' slots stand for (nothing is compressed).
    """
    c_len, rate = base.compressed_len, base.compression_rate

    def plain(slots: int) -> ModelConfig:
        return replace(base, memory_len=slots, compressed_len=0, compression_loss="none")

    variants = [
        Variant("drop, memory alone", plain(base.memory_len)),
        Variant(DROP, plain(base.memory_len + c_len)),
        Variant("not compressed, same reach", plain(base.memory_len + rate * c_len)),
    ]
    for compression in (*UNTRAINED, *TRAINED_BY):
        for loss in TRAINED_BY.get(compression, ("none",)):
            if compression == "select" and loss == "none":
                continue  # a gate that nothing trains chooses at random
            name = compression if compression in UNTRAINED else f"{compression}, {loss}"
            changed = replace(base, compression=compression, compression_loss=loss)
            variants.append(Variant(name, changed))
    return variants


def heads(base: ModelConfig) -> list[Variant]:
    """Ways to treat the past, with as many parameters as the recipe's model (within 2 %), and as
    many bytes of state; "full" has as many as it reads.

    Raises:
        ValueError: no feed-forward width makes the parameters as many.
    """
    slots = base.compressed_len + base.memory_len
    plain = replace(base, memory_len=slots, compressed_len=0, compression_loss="none")
    whole = replace(plain, memory_len=slots // base.segment_len * base.segment_len)
    # The sketch needs a whole segment in memory before what it merges.
    recent = min(max(base.memory_len, base.segment_len), slots) // base.segment_len
    recent *= base.segment_len
    shorter = max(1, base.segment_len // base.compression_rate)
    # A recurrence carries matrices of E · E for each head instead of slots of D.
    square = math.isqrt(slots * base.d_model // base.n_heads)
    variants = {
        "compressed": base,
        "window": plain,
        "sinks": replace(plain, head="sinks", memory_len=slots - base.pinned_len),
        "linformer": replace(whole, head="linformer", projected_len=shorter),
        "informer": replace(whole, head="informer"),
        "sketch": replace(
            plain,
            head="sketch",
            memory_len=recent,
            compressed_len=slots - recent if recent else 0,
        ),
        "recurrent": replace(plain, head="recurrent", memory_len=0, head_dim=square),
        "full": replace(plain, head="full", memory_len=0),
    }
    wanted = n_parameters(base)
    return [Variant(name, as_large(config, wanted)) for name, config in variants.items()]


def n_parameters(config: ModelConfig) -> int:
    """Weights of a model, which is not built."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(config).parameters())


def as_large(config: ModelConfig, wanted: int) -> ModelConfig:
    """The same with a feed-forward width that makes it have about `wanted` weights.

    Raises:
        ValueError: none comes within 2 %.
    """
    of_one = n_parameters(replace(config, d_ff=2)) - n_parameters(replace(config, d_ff=1))
    d_ff = max(1, config.d_ff + round((wanted - n_parameters(config)) / of_one))
    found = replace(config, d_ff=d_ff)
    n = n_parameters(found)
    if abs(n - wanted) > 0.02 * wanted:
        raise ValueError(
            f"head {config.head!r} has {n:,} parameters with d_ff = {d_ff}; {wanted:,} are wanted"
        )
    return found


def admitted(variants: Sequence[Variant]) -> tuple[list[Variant], dict[str, str]]:
    """The variants that do not look ahead, and by name, where each of the others does."""
    leaks = {variant.name: gate(variant.config) for variant in variants}
    refused = {name: leak for name, leak in leaks.items() if leak is not None}
    return [variant for variant in variants if variant.name not in refused], refused


@dataclass(frozen=True)
class Comparison:
    """What is exchanged, and which variant the others are compared with.

    Attributes:
        alike: all begin with the same weights, but for what is exchanged.
        measured: more than their loss is measured; see `laboratory`.
    """

    variants: Callable[[ModelConfig], list[Variant]]
    reference: str
    alike: bool = True
    measured: bool = False


COMPARISONS = {
    "ablation": Comparison(ablation, DROP),
    "heads": Comparison(heads, "window", alike=False, measured=True),
}


@dataclass(frozen=True)
class Run:
    """One trained variant; JSON.

    Attributes:
        measures: what `laboratory.measure` found, and loss by position; None if it was not asked.
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
    """Train and evaluate every variant with every seed, seed by seed; `done` are not run again.

    Args:
        recipe: the data, and how each is trained.
        folder: for what a run writes; removed when it is finished.
        alike: whether they can begin with the same weights; see `Comparison`.
        measured: also what they cost and remember.

    Raises:
        ValueError: the recipe has a [backbone], and they cannot.
    """
    if recipe.backbone is not None and not alike:
        raise ValueError("[backbone] in the recipe; allowed where all variants have one head")
    tokenizer = Tokenizer(recipe.tokenizer)
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
    """The weights that the recipe's [backbone] ends with; goes on if it was interrupted."""
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
    """Train one variant and read `eval_tokens` of the validation data with it.

    Args:
        begin: the backbone's weights; None begins with those that belong to the seed.
        alike: begin as all others do, not only with the same seed.
        measured: also what it costs and remembers.
    """
    eval_tokens, eval_rows = config.eval_tokens, config.batch_size
    config = replace(
        config, seed=seed, checkpoint_steps=config.steps, eval_steps=config.steps, eval_tokens=1
    )
    if variant.config.compression_loss == "bptt" and variant.config.compressed_len:
        # Two segments a step need half the rows for as many tokens a step (paper, §4.1).
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
    """Give the backbone these weights, or those that belong to the seed.

    The compressor keeps its own: those that it drew from the seed.
    """
    if weights is None:
        torch.manual_seed(seed)
        weights = build_model(replace(trainer.model.config, **PLAIN)).state_dict()
    loaded = trainer.model.load_state_dict(weights, strict=False)
    own = ("compressors.", "decoders.")
    assert not loaded.unexpected_keys
    assert all(name.startswith(own) for name in loaded.missing_keys)
    torch.manual_seed(seed)  # dropout draws the same from here on


def summary(runs: Sequence[Run], *, reference: str) -> list[dict[str, Any]]:
    """A row for each variant, best first: its mean, and its difference from the reference.

    Intervals are Student's, 95 %, over the differences seed by seed.
    """
    by_name: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_name.setdefault(run.variant, {})[run.seed] = run
    base = by_name.get(reference, {})
    rows = []
    for name, found in by_name.items():
        bits = [run.bits_per_byte for run in found.values()]
        both = sorted(set(found) & set(base))
        differences = [found[seed].bits_per_byte - base[seed].bits_per_byte for seed in both]
        mean, half = mean_interval(differences)
        rows.append(
            {
                "variant": name,
                "seeds": len(bits),
                "bits_per_byte": sum(bits) / len(bits),
                "differences": differences,
                "difference": mean,
                "half_interval": half,
                "parameters": next(iter(found.values())).parameters,
            }
        )
    return sorted(rows, key=lambda row: row["bits_per_byte"])


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half of its 95 % interval; None where there are too few."""
    n = len(values)
    if not n:
        return None, None
    mean = sum(values) / n
    if n == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, STUDENT[min(n - 2, len(STUDENT) - 1)] * math.sqrt(variance / n)


def load_runs(path: Path) -> list[Run]:
    """The runs of a results file; none if there is none."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [Run(**run) for run in found["figures"]["runs"]]
