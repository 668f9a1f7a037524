"""The column of a table that holds its dates, or the columns that do so together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamlm.forecast.dates import DateError, Dates, formatted, readings
from streamlm.forecast.table import INDEX_NAMES, Table

# Names of columns of dates, the likeliest first.
SURE = ("date", "datetime", "timestamp", "time", "ds", "period")
LIKELY = ("month", "quarter", "week", "day", "year")  # features of a date as often as dates
WORDS = {"date", "datetime", "time", "timestamp", "datum", "zeit", "zeitstempel", "fecha", "dt"}
PARTS = ("year", "month", "day", "hour", "minute")
CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?( ?[AaPp][Mm])?")
GLANCE = 20  # rows that must look like dates before a column is read as one


@dataclass(frozen=True)
class DateColumn:
    """The dates of a table.

    Attributes:
        name: the heading for dates that are written.
        used: indices of the columns that hold them.
        found: all ways to read them.
    """

    name: str
    used: tuple[int, ...]
    found: list[Dates]


def date_column(table: Table, given: str | None, form: str | None) -> DateColumn:
    """Find the dates of a table.

    Args:
        given: the name of their column, or None to look for it.
        form: as for `dates.formatted`, or None to look for it.

    Raises:
        ValueError: there is no such column, or a text in it is no date; names the line.
    """
    lower = [name.lower() for name in table.header]
    if given is not None:
        places = [i for i, name in enumerate(table.header) if name == given]
        if len(places) != 1:
            wrong = "no column" if not places else f"{len(places)} columns"
            allowed = ", ".join(name or '""' for name in table.header)
            raise ValueError(f"{table.path}: {wrong} of name {given!r}; allowed: {allowed}")
        return _read(table, table.header[places[0]], (places[0],), form=form)
    if parts := _parts(table, lower):
        return parts
    sure = [lower.index(name) for name in SURE if name in lower]
    for index in sure[1:]:
        clocks = table.columns[index]
        if all(CLOCK.fullmatch(text) for text in clocks):
            joined = [f"{a} {b}" for a, b in zip(table.columns[sure[0]], clocks, strict=True)]
            return _read(table, table.header[sure[0]], (sure[0], index), joined, form=form)
    if sure:
        return _read(table, table.header[sure[0]], (sure[0],), form=form)
    likely = [i for i, name in enumerate(table.header) if _words(name) & WORDS]
    likely += [lower.index(name) for name in LIKELY if name in lower]
    rest = [i for i in range(len(lower)) if i not in likely]
    for index in [*likely, *rest]:
        unnamed = index == 0 and lower[0] in (*INDEX_NAMES, "index")
        counts = index in likely or unnamed
        texts = table.columns[index]
        try:
            found = formatted(texts, form) if form else readings(texts[:GLANCE], counts=counts)[0]
            steps = np.diff(found.wall.astype(np.int64))
            if not (steps > 0).all() and not (steps < 0).all() and not unnamed:
                continue
        except DateError:
            continue
        return _read(table, table.header[index] or "date", (index,), form=form)
    names = ", ".join(name or '""' for name in table.header)
    raise ValueError(
        f"{table.path}, line {table.header_line}: no column of dates among {names}; allowed: one "
        f"named {' or '.join(SURE)}, or --date-column NAME; --no-date numbers the rows"
    )


def _words(name: str) -> set[str]:
    split = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return set(re.split(r"[^a-z]+", split.lower()))


def _read(
    table: Table,
    name: str,
    used: tuple[int, ...],
    texts: Sequence[str] | None = None,
    *,
    form: str | None,
) -> DateColumn:
    column = table.columns[used[0]] if texts is None else texts
    if "" in column:
        raise table.error(column.index(""), f"column {name!r} has no date")
    try:
        return DateColumn(name, used, [formatted(column, form)] if form else readings(column))
    except DateError as error:
        raise table.error(error.index, str(error)) from None


def _parts(table: Table, lower: list[str]) -> DateColumn | None:
    """Dates in columns named year, month, day, hour and minute; at least the first two."""
    used = []
    for name in PARTS:
        if lower.count(name) != 1:
            break
        used.append(lower.index(name))
    if len(used) < 2 or any(name in lower for name in SURE):
        return None
    columns = [table.columns[index] for index in used]
    if not all(text.isdecimal() for column in columns for text in column):
        return None
    signs = ("", "-", "-", " ", ":")
    tail = ":00" if len(used) == 4 else ""
    texts = [
        "".join(sign + text.zfill(2) for sign, text in zip(signs, row, strict=False)) + tail
        for row in zip(*columns, strict=True)
    ]
    return _read(table, "date", tuple(used), texts, form=None)
