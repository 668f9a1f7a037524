"""Two waves as a CSV file, and the settings of a small forecaster."""

import math
from pathlib import Path

import numpy as np
import torch

from streamlm.forecast.config import ForecastConfig

CPU = torch.device("cpu")
SMALL = ForecastConfig(
    model="informer",
    columns=("a", "b"),
    input_len=16,
    label_len=8,
    horizon=4,
    d_model=16,
    n_heads=2,
    d_ff=32,
    batch_size=16,
    learning_rate=3e-3,
    epochs=3,
)


def write(path: Path, n: int, *, minutes: int = 60, begin: str = "2016-07-01T00:00:00") -> Path:
    """Write two waves with rising dates."""
    dates = np.datetime64(begin) + np.arange(n) * np.timedelta64(minutes, "m")
    with open(path, "w", encoding="utf-8") as file:
        file.write("date,a,b\n")
        for index, date in enumerate(dates):
            wave = math.sin(index / 3), 5 + 2 * math.cos(index / 5)
            file.write(f"{str(date).replace('T', ' ')},{wave[0]:.6f},{wave[1]:.6f}\n")
    return path
