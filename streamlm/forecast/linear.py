"""Linear controls (Zeng et al., "Are Transformers Effective for Time Series Forecasting?", 2023).

One matrix from past to future, shared by all columns. A model that does not beat it has learned
nothing beyond a linear map.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.forecast.config import ForecastConfig
from streamlm.forecast.series import Batch

KERNEL = 25  # rows of the moving average, as in the paper


class NLinear(nn.Module):
    """A linear map of the differences from the last value."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config
        self.line = _line(config)

    def forward(self, batch: Batch) -> Tensor:
        """The forecast [B, horizon, C], scaled."""
        last = batch.past[:, -1:]
        out: Tensor = self.line((batch.past - last).mT).mT + last
        return out


class DLinear(nn.Module):
    """Separate linear maps for the moving average and the remainder."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config
        self.trend, self.rest = _line(config), _line(config)

    def forward(self, batch: Batch) -> Tensor:
        """The forecast [B, horizon, C], scaled."""
        past = batch.past.mT  # [B, C, n]
        padded = F.pad(past, (KERNEL // 2, KERNEL // 2), mode="replicate")
        trend = F.avg_pool1d(padded, KERNEL, stride=1)
        out: Tensor = (self.trend(trend) + self.rest(past - trend)).mT
        return out


def _line(config: ForecastConfig) -> nn.Linear:
    line = nn.Linear(config.input_len, config.horizon)
    with torch.no_grad():  # starts as the mean of the past
        line.weight.fill_(1 / config.input_len)
    return line
