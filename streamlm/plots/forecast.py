"""The plot of a forecast: the end of the series and the rows that follow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamlm.plots.style import BLUE, GREY, panels_of, save


def draw_forecast(
    names: Sequence[str],
    past: tuple[np.ndarray, np.ndarray],
    future: tuple[np.ndarray, np.ndarray],
    path: Path,
) -> None:
    """Draw a panel for each column.

    Args:
        past, future: dates [n] and values [n, C] of the input and of the forecast.
    """
    (read_dates, read), (dates, values) = past, future
    rows = len(names)
    figure, axes = panels_of(rows, 1, size=(8, 1 + 1.6 * rows))
    for index, name in enumerate(names):
        axis = axes[index][0]
        known = read[:, index]
        axis.plot(read_dates, known, color=GREY, label="read")
        joined = np.concatenate([known[-1:], values[:, index]])
        axis.plot(np.concatenate([read_dates[-1:], dates]), joined, color=BLUE, label="forecast")
        axis.set_ylabel(name)
    axes[0][0].legend(loc="upper left", frameon=False, ncols=2)
    axes[-1][0].tick_params(axis="x", rotation=20)
    save(figure, path)
