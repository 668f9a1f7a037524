"""A forecast as a picture: the last of the past, and what is to follow."""

from pathlib import Path

import numpy as np

from streamlm.forecast.series import Series
from streamlm.plots.style import BLUE, GREY, panels_of, save


def draw_forecast(
    series: Series, dates: np.ndarray, values: np.ndarray, path: Path, *, input_len: int
) -> None:
    """A panel for each column: [horizon, C] after the `input_len` rows that were read."""
    rows = len(series.names)
    figure, axes = panels_of(rows, 1, size=(8, 1 + 1.6 * rows))
    for index, name in enumerate(series.names):
        axis = axes[index][0]
        known = series.values[-input_len:, index]
        axis.plot(series.dates[-input_len:], known, color=GREY, label="read")
        joined = np.concatenate([known[-1:], values[:, index]])
        axis.plot(np.concatenate([series.dates[-1:], dates]), joined, color=BLUE, label="forecast")
        axis.set_ylabel(name)
    axes[0][0].legend(loc="upper left", frameon=False, ncols=2)
    axes[-1][0].tick_params(axis="x", rotation=20)
    save(figure, path)
