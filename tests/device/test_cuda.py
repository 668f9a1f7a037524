"""What a CUDA device computes is what the CPU computes."""

import pytest

from benchmarks.tools.parity import CASES, between_devices, between_precisions, moved, streaming
from streamlm.config import COMPRESSIONS

DEVICE = "cuda"
pytestmark = pytest.mark.cuda


@pytest.mark.parametrize(("compression", "loss"), CASES)
def test_training_agrees_with_the_cpu(compression: str, loss: str) -> None:
    for name, difference in between_devices(compression, loss, DEVICE).items():
        assert difference < 1e-4, name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_cached_decoding_agrees_with_reading_at_once_on_the_cpu(compression: str) -> None:
    for name, difference in streaming(compression, DEVICE).items():
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
