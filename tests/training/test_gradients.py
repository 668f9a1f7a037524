"""Gradients of a step equal those of plainly computed losses: means over all targets."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.models.build import MODELS
from streamlm.models.compression_losses import compression_loss
from streamlm.models.heads.sketch import SketchModel
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from streamlm.training.data import IGNORED, Corpus, SegmentBatches
from streamlm.training.trainer import Trainer
from tests.support.training import VARIANTS, MakeTrainer, gradients
from tokenizer import Tokenizer
from tokenizer.kinds import token_types


def test_only_bptt_trains_the_compressor_by_the_language_model(make: MakeTrainer) -> None:
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


ROWS = [90, 30, 13, 110]  # targets of four documents, unevenly spread over rows and groups


def of_documents(make: MakeTrainer, groups: list[list[int]], **options: object) -> Trainer:
    """A float64 trainer whose groups of rows read these documents."""
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
def test_row_groups_equal_one_batch(make: MakeTrainer, variant: str, unroll: int) -> None:
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
    """Without a coverage loss, the loss is bit-identical to cross-entropy."""
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
    """A compressing head with a segment loss of its own."""

    def segment_loss(self, state: State) -> torch.Tensor:
        return self.output_bias.mean() + 0.25


def test_segment_loss_and_compression_loss_are_both_added(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"clip": 1e9, "compression_loss": "attention-reconstruction"}
    # A learning rate of almost 0 keeps the weights.
    options |= {"steps": 3, "learning_rate": 1e-9, "min_learning_rate": 0.0}
    plain = make("plain", **options)
    monkeypatch.setitem(MODELS, "relative", Penalised)
    both = make("both", **options)
    compression = list(islice(plain.run(), 2))[-1].compression_loss
    assert compression > 0  # a segment was compressed
    assert list(islice(both.run(), 2))[-1].compression_loss == pytest.approx(0.25 + compression)
    wanted, found = gradients(plain), gradients(both)
    share = 1 / len(wanted["output_bias"])
    torch.testing.assert_close(found.pop("output_bias"), wanted.pop("output_bias") + share)
    assert any("compressors" in name and bool(each.any()) for name, each in wanted.items())
    torch.testing.assert_close(found, wanted)


def test_the_compressor_is_clipped_separately(make: MakeTrainer) -> None:
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
