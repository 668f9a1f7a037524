"""Compression functions: c evicted slots become one (Compressive Transformer, §3.2; and select).

Shapes: evicted [B, n, W], usage [B, n], real [B, n] → compressed [B, n / c, W]. `real` is False for
empty slots, which are zero and to the left of the others, in the input and in the output. n and the
number of real slots are multiples of c. Usage is -1 for slots that must not be kept as they are.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamlm.config import ModelConfig


class Max(nn.Module):
    """Max pooling over each group of c slots."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        return evicted.unflatten(1, (-1, self.rate)).amax(dim=2)  # [B, n/c, c, W] → [B, n/c, W]


class Mean(nn.Module):
    """Mean pooling over each group of c slots."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        return evicted.unflatten(1, (-1, self.rate)).mean(dim=2)  # [B, n/c, c, W] → [B, n/c, W]


class Conv(nn.Module):
    """1-D convolution with kernel = stride = c and no bias: a matrix from c·W to W.

    Initialised as mean pooling plus noise, so that an untrained compressor works.
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.empty(width, rate * width))

    def reset(self, std: float) -> None:
        nn.init.normal_(self.weight, std=std / self.rate)
        with torch.no_grad():
            identities = self.weight.unflatten(1, (self.rate, -1)).diagonal(dim1=0, dim2=2)
            identities.add_(1 / self.rate)

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        groups = evicted.unflatten(1, (-1, self.rate)).flatten(2)  # [B, n/c, c·W]
        return F.linear(groups, self.weight)


class Dilated(nn.Module):
    """Three residual-free dilated convolutions (kernel 2, rates 1, 2, 4, ReLU), then `Conv`.

    Sonnet's version has no padding and returns fewer than n/c slots. Here, each convolution is
    zero-padded on the left: it returns n/c slots and is causal within a commit.
    """

    rates = (1, 2, 4)

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, width, 2, dilation=dilation) for dilation in self.rates
        )
        self.strided = Conv(width, rate)

    def reset(self, std: float) -> None:
        for conv in self.dilated:
            assert isinstance(conv, nn.Conv1d) and conv.bias is not None
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.strided.reset(std)

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        x = evicted.transpose(1, 2)  # [B, W, n]
        for dilation, conv in zip(self.rates, self.dilated, strict=True):
            x = F.relu(conv(F.pad(x, (dilation, 0))))
            # Without masking, the bias would make empty slots non-zero and leak to the right.
            x = x * real[:, None, :]
        strided: Tensor = self.strided(x.transpose(1, 2), usage, real)
        return strided


class MostUsed(nn.Module):
    """Keep the 1/c of the real slots with the highest usage, unchanged and in time order.

    Usage is the attention a slot received while in memory, averaged over heads and over the queries
    that could attend to it. The paper gives no code; this is an interpretation of its §3.2.
    """

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def columns(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        """Columns of the kept slots: [B, n / c]."""
        return highest(usage, real, rate=self.rate)

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        return _gathered(evicted, self.columns(evicted, usage, real))


class Select(nn.Module):
    """Learned selection (original): keep the 1/c of the real slots with the highest gate.

    Pooling blurs the few old slots that receive most of the attention; selection keeps them
    unchanged. The gate of a slot is the product of its RMS-norm and a vector g. Selection has no
    gradient, so g is trained by `joint_attention_reconstruction`, which pools each group of c slots
    with the softmax of their gates.

    Attributes:
        gate: [W], g.
        mass: [H], added to the logits of pooled keys, each of which represents c slots; loss only.
    """

    def __init__(self, width: int, rate: int, n_heads: int) -> None:
        super().__init__()
        self.rate = rate
        self.gate = nn.Parameter(torch.empty(width))
        self.mass = nn.Parameter(torch.empty(n_heads))

    def reset(self, std: float) -> None:
        nn.init.normal_(self.gate, std=std)
        nn.init.constant_(self.mass, math.log(self.rate))

    def value(self, slots: Tensor) -> Tensor:
        """Gates of slots: [B, n, W] → [B, n]."""
        return F.rms_norm(slots, slots.shape[-1:]) @ self.gate

    def columns(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        """Columns of the kept slots: [B, n / c]."""
        return highest(self.value(evicted), real, rate=self.rate)

    def forward(self, evicted: Tensor, usage: Tensor, real: Tensor) -> Tensor:
        return _gathered(evicted, self.columns(evicted, usage, real))

    def pool(self, slots: Tensor, projected: Tensor) -> Tensor:
        """Average each group of c keys or values, weighted by the softmax of the gates.

        Args:
            slots: [B, n, W]; projected: [B, H, n, E], keys or values of these slots.

        Returns:
            [B, H, n/c, E].
        """
        weights = self.value(slots).unflatten(1, (-1, self.rate)).softmax(dim=2)  # [B, n/c, c]
        return torch.einsum("bgc,bhgce->bhge", weights, projected.unflatten(2, (-1, self.rate)))


def highest(score: Tensor, real: Tensor, *, rate: int) -> Tensor:
    """Columns of the 1/rate of a row's real slots with the highest score, in time order.

    Args:
        score, real: [B, n].

    Returns:
        [B, n / rate], right-aligned and filled up with columns of empty slots.
    """
    n = score.shape[1]
    score = score.masked_fill(~real, -torch.inf)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # [B, n]
    kept = rank < real.sum(dim=1, keepdim=True) // rate
    time = torch.arange(n, device=score.device).expand_as(rank)
    # Sort order: real slots that are not kept, then empty slots, then kept slots.
    order = torch.where(kept, time, torch.where(real, time - 2 * n, time - n))
    return order.argsort(dim=1)[:, n - n // rate :]


def _gathered(slots: Tensor, columns: Tensor) -> Tensor:
    """Gather the slots of the given columns: [B, n, W] and [B, m] → [B, m, W]."""
    return slots.gather(1, columns[..., None].expand(-1, -1, slots.shape[2]))


COMPRESSORS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "max": lambda config: Max(config.d_model, config.compression_rate),
    "mean": lambda config: Mean(config.d_model, config.compression_rate),
    "conv": lambda config: Conv(config.d_model, config.compression_rate),
    "dilated": lambda config: Dilated(config.d_model, config.compression_rate),
    "most-used": lambda config: MostUsed(config.d_model, config.compression_rate),
    "select": lambda config: Select(config.d_model, config.compression_rate, config.n_heads),
}
