"""Which forecaster a user should get who names none: errors and coverage on series of many kinds.

    python -m benchmarks.forecast_defaults --threads 1

Every model is trained with the settings that `streamlm forecast train` chooses for the series; the
Transformers are narrower, for a CPU. Errors are mean absolute errors of scaled values on the test
part, beside those of the seasonal naive forecast; coverage is that of the 90 % intervals.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli.display import bar, output
from streamlm.forecast.config import MODELS
from streamlm.forecast.defaults import default_config
from streamlm.forecast.inference import infer
from streamlm.forecast.reading import load
from streamlm.forecast.series import Series, splits
from streamlm.forecast.training import train
from streamlm.lab.results import usable_cores, write_results

LEVEL = 0.9
WIDTHS = {"d_model": 64, "d_ff": 256}  # of the Transformers
ETT = ("ETTh1", "ETTh2", "ETTm1")  # those of the data folder


def made(name: str, dates: np.ndarray, values: np.ndarray) -> Series:
    step, _ = infer(dates)
    return Series(dates, values[:, None], (name,), splits(name, len(dates), step), step)


def synthetic(seed: int) -> Iterator[tuple[str, Series, int]]:
    """Series of known make, with a horizon for each."""
    random = np.random.default_rng(seed)
    n = np.arange(144)
    months = (np.datetime64("2012-01") + n).astype("datetime64[us]")
    wave = 1 + 0.2 * np.sin(2 * np.pi * n / 12)
    sold = (100 + 2.5 * n) * wave * np.exp(random.normal(0, 0.03, len(n)))
    yield "months, trend and season", made("sold", months, sold), 12
    days = np.busday_offset("2019-01-02", np.arange(1000), "forward").astype("datetime64[us]")
    walk = 40_000 * np.exp(np.cumsum(random.normal(0, 0.01, 1000)))
    yield "business days, random walk", made("price", days, walk), 10
    n = np.arange(730)
    each = (np.datetime64("2020-01-01") + n).astype("datetime64[us]")
    visits = 200 + 80 * (n % 7 > 4) + 20 * np.sin(2 * np.pi * n / 365) + random.normal(0, 15, 730)
    yield "days, week and year", made("visits", each, visits), 28
    n = np.arange(4000)
    hours = (np.datetime64("2022-01-01T00") + n).astype("datetime64[us]")
    load_ = 500 + 100 * np.sin(2 * np.pi * n / 24) * (1 + 0.5 * (n // 24 % 7 < 5))
    yield "hours, day and week", made("load", hours, load_ + random.normal(0, 15, 4000)), 24


def measured(
    name: str, series: Series, horizon: int, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each model on a series."""
    found = []
    for model in options.models:
        widths = WIDTHS if model in ("informer", "transformer") else {}
        given = {"model": model, "horizon": horizon, "epochs": options.epochs, **widths}
        config = default_config(series, **given)
        with tempfile.TemporaryDirectory() as folder, bar(f"{name}, {model}", total=None):
            held = train(series, config, Path(folder), device=device).calibration
        assert held is not None
        found.append(
            {
                "series": name, "rows": len(series.dates), "horizon": horizon, "model": model,
                "mae": held.mae, "mse": held.mse, "coverage": held.covered(LEVEL),
                "season": held.season, "naive_mae": held.naive_mae, "naive_mse": held.naive_mse,
                "config": config.to_dict(),
            }
        )  # fmt: skip
        output.print(f"{name}, {model}: {held.mae:.3f}, baseline {held.naive_mae:.3f}")
    return found


def show(rows: list[dict[str, Any]], models: list[str]) -> None:
    """A line for each series."""
    table = Table(title="Mean absolute error, scaled (coverage of 90 % intervals)")
    for column in ("series", "horizon", "seasonal naive", *models):
        table.add_column(column, justify="left" if column == "series" else "right")
    for name in dict.fromkeys(row["series"] for row in rows):
        those = [row for row in rows if row["series"] == name]
        cells = [f"{row['mae']:.3f} ({100 * row['coverage']:.0f} %)" for row in those]
        table.add_row(name, str(those[0]["horizon"]), f"{those[0]['naive_mae']:.3f}", *cells)
    output.print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast_defaults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/ett"))
    parser.add_argument("--ett", nargs="*", default=["ETTh1", "ETTh2"], choices=ETT)
    parser.add_argument("--models", nargs="+", default=list(MODELS[:3]), choices=MODELS)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic series")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or usable_cores())
    device = choose_device(options.device)
    cases = list(synthetic(options.seed))
    for name in options.ett:
        cases.append((f"{name}, OT", load(options.data / f"{name}.csv").only(["OT"]), 24))
    rows = [row for case in cases for row in measured(*case, options, device)]
    write_results(
        options.out / "forecast-defaults.json",
        device=device,
        settings={"epochs": options.epochs, "seed": options.seed, "models": options.models},
        figures={"rows": rows},
    )
    show(rows, options.models)


if __name__ == "__main__":
    main()
