"""The plot of a forecast: the end of the series, the rows that follow, interval and baseline."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.dates import ConciseDateFormatter

from streamlm.plots.style import BLUE, DARK, ORANGE, panels_of, save


def draw_forecast(
    names: Sequence[str],
    past: tuple[np.ndarray, np.ndarray],
    future: tuple[np.ndarray, np.ndarray],
    path: Path,
    *,
    band: tuple[np.ndarray, np.ndarray] | None = None,
    baseline: np.ndarray | None = None,
    level: float = 0.9,
) -> None:
    """Draw a panel for each column.

    Args:
        past, future: dates [n] and values [n, C] of the input and of the forecast.
        band: [horizon, C] low and high ends of the interval of `level`; baseline: [horizon, C].
    """
    (read_dates, read), (dates, values) = past, future
    figure, axes = panels_of(len(names), 1, size=(8, 1.2 + 1.8 * len(names)))
    joined_dates = np.concatenate([read_dates[-1:], dates])
    for index, name in enumerate(names):
        axis, known = axes[index][0], read[:, index]
        axis.plot(read_dates, known, color=DARK, linewidth=1.2, label="read")
        if band is not None:
            axis.fill_between(
                dates, band[0][:, index], band[1][:, index], color=BLUE, alpha=0.18, linewidth=0,
                label=f"{100 * level:g} % interval",
            )  # fmt: skip
        if baseline is not None:
            joined = np.concatenate([known[-1:], baseline[:, index]])
            axis.plot(
                joined_dates, joined, color=ORANGE, linestyle="--", linewidth=1, label="baseline"
            )
        joined = np.concatenate([known[-1:], values[:, index]])
        axis.plot(joined_dates, joined, color=BLUE, linewidth=1.6, label="forecast")
        axis.set_ylabel(name)
        axis.yaxis.set_major_formatter("{x:,g}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    if dates.dtype.kind == "M":
        axis = axes[-1][0].xaxis
        axis.set_major_formatter(ConciseDateFormatter(axis.get_major_locator()))
    save(figure, path)
