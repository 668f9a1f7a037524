"""Training: it learns, it goes on exactly where it stopped, and it says what is wrong."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamlm.training.trainer
from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.config import ModelConfig
from streamlm.models.build import HEADS
from streamlm.models.heads.sketch import SketchModel
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from streamlm.training.config import TrainConfig
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.training.losses import compression_loss
from streamlm.training.recipe import Recipe
from streamlm.training.trainer import Step, Trainer, trainer_for
from tokenizer import Tokenizer
from tokenizer.kinds import token_types

MakeTrainer = Callable[..., Trainer]

MODEL: dict[str, object] = {
    **{"n_layers": 2, "d_model": 32, "n_heads": 2, "head_dim": 16, "d_ff": 64},
    **{"segment_len": 16, "memory_len": 16, "compressed_len": 8, "compression_rate": 4},
}
TRAIN: dict[str, object] = {
    **{"steps": 6, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2},
    **{"checkpoint_steps": 3, "eval_steps": 100, "eval_tokens": 100, "log_steps": 1},
}
# Every way to compress and to train the compressor, and what else changes the arithmetic.
VARIANTS: dict[str, dict[str, object]] = {
    "conv": {"compression_loss": "attention-reconstruction", "dropout": 0.1},
    "dilated": {"compression": "dilated", "compression_loss": "auto-encoding", "accumulate": 2},
    "bptt": {"compression_loss": "bptt", "unroll": 3, "attention_dropout": 0.1, "norm": "pre"},
    "most-used": {"compression": "most-used", "compression_loss": "none"},
    "select": {"compression": "select", "compression_loss": "joint-attention-reconstruction"},
    "max": {"compression": "max", "compression_loss": "none", "accumulate": 2, "unroll": 2},
    "plain": {"compressed_len": 0, "compression_loss": "none", "shared_bias": True},
    "bfloat16": {"precision": "bfloat16"},
    **{
        head: {"head": head, "memory_len": 0, "compressed_len": 0, "compression_loss": "none"}
        for head in ("recurrent", "full")
    },
    "linformer": {
        **{"head": "linformer", "compressed_len": 0, "compression_loss": "none"},
        "projected_len": 4,
    },
    "sinks": {"head": "sinks", "compressed_len": 0, "compression_loss": "none"},
    "informer": {
        **{"head": "informer", "compressed_len": 0, "compression_loss": "none", "factor": 1},
    },
    "sketch": {"head": "sketch", "compression_loss": "none", "coverage": 0.1, "dropout": 0.1},
}


@pytest.fixture(scope="module")
def corpus(books_tokenizer: Tokenizer) -> Corpus:
    """Documents of some segments that say the same again and again."""
    texts = [f"Call me {name}. " * n for name, n in (("Ishmael", 9), ("Ahab", 14), ("Pip", 11))]
    parts = [books_tokenizer.encode(text) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    return Corpus(np.concatenate(parts), offsets, sum(map(len, texts)), 100)


@pytest.fixture
def make(tmp_path: Path, corpus: Corpus, books_tokenizer: Tokenizer) -> MakeTrainer:
    """Makes a trainer; options are settings of the model or of the training."""

    def make(folder: str = "run", **options: object) -> Trainer:
        settings = {"vocab_size": books_tokenizer.vocab_size, **MODEL}
        names = ModelConfig(vocab_size=1).to_dict()
        settings |= {name: value for name, value in options.items() if name in names}
        training = {name: value for name, value in options.items() if name not in names}
        return Trainer(
            ModelConfig.from_dict(settings),
            TrainConfig.from_dict({**TRAIN, **training}),
            tokenizer=books_tokenizer,
            train=corpus,
            valid=corpus,
            folder=tmp_path / folder,
            device="cpu",
        )

    return make


def gradients(trainer: Trainer, steps: int = 1) -> dict[str, torch.Tensor]:
    """The gradients that the optimiser gets at the last of some steps."""
    found: dict[str, torch.Tensor] = {}
    step = trainer.optimizer.step

    def look(*args: Any) -> Any:
        found.update(
            (name, weight.grad.clone())
            for name, weight in trainer.model.named_parameters()
            if weight.grad is not None
        )
        return step(*args)

    trainer.optimizer.step = look  # type: ignore[method-assign]
    list(islice(trainer.run(), steps))
    trainer.optimizer.step = step  # type: ignore[method-assign]
    return found


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a run goes on from."""
    return {
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "states": [vars(state) for state in trainer.states],
        "batches": [batches.state() for batches in trainer.batches],
        "counts": [trainer.step, trainer.tokens],
        "random": torch.get_rng_state(),
    }


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            if name != "cache":
                yield name
                yield from leaves(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def assert_identical(a: Any, b: Any) -> None:
    """Equal to the last bit, tensors too."""
    for one, other in zip(leaves(a), leaves(b), strict=True):
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, (one, other)


# -- learning ---------------------------------------------------------------------------------


def test_an_adaptive_model_learns(make: MakeTrainer) -> None:
    options = {"cutoffs": [500, 3000], "div_val": 2, "init_std": 0.1}
    trainer = make(steps=12, norm="pre", final_norm=True, eval_steps=12, **options)
    before = trainer.validate()
    *_, last = trainer.run()
    assert last.valid_bits_per_byte is not None and last.valid_bits_per_byte < 0.8 * before
    checkpoint = load_checkpoint(trainer.folder / "model", device="cpu")
    assert checkpoint.model.config.cutoffs == (500, 3000)


def test_it_learns(make: MakeTrainer, corpus: Corpus) -> None:
    trainer = make(steps=30, norm="pre", final_norm=True, eval_steps=15)
    before = trainer.validate()
    steps = list(trainer.run())
    assert [step.step for step in steps] == list(range(1, 31))
    assert steps[0].loss == pytest.approx(math.log(8192), rel=0.05)  # it begins knowing nothing
    assert steps[-1].loss < 0.2 * steps[0].loss
    assert all(math.isfinite(step.compression_loss) for step in steps)
    assert any(step.compression_loss > 0 for step in steps)
    valid = [step.valid_bits_per_byte for step in steps]
    assert [index + 1 for index, value in enumerate(valid) if value is not None] == [15, 30]
    assert valid[14] is not None and valid[29] is not None
    assert valid[29] < valid[14] < before
    assert trainer.tokens == steps[-1].tokens > 30 * 16

    # What it leaves: a log, one line for each step, and a checkpoint that predicts.
    lines = (trainer.folder / "log.jsonl").read_text().splitlines()
    assert [Step(**json.loads(line)) for line in lines] == steps
    checkpoint = load_checkpoint(trainer.folder / "model", device="cpu")
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_bits(make: MakeTrainer, variant: str) -> None:
    options = VARIANTS[variant]
    whole = make("whole", **options)
    wanted = [(step.loss, step.gradient_norm, step.tokens) for step in whole.run()]
    torch.manual_seed(0)
    stopped = make("parts", **options)
    first = list(islice(stopped.run(), 3))
    torch.manual_seed(99)  # what the process did meanwhile must not matter
    resumed = make("parts", **options)
    resumed.resume()
    assert resumed.step == 3 and resumed.tokens == stopped.tokens
    second = list(resumed.run())
    assert [(s.loss, s.gradient_norm, s.tokens) for s in [*first, *second]] == wanted
    assert_identical(everything(resumed), everything(whole))
    weights = ("parts/model/model.safetensors", "whole/model/model.safetensors")
    one, other = (resumed.folder.parent / path for path in weights)
    assert one.read_bytes() == other.read_bytes()


def test_every_part_is_trained(make: MakeTrainer) -> None:
    """No parameter is left without gradient, under any way to train the compressor."""
    for variant in ("conv", "dilated", "bptt"):
        trainer = make(variant, **VARIANTS[variant])
        found = gradients(trainer, 5)
        missing = [
            name
            for name, _ in trainer.model.named_parameters()
            if name not in found or not bool(found[name].any())
        ]
        assert not missing, variant


def test_the_compressor_learns_from_the_language_model_only_with_bptt(make: MakeTrainer) -> None:
    for loss, learns in (("bptt", True), ("none", False)):
        found = gradients(make(loss, compression_loss=loss, unroll=3, steps=9), 4)
        assert [bool(g.any()) for name, g in found.items() if "compressors" in name] == (
            [True, True] if learns else []
        )


def test_gradients_are_of_the_mean_over_all_targets(
    make: MakeTrainer, corpus: Corpus, books_tokenizer: Tokenizer
) -> None:
    trainer = make(accumulate=2, unroll=2, clip=1e9, memory_len=8)
    torch.manual_seed(trainer.config.seed)
    model = TransformerXL(trainer.model.config)
    nats, losses, weights, counts = [], [], [], []
    for index in range(2):
        batches = SegmentBatches(
            corpus,
            3,
            segment_len=16,
            bos=books_tokenizer.bos_id,
            shuffle=trainer.config.seed + index,
        )
        state = model.init_state(3)
        for batch in islice(batches, 2):
            state = state.reset_rows(batch.begins)
            logits, state = model(batch.inputs, state)
            state, eviction = model.commit(state)
            assert eviction is not None
            of_targets = (logits.flatten(0, 1), batch.targets.flatten())
            nats.append(
                torch.nn.functional.cross_entropy(
                    *of_targets, ignore_index=IGNORED, reduction="sum"
                )
            )
            counts.append(int((batch.targets != IGNORED).sum()))
            losses.append(compression_loss(model, eviction))
            weights.append(int(eviction.real.any(dim=1).sum()))
    compression = sum(loss * n for loss, n in zip(losses, weights, strict=True)) / sum(weights)
    assert isinstance(compression, torch.Tensor)
    (sum(nats) / sum(counts) + compression).backward()
    found = gradients(trainer)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7)


ROWS = [90, 30, 13, 110]  # targets of four documents: many in some rows and groups, few in others


def of_documents(make: MakeTrainer, groups: list[list[int]], **options: object) -> Trainer:
    """A trainer in float64 whose groups of rows read these documents."""
    sizes = {"accumulate": len(groups), "batch_size": len(groups[0])}
    trainer = make(f"{groups}", **{**options, **sizes})
    random = np.random.default_rng(0)
    documents = [random.integers(3, 8000, n).astype(np.uint16) for n in ROWS]
    trainer.model.double()
    trainer.states = [trainer.model.init_state(len(rows)) for rows in groups]
    trainer.batches = []
    for rows in groups:
        tokens = np.concatenate([documents[row] for row in rows])
        corpus = Corpus(tokens, np.cumsum([0, *(ROWS[row] for row in rows)]), 1, 1)
        trainer.batches.append(SegmentBatches(corpus, len(rows), segment_len=16, bos=1))
    return trainer


@pytest.mark.parametrize(
    ("variant", "unroll"),
    [
        *((name, n) for name in ("conv", "dilated", "select", "max", "sketch") for n in (1, 3)),
        *(("bptt", 3), ("plain", 1)),
    ],
)
def test_row_groups_are_as_one_batch(make: MakeTrainer, variant: str, unroll: int) -> None:
    options = {**VARIANTS[variant], "unroll": unroll, "clip": 1e9, "steps": 9}
    options |= {"dropout": 0.0, "attention_dropout": 0.0, "learning_rate": 1e-6}
    options |= {"min_learning_rate": 0.0}
    one = of_documents(make, [[0, 1, 2, 3]], **options)
    two = of_documents(make, [[0, 1], [2, 3]], **options)
    compressed = False
    for _ in range(6 // unroll):
        wanted, found = gradients(one), gradients(two)
        assert one.tokens == two.tokens
        compressed |= any("compressors" in name for name in wanted)
        assert wanted.keys() == found.keys()
        for name, gradient in wanted.items():
            # The loss is computed in float32.
            tolerance = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance, msg=name)
    assert compressed == (variant in ("conv", "dilated", "select", "bptt"))
    assert one.tokens == sum(min(n, 96) for n in ROWS)


def test_the_sketch_learns_types_and_its_coverage_loss_is_added(
    make: MakeTrainer, books_tokenizer: Tokenizer
) -> None:
    """Without a coverage loss it is cross-entropy alone, to the last bit."""
    options: dict[str, Any] = {"head": "sketch", "compression_loss": "none", "clip": 1e9}
    plain, covered = make("plain", **options), make("covered", **options, coverage=0.5)
    for trainer in (plain, covered):
        assert isinstance(trainer.model, SketchModel)
        assert trainer.model.token_types.tolist() == token_types(books_tokenizer).tolist()
    batch = next(covered.batches[0])
    covered.batches[0].restore(plain.batches[0].state())
    losses = {}
    for trainer in (plain, covered):
        model, state = trainer.model, trainer.states[0].reset_rows(batch.begins)
        logits, state = model(batch.inputs, state)
        nats = torch.nn.functional.cross_entropy(
            *(logits.flatten(0, 1), batch.targets.flatten()), ignore_index=IGNORED, reduction="sum"
        )
        loss = nats / int((batch.targets != IGNORED).sum())
        losses[trainer], added = float(loss.detach()), model.segment_loss(state)
        assert (added is None) == (trainer is plain)
        (loss if added is None else loss + added).backward()
        wanted = [None if w.grad is None else w.grad.clone() for w in model.parameters()]
        model.zero_grad(set_to_none=True)
        found = gradients(trainer)
        for (name, _), gradient in zip(model.named_parameters(), wanted, strict=True):
            assert (gradient is None) == (name not in found)
            assert gradient is None or torch.equal(found[name], gradient), name
    (without,), (with_it,) = (list(islice(each.run(), 1)) for each in (plain, covered))
    assert without.compression_loss == 0.0 < with_it.compression_loss <= 0.5
    assert losses[plain] == pytest.approx(losses[covered], rel=1e-5)


class Penalised(TransformerXL):
    """A head that compresses, and adds a loss of its own to that of the segment."""

    def segment_loss(self, state: State) -> torch.Tensor:
        return self.output_bias.mean() + 0.25


def test_a_heads_own_loss_and_its_compression_loss_are_both_added(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"clip": 1e9, "compression_loss": "attention-reconstruction"}
    # The weights stay as they are.
    options |= {"steps": 3, "learning_rate": 1e-9, "min_learning_rate": 0.0}
    plain = make("plain", **options)
    monkeypatch.setitem(HEADS, "relative", Penalised)
    both = make("both", **options)
    compression = list(islice(plain.run(), 2))[-1].compression_loss
    assert compression > 0  # a segment was compressed
    assert list(islice(both.run(), 2))[-1].compression_loss == pytest.approx(0.25 + compression)
    wanted, found = gradients(plain), gradients(both)
    share = 1 / len(wanted["output_bias"])
    torch.testing.assert_close(found.pop("output_bias"), wanted.pop("output_bias") + share)
    assert any("compressors" in name and bool(each.any()) for name, each in wanted.items())
    torch.testing.assert_close(found, wanted)


def test_gradients_are_clipped_the_compressor_apart(make: MakeTrainer) -> None:
    norms = {}
    for clip in (1e9, 1e-3):
        found = gradients(make(f"clip {clip}", clip=clip), 3)
        for part in ("compressors", "others"):
            norms[clip, part] = math.sqrt(
                sum(
                    float(gradient.square().sum())
                    for name, gradient in found.items()
                    if ("compressors" in name) == (part == "compressors")
                )
            )
    assert norms[1e9, "others"] > 0.1
    assert norms[1e-3, "others"] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1e-3, "compressors"] <= 1.001e-3


def test_the_learning_rate_warms_up_and_falls(make: MakeTrainer) -> None:
    trainer = make(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1)
    rates = [trainer.learning_rate(step) for step in range(111)]
    assert rates[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.55) and rates[110] == 0.1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert trainer.learning_rate(1000) == 0.1
    assert make(warmup_steps=0, learning_rate=1.0).learning_rate(0) == 1.0


def test_bfloat16_is_close_to_float32(make: MakeTrainer) -> None:
    exact = [step.loss for step in make("exact").run()]
    trainer = make("half", precision="bfloat16")
    losses = [step.loss for step in trainer.run()]
    assert losses == pytest.approx(exact, rel=0.02) and losses != exact
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters())
    assert all(state.past.dtype == torch.float32 for state in trainer.states)


def assert_compiles(make: MakeTrainer) -> None:
    options = {"n_layers": 1, "batch_size": 2, "steps": 4}
    eager = [(step.loss, step.compression_loss) for step in make("eager", **options).run()]
    compiled = make("compiled", compile=True, **options)
    for step, wanted in zip(compiled.run(), eager, strict=True):
        assert (step.loss, step.compression_loss) == pytest.approx(wanted, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # compiled once, as a whole


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_a_segment_is_one_graph(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    whole = partial(torch.compile, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", whole)
    assert_compiles(make)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a compiler"
)
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_compiled_training_computes_the_same(make: MakeTrainer, fresh_compiler: None) -> None:
    assert_compiles(make)


# -- stop and go on ---------------------------------------------------------------------------


def test_there_is_nothing_to_resume_at_first(make: MakeTrainer) -> None:
    trainer = make()
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*run"):
        trainer.resume()


@pytest.fixture
def saved(make: MakeTrainer) -> Trainer:
    """A run that was saved after three steps."""
    trainer = make(steps=3, eval_steps=100)
    list(trainer.run())
    return trainer


@pytest.mark.parametrize(
    "option",
    [
        *({"batch_size": 4}, {"accumulate": 2}, {"unroll": 2}, {"seed": 5}),
        *({"precision": "bfloat16"}, {"weight_decay": 0.5}, {"beta1": 0.5}, {"beta2": 0.5}),
        *({"clip": 0.1}, {"d_ff": 65}, {"compression": "dilated"}, {"memory_len": 32}),
    ],
)
def test_another_configuration_is_refused(
    saved: Trainer, make: MakeTrainer, option: dict[str, object]
) -> None:
    other = make(**{"steps": 9, **option})
    before = {name: weight.clone() for name, weight in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{next(iter(option))}.*begun|begun with another model"):
        other.resume()
    assert_identical(other.model.state_dict(), before)


def test_what_may_change_may_change(saved: Trainer, make: MakeTrainer) -> None:
    other = make(
        **{"steps": 5, "learning_rate": 1e-3, "min_learning_rate": 0.0, "warmup_steps": 1},
        **{"checkpoint_steps": 1, "eval_steps": 1, "log_steps": 2, "eval_tokens": 10},
    )
    other.resume()
    assert_identical(other.model.state_dict(), saved.model.state_dict())
    steps = list(other.run())
    assert [step.step for step in steps] == [4, 5]
    assert steps[0].learning_rate == other.learning_rate(3) <= 1e-3


def test_a_run_of_older_groups_goes_on(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases of two dimensions and more decayed once, and nothing was saved by name."""

    def groups(module: torch.nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
        wide = [each for each in module.parameters() if each.ndim >= 2]
        flat = [each for each in module.parameters() if each.ndim < 2]
        return [
            {"params": wide, "weight_decay": weight_decay},
            {"params": flat, "weight_decay": 0.0},
        ]

    options = {"steps": 3, "weight_decay": 0.5}
    with monkeypatch.context() as patch:
        patch.setattr(streamlm.training.trainer, "parameter_groups", groups)
        old = make(**options)
        list(old.run())
    new = make(**{**options, "steps": 5})
    new.resume()
    assert_identical(new.model.state_dict(), old.model.state_dict())
    moments = (
        (trainer.model.named_parameters(), trainer.optimizer.state) for trainer in (new, old)
    )
    now, then = ({name: state[each] for name, each in named} for named, state in moments)
    assert_identical(now, then)
    bias = new.model.content_bias
    decays = [group["weight_decay"] for group in new.optimizer.param_groups]
    inside = [any(each is bias for each in group["params"]) for group in new.optimizer.param_groups]
    assert (decays, inside) == ([0.5, 0.0], [False, True])
    assert [step.step for step in new.run()] == [4, 5]


class Killed(BaseException):
    """Ends the program where it is raised."""


@pytest.mark.parametrize("at", ["save_checkpoint", "torch.save", "rename 1", "rename 2"])
def test_a_save_that_is_killed_loses_nothing(
    saved: Trainer, make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Twice in a row: what one death leaves behind must not be lost in the next."""
    kept = everything(saved)
    for _ in range(2):
        trainer = make(steps=9)
        trainer.resume()
        assert_identical(everything(trainer), kept)
        left = {"save_checkpoint": 1, "torch.save": 1, "rename 1": 1, "rename 2": 2}[at]

        def die_at(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal left
                if at.startswith(name):
                    left -= 1
                    if not left:
                        raise Killed
                return function(*args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die_at(os.replace, "rename"))
            patch.setattr(torch, "save", die_at(torch.save, "torch.save"))
            patch.setattr(
                streamlm.training.trainer,
                "save_checkpoint",
                die_at(streamlm.training.trainer.save_checkpoint, "save_checkpoint"),
            )
            if not (trainer.folder / "last").exists() and at == "rename 2":
                left = 1  # there is no older folder to be moved away
            with pytest.raises(Killed):
                list(trainer.run())
    trainer = make(steps=9)
    trainer.resume()
    list(trainer.run())
    final = make(steps=9)
    final.resume()
    assert final.step == 9
    assert_identical(everything(final), everything(trainer))
    assert sorted(path.name for path in trainer.folder.iterdir()) == ["last", "log.jsonl", "model"]


def test_a_loss_that_is_no_number_stops_the_run(saved: Trainer, make: MakeTrainer) -> None:
    trainer = make(steps=9, checkpoint_steps=1)
    trainer.resume()
    with torch.no_grad():
        trainer.model.output_bias[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"nan at step 4.*last.*lower learning_rate"):
        list(trainer.run())
    again = make(steps=9)  # the last good state is as it was
    again.resume()
    assert_identical(again.model.state_dict(), saved.model.state_dict())


@pytest.mark.parametrize("name", ["embedding.weight", "compressors.0.weight"])
def test_gradients_that_are_no_numbers_change_nothing(make: MakeTrainer, name: str) -> None:
    trainer = make(steps=9)
    list(islice(trainer.run(), 4))
    before = {key: weight.clone() for key, weight in trainer.model.state_dict().items()}
    weight = dict(trainer.model.named_parameters())[name]
    hook = weight.register_hook(lambda gradient: gradient * math.inf)
    list(islice(trainer.run(), 1))
    assert_identical(trainer.model.state_dict(), before)
    hook.remove()
    list(islice(trainer.run(), 1))
    assert not torch.equal(weight, before[name])


def test_bptt_needs_more_than_one_segment(make: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="unroll = 1; allowed with compression_loss 'bptt'"):
        make(compression_loss="bptt")


# -- recipes ----------------------------------------------------------------------------------

RECIPE = """
[data]
tokenizer = "{tokenizer}"
train = ["train-*.txt", "more.txt"]
valid = ["valid.txt"]

[model]
n_layers = 1
d_model = 16
n_heads = 1
head_dim = 16
d_ff = 16
segment_len = 8
memory_len = 8
compressed_len = 4
compression_rate = 2

[train]
steps = 2
batch_size = 2
warmup_steps = 0
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, books_tokenizer: Tokenizer) -> str:
    """A recipe's text; its files lie in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("books.model").write_bytes(books_tokenizer.model_bytes)
    for name in ("train-2", "train-1", "more", "valid", "other"):
        Path(f"{name}.txt").write_text(f"The book {name} of the sea, and so on.\n" * 4)
    return RECIPE.format(tokenizer="books.model")


def load(text: str) -> Recipe:
    Path("recipe.toml").write_text(text, encoding="utf-8")
    return Recipe.load("recipe.toml")


def test_a_recipe_is_a_whole_run(recipe: str, tmp_path: Path) -> None:
    loaded = load(recipe)
    assert [path.name for path in loaded.train_files] == ["train-1.txt", "train-2.txt", "more.txt"]
    assert loaded.train == TrainConfig(steps=2, batch_size=2, warmup_steps=0)
    messages: list[str] = []
    trainer = trainer_for(loaded, tmp_path / "run", device="cpu", progress=messages.append)
    assert messages == [f"encoding {n}.txt" for n in ("train-1", "train-2", "more", "valid")]
    assert trainer.model.config.vocab_size == trainer.tokenizer.vocab_size  # of the tokenizer
    steps = list(trainer.run())
    assert steps[-1].step == 2 and steps[-1].valid_bits_per_byte is not None
    assert load_checkpoint(tmp_path / "run" / "model").model.config.n_layers == 1
    messages.clear()
    trainer_for(loaded, tmp_path / "second run", device="cpu", progress=messages.append)
    assert not messages  # encoded once for all runs of a folder


def test_a_recipe_holds_out_the_end_of_one_large_file(recipe: str, tmp_path: Path) -> None:
    lines = [f"This is line {n} of it, more or less like all the others.\n" for n in range(200)]
    Path("large.txt").write_text("".join(lines))
    changed = recipe.replace('"train-*.txt", "more.txt"', '"large.txt"')
    changed = changed.replace('valid = ["valid.txt"]', "valid_share = 0.2\ncut_bytes = 600")
    trainer = trainer_for(load(changed), tmp_path / "run", device="cpu")
    train, valid = trainer.batches[0].corpus, trainer.valid
    assert len(valid) == round(0.2 * (len(train) + len(valid))) > 1
    decode = trainer.tokenizer.decode
    pieces = [decode(corpus.document(i)) for corpus in (train, valid) for i in range(len(corpus))]
    assert "".join(pieces) == "".join(lines)
    assert all(600 <= len(piece) < 700 and piece.endswith("\n") for piece in pieces[:-1])
    assert (train.n_bytes, train.n_words) != (valid.n_bytes, valid.n_words)
    assert train.n_bytes + valid.n_bytes == len("".join(lines))
    assert train.n_words + valid.n_words == len("".join(lines).split())


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("[train]", "[training]", ValueError, r"recipe\.toml: allowed are \[data\] with"),
        ('valid = ["valid.txt"]', "", ValueError, r"\[data\] with tokenizer, train, valid"),
        ("[data]", "[data]\nvalid_share = 0.1", ValueError, r"train, valid or valid_share"),
        ('valid = ["valid.txt"]', "valid_share = 1.0", ValueError, r"valid_share = 1\.0; allowed"),
        ("[data]", "[data]\ncut_bytes = -1", ValueError, r"cut_bytes = -1; allowed"),
        ("[data]", '[data]\ntest = ["x"]', ValueError, r"\[data\] with tokenizer, train, valid"),
        ('"more.txt"', '"mroe.txt"', FileNotFoundError, r"no data file matches 'mroe\.txt'"),
        ("train-*", "trian-*", FileNotFoundError, r"no data file matches 'trian-\*\.txt'"),
        ('["valid.txt"]', '"valid.txt"', ValueError, r"valid = 'valid\.txt'; allowed: a list"),
        ('["valid.txt"]', "[1]", ValueError, r"valid = \[1\]; allowed: a list"),
        ("steps = 2", "stesp = 2", ValueError, "TrainConfig has no stesp; it knows"),
        ("steps = 2", "steps = 0", ValueError, "steps = 0; allowed: an integer of at least 1"),
        ("steps = 2", "steps = ", ValueError, r"recipe\.toml is no TOML: .*line 19"),
    ],
)
def test_a_wrong_recipe_is_refused(
    recipe: str, old: str, new: str, error: type[Exception], message: str
) -> None:
    assert old in recipe
    with pytest.raises(error, match=message):
        load(recipe.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("n_layers = 1", "n_layer = 1", ValueError, "ModelConfig has no n_layer; it knows"),
        ("segment_len = 8", "segment_len = 7", ValueError, "a multiple of compression_rate = 2"),
        ("books.model", "books.modle", FileNotFoundError, r"books\.modle"),
        ("books.model", "more.txt", ValueError, "no SentencePiece model"),
        ("[model]", "[model]\nvocab_size = 99", ValueError, "vocab_size = 99.*8192"),
    ],
)
def test_what_a_recipe_names_is_checked(
    recipe: str, tmp_path: Path, old: str, new: str, error: type[Exception], message: str
) -> None:
    assert old in recipe
    with pytest.raises(error, match=message):
        trainer_for(load(recipe.replace(old, new)), tmp_path / "run", device="cpu")
