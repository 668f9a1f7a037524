"""How to read a CSV file."""

from dataclasses import asdict, dataclass
from typing import Any

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
