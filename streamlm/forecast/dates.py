"""Dates as text: which form a column of them has, what they mean, and how to write more of them."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import numpy as np

from streamlm.forecast.date_forms import PATTERNS, Writer, moment

EPOCH = datetime(1970, 1, 1)
EXCEL = datetime(1899, 12, 30)  # day 0 of spreadsheets
# Names for --date-format beside those of strftime: since when, and how many a day.
COUNTS = {
    "unix": (EPOCH, 86_400),
    "unix-ms": (EPOCH, 86_400_000),
    "unix-us": (EPOCH, 86_400_000_000),
    "unix-ns": (EPOCH, 86_400_000_000_000),
    "excel": (EXCEL, 1),
}
DAY = 86_400_000_000  # microseconds
LONGEST_INDEX = 1000  # a numbering of rows begins below this

DIGITS = re.compile(r"([-+]?\d+)(?:\.\d*)?")
# Digits before the point of counts since 1970, from 1973 to 2100.
UNIX = {
    **{9: "unix", 10: "unix", 12: "unix-ms", 13: "unix-ms"},
    **{15: "unix-us", 16: "unix-us", 18: "unix-ns", 19: "unix-ns"},
}
ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?")


class DateError(ValueError):
    """A text that is no date.

    Attributes:
        index: of the text in its column.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Dates:
    """A column of dates.

    Attributes:
        form: name of the form, for messages.
        wall: [n] datetime64[us] as written, or int64 numbers of rows.
        offsets: [n] timedelta64[us] from UTC where each text says so, or None.
        write: the text for a date as written and its offset.
    """

    form: str
    wall: np.ndarray
    offsets: np.ndarray | None
    write: Callable[[datetime, timedelta], str]


def readings(texts: Sequence[str], *, counts: bool = True) -> list[Dates]:
    """All ways to read a column of dates; at least one.

    Args:
        texts: stripped; at least one.
        counts: whether bare numbers can be dates: 20220131, 2022, unix time or row numbers.

    Raises:
        DateError: no form fits all texts; names the first that does not fit.
    """
    if DIGITS.fullmatch(texts[0]):
        if not counts:
            raise DateError(0, f"date {texts[0]!r} is a bare number")
        return [_numeric(texts)]
    if (quick := _iso(texts)) is not None:
        return [quick]
    fitting = [name for name, pattern in PATTERNS.items() if pattern.fullmatch(texts[0])]
    found: list[Dates] = []
    errors: list[DateError] = []
    for name in fitting:
        try:
            found.append(_texts(name, texts))
        except DateError as error:
            errors.append(error)
    if not found and errors:
        raise max(errors, key=lambda error: error.index)
    if not found:
        raise DateError(
            0,
            f"date {texts[0]!r}; allowed: forms such as 2022-01-31, 2022-01-31 14:15:00+01:00, "
            "31.01.2022, 31 Jan 2022, 2022-01, 2022 Q1, 2022-W05, 20220131 or unix time; "
            "--date-format names others, and --no-date numbers the rows",
        )
    return found


def formatted(texts: Sequence[str], form: str) -> Dates:
    """A column of dates in a given form: of strftime, a name in COUNTS, or "index".

    Raises:
        DateError: a text has another form.
    """
    if form == "index":
        return _rows(texts)
    if form in COUNTS:
        return _count(texts, form)
    if "%" not in form:
        allowed = f"strftime's, such as %d/%m/%Y, {', '.join(COUNTS)} or index"
        raise ValueError(f"--date-format {form!r}; allowed: {allowed}")
    wall: list[datetime] = []
    offsets: list[timedelta | None] = []
    for index, text in enumerate(texts):
        try:
            found = datetime.strptime(text, form)
        except ValueError:
            raise DateError(index, f"date {text!r}; allowed: --date-format {form!r}") from None
        wall.append(found.replace(tzinfo=None))
        offsets.append(found.utcoffset())

    def write(when: datetime, offset: timedelta) -> str:
        return when.replace(tzinfo=timezone(offset)).strftime(form)

    return Dates(form, _array(wall), _offsets(offsets), write)


def _iso(texts: Sequence[str]) -> Dates | None:
    """2022-01-31 or 2022-01-31 14:15:00, all of one length; None if they are not."""
    found = ISO.fullmatch(texts[0])
    size = len(texts[0])
    if found is None or any(len(text) != size or text[4] != "-" for text in texts):
        return None
    try:
        wall = np.array(texts, "datetime64[us]")
    except ValueError:
        return None
    if np.isnat(wall).any():
        return None
    separator = texts[0][10:11]

    def write(when: datetime, offset: timedelta) -> str:
        return when.isoformat(sep=separator or " ")[:size]

    return Dates("year-month-day", wall, None, write)


def _texts(name: str, texts: Sequence[str]) -> Dates:
    pattern = PATTERNS[name]
    wall: list[datetime] = []
    offsets: list[timedelta | None] = []
    padded, sample = True, texts[0]
    for index, text in enumerate(texts):
        found = pattern.fullmatch(text)
        if found is None:
            allowed = f"{name}, as in the first row ({texts[0]})"
            raise DateError(index, f"date {text!r}; allowed: {allowed}")
        fields = found.groupdict()
        try:
            wall.append(moment(fields))
        except (ValueError, StopIteration):
            raise DateError(index, f"date {text!r} does not exist ({name})") from None
        offsets.append(_offset(fields.get("z")))
        sample = max(sample, text, key=len)
        padded &= all(len(fields.get(key) or "00") == 2 for key in "mdH")
    if len({offset is None for offset in offsets}) == 2:
        at = next(i for i, offset in enumerate(offsets) if (offset is None) != (offsets[0] is None))
        raise DateError(at, f"date {texts[at]!r}; allowed: all with a time zone or none")
    return Dates(name, _array(wall), _offsets(offsets), Writer(name, sample, padded=padded))


def _numeric(texts: Sequence[str]) -> Dates:
    """Bare numbers: packed dates, years, unix time or numbers of rows."""
    for name in ("year", "yyyymm", "yyyymmdd"):
        with suppress(DateError):
            return _texts(name, texts)
    digits = DIGITS.fullmatch(texts[0])
    whole = digits.group(1) if digits else texts[0]
    if (unit := UNIX.get(len(whole.lstrip("+-")))) and not whole.startswith("-"):
        return _count(texts, unit)
    if abs(int(whole)) < LONGEST_INDEX and not (digits and texts[0].partition(".")[2].strip("0")):
        return _rows(texts)
    raise DateError(
        0,
        f"date {texts[0]!r} can be read in several ways; allowed: dates of four, six or eight "
        f"digits (2022, 202201, 20220131), unix time, or rows numbered from 0 or 1; --date-format "
        f"names another form ({', '.join(COUNTS)} or strftime's), and --no-date numbers the rows",
    )


def _count(texts: Sequence[str], unit: str) -> Dates:
    """Counts of time since a date, whole or with a fraction."""
    since, a_day = COUNTS[unit]
    wall = []
    for index, text in enumerate(texts):
        try:
            wall.append(since + _elapsed(text, a_day))
        except (ValueError, OverflowError):
            raise DateError(index, f"date {text!r}; allowed: {unit}, as in the first row") from None
    tail = max((text.partition(".")[2] for text in texts), key=len)

    def write(when: datetime, offset: timedelta) -> str:
        passed = (when - offset - since) // timedelta(microseconds=1)
        whole, rest = divmod(passed * a_day, DAY)
        if not tail:
            return str(whole)
        return f"{whole}.{rest * 10 ** len(tail) // DAY:0{len(tail)}}"

    zero = None if unit == "excel" else np.zeros(len(wall), "timedelta64[us]")
    return Dates(unit, _array(wall), zero, write)


def _elapsed(text: str, a_day: int) -> timedelta:
    whole, _, part = text.partition(".")
    fraction = int(part or 0) * (DAY // a_day) // 10 ** len(part) if a_day < DAY else 0
    return timedelta(microseconds=int(whole) * DAY // a_day + fraction)


def _rows(texts: Sequence[str]) -> Dates:
    numbers = []
    for index, text in enumerate(texts):
        found = DIGITS.fullmatch(text)
        if found is None or text.partition(".")[2].strip("0"):
            raise DateError(index, f"date {text!r}; allowed: whole numbers, as in the first row")
        numbers.append(int(found.group(1)))

    def write(when: datetime, offset: timedelta) -> str:
        return str(when)

    return Dates("index", np.array(numbers, np.int64), None, write)


def _array(wall: Sequence[datetime]) -> np.ndarray:
    return np.array(wall, "datetime64[us]")


def _offset(text: str | None) -> timedelta | None:
    if text is None:
        return None
    if text.isalpha():
        return timedelta(0)
    digits = text[1:].replace(":", "").ljust(4, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -size if text[0] == "-" else size


def _offsets(found: Sequence[timedelta | None]) -> np.ndarray | None:
    if any(offset is None for offset in found):
        return None
    return np.array(found, "timedelta64[us]")
