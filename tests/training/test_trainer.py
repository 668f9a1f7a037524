"""The trainer learns, trains every parameter, and reports errors."""

import json
import math
from itertools import islice

import pytest
import torch

from streamlm.checkpoints.checkpoint import load_checkpoint
from streamlm.training.data import Corpus
from streamlm.training.step import Step
from tests.support.training import VARIANTS, MakeTrainer, assert_identical, gradients


def test_a_model_learns(make: MakeTrainer, corpus: Corpus) -> None:
    trainer = make(steps=30, norm="pre", final_norm=True, eval_steps=15)
    before = trainer.validate()
    steps = list(trainer.run())
    assert [step.step for step in steps] == list(range(1, 31))
    assert steps[0].loss == pytest.approx(
        math.log(8192), rel=0.05
    )  # the initial loss is that of a uniform guess
    assert steps[-1].loss < 0.2 * steps[0].loss
    assert all(math.isfinite(step.compression_loss) for step in steps)
    assert any(step.compression_loss > 0 for step in steps)
    valid = [step.valid_bits_per_byte for step in steps]
    assert [index + 1 for index, value in enumerate(valid) if value is not None] == [15, 30]
    assert valid[14] is not None and valid[29] is not None
    assert valid[29] < valid[14] < before
    assert trainer.tokens == steps[-1].tokens > 30 * 16

    # The folder holds a log with a line per step, and the checkpoint.
    lines = (trainer.folder / "log.jsonl").read_text().splitlines()
    assert [Step(**json.loads(line)) for line in lines] == steps
    checkpoint = load_checkpoint(trainer.folder / "model", device="cpu")
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name])


def test_an_adaptive_model_learns(make: MakeTrainer) -> None:
    options = {"cutoffs": [500, 3000], "div_val": 2, "init_std": 0.1}
    trainer = make(steps=12, norm="pre", final_norm=True, eval_steps=12, **options)
    before = trainer.validate()
    *_, last = trainer.run()
    assert last.valid_bits_per_byte is not None and last.valid_bits_per_byte < 0.8 * before
    checkpoint = load_checkpoint(trainer.folder / "model", device="cpu")
    assert checkpoint.model.config.cutoffs == (500, 3000)


def test_every_parameter_is_trained(make: MakeTrainer) -> None:
    """Every parameter gets a gradient, with every compression loss."""
    for variant in ("conv", "dilated", "bptt"):
        trainer = make(variant, **VARIANTS[variant])
        found = gradients(trainer, 5)
        missing = [
            name
            for name, _ in trainer.model.named_parameters()
            if name not in found or not bool(found[name].any())
        ]
        assert not missing, variant


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


@pytest.mark.parametrize("name", ["embedding.weight", "compressors.0.weight"])
def test_gradients_that_are_not_finite_skip_the_step(make: MakeTrainer, name: str) -> None:
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
