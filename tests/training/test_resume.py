"""Resumed runs end bit-identical to uninterrupted ones."""

import math
import os
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

import streamlm.training.trainer
from streamlm.training.trainer import Trainer
from tests.support.training import VARIANTS, MakeTrainer, assert_identical, everything


@pytest.fixture
def saved(make: MakeTrainer) -> Trainer:
    """A run saved after three steps."""
    trainer = make(steps=3, eval_steps=100)
    list(trainer.run())
    return trainer


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_bit_identical(make: MakeTrainer, variant: str) -> None:
    options = VARIANTS[variant]
    whole = make("whole", **options)
    wanted = [(step.loss, step.gradient_norm, step.tokens) for step in whole.run()]
    torch.manual_seed(0)
    stopped = make("parts", **options)
    first = list(islice(stopped.run(), 3))
    torch.manual_seed(99)  # other draws of the process must not matter
    resumed = make("parts", **options)
    resumed.resume()
    assert resumed.step == 3 and resumed.tokens == stopped.tokens
    second = list(resumed.run())
    assert [(s.loss, s.gradient_norm, s.tokens) for s in [*first, *second]] == wanted
    assert_identical(everything(resumed), everything(whole))
    weights = ("parts/model/model.safetensors", "whole/model/model.safetensors")
    one, other = (resumed.folder.parent / path for path in weights)
    assert one.read_bytes() == other.read_bytes()


def test_a_new_run_cannot_resume(make: MakeTrainer) -> None:
    trainer = make()
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*run"):
        trainer.resume()


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


def test_allowed_settings_can_change(saved: Trainer, make: MakeTrainer) -> None:
    other = make(
        **{"steps": 5, "learning_rate": 1e-3, "min_learning_rate": 0.0, "warmup_steps": 1},
        **{"checkpoint_steps": 1, "eval_steps": 1, "log_steps": 2, "eval_tokens": 10},
    )
    other.resume()
    assert_identical(other.model.state_dict(), saved.model.state_dict())
    steps = list(other.run())
    assert [step.step for step in steps] == [4, 5]
    assert steps[0].learning_rate == other.learning_rate(3) <= 1e-3


def test_a_run_with_older_groups_resumes(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In older runs, biases of two or more dimensions decay, and names are not saved."""

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
    """Raised where the process would be killed."""


@pytest.mark.parametrize("at", ["save_checkpoint", "torch.save", "rename 1", "rename 2"])
def test_a_killed_save_loses_nothing(
    saved: Trainer, make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Twice in a row: the second kill must not lose what the first one left."""
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
                left = 1  # there is no older folder to rename
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


def test_a_loss_that_is_not_finite_stops_the_run(saved: Trainer, make: MakeTrainer) -> None:
    trainer = make(steps=9, checkpoint_steps=1)
    trainer.resume()
    with torch.no_grad():
        trainer.model.output_bias[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"nan at step 4.*last.*lower learning_rate"):
        list(trainer.run())
    again = make(steps=9)  # the last good save is intact
    again.resume()
    assert_identical(again.model.state_dict(), saved.model.state_dict())
