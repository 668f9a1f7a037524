"""Finding the step of a series from its dates.

Each candidate spans a grid from the first date to the last. Of those that hold every date, the one
with the fewest other dates wins.
"""

from collections.abc import Iterator
from functools import reduce
from math import gcd

import numpy as np

from streamlm.forecast.steps import BUSINESS, Step, duration

MOST_MISSING = 0.5  # rows missing for each that is there; more say that the step is another
MOST_OF_DAYS = 0.25  # the same, where a day has several rows at times of its own
TWO_WEEKS = 14  # days that a series must span before missing weekdays mean something


class StepError(ValueError):
    """Dates that keep no step.

    Attributes:
        index: of the date that is furthest from the one before it.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


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
    text = str if dates.dtype.kind == "i" else duration
    return StepError(
        int(steps.argmax()) + 1,
        f"{text(int(steps.max()))} after the row before, and others from {text(int(steps.min()))}: "
        "the dates keep no step; allowed: equal steps of time, days, weekdays or months with at "
        "most a third of the rows missing; --no-date numbers the rows",
    )
