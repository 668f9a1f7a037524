"""The step of a series: equal time, days, weekdays, calendar months, or rows without dates.

Calendar steps are pandas' offsets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

DAY = 86_400_000_000  # in microseconds, the unit of all dates
HOUR, MINUTE, SECOND = DAY // 24, 60_000_000, 1_000_000
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BUSINESS = "1111100"


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
            return duration(self.n)
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


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def duration(size: int) -> str:
    """Microseconds in words: "15 minutes"."""
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
