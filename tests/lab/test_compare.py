"""Comparisons: equal starts and sizes, finished runs kept, differences by seed."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.config import COMPRESSION_LOSSES, COMPRESSIONS, ModelConfig
from streamlm.lab.compare import Run, begin_alike, runs_of
from streamlm.lab.statistics import mean_interval, summary
from streamlm.lab.variants import DROP, ablation, heads, n_parameters, with_size
from streamlm.models.build import HEADS, build_model
from streamlm.training.data import Corpus
from streamlm.training.recipe import Recipe
from streamlm.training.trainer import Trainer
from tests.support.command_line import CommandLine
from tokenizer import Tokenizer, load_tokenizer

RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["text.txt"]
valid_share = 0.2
cut_bytes = 400

[model]
n_layers = 2
d_model = 16
n_heads = 2
head_dim = 8
d_ff = 16
segment_len = 8
memory_len = 8
compressed_len = 4
compression_rate = 2

[train]
steps = 4
batch_size = 4
warmup_steps = 0
"""
BYTES = Path(__file__).resolve().parents[2] / "recipes" / "bytes.model"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = random.Random(1).choices(["whale", "ship", "sea", "and", "the", "of"], k=900)
    lines = [" ".join(words[at : at + 6]) + "\n" for at in range(0, len(words), 6)]
    Path("text.txt").write_text("".join(lines))
    Path("tiny.toml").write_text(RECIPE.format(tokenizer=BYTES))
    return Path("tiny.toml")


def base_config() -> ModelConfig:
    return ModelConfig(vocab_size=262, memory_len=128, compressed_len=64, compression_rate=4)


def test_the_ablation_covers_compressions_losses_and_controls() -> None:
    variants = {variant.name: variant.config for variant in ablation(base_config())}
    plain = {name: c.memory_len for name, c in variants.items() if not c.compressed_len}
    same_reach = "not compressed, same reach"
    assert plain == {"drop, memory alone": 128, DROP: 192, same_reach: 384}
    assert variants[same_reach].reach == base_config().reach
    others = [c for name, c in variants.items() if name not in plain]
    assert {c.compression for c in others} == set(COMPRESSIONS)
    assert {c.compression_loss for c in others} == set(COMPRESSION_LOSSES)
    assert len({(c.compression, c.compression_loss) for c in others}) == len(others) == 14
    assert all((c.memory_len, c.compressed_len) == (128, 64) for c in others)


def test_heads_have_equal_parameters_and_state() -> None:
    base = replace(base_config(), segment_len=64, memory_len=64)
    variants = {variant.name: variant.config for variant in heads(base)}
    assert {config.head for config in variants.values()} == set(HEADS)
    wanted = n_parameters(base)
    assert wanted == sum(weight.numel() for weight in build_model(base).parameters())
    slots = base.past_len * base.d_model
    for name, config in variants.items():
        model = build_model(config)
        n = sum(weight.numel() for weight in model.parameters())
        assert n == n_parameters(config) and abs(n - wanted) <= 0.02 * wanted, name
        state = model.init_state(1)
        kept = [state.carried[part] for part in ("retention", "pinned") if part in state.carried]
        carried = sum(part.numel() for part in kept)
        held = (state.past.numel() + carried) / config.n_layers
        assert held == 0 if name == "full" else abs(held - slots) < 0.03 * slots, name
    with pytest.raises(ValueError, match="parameters with d_ff = 1; 10,000 are wanted"):
        with_size(base, 10_000)


def test_every_head_is_compared(recipe: Path) -> None:
    loaded = Recipe.load(recipe)
    base = ModelConfig.from_dict({"vocab_size": 262, **loaded.model})
    options: dict[str, Any] = {
        "seeds": [1],
        "folder": Path("runs"),
        "device": "cpu",
        "alike": False,
    }
    runs = list(runs_of(loaded, heads(base), **options))
    assert [run.variant for run in runs] == [variant.name for variant in heads(base)]
    assert len({run.bits_per_byte for run in runs}) == len(runs)
    assert all(5 < run.bits_per_byte < 12 and run.tokens == runs[0].tokens for run in runs)
    shared = replace(loaded, backbone={"segment_len": 8, "memory_len": 8})
    with pytest.raises(ValueError, match=r"\[backbone\] in the recipe; allowed where all variants"):
        next(runs_of(shared, heads(base), **options))


def test_variants_share_the_initial_backbone(recipe: Path) -> None:
    tokenizer = load_tokenizer(BYTES)
    train, valid = Recipe.load(recipe).corpora(tokenizer)
    base = ModelConfig.from_dict({"vocab_size": 262, **Recipe.load(recipe).model})
    found: dict[str, dict[str, torch.Tensor]] = {}
    for variant in ablation(base):
        trainer = trainer_of(variant.config, recipe, tokenizer, (train, valid))
        begin_alike(trainer, seed=5)
        found[variant.name] = trainer.model.state_dict()
    reference = found[DROP]
    for name, weights in found.items():
        assert set(reference) <= set(weights), name
        assert all(torch.equal(weights[key], reference[key]) for key in reference), name


def trainer_of(
    config: ModelConfig, recipe: Path, tokenizer: Tokenizer, corpora: tuple[Corpus, Corpus]
) -> Trainer:
    loaded = Recipe.load(recipe)
    values = loaded.train.to_dict() | {"unroll": 2, "seed": 3}
    return Trainer(
        config,
        type(loaded.train).from_dict(values),
        tokenizer=tokenizer,
        train=corpora[0],
        valid=corpora[1],
        folder=Path("run"),
        device="cpu",
    )


def test_runs_repeat_and_read_the_same_tokens(recipe: Path) -> None:
    loaded = Recipe.load(recipe)
    base = ModelConfig.from_dict({"vocab_size": 262, **loaded.model})
    variants = [v for v in ablation(base) if v.name in (DROP, "mean", "conv, bptt")]
    folder = Path("runs")
    first = list(runs_of(loaded, variants, seeds=[1, 2], folder=folder, device="cpu"))
    assert [(run.variant, run.seed) for run in first] == [
        (variant.name, seed) for seed in (1, 2) for variant in variants
    ]
    assert len({run.bits_per_byte for run in first}) == len(first)
    # A step of BPTT is two segments of half the rows: as many tokens, but for ends of documents.
    tokens = {run.variant: run.tokens for run in first}
    assert tokens[DROP] == tokens["mean"] == pytest.approx(tokens["conv, bptt"], rel=0.1)
    assert not list(folder.iterdir())
    again = list(
        runs_of(loaded, variants, seeds=[1, 2], folder=folder, device="cpu", done=first[:2])
    )
    assert [(run.variant, run.seed) for run in again] == [
        (run.variant, run.seed) for run in first[2:]
    ]
    assert [run.bits_per_byte for run in again] == [run.bits_per_byte for run in first[2:]]


BACKBONE = """
[backbone]
segment_len = 16
memory_len = 4
steps = 3
"""


def test_a_backbone_is_trained_once_per_seed_and_shared(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + BACKBONE)
    loaded = Recipe.load(recipe)
    base = ModelConfig.from_dict({"vocab_size": 262, **loaded.model})
    # A learning rate of almost 0: the runs measure their initial weights.
    rates = {"learning_rate": 1e-20, "min_learning_rate": 0.0}
    backbone = {**(loaded.backbone or {}), "learning_rate": 1e-2}
    train = replace(loaded.train, steps=1, **rates)
    still = replace(loaded, train=train, backbone=backbone)
    variants = [v for v in ablation(base) if v.name in ("drop, memory alone", "conv, none")]
    notes: list[str] = []
    folder = Path("runs")
    runs = list(
        runs_of(still, variants, seeds=[1, 2], folder=folder, device="cpu", note=notes.append)
    )
    assert sum(note.startswith("backbone") for note in notes) == 2 * 3
    assert sorted(path.name for path in folder.iterdir()) == ["backbone-1", "backbone-2"]
    assert len({run.bits_per_byte for run in runs}) == 4
    config = replace(variants[0].config, segment_len=16, memory_len=4)
    trained = load_checkpoint(folder / "backbone-1" / "model").model
    assert trained.config == config
    tokenizer = load_tokenizer(BYTES)
    corpora = still.corpora(tokenizer)
    again = Trainer(
        variants[0].config, still.train, tokenizer=tokenizer, train=corpora[0], valid=corpora[1],
        folder=Path("run"), device="cpu",
    )  # fmt: skip
    begin_alike(again, trained.state_dict(), seed=1)
    assert again.validate() == pytest.approx(runs[0].bits_per_byte, rel=1e-6)
    notes.clear()
    list(runs_of(still, variants, seeds=[1], folder=folder, device="cpu", note=notes.append))
    assert not any(note.startswith("backbone") for note in notes)


def run(variant: str, seed: int, bits: float) -> Run:
    return Run(variant, seed, bits, bits, 10, 100, 1.0)


def test_differences_are_paired_by_seed() -> None:
    runs = [run(DROP, seed, 2.0 + seed) for seed in (1, 2, 3)]  # seeds differ far more than
    runs += [run("conv", seed, 1.9 + seed) for seed in (1, 2, 3)]  # variants do
    rows = summary(runs, reference=DROP)
    assert [row["variant"] for row in rows] == ["conv", DROP]
    assert rows[0]["difference"] == pytest.approx(-0.1)
    assert rows[0]["half_interval"] == pytest.approx(0.0, abs=1e-9)
    assert rows[1]["difference"] == 0.0


def test_mean_interval_is_students_t() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert mean_interval([1.0]) == (1.0, None) and mean_interval([]) == (None, None)


def test_the_command_resumes_and_draws(recipe: Path, cli: CommandLine) -> None:
    command = ["compare", "ablation", "--recipe", str(recipe), "--out", "out/tiny"]
    command += ["--seeds", "1", "--device", "cpu"]
    cli.works(*command, "--only", "drop")
    kept = json.loads(Path("out/tiny.json").read_text())
    assert [one["variant"] for one in kept["figures"]["runs"]] == ["drop, memory alone", DROP]
    assert kept["command"].startswith("streamlm compare ablation")
    assert "select, joint" in cli.works(*command, "--only", "drop", "--only", "select").out
    runs = json.loads(Path("out/tiny.json").read_text())["figures"]["runs"]
    assert runs[:2] == kept["figures"]["runs"] and len(runs) == 3
    assert Path("out/tiny.png").stat().st_size > 5_000
    other = cli(*command, "--steps", "5")
    assert other.status == 1 and "runs with other settings; allowed: another --out" in other.err
    none = cli(*command, "--only", "gru")
    assert none.status == 1 and "no variant has ['gru'] in its name" in none.err
