"""Time series from CSV files: split by time, scaled, cut into windows."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamlm.transfer import send

DATES = ("date", "time", "datetime", "timestamp")  # names of a date column
MONTH = 30 * 24  # hours; the unit of the papers' splits of the ETT series
ETT_MONTHS = (12, 4, 4)  # train, valid, test
SHARES = (0.7, 0.1, 0.2)  # of any other series


@dataclass(frozen=True)
class Series:
    """Columns of numbers at equal time steps.

    Attributes:
        dates: [n] datetime64[s], rising.
        values: [n, C] float64.
        names: of the C columns.
        ends: end rows of the train, valid and test parts.
    """

    dates: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    ends: tuple[int, int, int]

    @classmethod
    def load(cls, path: Path) -> "Series":
        """Read a CSV file with a header line and one column of dates.

        Files named ETT… are split as in the papers, others 70 : 10 : 20 by time.

        Raises:
            ValueError: names the wrong line and says what is allowed.
        """
        dates: list[np.datetime64] = []
        rows: list[list[float]] = []
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            column = next((i for i, name in enumerate(header) if name.lower() in DATES), None)
            if column is None or len(header) < 2:
                raise ValueError(
                    f"{path}: columns {', '.join(header) or 'none'}; allowed: one named "
                    f"{' or '.join(DATES)}, and at least one of numbers"
                )
            for number, line in enumerate(lines, start=2):
                if not line:
                    continue
                where = f"{path}, line {number}"
                if len(line) != len(header):
                    raise ValueError(f"{where}: {len(line)} fields; allowed: {len(header)}")
                dates.append(_date(line.pop(column), where))
                rows.append([_number(text, where) for text in line])
        names = tuple(header[:column] + header[column + 1 :])
        times = np.array(dates, "datetime64[s]")
        steps = np.diff(times)
        if len(times) < 3 or not (steps > np.timedelta64(0, "s")).all():
            wrong = int(np.argmax(steps <= np.timedelta64(0, "s"))) + 3 if len(times) > 2 else 2
            raise ValueError(f"{path}, line {wrong}: dates must rise, and there must be three rows")
        values = np.array(rows)
        return cls(times, values, names, _ends(path, times))

    @property
    def step(self) -> np.timedelta64:
        """The median time between two rows."""
        return np.timedelta64(int(np.median(np.diff(self.dates).astype(np.int64))), "s")

    def column(self, name: str) -> int:
        """The index of a column.

        Raises:
            ValueError: no column has that name.
        """
        if name not in self.names:
            raise ValueError(f"column {name!r}; allowed: {', '.join(self.names)}")
        return self.names.index(name)

    def only(self, names: Sequence[str]) -> "Series":
        """The series with only these columns."""
        columns = [self.column(name) for name in names]
        return Series(self.dates, self.values[:, columns], tuple(names), self.ends)

    def following(self, n: int) -> np.ndarray:
        """The n dates after the last one: [n]."""
        return self.dates[-1] + self.step * np.arange(1, n + 1)


def _date(text: str, where: str) -> np.datetime64:
    try:
        return np.datetime64(text.strip().replace("/", "-").removesuffix("Z"), "s")
    except ValueError:
        raise ValueError(f"{where}: date {text!r}; allowed: 2016-07-01 00:15:00") from None


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {text!r}; allowed: numbers, none missing")
    return number


def _ends(path: Path, dates: np.ndarray) -> tuple[int, int, int]:
    n = len(dates)
    if path.name.startswith("ETT"):
        hour = round(3600 / float((dates[1] - dates[0]).astype(np.int64)))
        train, valid, test = np.cumsum(ETT_MONTHS) * MONTH * hour
        if test <= n:
            return int(train), int(valid), int(test)
    train = round(n * SHARES[0])
    return train, round(n * (SHARES[0] + SHARES[1])), n


def time_marks(dates: np.ndarray, step: np.timedelta64) -> np.ndarray:
    """Date features, each from −0.5 to 0.5: [n, features] float32.

    Hour, weekday, day of the month and day of the year; preceded by the minute for steps below an
    hour, and without the hour for steps of a day or more.
    """
    days = dates.astype("datetime64[D]")
    seconds = (dates - days).astype(np.int64)
    month, year = dates.astype("datetime64[M]"), dates.astype("datetime64[Y]")
    marks = [
        (days.astype(np.int64) + 3) % 7 / 6,  # 1970-01-01 was a Thursday; Monday is 0
        (days - month).astype(np.int64) / 30,
        (days - year).astype(np.int64) / 365,
    ]
    if step < np.timedelta64(1, "D"):
        marks.insert(0, seconds // 3600 / 23)
    if step < np.timedelta64(1, "h"):
        marks.insert(0, seconds // 60 % 60 / 59)
    return (np.stack(marks, axis=1) - 0.5).astype(np.float32)


@dataclass(frozen=True)
class Scale:
    """The mean and standard deviation of each column over the train part."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, series: Series) -> "Scale":
        train = series.values[: series.ends[0]]
        deviation = train.std(axis=0)
        return cls(train.mean(axis=0), np.where(deviation > 0, deviation, 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values in standard deviations from the mean, float32."""
        return ((values - self.mean) / self.deviation).astype(np.float32)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Scaled values in the units of the series."""
        return values * self.deviation + self.mean


@dataclass(frozen=True)
class Batch:
    """B windows of a series.

    Attributes:
        past: [B, input_len, C], scaled; past_marks: [B, input_len, F].
        future: [B, horizon, C], scaled; future_marks: [B, horizon, F].
    """

    past: Tensor
    past_marks: Tensor
    future: Tensor
    future_marks: Tensor


class Windows:
    """All windows of one part of a series: `input_len` rows and the `horizon` rows after them.

    The horizon lies within the part; the input can reach into the preceding part.
    """

    def __init__(
        self, series: Series, scale: Scale, part: str, *, input_len: int, horizon: int
    ) -> None:
        parts = ("train", "valid", "test")
        index = parts.index(part)
        begin = max(0, (0, *series.ends)[index] - (input_len if index else 0))
        end = series.ends[index]
        self.input_len, self.horizon = input_len, horizon
        self.values = torch.from_numpy(scale.apply(series.values[begin:end]))
        self.marks = torch.from_numpy(time_marks(series.dates[begin:end], series.step))
        self.n = end - begin - input_len - horizon + 1
        if self.n < 1:
            raise ValueError(
                f"the {part} part has {end - begin} rows; allowed: at least {input_len + horizon}, "
                f"an input of {input_len} and a horizon of {horizon}"
            )

    def __len__(self) -> int:
        return self.n

    def take(self, indices: Tensor, device: torch.device) -> Batch:
        """The windows that start at these rows."""
        rows = indices[:, None] + torch.arange(self.input_len + self.horizon)
        values, marks = send(self.values[rows], device), send(self.marks[rows], device)
        n = self.input_len
        return Batch(values[:, :n], marks[:, :n], values[:, n:], marks[:, n:])

    def batches(
        self, size: int, device: torch.device, *, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """All windows in batches of `size`, shuffled if there is a generator."""
        order = torch.arange(self.n)
        if generator is not None:
            order = torch.randperm(self.n, generator=generator)
        for indices in order.split(size):
            yield self.take(indices, device)
