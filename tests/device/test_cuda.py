"""A CUDA device computes what the CPU computes, and the host does not block needlessly.

`tests/device` checks the same without a GPU; here PyTorch itself detects synchronizations.
"""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.tools.parity import (
    CASES,
    between_devices,
    between_precisions,
    distance,
    exact,
    moved,
    seeded_model,
    small_config,
    some_tokens,
    streaming,
)
from streamlm.config import COMPRESSIONS
from streamlm.runtime.stream import advance, score
from tests.device.cases import VARIANTS, config_of, trainer_of

DEVICE = "cuda"
pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("compression", "loss"), CASES)
def test_training_agrees_with_the_cpu(compression: str, loss: str) -> None:
    for name, difference in between_devices(compression, loss, DEVICE).items():
        assert difference < 1e-4, name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_cached_decoding_agrees_with_reading_at_once_on_the_cpu(compression: str) -> None:
    for name, difference in streaming(small_config(compression), DEVICE).items():
        assert difference < 1e-4, name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_state_saved_on_the_cpu_goes_on_elsewhere(compression: str) -> None:
    found = moved(compression, DEVICE)
    assert found.pop("loaded_differently") == 0
    for name, difference in found.items():
        assert difference < 1e-4, name


@pytest.mark.parametrize(("compression", "loss"), CASES)
def test_bfloat16_is_close_to_float32(compression: str, loss: str) -> None:
    found = between_precisions(compression, loss, DEVICE)
    assert found["language_loss"] < 0.02
    assert found["compression_loss"] < 0.1
    if compression != "most-used":  # a tie decided otherwise keeps another slot
        assert found["past"] < 0.1


@contextlib.contextmanager
def no_wait() -> Iterator[None]:
    """Make PyTorch raise where the host blocks, except on an event."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_head_reads_as_on_the_cpu_and_waits_for_nothing(variant: str) -> None:
    model = seeded_model(config_of(variant))
    other = copy.deepcopy(model).to(DEVICE)
    tokens = some_tokens(model.config, 6 * model.config.segment_len - 3)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with exact():
        wanted, end = score(model, inputs, targets, model.init_state(len(inputs)))
        there = inputs.to(DEVICE)
        found, state = score(other, there, targets, other.init_state(len(inputs)))
        advance(other, there, other.init_state(len(inputs)))  # builds what is built once
        fresh = other.init_state(len(inputs))
        with no_wait():
            advance(other, there, fresh)
            score(other, there, targets, fresh)
    assert distance(found, wanted) < 1e-4
    assert distance(state.past, end.past) < 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_waits_for_the_step_before_alone(tmp_path: Path, variant: str) -> None:
    options = {"checkpoint_steps": 99, "eval_steps": 99}
    here = trainer_of(tmp_path / "here", "cpu", variant, model={"dropout": 0.0}, **options)
    there = trainer_of(tmp_path / "there", DEVICE, variant, model={"dropout": 0.0}, **options)
    with exact():
        wanted, run = [step.loss for step in here.run()], there.run()
        found = [next(run).loss for _ in range(3)]
        with no_wait():
            found.append(next(run).loss)
        found += [step.loss for step in run]
    assert found == pytest.approx(wanted, rel=1e-2)
