"""Time series: split by time, scaled, cut into windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from streamlm.forecast.inference import infer
from streamlm.forecast.steps import Step
from streamlm.forecast.zones import offsets_of, to_wall
from streamlm.transfer import send

MONTH = 30 * 24  # hours; the unit of the papers' splits of the ETT series
ETT_MONTHS = (12, 4, 4)  # train, valid, test
SHARES = (0.7, 0.1, 0.2)  # of any other series
SPARE = 9  # windows beyond the first that a short part should have


@dataclass(frozen=True)
class Series:
    """Columns of numbers at equal steps.

    Attributes:
        dates: [n] datetime64, rising, as clocks on the wall show them; or integers.
        values: [n, C] float64.
        names: of the C columns.
        ends: end rows of the train, valid and test parts.
        step: between two rows; found from the dates if it is not given.
        zone: the time zone of the dates, if it is known.
        instants: [n] the dates in UTC, with a zone.
    """

    dates: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    ends: tuple[int, int, int]
    step: Step = field(default=Step("row", 0))
    zone: str | None = None
    instants: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.dates.dtype.kind == "M":
            object.__setattr__(self, "dates", self.dates.astype("datetime64[us]"))
        if self.step.n == 0:
            object.__setattr__(self, "step", infer(self.dates, self.instants)[0])

    @property
    def n_marks(self) -> int:
        """The number of date features; see `time_marks`."""
        return time_marks(self.dates[:1], self.step).shape[1]

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
        return replace(self, values=self.values[:, columns], names=tuple(names))

    def reserving(self, horizon: int) -> "Series":
        """The series with valid and test parts that hold some windows of `horizon` rows.

        Raises:
            ValueError: too few rows.
        """
        n, (train, valid, test) = len(self.dates), self.ends
        least = max(horizon, min(horizon + SPARE, n // 5))
        tested, validated = max(test - valid, least), max(valid - train, least)
        begin = test - tested - validated
        if begin < horizon + 1:
            raise ValueError(
                f"the series has {n} rows, too few for a horizon of {horizon}; allowed: at most "
                f"{max(1, n // 6)} here, as the last two parts hold back a horizon each"
            )
        return replace(self, ends=(begin, test - tested, test))

    def following(self, n: int) -> np.ndarray:
        """The n dates after the last one: [n]."""
        return self.following_with_offsets(n)[0]

    def following_with_offsets(self, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The n dates after the last one, and their offsets from UTC if the zone is known."""
        if self.zone is None or self.instants is None:
            return self.step.after(self.dates[-1], n), None
        if self.step.unit == "time":
            return to_wall(self.step.after(self.instants[-1], n), self.zone)
        wall = self.step.after(self.dates[-1], n)
        return wall, offsets_of(wall, self.zone)


def splits(name: str, n: int, step: Step) -> tuple[int, int, int]:
    """End rows of the train, valid and test parts of n rows from a file of this name."""
    if name.startswith("ETT") and step.unit == "time":
        hour = round(np.timedelta64(1, "h") / step.length)
        train, valid, test = np.cumsum(ETT_MONTHS) * MONTH * hour
        if 0 < test <= n:
            return int(train), int(valid), int(test)
    return round(n * SHARES[0]), round(n * (SHARES[0] + SHARES[1])), n


def time_marks(dates: np.ndarray, step: Step) -> np.ndarray:
    """Date features, each from −0.5 to 0.5: [n, features] float32.

    Hour, weekday, day of the month and day of the year; preceded by the minute for steps below an
    hour, and without the hour for steps of a day or more. Rows without dates have one feature, 0.
    """
    if step.unit == "row":
        return np.zeros((len(dates), 1), np.float32)
    days = dates.astype("datetime64[D]")
    seconds = (dates - days).astype("timedelta64[s]").astype(np.int64)
    month, year = dates.astype("datetime64[M]"), dates.astype("datetime64[Y]")
    marks = [
        (days.astype(np.int64) + 3) % 7 / 6,  # 1970-01-01 was a Thursday; Monday is 0
        (days - month).astype(np.int64) / 30,
        (days - year).astype(np.int64) / 365,
    ]
    if step.length < np.timedelta64(1, "D"):
        marks.insert(0, seconds // 3600 / 23)
    if step.length < np.timedelta64(1, "h"):
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
