"""Forecasts as tables, CSV files and JSON."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.cli.display import note, output, show_table
from streamlm.forecast.forecaster import Forecast, Forecaster
from streamlm.forecast.intervals import Calibration
from streamlm.forecast.numbers import decimals, number_text
from streamlm.forecast.reading import Reading

EXTRA_DIGITS = 2  # that a saved forecast has beyond those of its table


def baseline_name(season: int) -> str:
    """The baseline in words."""
    return "last value" if season == 1 else f"{season} rows before"


def digits_of(reading: Reading, found: Forecaster) -> list[int]:
    """Digits after the decimal sign of each column."""
    known = zip(reading.layout.digits, found.scale.deviation.tolist(), strict=True)
    return [decimals(digits, spread) for digits, spread in known]


def show_forecast(
    forecast: Forecast, dates: list[str], reading: Reading, found: Forecaster, level: float
) -> None:
    """Print a table for each column: the forecast, its interval and the baseline."""
    layout, several = reading.layout, len(found.config.columns) > 1
    for index, (name, digits) in enumerate(
        zip(found.config.columns, digits_of(reading, found), strict=True)
    ):
        headings = [layout.date_name, name]
        columns = [forecast.values]
        if forecast.low is not None and forecast.high is not None:
            headings += [f"{100 * level:g}% from", "to"]
            columns += [forecast.low, forecast.high]
        if forecast.baseline is not None and found.calibration is not None:
            headings.append(baseline_name(found.calibration.season))
            columns.append(forecast.baseline)
        rows = [
            [date, *(number_text(value, digits, layout.decimal) for value in values)]
            for date, *values in zip(
                dates, *(column[:, index].tolist() for column in columns), strict=True
            )
        ]
        if several and index:
            output.print()
        show_table(headings, rows, right=headings[1:])
    if found.calibration is None:
        note("no interval and no baseline: the training of this run has not finished")
    else:
        note(coverage_text(found.calibration, level))
        warn_if_useless(found.calibration)


def coverage_text(held: Calibration, level: float) -> str:
    """How often the intervals of a level held."""
    return (
        f"on the test part, {100 * held.covered(level):.1f} % of the values lay in "
        f"their {100 * level:g}% intervals ({held.windows:,} windows)"
    )


def warn_if_useless(held: Calibration) -> None:
    """Warn of a forecaster that is no better than the baseline."""
    if held.mae >= held.naive_mae:
        note(
            f"the baseline ({baseline_name(held.season)}) was as good or better on the test part: "
            f"MAE {held.naive_mae:.4f} against {held.mae:.4f}",
            word="warning: ",
            style="bold yellow",
        )


def save_forecast(
    target: Path,
    forecast: Forecast,
    dates: list[str],
    reading: Reading,
    found: Forecaster,
    level: float,
) -> None:
    """Write a forecast as the file that was read is written: its dates, delimiter and decimals."""
    layout = reading.layout
    headings, columns = [layout.date_name], []
    for index, (name, digits) in enumerate(
        zip(found.config.columns, digits_of(reading, found), strict=True)
    ):
        parts = [("", forecast.values)]
        if forecast.low is not None and forecast.high is not None:
            percent = f"{100 * level:g}"
            parts += [(f"_low{percent}", forecast.low), (f"_high{percent}", forecast.high)]
        if forecast.baseline is not None:
            parts.append(("_baseline", forecast.baseline))
        for suffix, values in parts:
            headings.append(f"{name}{suffix}")
            columns.append(
                [
                    number_text(value, digits + EXTRA_DIGITS, layout.decimal, grouped=False)
                    for value in values[:, index].tolist()
                ]
            )
    plain = target.is_file() or not target.exists()  # else a pipe or a terminal
    written = target.with_name(f"{target.name}.new") if plain else target
    with open(written, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=layout.delimiter, lineterminator="\n")
        writer.writerow(headings)
        writer.writerows(zip(dates, *columns, strict=True))
    if plain:
        written.replace(target)


def forecast_json(
    forecast: Forecast, dates: list[str], found: Forecaster, level: float
) -> dict[str, Any]:
    """A forecast as an object of JSON."""
    held = found.calibration

    def listed(values: np.ndarray | None) -> Any:
        return None if values is None else values.tolist()

    return {
        "columns": list(found.config.columns),
        "dates": dates,
        "values": listed(forecast.values),
        "level": level,
        "low": listed(forecast.low),
        "high": listed(forecast.high),
        "coverage": held and held.covered(level),
        "baseline": listed(forecast.baseline),
        "season": held and held.season,
    }
