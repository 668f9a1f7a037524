"""The step of a series: equal time, days, weekdays, calendar months, or rows without dates.

Calendar steps are pandas' offsets. A step is found by trial: each candidate spans a grid from the
first date to the last, and of those that hold every date the one with the fewest other dates wins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

import numpy as np

DAY = 86_400_000_000  # in microseconds, the unit of all dates
HOUR, MINUTE, SECOND = DAY // 24, 60_000_000, 1_000_000
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BUSINESS = "1111100"
MOST_MISSING = 0.5  # rows missing for each that is there; more say that the step is another
MOST_OF_DAYS = 0.25  # the same, where a day has several rows at times of its own
TWO_WEEKS = 14  # days that a series must span before missing weekdays mean something


def pandas() -> Any:
    """The pandas module.

    Raises:
        ValueError: pandas is not installed; says how to install it.
    """
    try:
        import pandas
    except ImportError:
        message = "calendar steps need pandas: pip install 'streamlm[forecast]'"
        raise ValueError(message) from None
    return pandas


class StepError(ValueError):
    """Dates that keep no step.

    Attributes:
        index: of the date that is furthest from the one before it.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True)
class Step:
    """The distance between two rows.

    Attributes:
        unit: "time" (n microseconds), "day", "weekday" (the days of a mask), "month", "row".
        n: number of units.
        rule: of "weekday", seven digits from Monday, 1 for a day that counts; of "month", which
            day: "start", "end", "business start", "business end", "day 15", "week 2 4" (the third
            Friday), "last 4" (the last Friday), "half start" (1 and 15), "half end" (15 and last).
        times: of day in microseconds, if a day has several rows.
    """

    unit: str
    n: int = 1
    rule: str = ""
    times: tuple[int, ...] = ()

    @property
    def spec(self) -> str:
        """The step as text, which `parse` reads."""
        times = f" at {','.join(map(str, self.times))}" if self.times else ""
        return f"{self.n} {self.unit} {self.rule}".strip() + times

    @classmethod
    def parse(cls, spec: str) -> "Step":
        """The step whose `spec` this is."""
        head, _, times = spec.partition(" at ")
        n, unit, rule = (*head.split(" ", 2), "")[:3]
        return cls(unit, int(n), rule, tuple(int(time) for time in times.split(",") if time))

    @property
    def length(self) -> np.timedelta64:
        """About how long a step is."""
        if self.times:
            size = int(np.diff(self.times).min())
        else:
            size = self.n * {"time": 1, "month": 30 * DAY}.get(self.unit, DAY)
        return np.timedelta64(int(size), "us")

    def __str__(self) -> str:
        if self.unit == "row":
            return "rows without dates"
        if self.unit == "time":
            return _duration(self.n)
        if self.unit == "day":
            n, word = (self.n // 7, "week") if self.n % 7 == 0 else (self.n, "day")
            found = _counted(n, word)
        elif self.unit == "weekday":
            days = [day for day, counts in zip(WEEKDAYS, self.rule, strict=True) if counts == "1"]
            found = "business days" if self.rule == BUSINESS else f"every {', '.join(days)}"
        elif self.rule.startswith("half"):
            found = "half months"
        else:
            n, word = self.n, "month"
            for size, larger in ((12, "year"), (3, "quarter")):
                if self.n % size == 0:
                    n, word = self.n // size, larger
                    break
            found = f"{_counted(n, word)}{_which(self.rule)}"
        return f"{found}, {len(self.times)} rows a day" if self.times else found

    def _offset(self) -> Any:
        offsets, kind = pandas().offsets, self.rule.split(" ")
        if self.unit == "weekday":
            return offsets.CustomBusinessDay(weekmask=self.rule)
        if kind[0] == "week":
            return offsets.WeekOfMonth(self.n, week=int(kind[1]), weekday=int(kind[2]))
        if kind[0] == "last":
            return offsets.LastWeekOfMonth(self.n, weekday=int(kind[1]))
        return {
            "start": offsets.MonthBegin,
            "end": offsets.MonthEnd,
            "business start": offsets.BMonthBegin,
            "business end": offsets.BMonthEnd,
            "half start": offsets.SemiMonthBegin,
            "half end": offsets.SemiMonthEnd,
        }[self.rule](self.n)

    def _days(self, first: np.datetime64, n: int) -> np.ndarray:
        """n days of the grid from `first`, which is one of them: [n] datetime64[D]."""
        if self.unit == "day":
            return first + np.arange(n) * self.n
        if self.rule.startswith("day "):
            months = first.astype("datetime64[M]") + np.arange(n) * self.n
            last = (months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")
            day = np.minimum(int(self.rule[4:]), last.astype(np.int64))
            found: np.ndarray = months.astype("datetime64[D]") + (day - 1)
            return found
        made = pandas().date_range(first, periods=n, freq=self._offset())
        return np.asarray(made.values).astype("datetime64[D]")

    def after(self, last: Any, n: int) -> np.ndarray:
        """The n dates after `last`, a date of the grid: [n]."""
        if self.unit in ("time", "row"):
            steps = np.arange(1, n + 1) * self.n
            return last + (steps if self.unit == "row" else steps.astype("timedelta64[us]"))
        day = last.astype("datetime64[D]")
        times = np.array(self.times or [(last - day).astype("timedelta64[us]").astype(int)])
        days = self._days(day, n + 1).astype("datetime64[us]")
        found: np.ndarray = (days[:, None] + times.astype("timedelta64[us]")).ravel()
        return found[found > last][:n]

    def missing(self, dates: np.ndarray) -> int | None:
        """The number of dates missing from the grid through `dates`; None if one is off it.

        Args:
            dates: [n], rising.
        """
        first, last = dates[0], dates[-1]
        if self.unit in ("time", "row"):
            offs = (dates - first).astype(np.int64)
            return None if (offs % self.n).any() else int(offs[-1]) // self.n + 1 - len(dates)
        grid = self.through(first, last)
        holds = len(grid) >= len(dates) and np.isin(dates, grid).all()
        return len(grid) - len(dates) if holds else None

    def through(self, first: Any, last: Any) -> np.ndarray:
        """All dates of the grid from `first` to `last`."""
        if self.unit == "row":
            return np.arange(first, last + 1, self.n)
        if self.unit == "time":
            return np.arange(first, last + np.timedelta64(1, "us"), np.timedelta64(self.n, "us"))
        days = (last - first).astype("timedelta64[D]").astype(int) + 1
        n = days * max(1, len(self.times))
        if self.unit == "month":
            n = days // (14 if self.rule.startswith("half") else 28 * self.n) + 2
        grid = np.concatenate([np.array([first]), self.after(first, int(n))])
        return grid[grid <= last]


def infer(
    dates: np.ndarray,
    instants: np.ndarray | None = None,
    *,
    wanted: Step | None = None,
    most: float = MOST_MISSING,
) -> tuple[Step, int]:
    """The step of rising dates, and the number of rows that are missing from it.

    Args:
        dates: [n] of the clock on the wall, or integers; at least two.
        instants: [n] the same in UTC, if clocks change within them.
        wanted: taken where it misses no more rows than the best.
        most: rows that may be missing, for each that is given.

    Raises:
        StepError: no step holds all dates without more rows missing.
    """
    clock = dates if instants is None else instants
    if dates.dtype.kind == "i":
        sizes = set(_sizes(np.diff(dates)))
        candidates: Iterator[Step] = (Step("row", int(n)) for n in sizes)
    else:
        candidates = _candidates(dates, clock)
    found = []
    for rank, step in enumerate(candidates):
        missing = step.missing(clock if step.unit == "time" else dates)
        if missing is not None and (not step.times or missing <= MOST_OF_DAYS * len(dates)):
            found.append((missing, rank, step))
    missing, _, best = min(found, key=lambda entry: entry[:2])
    if wanted is not None and (wanted.unit == "row") == (dates.dtype.kind == "i"):
        fits = wanted.missing(clock if wanted.unit == "time" else dates)
        if fits is not None and fits <= missing:
            return wanted, fits
    if missing > most * len(dates):
        raise _irregular(dates, clock)
    return best, missing


def _candidates(dates: np.ndarray, clock: np.ndarray) -> Iterator[Step]:
    """Steps worth a trial, the simplest first."""
    days = dates.astype("datetime64[D]")
    times = np.unique((dates - days).astype("timedelta64[us]").astype(np.int64))
    single = len(times) == 1
    if single:
        monthly = list(_monthly(days))
        plain = [step for step in monthly if step.rule.split(" ")[0] in ("start", "end", "day")]
        yield from plain  # before days: three years can be 365 days apart
        yield from (Step("day", n) for n in _sizes(np.diff(days).astype(np.int64)))
        yield from (step for step in monthly if step not in plain)
    yield from (Step("time", n) for n in _sizes(np.diff(clock).astype(np.int64)))
    if single:
        yield from (Step("weekday", 1, mask) for mask in _masks(days))
    elif 2 * len(times) <= len(dates) and (days[-1] - days[0]).astype(int) >= 2:
        several = tuple(int(time) for time in times)
        yield Step("day", 1, times=several)
        yield from (Step("weekday", 1, mask, several) for mask in _masks(days))


def _sizes(steps: np.ndarray) -> list[int]:
    """The most frequent step, and the largest that divides all of them."""
    values, counts = np.unique(steps, return_counts=True)
    common = int(values[counts.argmax()])
    whole = reduce(gcd, (int(value) for value in values))
    return [common] if common == whole else [common, whole]


def _masks(days: np.ndarray) -> list[str]:
    """The weekdays that the days fall on, as masks; none if the days say too little."""
    seen = {int(day) for day in np.unique((days.astype(np.int64) + 3) % 7)}  # Monday is 0
    if (days[-1] - days[0]).astype(int) < TWO_WEEKS and not seen <= {0, 1, 2, 3, 4}:
        return []
    mask = "".join("1" if day in seen else "0" for day in range(7))
    masks = [BUSINESS] if seen <= {0, 1, 2, 3, 4} else []
    if 2 <= len(seen) <= 6 and (days[-1] - days[0]).astype(int) >= TWO_WEEKS:
        masks.append(mask)
    return masks


def _monthly(days: np.ndarray) -> Iterator[Step]:
    """Steps of months that may hold these days."""
    months = days.astype("datetime64[M]")
    begins, ends = months.astype("datetime64[D]"), (months + 1).astype("datetime64[D]")
    day, last = (days - begins).astype(int) + 1, (ends - begins).astype(int)
    steps = np.diff(months).astype(int)
    if (steps > 0).all():
        weekday = (days.astype(int) + 3) % 7
        rules = ["start"] * bool((day == 1).all()) + ["end"] * bool((day == last).all())
        if (day == np.minimum(day.max(), last)).all():
            rules.append(f"day {day.max()}")
        rules += ["business start"] * bool((days == np.busday_offset(begins, 0, "forward")).all())
        rules += ["business end"] * bool((days == np.busday_offset(ends - 1, 0, "backward")).all())
        if (weekday == weekday[0]).all():
            week = (day - 1) // 7
            if (week == week[0]).all() and week[0] < 4:
                rules.append(f"week {week[0]} {weekday[0]}")
            rules += [f"last {weekday[0]}"] * bool((day + 7 > last).all())
        yield from (Step("month", n, rule) for rule in rules for n in _sizes(steps))
    elif np.isin(day, (1, 15)).all():
        yield Step("month", 1, "half start")
    elif ((day == 15) | (day == last)).all():
        yield Step("month", 1, "half end")


def _irregular(dates: np.ndarray, clock: np.ndarray) -> StepError:
    steps = np.diff(clock).astype(np.int64)
    text = str if dates.dtype.kind == "i" else _duration
    return StepError(
        int(steps.argmax()) + 1,
        f"{text(int(steps.max()))} after the row before, and others from {text(int(steps.min()))}: "
        "the dates keep no step; allowed: equal steps of time, days, weekdays or months with at "
        "most a third of the rows missing; --no-date numbers the rows",
    )


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def _duration(size: int) -> str:
    for unit, word in ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second")):
        if size % unit == 0:
            return _counted(size // unit, word)
    return f"{size / SECOND:g} seconds"


def _which(rule: str) -> str:
    kind = rule.split(" ")
    if kind[0] == "week":
        return f" ({('first', 'second', 'third', 'fourth')[int(kind[1])]} {WEEKDAYS[int(kind[2])]})"
    if kind[0] == "last":
        return f" (last {WEEKDAYS[int(kind[1])]})"
    names = {
        "start": "",
        "end": " (last day)",
        "business start": " (first business day)",
        "business end": " (last business day)",
    }
    return names.get(rule, f" ({rule})")
