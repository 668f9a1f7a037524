"""Series from CSV files of any kind: what is read, what is refused, and what is reported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.forecast.columns import filled, value_columns
from streamlm.forecast.date_column import date_column
from streamlm.forecast.dates import Dates, readings
from streamlm.forecast.numbers import numbers
from streamlm.forecast.series import Series, splits
from streamlm.forecast.steps import DAY, MOST_MISSING, Step, StepError, infer
from streamlm.forecast.table import Table, read_table
from streamlm.forecast.zones import to_utc, to_wall

SHORTEST = 3  # rows of a series
MOST_FILLED = 9.0  # rows filled for each that is there
FILLS = ("linear", "previous", "zero")


@dataclass(frozen=True)
class CsvOptions:
    """How to read a CSV file; None is found out.

    Attributes:
        date_column: name of the column of dates; date_format: see `dates.formatted`.
        timezone: the zone whose clocks the dates show, or in which they are meant.
        no_date: number the rows from 0.
        delimiter: one character or its name; decimal: "." or ",".
        fill: how to fill missing rows and values: "linear", "previous" or "zero"; None refuses
            missing values, and reads on across missing rows.
    """

    date_column: str | None = None
    date_format: str | None = None
    timezone: str | None = None
    no_date: bool = False
    delimiter: str | None = None
    decimal: str | None = None
    fill: str | None = None

    def __post_init__(self) -> None:
        if self.fill not in (None, *FILLS):
            raise ValueError(f"--fill {self.fill!r}; allowed: {', '.join(FILLS)}")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"--decimal {self.decimal!r}; allowed: . or ,")
        if self.no_date and (self.date_column or self.date_format or self.timezone):
            raise ValueError("--no-date excludes --date-column, --date-format and --timezone")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        step: the step to expect; see `steps.infer`.
        constant: whether columns may hold the same number in every row.

    Raises:
        ValueError: names the file, the wrong line, and what is allowed.
    """
    options = options or CsvOptions()
    table = read_table(path, options.delimiter)
    if len(table.lines) < SHORTEST:
        raise ValueError(f"{path}: {len(table.lines)} rows; allowed: at least {SHORTEST}")
    _check_names(table)
    timeline = _timeline(table, options, step)
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
            notes.append(_missing(table, timeline))
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


@dataclass(frozen=True)
class _Timeline:
    """The dates of a table, rising."""

    name: str
    used: tuple[int, ...]
    form: Dates | None
    dates: np.ndarray
    step: Step
    missing: int
    zone: str | None = None
    instants: np.ndarray | None = None
    offset: timedelta = timedelta(0)
    reverse: bool = False
    notes: tuple[str, ...] = ()


def _timeline(table: Table, options: CsvOptions, step: Step | None) -> _Timeline:
    n = len(table.lines)
    if options.no_date:
        return _Timeline("row", (), None, np.arange(n), Step("row"), 0)
    column = date_column(table, options.date_column, options.date_format)
    most = MOST_FILLED if options.fill else MOST_MISSING
    found: list[_Timeline] = []
    errors: list[ValueError] = []
    for form in column.found:
        try:
            placed = _placed(table, form, options.timezone)
            try:
                size, missing = infer(placed.dates, placed.instants, wanted=step, most=most)
            except StepError as error:
                row = len(table.lines) - 1 - error.index if placed.reverse else error.index
                raise table.error(row, str(error)) from None
        except ValueError as error:
            errors.append(error)
            continue
        found.append(
            replace(placed, name=column.name, used=column.used, step=size, missing=missing)
        )
    if not found:
        raise errors[0]
    whole = [each for each in found if not each.missing]
    if len(found) > 1 and len(whole) != 1:
        forms = " or ".join(each.form.form for each in found if each.form is not None)
        text = table.columns[column.used[0]][0]
        raise table.error(
            0,
            f"date {text!r} can be {forms}; allowed: --date-format, such as %d/%m/%Y or %m/%d/%Y",
        )
    chosen = whole[0] if len(found) > 1 else found[0]
    if len(column.found) > 1 and chosen.form is not None:
        notes = (*chosen.notes, f"{table.path}: dates are read as {chosen.form.form}")
        chosen = replace(chosen, notes=notes)
    return chosen


def _placed(table: Table, form: Dates, zone: str | None) -> _Timeline:
    """The dates of one reading in rising order, with instants where a zone is known."""
    wall, offsets, notes = form.wall, form.offsets, []
    instants: np.ndarray | None = None
    offset = timedelta(0)
    numbered = wall.dtype.kind == "i"
    clock = wall if offsets is None else wall - offsets
    reverse = bool(2 * (np.diff(clock.astype(np.int64)) < 0).sum() > len(clock))
    if reverse:
        wall, clock = wall[::-1], clock[::-1]
        notes.append(f"{table.path}: the newest row is first; read in the order of dates")
    midnights = not numbered and bool((wall == wall.astype("datetime64[D]")).all())
    if numbered or (offsets is None and midnights):
        zone = None  # days are the same everywhere
    if zone is not None and offsets is None:
        try:
            clock = instants = to_utc(wall, zone)
        except IndexError as error:
            row = error.args[0] if not reverse else len(wall) - 1 - error.args[0]
            raise table.error(row, f"clocks in {zone} never show {wall[error.args[0]]}") from None
    elif zone is not None:
        instants, (wall, _) = clock, to_wall(clock, zone)
    elif offsets is not None and (offsets == offsets[0]).all():
        offset = offsets[0].astype(object)
    elif offsets is not None:
        wall = clock
        notes.append(f"{table.path}: offsets from UTC vary; dates are in UTC without --timezone")
    _check_rising(table, clock, reverse)
    return _Timeline(
        "", (), form, wall, Step("row"), 0, zone, instants, offset, reverse, tuple(notes)
    )


def _check_rising(table: Table, clock: np.ndarray, reverse: bool) -> None:
    wrong = np.flatnonzero(np.diff(clock.astype(np.int64)) <= 0)
    if len(wrong) == 0:
        return
    rows = (wrong[0], wrong[0] + 1)
    if reverse:
        rows = (len(clock) - 2 - wrong[0], len(clock) - 1 - wrong[0])
    repeated = clock[wrong[0]] == clock[wrong[0] + 1]
    said = f"the date of line {table.lines[rows[0]]} again" if repeated else "the dates turn here"
    hint = ""
    if repeated and clock.dtype.kind != "i" and int(clock[wrong[0]].astype(np.int64)) % DAY:
        hint = "; where clocks went back, --timezone NAME tells the hours apart"
    raise table.error(rows[1], f"{said}; allowed: one series, in the order of dates{hint}")


def _missing(table: Table, timeline: _Timeline) -> str:
    """A note on missing rows: how many, and the first of them."""
    by_time = timeline.step.unit == "time" and timeline.instants is not None
    clock = timeline.instants if by_time and timeline.instants is not None else timeline.dates
    grid = timeline.step.through(clock[0], clock[-1])
    gap = np.flatnonzero(~np.isin(grid, clock))[0]
    before = int(np.searchsorted(clock, grid[gap])) - 1
    row = before if not timeline.reverse else len(clock) - 2 - before
    n = timeline.missing
    when = str(grid[gap].astype("datetime64[s]") if clock.dtype.kind != "i" else grid[gap])
    text = when.replace("T00:00:00", "").replace("T", " ")
    zone = " UTC" if by_time else ""
    hint = ""
    if timeline.zone is None and timeline.step.unit == "time" and _may_be_skipped(grid[gap]):
        hint = "; where clocks went forward, --timezone NAME says so"
    return (
        f"{table.where(row)}: {n:,} row{'s are' if n > 1 else ' is'} missing, the first after this "
        f"line ({text}{zone}); rows are read as if they followed each other, --fill fills them"
        f"{hint}"
    )


def _may_be_skipped(when: np.datetime64) -> bool:
    """Whether clocks go forward at such times in many zones: in the night to a Sunday or after."""
    day = when.astype("datetime64[D]")
    hour = (when - day) // np.timedelta64(1, "h")
    return bool((day.astype(int) + 3) % 7 == 6 and hour < 4)
