"""CSV files of many kinds: what each is, and the first forecast dates or the error it should give.

python -m tests.support.csv_kinds FOLDER        # writes the files, to try them by hand
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas

N = 40


@dataclass(frozen=True)
class Kind:
    """A file and what is right for it.

    Attributes:
        options: of `CsvOptions`; columns: names to read.
        dates: the first dates after the file, as it writes them; or
        error: a regular expression that the error matches.
        names: the columns that are read; None if they are not the point.
        notes: regular expressions, one for each note that is given.
        step: the step in words.
    """

    name: str
    data: bytes
    dates: tuple[str, ...] = ()
    error: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    step: str = ""


def lines(
    dates: list[str], *, header: str = "date,a", row: Callable[[int], str] = str, sign: str = ","
) -> bytes:
    """A file of dates and a rising column of numbers."""
    rows = (f"{when}{sign}{row(n)}" for n, when in enumerate(dates))
    return ("\n".join([header, *rows]) + "\n").encode()


def every(
    offset: str, form: str = "%Y-%m-%d", *, begin: str = "2022-01-03", n: int = N
) -> list[str]:
    """Dates of a pandas offset in a form of strftime."""
    return pandas.date_range(begin, periods=n, freq=offset).strftime(form).tolist()


def hours(form: Callable[[datetime], str], *, begin: datetime, n: int, zone: str) -> list[str]:
    """Texts of consecutive hours as clocks in a zone show them, from a time in UTC."""
    utc, place = begin.replace(tzinfo=ZoneInfo("UTC")), ZoneInfo(zone)
    return [form((utc + timedelta(hours=hour)).astimezone(place)) for hour in range(n)]


def steps() -> Iterator[Kind]:
    """Calendar steps, and dates that keep none."""
    for name, offset, n, dates, step in (
        ("month-starts", "MS", 38, ("2025-04-01", "2025-05-01"), "1 month"),
        ("month-ends", "ME", 37, ("2025-02-28", "2025-03-31"), "1 month (last day)"),
        ("business-days", "B", 40, ("2022-02-28", "2022-03-01"), "business days"),
        ("quarter-starts", "QS", 10, ("2024-10-01", "2025-01-01"), "1 quarter"),
        ("quarter-ends", "QE", 10, ("2024-09-30", "2024-12-31"), "1 quarter (last day)"),
        ("year-ends", "YE", 9, ("2031-12-31", "2032-12-31"), "1 year (last day)"),
        ("ends-of-february", "YE-FEB", 9, ("2031-02-28", "2032-02-29"), "1 year (last day)"),
        ("weeks", "W", 30, ("2022-08-07", "2022-08-14"), "1 week"),
        ("business-month-ends", "BME", 9, ("2022-10-31", "2022-11-30"),
         "1 month (last business day)"),
        ("third-fridays", "WOM-3FRI", 12, ("2023-01-20", "2023-02-17"), "1 month (third Fri)"),
        ("half-months", "SMS", 21, ("2022-12-01", "2022-12-15"), "half months"),
        ("days-of-february", "D", 57, ("2022-03-01", "2022-03-02"), "1 day"),
    ):  # fmt: skip
        yield Kind(name, lines(every(offset, n=n)), dates, step=step)
    fifteenth = [f"20{22 + n // 12}-{n % 12 + 1:02}-15" for n in range(30)]
    yield Kind("fifteenths", lines(fifteenth), ("2024-07-15", "2024-08-15"))
    years = ["2021-01-01", "2022-01-01", "2023-01-01", "2024-01-01"]  # 365 days apart
    yield Kind("years-of-365-days", lines(years), ("2025-01-01", "2026-01-01"), step="1 year")
    thirtieths = ["2022-12-30", "2023-01-30", "2023-02-28", "2023-03-30", "2023-04-30"]
    yield Kind("thirtieths", lines(thirtieths), ("2023-05-30", "2023-06-30"))
    market = [day for day in every("B", n=60) if day not in ("2022-01-17", "2022-02-21")]
    holidays = r"line 11: 2 rows are missing, the first after this line \(2022-01-17\)"
    yield Kind("stock-exchange", lines(market), ("2022-03-28", "2022-03-29"), notes=(holidays,))
    mondays = [day for day in every("D", n=60) if date.fromisoformat(day).weekday() in (0, 2, 4)]
    yield Kind("mondays-wednesdays-fridays", lines(mondays), ("2022-03-04", "2022-03-07"))
    session = [
        text for text in every("30min", "%Y-%m-%d %H:%M", n=1440) if "09:00" <= text[11:] <= "16:30"
    ]
    weekdays = [text for text in session if datetime.fromisoformat(text).weekday() < 5]
    yield Kind(
        "trading-hours", lines(weekdays), ("2022-02-02 09:00", "2022-02-02 09:30"),
        step="business days, 16 rows a day",
    )  # fmt: skip
    wrong = ["2022-01-01", "2022-01-02", "2022-01-05", "2022-03-17", "2022-03-18"]
    yield Kind("irregular", lines(wrong), error="line 5: 71 days after the row before, and others")


def zones() -> Iterator[Kind]:
    """Hours through the changes of daylight saving, and offsets from UTC."""
    plain, offset = "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%z"
    march, autumn = datetime(2022, 3, 25, 23), datetime(2022, 10, 28, 22)
    berlin = {"timezone": "Europe/Berlin"}

    def local(begin: datetime, n: int, form: str) -> list[str]:
        return hours(lambda when: when.strftime(form), begin=begin, n=n, zone="Europe/Berlin")

    until = lines(local(march, 26, plain))  # ends at 01:00 on the 27th, an hour before the change
    yield Kind("clocks-go-forward", until, ("2022-03-27 03:00", "2022-03-27 04:00"), options=berlin)
    through = lines(local(march, 60, plain))
    yield Kind(
        "clocks-went-forward-without-zone", through, ("2022-03-28 13:00",),
        notes=(r"line 27: 1 row is missing, .*\(2022-03-27 02:00:00\).*--timezone NAME",),
    )  # fmt: skip
    yield Kind("clocks-went-forward", through, ("2022-03-28 13:00",), options=berlin)
    until = lines(local(autumn, 27, plain))  # ends at 02:00 on the 30th, before it comes again
    yield Kind("clocks-go-back", until, ("2022-10-30 02:00", "2022-10-30 03:00"), options=berlin)
    through = lines(local(autumn, 60, plain))
    yield Kind("clocks-went-back", through, ("2022-10-31 11:00",), options=berlin)
    yield Kind(
        "clocks-went-back-without-zone", through,
        error=r"line 29: the date of line 28 again; allowed.*--timezone NAME tells",
    )  # fmt: skip
    varying = lines(local(autumn, 60, offset))
    yield Kind(
        "offsets-vary", varying, ("2022-10-31T10:00:00+0000",), notes=("offsets from UTC vary",)
    )
    yield Kind("offsets-of-a-zone", varying, ("2022-10-31T11:00:00+0100",), options=berlin)
    days = lines([f"{day}T00:00:00+02:00" for day in every("D")])
    yield Kind("one-offset", days, ("2022-02-12T00:00:00+02:00",), step="1 day")
    yield Kind("utc", lines([f"{day}T06:00:00Z" for day in every("D")]), ("2022-02-12T06:00:00Z",))
    never = lines(["2022-03-27 01:00", "2022-03-27 02:00", "2022-03-27 03:00"])
    yield Kind(
        "an-hour-that-never-was", never, options=berlin,
        error="line 3: clocks in Europe/Berlin never show 2022-03-27T02",
    )  # fmt: skip
    mars = {"timezone": "Mars/Olympus"}
    yield Kind("no-such-zone", through, options=mars, error="--timezone 'Mars/Olympus'; allowed")


def forms() -> Iterator[Kind]:
    """Dates written in other ways, and what is no date."""
    seconds = [str(1_640_995_200 + 3600 * n) for n in range(N)]
    for name, dates, following in (
        ("packed-days", every("D", "%Y%m%d"), ("20220212", "20220213")),
        ("packed-months", every("MS", "%Y%m"), ("202506", "202507")),
        ("packed-minutes", every("15min", "%Y%m%d%H%M"), ("202201031000",)),
        ("years", [str(year) for year in range(1980, 2020)], ("2020", "2021")),
        ("months", every("MS", "%Y-%m"), ("2025-06", "2025-07")),
        ("month-names", every("MS", "%b %Y"), ("Jun 2025", "Jul 2025")),
        ("months-of-excel", every("MS", "%b-%y"), ("Jun-25", "Jul-25")),
        ("quarters", [f"{2010 + n // 4} Q{n % 4 + 1}" for n in range(30)], ("2017 Q3",)),
        ("iso-weeks", every("W-MON", "%G-W%V", n=52), ("2023-W01", "2023-W02")),
        ("german", every("D", "%d.%m.%Y"), ("12.02.2022",)),
        ("american", every("D", "%m/%d/%Y"), ("02/12/2022",)),
        ("american-unpadded", [f"{day.month}/{day.day}/{day.year} 1:05 PM" for day in
         pandas.date_range("2022-01-03", periods=N)], ("2/12/2022 1:05 PM",)),
        ("day-and-name", every("D", "%d-%b-%Y"), ("12-Feb-2022",)),
        ("unix-seconds", seconds, ("1641139200", "1641142800")),
        ("unix-milliseconds", [f"{text}000" for text in seconds], ("1641139200000",)),
        ("milliseconds", every("250ms", "%Y-%m-%d %H:%M:%S.%f"), ("2022-01-03 00:00:10.000000",)),
        ("row-numbers", [str(n) for n in range(N)], ("40", "41")),
    ):  # fmt: skip
        yield Kind(name, lines(dates), following)
    doubtful = lines(every("D", "%d/%m/%Y", begin="2022-01-01", n=12))
    yield Kind(
        "day-or-month", lines([f"0{n}/02/2022" for n in (1, 2, 3)]),
        error="line 2: date '01/02/2022' can be day/month/year or month/day/year.*--date-format",
    )  # fmt: skip
    form = {"date_format": "%d/%m/%Y"}
    yield Kind("days-first", doubtful, ("13/01/2022",), options=form, step="1 day")
    new_years = lines(every("MS", "%d/%m/%Y", begin="2022-01-01", n=14))
    yield Kind(
        "first-days-of-months", new_years, ("01/03/2023",), notes=("read as day/month/year",)
    )
    yield Kind(
        "unknown-words", lines(["yesterday", "today", "tomorrow"]), error="line 2: date 'yes"
    )
    yield Kind("no-such-day", lines(["2022-02-27", "2022-02-28", "2022-02-29"]),
               error="line 4: date '2022-02-29' does not exist")  # fmt: skip
    yield Kind("numbers-of-excel", lines(["44562", "44563", "44564"]), error="line 2: date '44562'")
    yield Kind("excel", lines(["44562", "44563", "44564"]), ("44565",), step="1 day",
               options={"date_format": "excel"})  # fmt: skip
    yield Kind("total", lines([*every("D", n=5), "Total"]), error="line 7: date 'Total'; allowed")
    yield Kind("empty-date", lines([*every("D", n=5), ""]), error="line 7: column 'date' has no d")
    yield Kind("twice", lines([*every("D", n=5), "2022-01-07"]), error="line 7: the date of line 6")
    yield Kind("turning", lines([*every("D", n=5), "2021-01-07"]), error="line 7: the dates turn")
    yield Kind(
        "newest-first", lines(every("B")[::-1]), ("2022-02-28",), notes=("the newest row is first",)
    )


def tables() -> Iterator[Kind]:
    """Columns, values, delimiters and encodings."""
    days = every("D")
    two = lines(days, header="date,a,b", row=lambda n: f"{n},{n * n}")
    yield Kind("no-dates", lines(["x"] * N, header="who,a"), error="line 1: no column of dates amo")
    yield Kind(
        "no-dates-wanted", lines([str(n) for n in range(N)], header="x,a"), ("40", "41"),
        options={"no_date": True}, names=("x", "a"),
    )  # fmt: skip
    chosen = {"date_column": "when did"}
    yield Kind("date-column", lines(days, header="when did,a"), ("2022-02-12",), options=chosen)
    yield Kind("no-such-column", two, options=chosen, error="no column of name 'when did'; allowed")
    unnamed = lines(days, header=",a")
    yield Kind("unnamed-dates", unnamed, ("2022-02-12",), names=("a",))
    numbered = lines([f"{n},{day}" for n, day in enumerate(days)], header=",date,a")
    yield Kind(
        "unnamed-index", numbered, ("2022-02-12",), names=("a",), notes=("'' is left out: it",)
    )
    no_column = "line 1: column 'c'; allowed: a, b"
    yield Kind("unknown-column", two, columns=("c",), error=no_column)
    double = lines(days, header="date,a,a", row=lambda n: f"{n},{n}")
    yield Kind("duplicate", double, error="line 1: column 'a' twice, fields 2 and 3; allowed")
    texts = lines(days, header="date,city,a", row=lambda n: f"Rome,{n}")
    yield Kind(
        "text", texts, ("2022-02-12",), names=("a",), notes=("'city' is left out: text, su",)
    )
    yield Kind(
        "text-asked-for", texts, columns=("city",), error="line 2: column 'city': 'Rome'; al"
    )
    constant = lines(days, header="date,a,b", row=lambda n: f"5,{n}")
    yield Kind(
        "constant", constant, ("2022-02-12",), names=("b",), notes=("'a' is left out: cons",)
    )
    yield Kind(
        "constant-asked-for", constant, columns=("a",), error="column 'a': constant, 5 in ev"
    )
    yield Kind("only-constant", lines(days, row=lambda n: "5"), error="no column of changing numb")
    missing = lines(days, row=lambda n: "" if n in (4, 6) else str(n))
    yield Kind(
        "missing-values", missing, error=r"line 6: column 'a' has no value \(2 missing in al"
    )
    yield Kind("missing-values-filled", missing, ("2022-02-12",), options={"fill": "linear"},
               notes=("filled 0 missing rows and 2 missing values",))  # fmt: skip
    gaps = lines([*days[:9], *days[11:]])
    yield Kind(
        "missing-rows", gaps, ("2022-02-12",), notes=(r"line 10: 2 rows are missing, .*01-12",)
    )
    yield Kind("missing-rows-filled", gaps, ("2022-02-12",), options={"fill": "previous"},
               notes=("filled 2 missing rows and 0 missing values",))  # fmt: skip
    bad = lines(days, row=lambda n: "x" if n == 5 else str(n))
    yield Kind("bad-value", bad, error="line 7: column 'a': 'x'; allowed: numbers")
    infinite = lines(days, row=lambda n: "inf" if n == 5 else str(n))
    yield Kind("infinite", infinite, error="line 7: column 'a': 'inf'; allowed: numbers")
    quoted = lines(
        days, row=lambda n: f'{n},"two\nlines"' if n < 39 else "z,", header="date,a,memo"
    )
    yield Kind("lines-in-fields", quoted, error="line 80: column 'a': 'z'; allowed: numbers")
    german = lines(
        every("D", "%d.%m.%Y"), header="Datum;Größe", row=lambda n: f"1.{100 + n},5", sign=";"
    )
    yield Kind("semicolons", german, ("12.02.2022",), names=("Größe",))
    yield Kind("latin-1", german.decode().encode("latin-1"), ("12.02.2022",), names=("Größe",),
               notes=("line 1: not UTF-8 .byte 0xf6.; read as Windows-1252",))  # fmt: skip
    yield Kind("utf-16", two.decode().encode("utf-16"), ("2022-02-12",), notes=("is UTF-16",))
    yield Kind("byte-order-mark", b"\xef\xbb\xbf" + two, ("2022-02-12",), names=("a", "b"))
    thousands = lines(days, row=lambda n: f"1,{100 + n}", sign="\t", header="date\ta")
    yield Kind("thousands-or-decimals", thousands, error="line 2: '1,100' has a decimal sign or gr")
    yield Kind("thousands", thousands, ("2022-02-12",), options={"decimal": "."})
    bars = lines(days, header="date|a", sign="|")
    yield Kind("bars", bars, ("2022-02-12",))
    tildes = lines(days, header="date~a", sign="~")
    yield Kind("given-delimiter", tildes, ("2022-02-12",), options={"delimiter": "~"})
    yield Kind("comments-and-blank-lines", b"# by a sensor\n\n" + two + b"\n\n", ("2022-02-12",))
    yield Kind("trailing-delimiters", two.replace(b"\n", b",\n"), ("2022-02-12",), names=("a", "b"))
    yield Kind(
        "long-row", two + b"2022-02-12,1,2,3\n", error="line 42: 4 fields; allowed: 3, as in"
    )
    clocks = lines([f"{day},06:30" for day in days], header="Date,Time,a")
    yield Kind("date-and-time", clocks, ("2022-02-12 06:30",), names=("a",))
    parts = [f"{when.year},{when.month},{when.day},{when.hour}" for when in
             pandas.date_range("2022-01-03", periods=N, freq="h")]  # fmt: skip
    yield Kind("year-month-day-hour", lines(parts, header="year,month,day,hour,a"),
               ("2022-01-04 16:00",), names=("a",))  # fmt: skip
    yield Kind("empty", b"", error="line 1: the file is empty")
    yield Kind("header-only", b"date,a\n", error="line 1: no rows follow the names")
    yield Kind("two-rows", lines(days[:2]), error="2 rows; allowed: at least 3")
    yield Kind("no-header", lines(days[1:], header=f"{days[0]},7"), error="line 1: no names")
    yield Kind(
        "spreadsheet", b"PK\x03\x04....", error="is a spreadsheet or ZIP file; allowed: a CSV"
    )


KINDS = [*steps(), *zones(), *forms(), *tables()]


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind.name}.csv").write_bytes(kind.data)


if __name__ == "__main__":
    main()
