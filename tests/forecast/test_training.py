"""Training, resuming and early stopping of forecasters; forecasts in the series' units."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from streamlm.forecast.forecaster import MODELS, Errors, Forecaster
from streamlm.forecast.reading import load
from streamlm.forecast.series import Series
from streamlm.forecast.training import Epoch, train
from tests.support.waves import CPU, SMALL, write


@pytest.mark.parametrize("model", MODELS)
def test_forecasters_learn_waves(model: str, csv: Path, tmp_path: Path) -> None:
    series = load(csv)
    rate = 0.02 if "linear" in model else 3e-3
    config = replace(SMALL, model=model, learning_rate=rate, epochs=4)
    epochs: list[Epoch] = []
    found = train(series, config, tmp_path / "run", device=CPU, report=epochs.append)
    windows = found.windows(series, "test")
    errors = found.errors(windows)
    whole = windows.take(torch.arange(len(windows)), CPU)
    last = whole.past[:, -1:].expand_as(whole.future)
    assert errors.mse < 0.5 * float(F.mse_loss(last, whole.future))
    assert errors.windows == len(windows) and 0 < errors.mae < 1
    assert len(epochs) == 4 and min(epochs, key=lambda epoch: epoch.valid).best
    assert found.errors(windows) == errors  # the same keys are sampled
    again = Forecaster.load(tmp_path / "run", device=CPU)
    assert again.errors(windows) == errors and again.config == found.config
    assert again.config == replace(config, step="3600000000 time")


def test_a_resumed_training_is_bit_identical(csv: Path, tmp_path: Path) -> None:
    series, config = load(csv), SMALL
    whole = train(series, config, tmp_path / "whole", device=CPU)

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(series, config, tmp_path / "parts", device=CPU, resume=True, report=stop)
    parts = train(series, config, tmp_path / "parts", device=CPU, resume=True)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, parts.model.state_dict()[name]), name


def test_early_stopping_keeps_the_best_epoch(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.3, 0.4, 0.9, 0.1])
    monkeypatch.setattr(Forecaster, "errors", lambda *_: Errors(next(losses), 0, 1))
    epochs: list[Epoch] = []
    config = replace(SMALL, model="nlinear", epochs=9, patience=2)
    train(load(csv), config, tmp_path, device=CPU, report=epochs.append)
    assert [epoch.best for epoch in epochs] == [True, True, False, False]
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(
            load(csv),
            replace(config, learning_rate=1e30),
            tmp_path / "diverged",
            device=CPU,
        )


def test_forecasts_are_in_the_units_of_the_series(csv: Path, tmp_path: Path) -> None:
    series = load(csv)
    config = replace(SMALL, model="nlinear", learning_rate=0.1, epochs=8, patience=8)
    found = train(series, config, tmp_path, device=CPU)
    dates, values = found.forecast(series)
    assert str(dates[0]) == str(series.dates[-1] + np.timedelta64(1, "h"))
    wanted = [[math.sin(n / 3), 5 + 2 * math.cos(n / 5)] for n in range(400, 404)]
    stays = np.abs(series.values[-1] - wanted).mean()
    assert np.abs(values - wanted).mean() < 0.7 * stays
    short = Series(series.dates[:9], series.values[:9], series.names, (5, 6, 9))
    with pytest.raises(ValueError, match="the series has 9 rows; allowed: at least 16"):
        found.forecast(short)
    daily = load(write(tmp_path / "daily.csv", 40, minutes=1440))
    with pytest.raises(ValueError, match="the step of the series is 1 day; allowed: 1 hour"):
        found.forecast(daily)
