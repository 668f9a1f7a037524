"""The compression functions on a list of slots, oldest first (Compressive Transformer, §3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def groups(slots: Sequence[Tensor], rate: int) -> list[Sequence[Tensor]]:
    """Consecutive groups of `rate` slots; the number of slots is a multiple of it."""
    assert len(slots) % rate == 0
    return [slots[start : start + rate] for start in range(0, len(slots), rate)]


def max_pool(slots: Sequence[Tensor], rate: int) -> list[Tensor]:
    return [
        torch.stack(
            [max((slot[i] for slot in group), key=Tensor.item) for i in range(len(group[0]))]
        )
        for group in groups(slots, rate)
    ]


def mean_pool(slots: Sequence[Tensor], rate: int) -> list[Tensor]:
    return [sum(group[1:], group[0]) / rate for group in groups(slots, rate)]


def conv(slots: Sequence[Tensor], rate: int, *, kernel: Tensor) -> list[Tensor]:
    """Kernel [W out, W in, c], stride c, no bias: out = Σ_k kernel[:, :, k] slot_k."""
    return [
        sum((kernel[:, :, k] @ slot for k, slot in enumerate(group)), 0 * group[0])
        for group in groups(slots, rate)
    ]


def dilated(
    slots: Sequence[Tensor],
    rate: int,
    *,
    layers: Sequence[tuple[int, Tensor, Tensor]],
    kernel: Tensor,
) -> list[Tensor]:
    """Convolutions over (slot i - dilation, slot i) with ReLU, then `conv`.

    What stands before the first slot counts as zero.

    Args:
        layers: (dilation, weight [W out, W in, 2], bias [W]) of each.
    """
    row = list(slots)
    for dilation, weight, bias in layers:
        out = []
        for i, slot in enumerate(row):
            before = row[i - dilation] if i >= dilation else torch.zeros_like(slot)
            out.append((weight[:, :, 0] @ before + weight[:, :, 1] @ slot + bias).clamp(min=0))
        row = out
    return conv(row, rate, kernel=kernel)


def most_used(slots: Sequence[Tensor], rate: int, *, usage: Sequence[float]) -> list[Tensor]:
    """The len / rate slots of the highest usage, in time order; of equals, the older."""
    by_usage = sorted(range(len(slots)), key=lambda i: (-usage[i], i))
    return [slots[i] for i in sorted(by_usage[: len(slots) // rate])]


def worth(slot: Tensor, gate: Tensor) -> Tensor:
    """z of learned select: the slot over its root mean square, times the gate."""
    root_mean_square = (sum((x * x for x in slot), torch.zeros(())) / len(slot)).sqrt()
    return (slot / root_mean_square.clamp(min=1e-7)) @ gate


def select(slots: Sequence[Tensor], rate: int, *, gate: Tensor) -> list[Tensor]:
    """The len / rate slots that the gate values most, in time order."""
    return most_used(slots, rate, usage=[worth(slot, gate).item() for slot in slots])
