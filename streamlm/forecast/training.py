"""Training of forecasters, with early stopping; resumable after each epoch."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from streamlm.forecast.config import RATES, ForecastConfig
from streamlm.forecast.forecaster import CONFIG, MODELS, Forecaster
from streamlm.forecast.series import Scale, Series, Windows
from streamlm.forecast.steps import Step
from streamlm.models.modes import in_mode

LAST = "last.pt"
MAY_CHANGE = ("epochs", "patience")  # in a resumed run


@dataclass(frozen=True)
class Epoch:
    """The report of an epoch: mean squared errors of scaled values."""

    epoch: int
    train: float
    valid: float
    best: bool


def train(
    series: Series,
    config: ForecastConfig,
    folder: Path,
    *,
    device: torch.device,
    resume: bool = False,
    report: Callable[[Epoch], object] = lambda epoch: None,
    progress: Callable[[int], object] = lambda n: None,
) -> Forecaster:
    """Train a forecaster on a series and save the best epoch's weights in `folder`.

    Args:
        series: has at least the configuration's columns.
        resume: continue after the last saved epoch, with the result of an uninterrupted run.
        report: called after each epoch; progress: called with the number of windows of each batch.

    Raises:
        ValueError: a part of the series is too short; or the folder's run has other settings, or
            was trained on another series.
        FloatingPointError: the loss is not finite.
    """
    series = series.only(config.columns).reserving(config.horizon)
    config = replace(config, step=series.step.spec, n_marks=series.n_marks)
    data = _fingerprint(series)
    if resume and (folder / LAST).exists():
        _check_same(folder, config)
    scale = Scale.of(series)
    sizes = {"input_len": config.input_len, "horizon": config.horizon}
    windows = Windows(series, scale, "train", **sizes)
    valid = Windows(series, scale, "valid", **sizes)
    torch.manual_seed(config.seed)
    model = MODELS[config.model](config).to(device)
    rate = config.learning_rate or RATES[config.model]
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    begin, best, worse = 0, float("inf"), 0
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    if resume and last.exists():
        saved = torch.load(last, map_location=device, weights_only=True)
        if saved.get("data", data) != data:
            raise ValueError(
                f"the series is not the one of the run in {folder}: its rows have changed; "
                "allowed: the same file, or another folder"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, best, worse = saved["epoch"], saved["best"], saved["worse"]
    for epoch in range(begin, config.epochs):
        if worse >= config.patience:
            break
        torch.manual_seed(1000 * config.seed + epoch)  # the same draws in a resumed run
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5**epoch
        loss = _epoch(model, optimizer, windows, config, device, progress)
        mse = Forecaster(model, config, scale).errors(valid).mse
        improved = mse < best
        best, worse = (mse, 0) if improved else (best, worse + 1)
        if improved:
            Forecaster(model, config, scale).save(folder)
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1, "best": best, "worse": worse, "data": data,
        }  # fmt: skip
        torch.save(state, last.with_suffix(".new"))
        last.with_suffix(".new").replace(last)
        report(Epoch(epoch + 1, loss, mse, improved))
    found = Forecaster.load(folder, device=device).calibrated(series)
    found.save(folder)
    return found


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    config: ForecastConfig,
    device: torch.device,
    progress: Callable[[int], object],
) -> float:
    """Train for one epoch; returns the mean loss."""
    total, n = 0.0, 0
    order = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    with in_mode(model, training=True):
        batches = (
            batch
            for _ in range(config.passes)
            for batch in windows.batches(config.batch_size, device, generator=order)
        )
        for batch in batches:
            loss = F.mse_loss(model(batch), batch.future)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value}: lower the learning rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += value * len(batch.future)
            n += len(batch.future)
            progress(len(batch.future))
    return total / n


def _fingerprint(series: Series) -> str:
    """A hash of the dates and values of a series."""
    known = hashlib.sha256(series.dates.astype("int64").tobytes())
    known.update(series.values.tobytes())
    return known.hexdigest()


def _check_same(folder: Path, config: ForecastConfig) -> None:
    """Raise ValueError if the run in a folder has other settings than `config`."""
    saved = ForecastConfig.from_dict(json.loads((folder / CONFIG).read_text("utf-8")))
    if not saved.step:  # of an earlier version
        config = replace(config, step="", passes=saved.passes)
    for name, value in config.to_dict().items():
        was = saved.to_dict()[name]
        if was != value and name not in MAY_CHANGE:
            if name == "step":
                was, value = Step.parse(str(was)), Step.parse(str(value))
            texts = [
                ", ".join(map(str, x)) if isinstance(x, list) else str(x) for x in (was, value)
            ]
            raise ValueError(
                f"{folder} holds a run with {name} {texts[0]}, not {texts[1]}; allowed: the same, "
                "or another folder"
            )
