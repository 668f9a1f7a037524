"""`streamlm forecast`: train a forecaster on a CSV file, evaluate it, and predict."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli import csv_options
from streamlm.cli.csv_options import READING, check_target, read_for_run, show_notes
from streamlm.cli.display import bar, interruptible, note, output, show_table
from streamlm.cli.forecast_output import (
    baseline_name,
    coverage_text,
    forecast_json,
    save_forecast,
    show_forecast,
    warn_if_useless,
)
from streamlm.cli.options import Device, Json
from streamlm.forecast.csv_options import CsvOptions
from streamlm.forecast.defaults import default_config
from streamlm.forecast.forecaster import Forecaster
from streamlm.forecast.intervals import LEVELS
from streamlm.forecast.reading import read
from streamlm.forecast.training import LAST, Epoch, train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Forecast time series with linear maps, the Informer or a Transformer.",
)


class Kind(StrEnum):
    """The kinds of forecasters."""

    NLINEAR = "nlinear"
    DLINEAR = "dlinear"
    INFORMER = "informer"
    TRANSFORMER = "transformer"


Data = Annotated[
    Path,
    typer.Argument(metavar="FILE.csv", help="A CSV with a header, dates and columns of numbers."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained forecaster.")]


@app.command("train")
def train_forecaster(
    file: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the forecaster.")],
    model: Annotated[Kind, typer.Option(help="Kind of forecaster.")] = Kind.NLINEAR,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Column to read and forecast; default: all that change. Repeatable.",
        ),
    ] = None,
    horizon: Annotated[int, typer.Option(help="Rows to forecast.")] = 24,
    input_len: Annotated[
        int | None,
        typer.Option(help="Rows of input; default: 96, or half of a short train part."),
    ] = None,
    label_len: Annotated[
        int | None,
        typer.Option(help="Rows of input that the decoder begins with; default: half, at most 48."),
    ] = None,
    d_model: Annotated[int, typer.Option(help="Width of the Transformers.")] = 512,
    d_ff: Annotated[int, typer.Option(help="Width of the feed-forward networks.")] = 2048,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Initial learning rate, halved every epoch; default: 0.005 for linear maps, "
            "0.0001 for Transformers."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.")] = 6,
    patience: Annotated[
        int, typer.Option(help="Stop after this many epochs without progress.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume after the last epoch.")] = False,
    date_column: csv_options.DateColumn = None,
    date_format: csv_options.DateFormat = None,
    timezone: csv_options.TimeZone = None,
    no_date: csv_options.NoDate = False,
    delimiter: csv_options.Delimiter = None,
    decimal: csv_options.Decimal = None,
    fill: csv_options.Fill = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a forecaster on a series.

    It trains on the first part, validates on the second and is tested on the third.
    """
    options = CsvOptions(date_column, date_format, timezone, no_date, delimiter, decimal, fill)
    if (out / LAST).exists() and not resume:
        raise ValueError(f"{out} holds a run already; allowed: --resume, or another folder")
    reading = read(file, options, columns=columns)
    series = reading.series
    show_notes(reading, file)
    config = default_config(
        series,
        model=model.value,
        input_len=input_len,
        label_len=label_len,
        horizon=horizon,
        d_model=d_model,
        d_ff=d_ff,
        learning_rate=learning_rate,
        epochs=epochs,
        patience=patience,
        seed=seed,
    )
    reported: list[Epoch] = []
    windows = series.reserving(horizon).ends[0] - config.input_len - horizon + 1
    with (
        interruptible(lambda: "the same command with --resume continues"),
        bar(f"training {model.value}", total=epochs * config.passes * max(1, windows)) as shown,
    ):
        progress, task = shown

        def show(epoch: Epoch) -> None:
            reported.append(epoch)
            (out / READING).write_text(json.dumps(options.to_dict()) + "\n", encoding="utf-8")
            note(
                f"epoch {epoch.epoch}: {epoch.train:.4f} train, {epoch.valid:.4f} valid"
                f"{', the best so far' * epoch.best}"
            )

        found = train(
            series,
            config,
            out,
            device=choose_device(device),
            resume=resume,
            report=show,
            progress=lambda n: progress.advance(task, n),
        )
    _report(found, out, as_json, {"epochs": [epoch.__dict__ for epoch in reported]})


@app.command("eval")
def evaluate(
    run: Run,
    file: Data,
    date_column: csv_options.DateColumn = None,
    date_format: csv_options.DateFormat = None,
    timezone: csv_options.TimeZone = None,
    no_date: csv_options.NoDate = False,
    delimiter: csv_options.Delimiter = None,
    decimal: csv_options.Decimal = None,
    fill: csv_options.Fill = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a forecaster on the last part of a series, beside the baseline.

    The errors, MSE and MAE, are of standardized values. The file is read as in the run's training.
    """
    options = CsvOptions(date_column, date_format, timezone, no_date, delimiter, decimal, fill)
    found = Forecaster.load(run, device=choose_device(device))
    reading = read_for_run(file, run, found, options)
    show_notes(reading, file)
    if found.calibration is None:
        found = found.calibrated(reading.series)
    else:
        found = found.measured(reading.series, found.calibration.widths)
    _report(found, run, as_json, {})


def _report(found: Forecaster, run: Path, as_json: bool, facts: dict[str, Any]) -> None:
    held = found.calibration
    if held is None:
        raise ValueError(f"{run} has no intervals; allowed: --resume finishes its training")
    if as_json:
        known = {"mse": held.mse, "mae": held.mae, "windows": held.windows}
        baseline = {"season": held.season, "mse": held.naive_mse, "mae": held.naive_mae}
        coverage = dict(zip(map(str, LEVELS), held.coverage, strict=True))
        print(
            json.dumps(
                {"run": str(run), **known, "baseline": baseline, "coverage": coverage, **facts}
            )
        )
        return
    rows = [
        (name, f"{found.config.horizon}", f"{mse:.4f}", f"{mae:.4f}")
        for name, mse, mae in (
            (found.config.model, held.mse, held.mae),
            (f"baseline: {baseline_name(held.season)}", held.naive_mse, held.naive_mae),
        )
    ]
    show_table(("model", "horizon", "MSE", "MAE"), rows, right=("horizon", "MSE", "MAE"))
    output.print(coverage_text(held, 0.9))
    warn_if_useless(held)
    output.print(str(run))


@app.command()
def predict(
    run: Run,
    file: Data,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", dir_okay=False, help="Save the forecast.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", dir_okay=False, help="Save a plot of the forecast."),
    ] = None,
    force: csv_options.Force = False,
    level: Annotated[
        float, typer.Option(help="Share of values within the interval: 0.5, 0.8, 0.9 or 0.95.")
    ] = 0.9,
    date_column: csv_options.DateColumn = None,
    date_format: csv_options.DateFormat = None,
    timezone: csv_options.TimeZone = None,
    no_date: csv_options.NoDate = False,
    delimiter: csv_options.Delimiter = None,
    decimal: csv_options.Decimal = None,
    fill: csv_options.Fill = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Forecast the rows after a series in its own units, with an interval and the baseline.

    The file is read as in the run's training, unless options say otherwise.
    """
    options = CsvOptions(date_column, date_format, timezone, no_date, delimiter, decimal, fill)
    for target in (save, plot):
        check_target(target, [file], force=force)
    if save is not None and save == plot:
        raise ValueError(f"--save and --plot are both {save}; allowed: two files")
    found = Forecaster.load(run, device=choose_device(device))
    reading = read_for_run(file, run, found, options)
    show_notes(reading, file)
    forecast = found.predict(reading.series, level=level)
    dates = reading.layout.texts(forecast.dates, forecast.offsets)
    if save is not None:
        save_forecast(save, forecast, dates, reading, found, level)
    if plot is not None:
        from streamlm.plots.forecast import draw_forecast

        series, rows = reading.series, slice(-found.config.input_len, None)
        ends = forecast.low, forecast.high
        draw_forecast(
            series.names,
            (series.dates[rows], series.values[rows]),
            (forecast.dates, forecast.values),
            plot,
            band=None if ends[0] is None or ends[1] is None else (ends[0], ends[1]),
            baseline=forecast.baseline,
            level=level,
        )
    if as_json:
        print(json.dumps(forecast_json(forecast, dates, found, level)))
        return
    show_forecast(forecast, dates, reading, found, level)
