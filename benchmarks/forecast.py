"""The Informer's own task: errors on ETTh1 beside full attention, linear controls and the paper.

    python -m benchmarks.forecast --threads 1           # narrower models, for a CPU
    python -m benchmarks.forecast --full                # the authors' sizes, for a GPU

Series, splits and scale are those of the paper; with `--full`, input and label lengths too. Every
window of the test part counts. Runs that are finished are kept in --runs, and one that was stopped
goes on after its last epoch.
"""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.nn import functional as F

from streamlm.checkpoints.checkpoint import choose_device
from streamlm.cli.display import bar, note, output
from streamlm.forecast.config import MODELS, ForecastConfig
from streamlm.forecast.forecaster import Forecaster
from streamlm.forecast.reading import load
from streamlm.forecast.series import Scale, Series, Windows
from streamlm.forecast.training import Epoch, train
from streamlm.lab.results import usable_cores, write_results
from streamlm.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, panels, save

# MSE and MAE of the Informer on ETTh1 (Informer2020's README and the paper's tables 1 and 2).
PAPER = {
    ("one column", 24): (0.098, 0.247),
    ("one column", 168): (0.183, 0.346),
    ("all columns", 24): (0.577, 0.549),
    ("all columns", 168): (0.931, 0.752),
}
# Rows that are read, and rows that the decoder begins with; of the authors' scripts.
LENGTHS = {
    ("one column", 24): (720, 168),
    ("one column", 168): (720, 168),
    ("all columns", 24): (48, 48),
    ("all columns", 168): (168, 168),
}
CPU_LENGTHS = (96, 48)  # on a CPU, at most
WIDTHS = {True: (512, 2048), False: (64, 256)}  # full or not: d_model, d_ff
RATES = {"informer": 1e-4, "transformer": 1e-4, "dlinear": 5e-3, "nlinear": 5e-3}
COLOURS = {"informer": BLUE, "transformer": ORANGE, "dlinear": GREEN, "nlinear": SKY}


def config_of(
    series: Series, columns: str, horizon: int, model: str, *, full: bool, seed: int
) -> ForecastConfig:
    """What is trained for one cell of the table."""
    input_len, label_len = LENGTHS[columns, horizon]
    if not full:
        input_len, label_len = map(min, (input_len, label_len), CPU_LENGTHS)
    width, inner = WIDTHS[full]
    names = ("OT",) if columns == "one column" else series.names
    return ForecastConfig(
        model=model,
        columns=names,
        n_marks=series.n_marks,
        input_len=input_len,
        label_len=label_len,
        horizon=horizon,
        d_model=width,
        d_ff=inner,
        learning_rate=RATES[model] * (1 if full or "linear" in model else 5),
        seed=seed,
    )


def run(series: Series, config: ForecastConfig, runs: Path, device: torch.device) -> dict[str, Any]:
    """Errors of one trained forecaster, from `runs` where it is finished."""
    facts = json.dumps(config.to_dict(), sort_keys=True)
    folder = runs / hashlib.sha256(facts.encode()).hexdigest()[:16]
    file = folder / "result.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    n_train = series.ends[0] - config.input_len - config.horizon + 1
    name = f"{config.model}, {len(config.columns)} column(s), {config.horizon} rows"
    with bar(f"{name}, seed {config.seed}", total=n_train * config.epochs) as (progress, task):

        def told(epoch: Epoch) -> None:
            note(f"{name}: epoch {epoch.epoch}: {epoch.train:.4f} train, {epoch.valid:.4f} valid")

        forecaster = train(
            series,
            config,
            folder,
            device=device,
            resume=True,
            report=told,
            progress=lambda n: progress.advance(task, n),
        )
    errors = forecaster.errors(forecaster.windows(series, "test"))
    found = {**errors.__dict__, "parameters": parameters(forecaster), "config": config.to_dict()}
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def parameters(forecaster: Forecaster) -> int:
    """Weights of a model."""
    return sum(weight.numel() for weight in forecaster.model.parameters())


def unchanged(series: Series, config: ForecastConfig) -> dict[str, float]:
    """Errors of saying that everything stays as it is."""
    known = series.only(config.columns)
    sizes = {"input_len": config.input_len, "horizon": config.horizon}
    windows = Windows(known, Scale.of(known), "test", **sizes)
    squared, absolute, n = 0.0, 0.0, 0
    for batch in windows.batches(512, torch.device("cpu")):
        last = batch.past[:, -1:].expand_as(batch.future)
        squared += float(F.mse_loss(last, batch.future, reduction="sum"))
        absolute += float(F.l1_loss(last, batch.future, reduction="sum"))
        n += last.numel()
    return {"mse": squared / n, "mae": absolute / n}


def cells(
    options: argparse.Namespace, series: Series, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each choice of columns, horizon and model, over the seeds."""
    found = []
    for columns in ("one column", "all columns"):
        for horizon in options.horizons:
            for model in options.models:
                configs = [
                    config_of(series, columns, horizon, model, full=options.full, seed=seed)
                    for seed in range(options.seeds)
                ]
                if options.epochs:
                    configs = [replace(config, epochs=options.epochs) for config in configs]
                results = [run(series, config, options.runs, device) for config in configs]
                row: dict[str, Any] = {
                    "columns": columns,
                    "horizon": horizon,
                    "model": model,
                    "parameters": results[0]["parameters"],
                    "config": configs[0].to_dict(),
                }
                for error in ("mse", "mae"):
                    values = [result[error] for result in results]
                    row[error] = {
                        "mean": float(np.mean(values)), "low": min(values), "high": max(values),
                        "seeds": values,
                    }  # fmt: skip
                found.append(row)
            base = configs[0]
            found.append(
                {
                    "columns": columns,
                    "horizon": horizon,
                    "model": "unchanged",
                    **{name: {"mean": value} for name, value in unchanged(series, base).items()},
                }
            )
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """The errors as a table, with the paper's beside them."""
    table = Table(title="ETTh1, test part, scaled values: mean (lowest – highest seed)")
    for column in ("columns", "horizon", "model", "MSE", "MAE"):
        table.add_column(column, justify="left" if column in ("columns", "model") else "right")
    for row in rows:
        texts = []
        for error in ("mse", "mae"):
            each = row[error]
            spread = f" ({each['low']:.3f} – {each['high']:.3f})" if "low" in each else ""
            texts.append(f"{each['mean']:.3f}{spread}")
        table.add_row(row["columns"], str(row["horizon"]), row["model"], *texts)
        if row["model"] == "unchanged" and (row["columns"], row["horizon"]) in PAPER:
            paper = PAPER[row["columns"], row["horizon"]]
            numbers = [f"{value:.3f}" for value in paper]
            table.add_row(row["columns"], str(row["horizon"]), "Informer, the paper's", *numbers)
            table.add_section()
    output.print(table)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean squared errors, a panel for each choice of columns and horizon."""
    groups = list(dict.fromkeys((row["columns"], row["horizon"]) for row in rows))
    figure, axes = panels(len(groups), size=(2.6 * len(groups), 3.2), widths=[1] * len(groups))
    for axis, group in zip(axes, groups, strict=True):
        members = [row for row in rows if (row["columns"], row["horizon"]) == group]
        for place, row in enumerate(members):
            each, colour = row["mse"], COLOURS.get(row["model"], GREY)
            axis.bar(place, each["mean"], color=colour, width=0.7)
            if "low" in each:
                axis.plot([place, place], [each["low"], each["high"]], color="black", linewidth=1)
        if group in PAPER:
            axis.axhline(PAPER[group][0], color=BLUE, linestyle="--", linewidth=1)
            axis.annotate(
                "the paper's Informer", (0.98, PAPER[group][0]), color=BLUE, ha="right",
                va="bottom", xycoords=("axes fraction", "data"), fontsize=8,
            )  # fmt: skip
        names = [row["model"] for row in members]
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_title(f"{group[0]}, {group[1]} rows")
    axes[0].set_ylabel("MSE")
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data/ett/ETTh1.csv"))
    parser.add_argument("--horizons", type=int, nargs="+", default=[24, 168])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of six at most")
    parser.add_argument("--full", action="store_true", help="the authors' sizes")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or usable_cores())
    device = choose_device(options.device)
    rows = cells(options, load(options.data), device)
    settings = {
        "full": options.full,
        "seeds": options.seeds,
        "threads": torch.get_num_threads(),
        "paper": [[*key, *errors] for key, errors in PAPER.items()],
    }
    write_results(
        options.out / "forecast.json", device=device, settings=settings, figures={"rows": rows}
    )
    draw(rows, options.out / "forecast.png")
    show(rows)


if __name__ == "__main__":
    main()
