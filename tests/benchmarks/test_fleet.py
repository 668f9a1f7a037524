"""The simulated worker keeps the laws of queues, and the fleet its own arithmetic."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fleet
from benchmarks.tools.fleet_worker import Traffic, Worker, response_times

ONE_SPEED = Worker(
    rows=[0, 1, 1000],
    speeds=[0.0, 100.0, 100.0],
    reading=1000.0,
    max_rows=1000,
    held=10,
    resume=0.0,
    commit=0.0,
)
LOAD = Traffic(rate=0.7, sessions=5, read=0.0, write=100.0)  # a second of work at 0.7 a second


def varied(worker: Worker, **changes: object) -> Worker:
    return Worker(**{**vars(worker), **changes})  # type: ignore[arg-type]


def test_a_shared_core_is_as_slow_as_theory_says() -> None:
    """M/M/1 with processor sharing: a mean of 1 / (μ - λ)."""
    times, in_memory = response_times(ONE_SPEED, LOAD, requests=60_000)
    assert times.mean() == pytest.approx(1 / 0.3, rel=0.05)
    assert in_memory > 0.999  # all sessions fit


def test_a_single_row_is_as_slow_as_theory_says() -> None:
    """M/M/1 in order: response times are exponential with the rate μ - λ."""
    times, _ = response_times(varied(ONE_SPEED, max_rows=1), LOAD, requests=60_000)
    assert times.mean() == pytest.approx(1 / 0.3, rel=0.1)
    assert np.quantile(times, 0.99) == pytest.approx(-math.log(0.01) / 0.3, rel=0.15)


def test_the_store_is_waited_for_beside_the_core() -> None:
    waits = varied(ONE_SPEED, resume=2.0, commit=1.0, held=1)
    times, in_memory = response_times(
        waits, Traffic(rate=0.01, sessions=10_000, read=0.0, write=100.0), requests=5_000
    )
    assert in_memory < 0.01
    alone, _ = response_times(
        ONE_SPEED, Traffic(rate=0.01, sessions=1, read=0.0, write=100.0), requests=5_000
    )
    assert times.mean() == pytest.approx(alone.mean() + 3.0, rel=0.02)


def test_reading_and_writing_take_their_time() -> None:
    alone = Traffic(rate=1e-4, sessions=1, read=500.0, write=200.0)
    times, _ = response_times(ONE_SPEED, alone, requests=20_000)
    assert times.mean() == pytest.approx(500 / 1000 + 200 / 100, rel=0.03)


def test_a_fleet_from_the_measured_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    out = tmp_path / "fleet.json"
    options = ["--rates", "5", "40", "--requests", "1500", "--sessions", "1000", "--out", str(out)]
    fleet.main(options)
    figures = json.loads(out.read_text())["figures"]
    facts, resting = figures["measured"], figures["at_rest"]
    assert resting["bytes"] == 1000 * (facts["state_bytes"] + 1e5 * facts["bytes_a_token"])
    assert resting["puts_an_hour"] == 120 and resting["commits_a_second_a_prefix"] == 1750
    few, many = figures["fleets"]
    assert few["workers"] < many["workers"] <= 8 * few["workers"]
    assert all(each["p50"] < each["p99"] <= 15 for each in (few, many))


def test_a_target_that_one_request_alone_misses_is_refused(tmp_path: Path) -> None:
    options = ["--rates", "1", "--requests", "500", "--target", "0.1"]
    with pytest.raises(ValueError, match=r"--target 0\.1; allowed"):
        fleet.main([*options, "--out", str(tmp_path / "fleet.json")])
