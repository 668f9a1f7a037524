"""Budgets: how often the host may wait, and how many kernels each activity may launch.

The shape is that of `tests.device.cases`: L = 2, D = 32, T = 16, M = 32, C = 16, V = 8192; one row
for reading and generating, two for rows in different phases, four for training. See `docs/cuda.md`
for the figures.
"""

import re
from collections.abc import Callable
from dataclasses import astuple
from functools import cache

import pytest

from tests.device.budgets import CEILINGS, SEGMENTS, STEPS, Counted, count
from tests.device.cases import ROOT, VARIANTS

# Kernels of a `Ceiling`, and the log that they are counted in.
LOGS = {"token": "written", "ragged": "ragged", "segment": "read", "step": "trained"}


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Counted]:
    return cache(lambda variant: count(variant, tmp_path_factory.mktemp("counted")))


@pytest.fixture(scope="module", params=VARIANTS)
def counted(
    request: pytest.FixtureRequest, counts: Callable[[str], Counted]
) -> tuple[str, Counted]:
    return request.param, counts(request.param)


def test_reading_waits_for_nothing(counted: tuple[str, Counted]) -> None:
    """Neither per call nor per segment."""
    _, found = counted
    assert not found.call.n_waits, found.call.offenders()
    assert not found.read.n_waits, found.read.offenders()


def test_rows_in_different_phases_wait_for_nothing(counted: tuple[str, Counted]) -> None:
    """Neither token by token nor at once, although their segments end apart."""
    _, found = counted
    assert not found.ragged.n_waits, found.ragged.offenders()
    assert not found.ragged_read.n_waits, found.ragged_read.offenders()


def test_feeding_a_session_waits_for_nothing(counted: tuple[str, Counted]) -> None:
    _, found = counted
    assert not found.fed.n_waits, found.fed.offenders()


def test_feeding_and_scoring_waits_once_a_block(counted: tuple[str, Counted]) -> None:
    """For the figures of its report, however many segments the block has."""
    _, found = counted
    assert found.scored.n_waits == 1, found.scored.offenders()


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
    for name, log in LOGS.items():
        launched, ceiling = getattr(kernels, name), getattr(most, name)
        assert launched <= ceiling, getattr(found, log).busiest()
        # A ceiling far above the count would not constrain anything.
        assert launched > 0.7 * ceiling, name


def test_the_documentation_states_the_ceilings() -> None:
    text = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|(.* of .*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(VARIANTS)
    for name, cells in rows:
        stated = tuple(int(n) for n in re.findall(r"\d+ of (\d+)", cells))
        assert stated == astuple(CEILINGS[name]), name


def test_what_is_counted_is_whole(counts: Callable[[str], Counted]) -> None:
    """The logs cover the work: a segment costs more than a token, a step more than a segment."""
    found = counts("relative")
    assert found.call.n_kernels < found.read.n_kernels / SEGMENTS < found.trained.n_kernels / STEPS
    to_device = sum(n for (kind, _), n in found.trained.copies.items() if kind == "to the device")
    assert to_device >= 2 * STEPS  # inputs and targets
    assert sum(n for (kind, _), n in found.written.copies.items() if kind == "to the host") == 16
