"""Series from CSV files of any kind: what is read, what is refused, and what is reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from streamlm.forecast.columns import filled, value_columns
from streamlm.forecast.csv_options import CsvOptions
from streamlm.forecast.dates import Dates, readings
from streamlm.forecast.numbers import numbers
from streamlm.forecast.series import Series, splits
from streamlm.forecast.steps import Step
from streamlm.forecast.table import Table, read_table
from streamlm.forecast.timeline import missing_note, timeline_of
from streamlm.forecast.zones import to_utc, to_wall

SHORTEST = 3  # rows of a series


@dataclass(frozen=True)
class Layout:
    """How a file writes its dates and numbers.

    Attributes:
        date_name: the heading of dates.
        dates: the form; None for numbers of rows.
        offset: from UTC, of dates without a zone.
        delimiter, decimal: of the file; digits: after the decimal sign, of each column.
    """

    date_name: str
    dates: Dates | None
    offset: timedelta
    delimiter: str
    decimal: str
    digits: tuple[int, ...]

    def texts(self, dates: np.ndarray, offsets: np.ndarray | None = None) -> list[str]:
        """Dates as the file writes them."""
        if self.dates is None or dates.dtype.kind == "i":
            return [str(date) for date in dates.tolist()]
        whens: list[datetime] = dates.astype("datetime64[us]").astype(object).tolist()
        if offsets is None:
            return [self.dates.write(when, self.offset) for when in whens]
        each = offsets.astype(object).tolist()
        return [self.dates.write(when, off) for when, off in zip(whens, each, strict=True)]


@dataclass(frozen=True)
class Reading:
    """A series, how its file is written, and notes on what was done to read it."""

    series: Series
    layout: Layout
    notes: list[str]

    def texts(self, rows: slice) -> list[str]:
        """The dates of rows as the file writes them."""
        dates, instants = self.series.dates[rows], self.series.instants
        return self.layout.texts(dates, None if instants is None else dates - instants[rows])


def load(path: Path, options: CsvOptions | None = None) -> Series:
    """The series of a CSV file; see `read`."""
    return read(path, options).series


def read(
    path: Path,
    options: CsvOptions | None = None,
    *,
    columns: Sequence[str] | None = None,
    step: Step | None = None,
    constant: bool = False,
) -> Reading:
    """Read a CSV file with a header line, dates and columns of numbers.

    Files named ETT… are split as in the papers, others 70 : 10 : 20 by time.

    Args:
        columns: names of those to read; the default is all that hold changing numbers.
        step: the step to expect; see `inference.infer`.
        constant: whether columns may hold the same number in every row.

    Raises:
        ValueError: names the file, the wrong line, and what is allowed.
    """
    options = options or CsvOptions()
    table = read_table(path, options.delimiter)
    if len(table.lines) < SHORTEST:
        raise ValueError(f"{path}: {len(table.lines)} rows; allowed: at least {SHORTEST}")
    _check_names(table)
    timeline = timeline_of(table, options, step)
    values = value_columns(table, options.decimal, columns, timeline.used, constant=constant)
    notes = [*table.notes, *timeline.notes, *values.notes]
    dates, instants, data = timeline.dates, timeline.instants, values.values
    if timeline.reverse:
        data = data[::-1]
    if options.fill:
        clock = dates if instants is None or timeline.step.unit != "time" else instants
        grid = timeline.step.through(clock[0], clock[-1])
        n_values = int(np.isnan(data).sum())
        full = np.full((len(grid), data.shape[1]), np.nan)
        full[np.searchsorted(grid, clock)] = data
        data = filled(full, options.fill)
        if n_rows := len(grid) - len(clock):
            assert instants is None or timeline.zone is not None
            if instants is None:
                dates = grid
            elif timeline.step.unit == "time":
                instants, dates = grid, to_wall(grid, str(timeline.zone))[0]
            else:
                dates, instants = grid, to_utc(grid, str(timeline.zone))
        if n_rows or n_values:
            notes.append(
                f"{path}: filled {n_rows:,} missing rows and {n_values:,} missing values "
                f"({options.fill})"
            )
    else:
        values.refuse_missing(table)
        if timeline.missing:
            notes.append(missing_note(table, timeline))
    series = Series(
        dates,
        data,
        values.names,
        splits(path.name, len(dates), timeline.step),
        timeline.step,
        zone=timeline.zone,
        instants=instants,
    )
    layout = Layout(
        timeline.name,
        timeline.form,
        timeline.offset,
        table.delimiter,
        values.decimal,
        values.digits,
    )
    return Reading(series, layout, notes)


def _check_names(table: Table) -> None:
    """Refuse a first line that holds data instead of names."""
    for name in table.header:
        try:
            readings([name])
        except ValueError:
            if numbers([name], ".").wrong or not name:
                return
    raise ValueError(
        f"{table.path}, line {table.header_line}: no names, but {', '.join(table.header)}; "
        "allowed: a first line of names"
    )
