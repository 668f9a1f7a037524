"""Forecasters: training with early stopping, errors, forecasts in the units of the series."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.informer import Informer
from streamlm.forecast.linear import DLinear, NLinear
from streamlm.forecast.series import Batch, Scale, Series, Windows, time_marks
from streamlm.models.modes import in_mode

MODELS: dict[str, Callable[[ForecastConfig], nn.Module]] = {
    "informer": Informer,
    "transformer": Informer,  # with full attention
    "dlinear": DLinear,
    "nlinear": NLinear,
}
WEIGHTS, CONFIG, SCALE, LAST = "model.safetensors", "config.json", "scale.json", "last.pt"


@dataclass(frozen=True)
class Epoch:
    """The report of an epoch: mean squared errors of scaled values."""

    epoch: int
    train: float
    valid: float
    best: bool


@dataclass(frozen=True)
class Errors:
    """Errors over all windows, rows and columns of a part, of scaled values as in the papers.

    Attributes:
        mse, mae: mean squared and mean absolute error.
        windows: number of windows.
    """

    mse: float
    mae: float
    windows: int


@dataclass(frozen=True)
class Forecaster:
    """A trained model and the scale of its series."""

    model: nn.Module
    config: ForecastConfig
    scale: Scale

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        self.config.save(folder / CONFIG)
        scale = {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()}
        (folder / SCALE).write_text(json.dumps(scale, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> "Forecaster":
        """Read a folder written by `save`; nothing is unpickled.

        Raises:
            FileNotFoundError: a file is missing; names it.
            ValueError: the files do not belong together.
        """
        for name in (WEIGHTS, CONFIG, SCALE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no forecaster: {name} is missing")
        config = ForecastConfig.from_dict(json.loads((folder / CONFIG).read_text("utf-8")))
        scale = json.loads((folder / SCALE).read_text("utf-8"))
        model = MODELS[config.model](config)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{folder / WEIGHTS} does not belong to {CONFIG}: {error}") from None
        columns = Scale(np.array(scale["mean"]), np.array(scale["deviation"]))
        if len(columns.mean) != config.n_columns:
            raise ValueError(f"{folder / SCALE} has {len(columns.mean)} columns, unlike its model")
        return cls(model.to(device).eval(), config, columns)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def windows(self, series: Series, part: str) -> Windows:
        """The windows of a part of a series, with the forecaster's columns."""
        config = self.config
        return Windows(
            series.only(config.columns),
            self.scale,
            part,
            input_len=config.input_len,
            horizon=config.horizon,
        )

    @torch.no_grad()
    def errors(
        self, windows: Windows, progress: Callable[[int], object] = lambda n: None
    ) -> Errors:
        """The errors over all windows; sampled keys depend only on the configuration's seed."""
        squared, absolute, n = 0.0, 0.0, 0
        with in_mode(self.model, training=False), _seeded(self.config.seed, self.device):
            for batch in windows.batches(4 * self.config.batch_size, self.device):
                off = self.model(batch) - batch.future
                squared += float(off.square().sum())
                absolute += float(off.abs().sum())
                n += off.numel()
                progress(len(batch.future))
        return Errors(squared / n, absolute / n, len(windows))

    @torch.no_grad()
    def forecast(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Forecast the rows after a series: dates [horizon], values [horizon, C] in its units.

        Raises:
            ValueError: the series has fewer rows than the model reads, lacks a column, or has
                another time step.
        """
        config, known = self.config, series.only(self.config.columns)
        if len(known.dates) < config.input_len:
            raise ValueError(
                f"the series has {len(known.dates)} rows; allowed: at least {config.input_len}"
            )
        dates = known.following(config.horizon)
        past = torch.from_numpy(self.scale.apply(known.values[-config.input_len :]))
        marks = torch.from_numpy(
            time_marks(np.concatenate([known.dates[-config.input_len :], dates]), known.step)
        ).to(self.device)
        self._check_marks(marks)
        n = config.input_len
        future = past.new_zeros(config.horizon, config.n_columns)
        batch = Batch(
            past[None].to(self.device),
            marks[None, :n],
            future[None].to(self.device),
            marks[None, n:],
        )
        with in_mode(self.model, training=False), _seeded(config.seed, self.device):
            scaled = self.model(batch)[0].cpu().double().numpy()
        return dates, self.scale.undo(scaled)

    def _check_marks(self, marks: Tensor) -> None:
        if marks.shape[1] != self.config.n_marks:
            raise ValueError(
                f"the series' step gives {marks.shape[1]} features of a date; the forecaster was "
                f"trained on a series whose step gives {self.config.n_marks}"
            )


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
        ValueError: a part of the series is too short.
        FloatingPointError: the loss is not finite.
    """
    series = series.only(config.columns)
    scale = Scale.of(series)
    sizes = {"input_len": config.input_len, "horizon": config.horizon}
    windows = Windows(series, scale, "train", **sizes)
    valid = Windows(series, scale, "valid", **sizes)
    torch.manual_seed(config.seed)
    model = MODELS[config.model](config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    begin, best, worse = 0, float("inf"), 0
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    if resume and last.exists():
        saved = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, best, worse = saved["epoch"], saved["best"], saved["worse"]
    for epoch in range(begin, config.epochs):
        if worse >= config.patience:
            break
        torch.manual_seed(1000 * config.seed + epoch)  # the same draws in a resumed run
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5**epoch
        loss = _epoch(model, optimizer, windows, config, device, progress)
        mse = Forecaster(model, config, scale).errors(valid).mse
        improved = mse < best
        best, worse = (mse, 0) if improved else (best, worse + 1)
        if improved:
            Forecaster(model, config, scale).save(folder)
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1, "best": best, "worse": worse,
        }  # fmt: skip
        torch.save(state, last.with_suffix(".new"))
        last.with_suffix(".new").replace(last)
        report(Epoch(epoch + 1, loss, mse, improved))
    return Forecaster.load(folder, device=device)


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
        for batch in windows.batches(config.batch_size, device, generator=order):
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


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators within the block and restore them after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
