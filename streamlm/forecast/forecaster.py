"""Forecasters: errors, intervals, and forecasts in the units of the series."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from streamlm.forecast.baseline import best_season, naive, naive_errors
from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.informer import Informer
from streamlm.forecast.intervals import Calibration, half_widths
from streamlm.forecast.linear import DLinear, NLinear
from streamlm.forecast.series import Batch, Scale, Series, Windows, time_marks
from streamlm.forecast.steps import Step
from streamlm.models.modes import in_mode

MODELS: dict[str, Callable[[ForecastConfig], nn.Module]] = {
    "informer": Informer,
    "transformer": Informer,  # with full attention
    "dlinear": DLinear,
    "nlinear": NLinear,
}
WEIGHTS, CONFIG, SCALE = "model.safetensors", "config.json", "scale.json"
INTERVALS = "intervals.json"
MOST_WINDOWS = 2000  # whose errors are kept at once


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
class Forecast:
    """The rows after a series, in its units.

    Attributes:
        dates: [horizon]; offsets: from UTC, where the series' zone is known.
        values: [horizon, C].
        low, high: [horizon, C] ends of the interval; None if the training has not finished.
        baseline: [horizon, C] the seasonal naive forecast; None likewise.
    """

    dates: np.ndarray
    offsets: np.ndarray | None
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    baseline: np.ndarray | None = None


@dataclass(frozen=True)
class Forecaster:
    """A trained model, the scale of its series, and what held-back rows say about it."""

    model: nn.Module
    config: ForecastConfig
    scale: Scale
    calibration: Calibration | None = None

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        self.config.save(folder / CONFIG)
        scale = {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()}
        (folder / SCALE).write_text(json.dumps(scale, indent=2) + "\n", encoding="utf-8")
        if self.calibration is not None:
            (folder / INTERVALS).write_text(self.calibration.to_json(), encoding="utf-8")
        else:
            (folder / INTERVALS).unlink(missing_ok=True)

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
        held = None
        if (folder / INTERVALS).exists():
            held = Calibration.from_dict(json.loads((folder / INTERVALS).read_text("utf-8")))
        return cls(model.to(device).eval(), config, columns, held)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def windows(self, series: Series, part: str) -> Windows:
        """The windows of a part of a series, with the forecaster's columns."""
        config = self.config
        return Windows(
            series.only(config.columns).reserving(config.horizon),
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
    def residuals(self, windows: Windows) -> np.ndarray:
        """Absolute errors, scaled, of at most `MOST_WINDOWS` windows: [windows, horizon, C]."""
        found = []
        order = torch.arange(len(windows))[:: 1 + (len(windows) - 1) // MOST_WINDOWS]
        with in_mode(self.model, training=False), _seeded(self.config.seed, self.device):
            for indices in order.split(4 * self.config.batch_size):
                batch = windows.take(indices, self.device)
                found.append((self.model(batch) - batch.future).abs().cpu().double().numpy())
        return np.concatenate(found)

    def calibrated(self, series: Series) -> "Forecaster":
        """The forecaster with intervals from the valid part, measured on the test part."""
        return self.measured(series, half_widths(self.residuals(self.windows(series, "valid"))))

    def measured(self, series: Series, widths: np.ndarray) -> "Forecaster":
        """The forecaster with intervals of these widths, measured on the test part."""
        config = self.config
        windows = self.windows(series, "test")
        within = (self.residuals(windows)[None] <= widths[:, None]).mean(axis=(1, 2, 3))
        errors = self.errors(windows)
        known = series.only(config.columns).reserving(config.horizon)
        values, (train, valid, test) = self.scale.apply(known.values).astype(float), known.ends
        season = best_season(values[:train], series.step, horizon=config.horizon)
        squared, absolute = naive_errors(values, valid, test, season=season, horizon=config.horizon)
        held = Calibration(
            widths, tuple(within.tolist()), len(windows), season, errors.mse, errors.mae,
            squared, absolute,
        )  # fmt: skip
        return replace(self, calibration=held)

    def check_step(self, series: Series) -> None:
        """Raise ValueError if a series has another step than the forecaster's."""
        if not self.config.step:
            if series.n_marks != self.config.n_marks:
                raise ValueError(
                    f"the series' step gives {series.n_marks} features of a date; the forecaster "
                    f"was trained on a series whose step gives {self.config.n_marks}"
                )
        elif series.step.spec != self.config.step:
            raise ValueError(
                f"the step of the series is {series.step}; allowed: {Step.parse(self.config.step)}"
                ", that of the forecaster's run"
            )

    @torch.no_grad()
    def forecast(self, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """Forecast the rows after a series: dates [horizon], values [horizon, C] in its units.

        Raises:
            ValueError: the series has fewer rows than the model reads, lacks a column, or has
                another step.
        """
        config, known = self.config, series.only(self.config.columns)
        self.check_step(series)
        if len(known.dates) < config.input_len:
            raise ValueError(
                f"the series has {len(known.dates)} rows; allowed: at least {config.input_len}"
            )
        dates = known.following(config.horizon)
        past = torch.from_numpy(self.scale.apply(known.values[-config.input_len :]))
        marks = torch.from_numpy(
            time_marks(np.concatenate([known.dates[-config.input_len :], dates]), known.step)
        ).to(self.device)
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

    def predict(self, series: Series, *, level: float = 0.9) -> Forecast:
        """A forecast with its interval and the baseline.

        Raises:
            ValueError: as for `forecast`; or the level was not calibrated.
        """
        dates, values = self.forecast(series)
        _, offsets = series.following_with_offsets(self.config.horizon)
        held = self.calibration
        if held is None:
            return Forecast(dates, offsets, values)
        half = held.width(level) * self.scale.deviation
        known = series.only(self.config.columns).values
        season = held.season if held.season <= len(known) else 1
        return Forecast(
            dates, offsets, values, values - half, values + half,
            naive(known, season, self.config.horizon),
        )  # fmt: skip


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators within the block and restore them after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
