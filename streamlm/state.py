"""State: everything a stream carries between calls, as one immutable value.

Shapes: L layers, B batch, T segment, C compressed, M memory, P = C + M, W slot width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.transfer import send


@dataclass(frozen=True, eq=False)
class State:
    """A model's memory of B streams. Each row has its own position and phase.

    Attributes:
        past: [L, B, P, W] past slots, [compressed C | memory M], right-aligned.
        segment: [L, B, T, W] slots of the open segment. A row's columns from its `length` on are
            undefined; the next call may write to them.
        usage: [L, B, M] attention each memory slot received, summed over queries and averaged over
            heads; [L, B, 0] unless the compression uses it.
        filled: [B] occupied slots of `past`. Those to their left are empty and always masked.
        position: [B] tokens read since the start of the row's stream.
        length: tokens in each row's open segment. Python integers, because control flow depends
            on them and must not synchronize with the device.
        carried: further tensors of the head by name, each [L, B, ...], or [1, B, ...] if shared
            by all layers.
        filled_known: host copy of `filled`, for heads whose shapes depend on it; None if
            unknown.
    """

    past: Tensor
    segment: Tensor
    usage: Tensor
    filled: Tensor
    position: Tensor
    length: tuple[int, ...]
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    filled_known: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        return len(self.length)

    @property
    def phase(self) -> int:
        """Tokens in the open segment, the same for all rows.

        Raises:
            ValueError: the rows are in different phases.
        """
        if not self.aligned:
            raise ValueError(f"rows in phases {self.length}; allowed: all in the same")
        return self.length[0]

    @property
    def aligned(self) -> bool:
        """Whether all rows are in the same phase."""
        return len(set(self.length)) == 1

    def lengths(self) -> Tensor:
        """`length` on the device: [B]."""
        return send(torch.tensor(self.length), self.filled.device)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        tensors = (self.past, self.segment, self.usage, self.filled, self.position)
        return sum(tensor.nbytes for tensor in (*tensors, *self.carried.values()))

    def detach(self) -> Self:
        """The same values, detached from the autograd graph."""
        return replace(
            self,
            past=self.past.detach(),
            segment=self.segment.detach(),
            carried={name: tensor.detach() for name, tensor in self.carried.items()},
        )

    def to(self, device: torch.device | str) -> Self:
        """The same values on another device."""
        names = ("past", "segment", "usage", "filled", "position")
        moved = {name: getattr(self, name).to(device) for name in names}
        carried = {name: tensor.to(device) for name, tensor in self.carried.items()}
        return replace(self, **moved, carried=carried)

    # -- rows -------------------------------------------------------------------------------------

    def rows(self, index: int | Sequence[int]) -> Self:
        """The selected rows, in this order, as a new state."""
        chosen = [index] if isinstance(index, int) else list(index)
        at = send(torch.tensor(chosen), self.past.device)
        return replace(
            self,
            past=self.past.index_select(1, at),
            segment=self.segment.index_select(1, at),
            usage=self.usage.index_select(1, at),
            filled=self.filled.index_select(0, at),
            position=self.position.index_select(0, at),
            length=tuple(self.length[row] for row in chosen),
            carried={name: each.index_select(1, at) for name, each in self.carried.items()},
            filled_known=_chosen(self.filled_known, chosen),
        )

    def put(self, index: int | Sequence[int], other: "State") -> Self:
        """A copy of this state with the rows at `index` replaced by those of `other`."""
        chosen = [index] if isinstance(index, int) else list(index)
        if len(chosen) != other.batch_size:
            raise ValueError(f"{other.batch_size} rows for {len(chosen)} places; allowed: as many")
        at = send(torch.tensor(chosen), self.past.device)
        past_len = max(self.past.shape[2], other.past.shape[2])
        length = list(self.length)
        for row, each in zip(chosen, other.length, strict=True):
            length[row] = each
        known = None
        if self.filled_known is not None and other.filled_known is not None:
            counts = dict(enumerate(self.filled_known))
            counts |= dict(zip(chosen, other.filled_known, strict=True))
            known = tuple(counts.values())
        return replace(
            self,
            past=_widened(self.past, past_len).index_copy(1, at, _widened(other.past, past_len)),
            segment=self.segment.index_copy(1, at, other.segment),
            usage=self.usage.index_copy(1, at, other.usage),
            filled=self.filled.index_copy(0, at, other.filled),
            position=self.position.index_copy(0, at, other.position),
            length=tuple(length),
            carried={
                name: each.index_copy(1, at, other.carried[name])
                for name, each in self.carried.items()
            },
            filled_known=known,
        )

    @classmethod
    def stack(cls, states: Sequence["State"]) -> "State":
        """Concatenate the rows of several states of one model."""
        if not states:
            raise ValueError("no states to stack; allowed: at least one")
        past_len = max(state.past.shape[2] for state in states)
        return cls(
            past=torch.cat([_widened(state.past, past_len) for state in states], dim=1),
            segment=torch.cat([state.segment for state in states], dim=1),
            usage=torch.cat([state.usage for state in states], dim=1),
            filled=torch.cat([state.filled for state in states]),
            position=torch.cat([state.position for state in states]),
            length=tuple(length for state in states for length in state.length),
            carried={
                name: torch.cat([state.carried[name] for state in states], dim=1)
                for name in states[0].carried
            },
            filled_known=None
            if any(state.filled_known is None for state in states)
            else tuple(n for state in states for n in state.filled_known or ()),
        )

    def reset_rows(self, rows: Tensor) -> Self:
        """Start new streams in the rows where `rows` ([B] bool) is True; other rows are unchanged.

        Old values are overwritten with zeros, NaN included.

        Args:
            rows: on the state's device or on the host. On a device, an open segment forces a
                synchronization, and `filled_known` becomes None.
        """
        length, known = self.length, self.filled_known
        if any(length):
            reset = rows.tolist()
            length = tuple(0 if new else n for n, new in zip(length, reset, strict=True))
        if known is not None and rows.device.type == "cpu":
            known = tuple(0 if new else n for n, new in zip(known, rows.tolist(), strict=True))
        else:
            known = None
        rows = send(rows, self.past.device)

        def emptied(tensor: Tensor, dim: int) -> Tensor:
            shape = [1] * tensor.ndim
            shape[dim] = -1
            return tensor.masked_fill(rows.view(shape), 0)

        return replace(
            self,
            past=emptied(self.past, 1),
            segment=emptied(self.segment, 1),
            usage=emptied(self.usage, 1),
            filled=emptied(self.filled, 0),
            position=emptied(self.position, 0),
            length=length,
            carried={name: emptied(tensor, 1) for name, tensor in self.carried.items()},
            filled_known=known,
        )

    # -- as plain values --------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, tensors uncopied; `from_dict` is the inverse."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        known = None if self.filled_known is None else list(self.filled_known)
        lists = {"length": list(self.length), "filled_known": known}
        return {**values, **lists, "carried": dict(self.carried)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "State":
        length, carried = tuple(values["length"]), dict(values["carried"])
        known = values.get("filled_known")
        known = None if known is None else tuple(known)
        return cls(**{**values, "length": length, "carried": carried, "filled_known": known})

    def to_numpy(self) -> dict[str, np.ndarray]:
        """The occupied part of a one-row state as numpy arrays.

        bfloat16 is returned as uint16 with the same bits.

        Returns:
            past [L, filled, W], segment [L, length, W], usage [L, M], and the carried tensors.
        """
        small = self.small_parts()
        filled, past_len = int(self.filled), self.past.shape[2]
        return {
            "past": to_numpy(self.past[:, 0, past_len - filled :]),
            "segment": to_numpy(self.segment[:, 0, : self.phase]),
            **small,
        }

    def small_parts(self) -> dict[str, np.ndarray]:
        """Usage [L, M] and the carried tensors of a one-row state; see `to_numpy`."""
        if self.batch_size != 1:
            raise ValueError(
                f"only a state of one row can be saved; this one has {self.batch_size}"
            )
        return {
            "usage": to_numpy(self.usage[:, 0]),
            **{name: to_numpy(tensor[:, 0]) for name, tensor in self.carried.items()},
        }

    def digest(self) -> str:
        """sha256 of the occupied part: equal digests mean bitwise equal states."""
        length = self.phase if self.aligned else list(self.length)
        sha = hashlib.sha256(f"{self.position.tolist()} {length}".encode())
        for row, n in enumerate(self.length):
            filled = int(self.filled[row])
            for part in (
                self.past[:, row, self.past.shape[2] - filled :],
                self.segment[:, row, :n],
                self.usage[:, row],
                *(self.carried[name][:, row] for name in sorted(self.carried)),
            ):
                sha.update(to_numpy(part).tobytes())
        return sha.hexdigest()


def _chosen(counts: tuple[int, ...] | None, rows: Sequence[int]) -> tuple[int, ...] | None:
    return None if counts is None else tuple(counts[row] for row in rows)


def _widened(past: Tensor, past_len: int) -> Tensor:
    """Pad with empty columns on the left, up to `past_len`."""
    return F.pad(past, (0, 0, past_len - past.shape[2], 0))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as an array on the host; bfloat16 as uint16 with the same bits."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def from_numpy(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Inverse of `to_numpy`; `dtype` marks uint16 data as bfloat16."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
