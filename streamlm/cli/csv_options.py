"""Options of `streamlm forecast` that say how a CSV file is read, and what may be written."""

import json
from pathlib import Path
from typing import Annotated

import typer

from streamlm.cli.display import note
from streamlm.forecast.csv_options import CsvOptions
from streamlm.forecast.forecaster import Forecaster
from streamlm.forecast.reading import Reading, read
from streamlm.forecast.steps import Step

READING = "reading.json"  # in the folder of a run: how its file was read

DateColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of dates; default: found by name and content."),
]
DateFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="Form of dates, such as %d/%m/%Y, or unix, unix-ms, excel, index; default: found.",
    ),
]
TimeZone = Annotated[
    str | None,
    typer.Option(metavar="ZONE", help="Time zone of the dates, such as Europe/Berlin."),
]
NoDate = Annotated[
    bool, typer.Option("--no-date", help="Number the rows; no column holds their dates.")
]
Delimiter = Annotated[
    str | None,
    typer.Option(metavar="SIGN", help="Between fields: , ; tab space …; default: found."),
]
Decimal = Annotated[
    str | None, typer.Option(metavar="SIGN", help="Decimal sign, . or , ; default: found.")
]
Fill = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="Fill missing rows and values: linear, previous or zero."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the files that are written.")]


def show_notes(reading: Reading, path: Path) -> None:
    """Say on standard error what was read and what was done to read it."""
    series = reading.series
    first, last = reading.texts(slice(0, 1))[0], reading.texts(slice(-1, None))[0]
    names = ", ".join(series.names)
    note(f"{path}: {len(series.dates):,} rows, {first} to {last}; step {series.step}; {names}")
    for each in reading.notes:
        note(each)


def read_for_run(path: Path, run: Path, found: Forecaster, given: CsvOptions) -> Reading:
    """Read a file as that of a run was read; options that are given count more.

    Raises:
        ValueError: the file cannot be read so, lacks a column or has another step.
    """
    saved = CsvOptions()
    if (run / READING).exists():
        saved = CsvOptions(**json.loads((run / READING).read_text("utf-8")))
    values = {**saved.to_dict(), **{name: v for name, v in given.to_dict().items() if v}}
    step = Step.parse(found.config.step) if found.config.step else None
    reading = read(
        path, CsvOptions(**values), columns=found.config.columns, step=step, constant=True
    )
    try:
        found.check_step(reading.series)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return reading


def check_target(target: Path | None, inputs: list[Path], *, force: bool) -> None:
    """Refuse to write over an input, or over any file without `force`.

    Raises:
        ValueError: names the file and what is allowed.
    """
    if target is None:
        return
    if any(target.exists() and each.exists() and target.samefile(each) for each in inputs):
        raise ValueError(f"{target} is read by this command; allowed: another file")
    if target.is_file() and not force:
        raise ValueError(f"{target} exists; allowed: --force, or another file")
