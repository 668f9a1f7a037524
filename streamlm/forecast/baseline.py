"""The seasonal naive forecast: every row is the one a season before.

A forecaster that does not beat it is not worth its training (Hyndman & Athanasopoulos, Forecasting:
Principles and Practice, §5.2).
"""

import numpy as np

from streamlm.forecast.steps import DAY, HOUR, MINUTE, Step

COMMON = (7, 12, 24, 52, 96, 168)  # tried where the step says nothing
WEEK, YEAR = 7 * DAY, 364 * DAY


def seasons(step: Step) -> tuple[int, ...]:
    """Rows of the seasons that a step suggests; the first is 1, no season."""
    if step.unit == "row":
        return (1, *COMMON)
    if step.unit == "month":
        a_year = 24 if step.rule.startswith("half") else 12
        return (1, a_year // step.n) if step.n < a_year and a_year % step.n == 0 else (1,)
    if step.times:
        days = step.rule.count("1") or 7
        return (1, len(step.times), len(step.times) * days)
    if step.unit == "weekday":
        return (1, step.rule.count("1"))
    size = int(step.length.astype(np.int64))
    return (
        1,
        *(whole // size for whole in (MINUTE, HOUR, DAY, WEEK, YEAR) if _divides(size, whole)),
    )


def _divides(size: int, whole: int) -> bool:
    return size < whole and whole % size == 0


def naive(values: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The rows after `values` [n, C] by the season before: [horizon, C]."""
    return values[_sources(np.array([len(values)]), season, horizon)[0]]


def naive_errors(
    values: np.ndarray, begin: int, end: int, *, season: int, horizon: int
) -> tuple[float, float]:
    """Mean squared and mean absolute error over all windows of rows `begin` to `end`.

    A window that has no whole season before it is left out; there must be another one.
    """
    origins = np.arange(max(begin, season), end - horizon + 1)
    squared = absolute = 0.0
    for some in np.array_split(origins, 1 + len(origins) * horizon // 1_000_000):
        off = values[_sources(some, season, horizon)] - values[some[:, None] + np.arange(horizon)]
        squared += float(np.square(off).sum())
        absolute += float(np.abs(off).sum())
    n = len(origins) * horizon * values.shape[1]
    return squared / n, absolute / n


def best_season(values: np.ndarray, step: Step, *, horizon: int) -> int:
    """The season with the smallest mean absolute error over `values` [n, C]."""
    found = []
    for season in seasons(step):
        if 2 * season + horizon <= len(values):  # two seasons or more
            _, absolute = naive_errors(values, 0, len(values), season=season, horizon=horizon)
            found.append((absolute, season))
    return min(found)[1] if found else 1


def _sources(origins: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """The row that stands for each row after an origin: [origins, horizon]."""
    ahead = np.arange(horizon)
    return origins[:, None] + ahead - season * (ahead // season + 1)
