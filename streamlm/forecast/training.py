"""Training a forecaster: epochs with early stopping; what it is worth; forecasts in real units."""

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
    """How an epoch went: mean squared errors, of scaled values."""

    epoch: int
    train: float
    valid: float
    best: bool


@dataclass(frozen=True)
class Errors:
    """Over all windows, rows and columns of a part, of scaled values, as the papers report them.

    Attributes:
        mse, mae: mean squared and mean absolute error.
        windows: that were forecast.
    """

    mse: float
    mae: float
    windows: int


@dataclass(frozen=True)
class Forecaster:
    """A trained model and the scale of what it reads."""

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
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: a file is missing; says which.
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
        found = Scale(np.array(scale["mean"]), np.array(scale["deviation"]))
        if len(found.mean) != config.n_columns:
            raise ValueError(f"{folder / SCALE} is of {len(found.mean)} columns, not of its model")
        return cls(model.to(device).eval(), config, found)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def windows(self, series: Series, part: str) -> Windows:
        """The windows of a part of a series with its columns."""
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
        """What forecasting every window costs; keys are sampled as the seed says."""
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
        """What follows a series: the dates [horizon], and values [horizon, C] in its own units.

        Raises:
            ValueError: it has fewer rows than the model reads, or lacks a column.
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
            found = self.model(batch)[0].cpu().double().numpy()
        return dates, self.scale.undo(found)

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
    told: Callable[[Epoch], object] = lambda epoch: None,
    progress: Callable[[int], object] = lambda n: None,
) -> Forecaster:
    """Train on a series; the weights of the best epoch end up in `folder`.

    Args:
        series: with the configuration's columns at least.
        resume: go on after the last epoch that is there, to the very end it would have come to.
        told: called after each epoch; progress: with each batch's number of windows.

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
        there = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(there["model"])
        optimizer.load_state_dict(there["optimizer"])
        begin, best, worse = there["epoch"], there["best"], there["worse"]
    for epoch in range(begin, config.epochs):
        if worse >= config.patience:
            break
        torch.manual_seed(1000 * config.seed + epoch)  # resumed or not, an epoch draws the same
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5**epoch
        loss = _epoch(model, optimizer, windows, config, device, progress)
        found = Forecaster(model, config, scale).errors(valid).mse
        improved = found < best
        best, worse = (found, 0) if improved else (best, worse + 1)
        if improved:
            Forecaster(model, config, scale).save(folder)
        state = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "epoch": epoch + 1, "best": best, "worse": worse,
        }  # fmt: skip
        torch.save(state, last.with_suffix(".new"))
        last.with_suffix(".new").replace(last)
        told(Epoch(epoch + 1, loss, found, improved))
    return Forecaster.load(folder, device=device)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    config: ForecastConfig,
    device: torch.device,
    progress: Callable[[int], object],
) -> float:
    """Returns the mean loss."""
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
    """Sampling within draws what a seed gives, and leaves the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
