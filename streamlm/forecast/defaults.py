"""Settings of a forecaster that suit a series, where the user gives none."""

import math
from dataclasses import replace
from typing import Any

from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.series import Series

LONGEST_INPUT = 96  # rows; the sizes of the linear controls' paper begin here
LEAST_BATCHES = 100  # of an epoch, so that a short series is learned too


def default_config(series: Series, **given: Any) -> ForecastConfig:
    """The settings for a series.

    Half of the train part, at most, is input; the decoder begins with half of the input; an epoch
    goes through a short train part several times.

    Args:
        given: settings of a ForecastConfig that are kept; None is not given.

    Raises:
        ValueError: the series is too short for the horizon, or a setting is not allowed.
    """
    known = {name: value for name, value in given.items() if value is not None}
    known = {"columns": series.names, "horizon": 24, "n_marks": series.n_marks, **known}
    horizon = int(known["horizon"])
    train = series.reserving(horizon).ends[0]
    known.setdefault("input_len", max(1, min(LONGEST_INPUT, (train - horizon) // 2)))
    known.setdefault("label_len", min(48, int(known["input_len"]) // 2))
    config = ForecastConfig(**known)
    windows = train - config.input_len - config.horizon + 1
    batches = math.ceil(max(1, windows) / config.batch_size)
    return replace(config, passes=max(1, math.ceil(LEAST_BATCHES / batches)))
