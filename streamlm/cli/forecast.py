"""`streamlm forecast`: train a forecaster on a CSV file, evaluate it, and predict."""

import csv
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli.display import bar, interruptible, note, output, show_table
from streamlm.cli.options import Device, Json
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.series import Series, time_marks
from streamlm.forecast.training import LAST, Epoch, Forecaster, train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Forecast time series with the Informer and its baselines.",
)


class Kind(StrEnum):
    """The kinds of forecasters."""

    INFORMER = "informer"
    TRANSFORMER = "transformer"
    DLINEAR = "dlinear"
    NLINEAR = "nlinear"


Data = Annotated[
    Path,
    typer.Argument(metavar="FILE.csv", help="A CSV with a date column and numeric columns."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained forecaster.")]


@app.command("train")
def train_forecaster(
    file: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the forecaster.")],
    model: Annotated[Kind, typer.Option(help="Kind of forecaster.")] = Kind.INFORMER,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Column to read and forecast; default: all. Repeatable.",
        ),
    ] = None,
    horizon: Annotated[int, typer.Option(help="Rows to forecast.")] = 24,
    input_len: Annotated[int, typer.Option(help="Rows of input.")] = 96,
    label_len: Annotated[
        int, typer.Option(help="Rows of input that the decoder begins with.")
    ] = 48,
    d_model: Annotated[int, typer.Option(help="Width of the Transformers.")] = 512,
    d_ff: Annotated[int, typer.Option(help="Width of the feed-forward networks.")] = 2048,
    learning_rate: Annotated[
        float, typer.Option(help="Initial learning rate; halved every epoch.")
    ] = 1e-4,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs.")] = 6,
    patience: Annotated[
        int, typer.Option(help="Stop after this many epochs without progress.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume after the last epoch.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a forecaster on a series.

    It trains on the first part, validates on the second and is tested on the third.
    """
    series = Series.load(file)
    config = ForecastConfig(
        model=model.value,
        columns=tuple(columns or series.names),
        n_marks=time_marks(series.dates[:1], series.step).shape[1],
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
    if (out / LAST).exists() and not resume:
        raise ValueError(f"{out} holds a run already; allowed: --resume, or another folder")
    reported: list[Epoch] = []
    total = epochs * max(1, series.ends[0] - input_len - horizon + 1)
    with (
        interruptible(lambda: "the same command with --resume continues"),
        bar(f"training {model.value}", total=total) as (progress, task),
    ):

        def show(epoch: Epoch) -> None:
            reported.append(epoch)
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
    _report(found, series, out, as_json, {"epochs": [epoch.__dict__ for epoch in reported]})


@app.command("eval")
def evaluate(run: Run, file: Data, device: Device = "auto", as_json: Json = False) -> None:
    """Measure a forecaster on the last part of a series.

    The errors, MSE and MAE, are of standardized values.
    """
    found = Forecaster.load(run, device=choose_device(device))
    _report(found, Series.load(file), run, as_json, {})


def _report(
    found: Forecaster, series: Series, run: Path, as_json: bool, facts: dict[str, Any]
) -> None:
    windows = found.windows(series, "test")
    with bar("measuring", total=len(windows)) as (progress, task):
        errors = found.errors(windows, lambda n: progress.advance(task, n))
    if as_json:
        print(json.dumps({"run": str(run), **errors.__dict__, **facts}))
        return
    row = (found.config.model, f"{found.config.horizon}", f"{errors.mse:.4f}", f"{errors.mae:.4f}")
    show_table(("model", "horizon", "MSE", "MAE"), [row], right=("horizon", "MSE", "MAE"))
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
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Forecast the rows after a series, in its own units."""
    found = Forecaster.load(run, device=choose_device(device))
    series = Series.load(file)
    dates, values = found.forecast(series)
    names = found.config.columns
    texts = [str(date).replace("T", " ") for date in dates]
    if save is not None:
        with open(save, "w", newline="", encoding="utf-8") as target:
            writer = csv.writer(target)
            writer.writerow(["date", *names])
            writer.writerows([text, *row] for text, row in zip(texts, values.tolist(), strict=True))
    if plot is not None:
        from streamlm.plots.forecast import draw_forecast

        known, rows = series.only(names), slice(-found.config.input_len, None)
        past = known.dates[rows], known.values[rows]
        draw_forecast(known.names, past, (dates, values), plot)
    if as_json:
        print(json.dumps({"columns": list(names), "dates": texts, "values": values.tolist()}))
        return
    cells = [
        (text, *(f"{value:.4g}" for value in row)) for text, row in zip(texts, values, strict=True)
    ]
    show_table(("date", *names), cells, right=names)
