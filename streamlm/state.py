"""State: everything a stream carries from one call to the next, as one immutable value.

Shapes: L layers, B batch, T segment, C compressed, M memory, P = C + M, W slot width, H heads,
E head_dim.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from streamlm.transfer import send


@dataclass(eq=False)
class Cache:
    """Projected keys and values of [past | open segment], with room for a whole segment.

    Derived from the slots, never saved. States share it: a state of length n owns the first n
    columns of the segment's part, and the next call writes behind them. `used` tells how many
    columns are taken; who finds columns behind its own taken (a fork that went on) copies first, so
    that no state ever sees another's tokens.
    """

    keys: list[Tensor]  # L × [B, H, P+T, E]
    values: list[Tensor]  # L × [B, H, P+T, E]
    segment: Tensor  # [L, B, T, W]
    used: int  # columns of the segment's part that some state owns
    calls: int  # calls that wrote them
    weights_version: int

    def copy(self) -> "Cache":
        return replace(
            self,
            keys=[key.clone() for key in self.keys],
            values=[value.clone() for value in self.values],
            segment=self.segment.clone(),
        )


@dataclass(frozen=True, eq=False)
class State:
    """What the model remembers of B streams; the rows close their segments together.

    Attributes:
        past: [L, B, P, W] layer inputs of past tokens, [compressed C | memory M], right-aligned.
        segment: [L, B, T, W] layer inputs of the open segment; columns from `length` on are void.
        usage: [L, B, M] attention each memory slot received, summed over queries and averaged over
            heads; [L, B, 0] unless the compression asks for it.
        filled: [B] real slots of `past`, the others (to the left) are empty and never attended.
        position: [B] tokens read since the row's stream began.
        length: tokens in the open segment.
        carried: by name, what else a head carries from segment to segment, each [L, B, ...], or
            [1, B, ...] where all layers share it.
        cache: derived keys and values, or None.
        filled_known: the host's copy of `filled`, for heads whose shapes depend on it; None where
            the host has none.
    """

    past: Tensor
    segment: Tensor
    usage: Tensor
    filled: Tensor
    position: Tensor
    length: int
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    cache: Cache | None = field(default=None, repr=False)
    filled_known: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        return self.past.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the state itself; the derived keys and values are not counted."""
        tensors = (self.past, self.segment, self.usage, self.filled, self.position)
        return sum(tensor.nbytes for tensor in (*tensors, *self.carried.values()))

    def detach(self) -> Self:
        """The same values without their graph."""
        return replace(
            self,
            past=self.past.detach(),
            segment=self.segment.detach(),
            carried={name: tensor.detach() for name, tensor in self.carried.items()},
            cache=None,
        )

    def reset_rows(self, rows: Tensor) -> Self:
        """Begin new streams in the rows where `rows` ([B] bool) is True; others are untouched.

        Args:
            rows: on the state's device or on the host; only the latter keeps `filled_known`.

        Raises:
            ValueError: a segment is open, which all rows share.
        """
        if self.length:
            raise ValueError(f"rows reset between segments only; {self.length} tokens are open")
        known = self.filled_known
        if known is not None and rows.device.type == "cpu":
            known = tuple(0 if new else n for n, new in zip(known, rows.tolist(), strict=True))
        else:
            known = None
        rows = send(rows, self.past.device)
        keep = ~rows
        return replace(
            self,
            past=self.past * keep[None, :, None, None],
            usage=self.usage * keep[None, :, None],
            filled=self.filled * keep,
            position=self.position * keep,
            carried={
                name: tensor.masked_fill(rows.view(1, -1, *[1] * (tensor.ndim - 2)), 0)
                for name, tensor in self.carried.items()
            },
            cache=None,
            filled_known=known,
        )

    def to(self, device: torch.device | str) -> Self:
        """The same values on another device; derived keys and values are dropped."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("past", "segment", "usage", "filled", "position")
        }
        carried = {name: tensor.to(device) for name, tensor in self.carried.items()}
        return replace(self, **moved, carried=carried, cache=None)

    def to_numpy(self) -> dict[str, np.ndarray]:
        """The real part of a state of one row, as arrays that numpy can hold.

        bfloat16 comes back as uint16 with the same bits.

        Returns:
            past [L, filled, W], segment [L, length, W], usage [L, M], and what is carried by name.
        """
        if self.batch_size != 1:
            raise ValueError(
                f"only a state of one row can be saved; this one has {self.batch_size}"
            )
        filled, past_len = int(self.filled), self.past.shape[2]
        return {
            "past": _to_numpy(self.past[:, 0, past_len - filled :]),
            "segment": _to_numpy(self.segment[:, 0, : self.length]),
            "usage": _to_numpy(self.usage[:, 0]),
            **{name: _to_numpy(tensor[:, 0]) for name, tensor in self.carried.items()},
        }

    def digest(self) -> str:
        """sha256 over the real part: equal digests are equal states, bit for bit."""
        sha = hashlib.sha256(f"{self.position.tolist()} {self.length}".encode())
        for row in range(self.batch_size):
            filled = int(self.filled[row])
            for part in (
                self.past[:, row, self.past.shape[2] - filled :],
                self.segment[:, row, : self.length],
                self.usage[:, row],
                *(self.carried[name][:, row] for name in sorted(self.carried)),
            ):
                sha.update(_to_numpy(part).tobytes())
        return sha.hexdigest()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def from_numpy(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor that `State.to_numpy` saved; `dtype` tells bfloat16 from plain uint16."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
