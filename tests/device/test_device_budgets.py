"""Budgets: how often the host may wait, and how many kernels each activity may launch.

The shape is that of `tests.device.cases`: L = 2, D = 32, T = 16, M = 32, C = 16, V = 8192, one row
for reading and generating, four for training. See `docs/cuda.md` for the figures.
"""

import re
from pathlib import Path

import pytest

from tests.device.budgets import CEILINGS, SEGMENTS, STEPS, Counted, count
from tests.device.cases import ROOT, VARIANTS


@pytest.fixture(scope="module", params=VARIANTS)
def counted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Counted]:
    return request.param, count(request.param, tmp_path_factory.mktemp("counted"))


def test_reading_waits_for_nothing(counted: tuple[str, Counted]) -> None:
    """Neither per call nor per segment."""
    _, found = counted
    assert not found.call.n_waits, found.call.offenders()
    assert not found.read.n_waits, found.read.offenders()


def test_feeding_a_session_waits_once_a_block(counted: tuple[str, Counted]) -> None:
    """For the figures of its report, however many segments the block has."""
    _, found = counted
    assert found.fed.n_waits == 1, found.fed.offenders()


def test_writing_waits_once_a_token(counted: tuple[str, Counted]) -> None:
    """For the logits: sampling runs on the host."""
    _, found = counted
    assert found.written.n_waits == found.n_tokens, found.written.offenders()


def test_training_waits_once_a_step_and_for_the_step_before(counted: tuple[str, Counted]) -> None:
    _, found = counted
    assert found.trained.n_waits == STEPS, found.trained.offenders()
    assert {reason for reason, _ in found.trained.waits} == {"event"}, found.trained.offenders()


def test_kernels_stay_below_their_ceilings(counted: tuple[str, Counted]) -> None:
    variant, found = counted
    most, kernels = CEILINGS[variant], found.kernels
    assert kernels.token <= most.token, found.written.busiest()
    assert kernels.segment <= most.segment, found.read.busiest()
    assert kernels.step <= most.step, found.trained.busiest()
    # A ceiling far above the count would not constrain anything.
    assert kernels.token > 0.7 * most.token and kernels.step > 0.7 * most.step
    assert kernels.segment > 0.7 * most.segment


def test_the_documentation_states_the_ceilings() -> None:
    text = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(VARIANTS)
    for name, cells in rows:
        stated = [int(n) for n in re.findall(r"\d+ of (\d+)", cells)]
        most = CEILINGS[name]
        assert stated == [most.token, most.segment, most.step], name


def test_what_is_counted_is_whole(tmp_path: Path) -> None:
    """The logs cover the work: a segment costs more than a token, a step more than a segment."""
    found = count("relative", tmp_path)
    assert found.call.n_kernels < found.read.n_kernels / SEGMENTS < found.trained.n_kernels / STEPS
    to_device = sum(n for (kind, _), n in found.trained.copies.items() if kind == "to the device")
    assert to_device >= 2 * STEPS  # inputs and targets
    assert sum(n for (kind, _), n in found.written.copies.items() if kind == "to the host") == 16
