"""Training on a pretended CUDA device equals training on the CPU and reports a step behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from streamlm.training import losses
from streamlm.training.trainer import Trainer
from tests.device.cases import VARIANTS, trainer_of
from tests.support.pretended_cuda import Log, counting, pretended_cuda

SETUPS: dict[str, tuple[str, dict[str, Any]]] = {
    **{variant: (variant, {}) for variant in VARIANTS},
    "bfloat16": ("relative", {"precision": "bfloat16"}),
    "accumulate": ("relative", {"accumulate": 2}),
    "bptt": ("relative", {"unroll": 2, "model": {"compression_loss": "bptt"}}),
    "both": ("sketch", {"unroll": 2, "accumulate": 2}),
    "adaptive bfloat16": ("adaptive", {"precision": "bfloat16"}),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_is_the_same_stopped_and_resumed_or_not(tmp_path: Path, setup: str) -> None:
    variant, options = SETUPS[setup]
    wanted = list(trainer_of(tmp_path / "here", "cpu", variant, **options).run())
    with pretended_cuda():
        trainer = trainer_of(tmp_path / "there", "cuda", variant, **options)
        assert trainer.model.device.type == "cuda"
        run: Any = trainer.run()
        with counting() as log:
            found = [next(run)]  # neither this step nor the next one is saved
        assert log.n_waits == 1 and [reason for reason, _ in log.waits] == ["event"], (
            log.offenders()
        )
        found += [next(run) for _ in range(3)]
        run.close()
        resumed = trainer_of(tmp_path / "there", "cuda", variant, **options)
        resumed.resume()
        assert resumed.step == 3
        found[3:] = list(resumed.run())
    assert [step.step for step in found] == [1, 2, 3, 4, 5, 6]
    # Devices take products in other orders, which bfloat16 rounds to other numbers.
    near = 100 if options.get("precision") == "bfloat16" else 1
    for one, other in zip(found, wanted, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=near * 1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=near * 1e-4)
        assert one.compression_loss == pytest.approx(other.compression_loss, rel=near * 1e-4)
        assert one.tokens == other.tokens
        if other.valid_bits_per_byte is None:
            assert one.valid_bits_per_byte is None
        else:
            assert one.valid_bits_per_byte == pytest.approx(
                other.valid_bits_per_byte, rel=near * 1e-5
            )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_in_chunks_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    options: dict[str, Any] = {"precision": precision, "checkpoint_steps": 99, "eval_steps": 99}
    wanted = [step.loss for step in trainer_of(tmp_path / "a", "cpu", "relative", **options).run()]
    monkeypatch.setattr(losses, "CHUNK_BYTES", 20 * 4 * 8192)
    with pretended_cuda():
        run: Any = trainer_of(tmp_path / "b", "cuda", "relative", **options).run()
        found = [next(run).loss]
        with counting() as log:
            found += [next(run).loss]
        assert log.n_waits == 1, log.offenders()
        found += [step.loss for step in run]
    assert found == pytest.approx(wanted, rel=1e-5 if precision == "float32" else 1e-3)


def test_a_step_is_reported_when_the_next_one_was_begun(cuda: Log, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "cuda", "relative")
    reported = [(step.step, trainer.step) for step in trainer.run()]
    # The third and the sixth are saved and evaluated, and so reported at once.
    assert reported == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 6), (6, 6)]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    evaluated = [json.loads(line)["valid_bits_per_byte"] is not None for line in lines]
    assert evaluated == [False, False, True, False, False, True]


def test_on_the_cpu_every_step_is_reported_at_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "cpu", "relative")
    assert [(step.step, trainer.step) for step in trainer.run()] == [(n, n) for n in range(1, 7)]


def spoil(trainer: Trainer, factor: float) -> Any:
    """Multiply a gradient from now on; returns the hook."""
    weight = trainer.model.output_bias
    return weight.register_hook(lambda gradient: gradient * factor)


def test_a_gradient_that_is_no_number_changes_nothing(cuda: Log, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "cuda", "relative", checkpoint_steps=99, eval_steps=99)
    run = trainer.run()
    next(run)
    before = {name: weight.cpu() for name, weight in trainer.model.state_dict().items()}
    hook = spoil(trainer, float("inf"))
    with counting() as log:
        step = next(run)  # the second step; the third, which is queued, is spoilt
    assert log.n_waits == 1, log.offenders()
    assert step.step == 2 and trainer.step == 3
    for name, weight in trainer.model.state_dict().items():
        assert (weight.cpu() == before[name]).all(), name
    hook.remove()
    assert next(run).gradient_norm != next(run).gradient_norm > 0
    assert not (trainer.model.output_bias.detach().cpu() == before["output_bias"]).all()


def test_a_loss_that_is_no_number_is_never_saved(cuda: Log, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "cuda", "relative", steps=7)
    run = trainer.run()
    for _ in range(3):
        next(run)
    trainer.model.output_bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"nan at step 4; resume from .*last"):
        list(run)
    again = trainer_of(tmp_path, "cuda", "relative", steps=7)
    again.resume()
    assert again.step == 3 and not again.model.output_bias.isnan().any()
