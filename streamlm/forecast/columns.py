"""The columns of numbers of a table: which are read, which are left out, and what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamlm.forecast.numbers import Numbers, decimal_sign, numbers
from streamlm.forecast.table import INDEX_NAMES, Table


@dataclass(frozen=True)
class Columns:
    """Columns of numbers in the order of the file.

    Attributes:
        names: of the C columns.
        values: [n, C] float64, NaN where missing.
        digits: the most digits after the decimal sign, of each column.
        decimal: the decimal sign.
        notes: on columns that were left out.
    """

    names: tuple[str, ...]
    values: np.ndarray
    digits: tuple[int, ...]
    decimal: str
    notes: list[str]

    def refuse_missing(self, table: Table) -> None:
        """Raise ValueError if a value is missing; names the first line and how many there are."""
        rows, columns = np.nonzero(np.isnan(self.values))
        if len(rows) == 0:
            return
        name, n = self.names[columns[0]], len(rows)
        lines = ", ".join(str(table.lines[row]) for row in dict.fromkeys(rows[:5].tolist()))
        raise table.error(
            int(rows[0]),
            f"column {name!r} has no value ({n:,} missing in all, from line{'s' * (n > 1)} "
            f"{lines}{', …' * (n > 5)}); allowed: numbers, none missing, or --fill",
        )


def value_columns(
    table: Table,
    decimal: str | None,
    wanted: Sequence[str] | None,
    used: Sequence[int],
    *,
    constant: bool = False,
) -> Columns:
    """Read the columns of numbers.

    Args:
        decimal: the decimal sign; None finds out.
        wanted: names; None takes all that hold numbers which change.
        used: columns of dates, which are no numbers.
        constant: whether numbers need not change.

    Raises:
        ValueError: a name is unknown, given twice or no name of numbers; a value is no number, or
            could be read in two ways; nothing is left to forecast.
    """
    others = [index for index in range(len(table.header)) if index not in used]
    chosen = others if wanted is None else [_place(table, name, others) for name in wanted]
    if wanted is not None and len(set(chosen)) < len(chosen):
        raise ValueError(f"columns {', '.join(wanted)}; allowed: each once")
    if decimal is None:
        found = decimal_sign([table.columns[index] for index in chosen], table.delimiter)
        if isinstance(found, tuple):
            row, text = found
            raise table.error(
                row, f"{text!r} has a decimal sign or groups thousands; allowed: --decimal . or ,"
            )
        decimal = found
    names, values, digits, notes = [], [], [], []
    for index in chosen:
        name, column = table.header[index], numbers(table.columns[index], decimal)
        reason = _left_out(table, index, column, constant=constant)
        if reason and wanted is None:
            notes.append(f"{table.path}: column {name!r} is left out: {reason}")
            continue
        if reason.startswith("text") or column.wrong:
            row = column.wrong[0]
            raise table.error(
                row,
                f"column {name!r}: {table.columns[index][row]!r}; allowed: numbers, none missing",
            )
        if reason:
            raise ValueError(f"{table.path}: column {name!r}: {reason}; allowed: changing numbers")
        if name in names:
            first = table.header.index(name)
            raise ValueError(
                f"{table.path}, line {table.header_line}: column {name!r} twice, fields "
                f"{first + 1} and {index + 1}; allowed: each name once"
            )
        names.append(name)
        values.append(column.values)
        digits.append(column.digits)
    if not names:
        why = "; ".join(note.partition(": ")[2] for note in notes)
        raise ValueError(
            f"{table.path}: no column of changing numbers{': ' * bool(why)}{why}; allowed: at "
            "least one of numbers"
        )
    return Columns(tuple(names), np.stack(values, axis=1), tuple(digits), decimal, notes)


def filled(values: np.ndarray, how: str) -> np.ndarray:
    """Values without NaN: [n, C].

    Args:
        how: "linear" between the values around, "previous" value or "zero". Before the first and
            after the last value, the nearest one.
    """
    if how == "zero":
        return np.nan_to_num(values, nan=0.0)
    found = values.copy()
    rows = np.arange(len(values), dtype=float)
    for column in found.T:
        known = np.flatnonzero(~np.isnan(column))
        if how == "linear":
            column[:] = np.interp(rows, known, column[known])
        else:
            before = np.searchsorted(known, rows, side="right") - 1
            column[:] = column[known[np.maximum(before, 0)]]
    return found


def _place(table: Table, name: str, others: Sequence[int]) -> int:
    places = [index for index in others if table.header[index] == name]
    if len(places) == 1:
        return places[0]
    where = f"{table.path}, line {table.header_line}"
    if not places:
        allowed = ", ".join(table.header[index] for index in others)
        raise ValueError(f"{where}: column {name!r}; allowed: {allowed}")
    fields = " and ".join(str(index + 1) for index in places)
    raise ValueError(f"{where}: column {name!r} twice, fields {fields}; allowed: each name once")


def _left_out(table: Table, index: int, column: Numbers, *, constant: bool) -> str:
    """Why a column that was not asked for is left out; empty if it is not."""
    name, texts = table.header[index], table.columns[index]
    known = column.values[~np.isnan(column.values)]
    if len(column.wrong) > len(known):
        row = column.wrong[0]
        return f"text, such as {texts[row]!r} in line {table.lines[row]}"
    if len(known) == 0:
        return "no value in any row"
    if name.lower() in INDEX_NAMES and (np.diff(known) == 1).all():
        return "it numbers the rows"
    if not constant and not column.wrong and (known == known[0]).all():
        return f"constant, {known[0]:g} in every row"
    return ""
