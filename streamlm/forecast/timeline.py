"""The dates of a table in rising order, their step, their time zone, and what is missing."""

from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np

from streamlm.forecast.csv_options import CsvOptions
from streamlm.forecast.date_column import date_column
from streamlm.forecast.dates import Dates
from streamlm.forecast.inference import MOST_MISSING, StepError, infer
from streamlm.forecast.steps import DAY, Step
from streamlm.forecast.table import Table
from streamlm.forecast.zones import to_utc, to_wall

MOST_FILLED = 9.0  # rows filled for each that is there


@dataclass(frozen=True)
class Timeline:
    """The dates of a table, rising.

    Attributes:
        name: the heading of the dates; used: indices of their columns; form: how they are written.
        dates, step, zone, instants: as in `Series`; missing: the number of rows that are not there.
        offset: from UTC, of dates without a zone.
        reverse: whether the table has the newest row first.
        notes: what was done to read them.
    """

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


def timeline_of(table: Table, options: CsvOptions, step: Step | None) -> Timeline:
    """The dates of a table.

    Args:
        step: the one to expect; see `inference.infer`.

    Raises:
        ValueError: names the line where a date is wrong, and what is allowed.
    """
    n = len(table.lines)
    if options.no_date:
        return Timeline("row", (), None, np.arange(n), Step("row"), 0)
    column = date_column(table, options.date_column, options.date_format)
    most = MOST_FILLED if options.fill else MOST_MISSING
    found: list[Timeline] = []
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


def _placed(table: Table, form: Dates, zone: str | None) -> Timeline:
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
    return Timeline(
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


def missing_note(table: Table, timeline: Timeline) -> str:
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
