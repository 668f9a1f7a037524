"""Intervals, baselines and defaults: against their definitions, and on noise of known make."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamlm.forecast.baseline import best_season, naive, naive_errors, seasons
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.defaults import LEAST_BATCHES, default_config
from streamlm.forecast.forecaster import Forecaster
from streamlm.forecast.intervals import LEVELS, Calibration, half_widths
from streamlm.forecast.series import Series, splits
from streamlm.forecast.steps import HOUR, Step
from streamlm.forecast.training import train
from tests.support.waves import CPU


def test_widths_are_ranked_errors() -> None:
    errors = np.random.default_rng(0).exponential(size=(99, 3, 2))
    widths = half_widths(errors)
    assert widths.shape == (len(LEVELS), 3, 2)
    for index, level in enumerate(LEVELS):  # of 99 errors, the 50th, 80th, 90th and 95th
        rank = round(100 * level)
        assert widths[index, 1, 0] == sorted(errors[:, 1, 0])[rank - 1]
    few = half_widths(errors[:8])  # five rows would be read together; there are three
    assert (few[:, 0] == few[:, 2]).all()
    assert few[2, 0, 1] == sorted(errors[:8, :, 1].ravel())[math.ceil(25 * 0.9) - 1]
    one = half_widths(errors[:1])
    assert (one[-1] == errors[:1].max(axis=(0, 1))).all()


def test_intervals_hold_on_noise_as_often_as_they_say(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    n = 1500
    values = np.stack([random.normal(0, 3, n), random.exponential(2, n)], axis=1)
    step = Step("row")
    series = Series(np.arange(n), values, ("a", "b"), splits("x", n, step), step)
    config = replace(default_config(series, horizon=4, input_len=16, epochs=1), passes=1)
    found = train(series, config, tmp_path, device=CPU)
    held = found.calibration
    assert held is not None and held.windows == 297
    for level in LEVELS:
        assert held.covered(level) == pytest.approx(level, abs=0.06)
    again = Forecaster.load(tmp_path, device=CPU).calibration
    assert again is not None and again.widths.tolist() == held.widths.tolist()
    assert replace(again, widths=held.widths) == held
    noisier = replace(series, values=2 * series.values)
    wider = found.measured(noisier, held.widths).calibration
    assert wider is not None and wider.covered(0.9) < 0.7 and (wider.widths == held.widths).all()
    forecast = found.predict(series, level=0.8)
    assert forecast.low is not None and forecast.high is not None
    half = held.width(0.8) * found.scale.deviation
    assert forecast.high - forecast.values == pytest.approx(half)
    assert forecast.values - forecast.low == pytest.approx(half)
    with pytest.raises(ValueError, match=r"level 0.99; allowed: 0\.5, 0\.8, 0\.9, 0\.95"):
        found.predict(series, level=0.99)


def test_a_calibration_is_json() -> None:
    held = Calibration(np.ones((4, 2, 1)), (0.5, 0.8, 0.9, 0.95), 9, 7, 1.0, 0.5, 2.0, 0.75)
    again = Calibration.from_dict(json.loads(held.to_json()))
    assert again.width(0.9).tolist() == [[1], [1]] and again.coverage == held.coverage


def test_the_baseline_repeats_the_last_season() -> None:
    values = np.arange(10.0)[:, None]
    assert naive(values, 4, 6)[:, 0].tolist() == [6, 7, 8, 9, 6, 7]
    assert naive(values, 1, 3)[:, 0].tolist() == [9, 9, 9]
    squared, absolute = naive_errors(values, 6, 10, season=1, horizon=2)
    assert (squared, absolute) == (2.5, 1.5)  # 1 and 2 off in each of three windows
    week = np.tile(np.arange(7.0), 20)[:, None]
    assert naive_errors(week, 40, 140, season=7, horizon=9) == (0, 0)
    assert best_season(week, Step("day"), horizon=3) == 7
    assert best_season(np.cumsum(np.ones((99, 1)), axis=0), Step("day"), horizon=3) == 1
    assert best_season(week[:9], Step("day"), horizon=3) == 1  # shorter than two seasons


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (Step("month"), (1, 12)),
        (Step("month", 3, "end"), (1, 4)),
        (Step("month", 12), (1,)),
        (Step("month", 1, "half start"), (1, 24)),
        (Step("weekday", 1, "1111100"), (1, 5)),
        (Step("weekday", 1, "1111100", (9 * HOUR, 10 * HOUR)), (1, 2, 10)),
        (Step("day"), (1, 7, 364)),
        (Step("day", 7), (1, 52)),
        (Step("time", HOUR), (1, 24, 168, 8736)),
        (Step("time", 7 * HOUR), (1, 24, 1248)),
    ],
)
def test_seasons_of_steps(step: Step, found: tuple[int, ...]) -> None:
    assert seasons(step) == found


def test_defaults_suit_the_series() -> None:
    def series(n: int) -> Series:
        step = Step("row")
        return Series(np.arange(n), np.ones((n, 1)), ("a",), splits("x", n, step), step)

    long, short = default_config(series(9000)), default_config(series(144), horizon=12)
    assert long.model == "nlinear" and long.learning_rate == 5e-3
    assert (long.input_len, long.label_len, long.passes) == (96, 48, 1)
    assert (short.input_len, short.label_len) == (41, 20)
    windows = 94 - 41 - 12 + 1
    assert short.passes == math.ceil(LEAST_BATCHES / math.ceil(windows / short.batch_size))
    given = default_config(series(144), horizon=12, input_len=7, label_len=None, model="informer")
    assert (given.input_len, given.label_len, given.learning_rate) == (7, 3, 1e-4)
    assert ForecastConfig().model == "nlinear"
