"""Conversion between a stream and the snapshot of it that a store holds.

Both windows of slots follow from the number of tokens read: each closed segment appends T slots to
memory, and every c slots that leave memory become one compressed slot. Only the `sketch` head
counts its compressed slots itself, because its runs depend on the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from memory_store import Snapshot, Window
from streamlm.config import ModelConfig
from streamlm.models.base import Model
from streamlm.models.heads.sketch import MADE
from streamlm.runtime.text_stream import TextStream
from streamlm.state import State, from_numpy

UNBOUNDED = 1 << 32  # slots of a head that evicts none


@dataclass(frozen=True)
class SlotCounts:
    """Slots ever appended to each window, and the number of them that remain."""

    memory_end: int
    compressed_end: int
    memory: int
    compressed: int

    @classmethod
    def at(cls, position: int, config: ModelConfig, made: int | None) -> "SlotCounts":
        """The counts after `position` tokens.

        Args:
            made: compressed slots ever made, for a head that counts them.
        """
        end = position // config.segment_len * config.segment_len
        gone = max(0, end - config.memory_len)
        compressed = gone // config.compression_rate if config.compressed_len else 0
        if made is not None:
            compressed = made
        memory = end if config.head == "full" else min(end, config.memory_len)
        return cls(end, compressed, memory, min(compressed, config.compressed_len))


def to_snapshot(
    state: State,
    config: ModelConfig,
    *,
    arrays: Mapping[str, np.ndarray],
    tokens: np.ndarray,
    attributes: Mapping[str, Any],
) -> Snapshot:
    """The snapshot of a state of one row.

    Args:
        arrays: further arrays to store; empty ones are left out.
        tokens: ids read since the parent commit.
        attributes: further JSON values to store.
    """
    position = int(state.position)
    parts = state.to_numpy()
    made = parts.get(MADE)
    counts = SlotCounts.at(position, config, None if made is None else int(made[0]))
    past = parts.pop("past")  # [L, filled, W]
    assert past.shape[1] == counts.memory + counts.compressed
    windows = {}
    if config.memory_len or config.head == "full":
        memory = past[:, counts.compressed :]
        windows["memory"] = Window(memory, 1, counts.memory_end, config.memory_len or UNBOUNDED)
    if config.compressed_len:
        compressed = past[:, : counts.compressed]
        windows["compressed"] = Window(compressed, 1, counts.compressed_end, config.compressed_len)
    dtype = str(state.past.dtype).removeprefix("torch.")
    return Snapshot(
        position=position,
        windows=windows,
        arrays={name: array for name, array in {**parts, **arrays}.items() if array.size},
        tokens=tokens.astype(np.int32),
        attributes={**attributes, "stored_dtype": dtype},
    )


def to_state(snapshot: Snapshot, model: Model) -> State:
    """The inverse of `to_snapshot`, on the model's device and in its precision.

    Raises:
        ValueError: the arrays do not have the shapes that the model and the position require.
    """
    config = model.config
    length = snapshot.position % config.segment_len
    state = model.init_state(1)
    stored = str(snapshot.attributes.get("stored_dtype"))
    if stored not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(f"stored_dtype = {stored!r}; allowed: a floating-point type of torch")
    dtype = getattr(torch, stored)
    arrays = {name: window.data for name, window in snapshot.windows.items()}
    arrays.update(snapshot.arrays)
    for name, target in state.carried.items():
        array = arrays.get(name, np.zeros(0))
        wanted = tuple(target[:, 0].shape)
        kept = torch.from_numpy(np.ascontiguousarray(array))
        if kept.dtype != target.dtype or tuple(kept.shape) != wanted:
            raise ValueError(f"{name} of {kept.dtype} {tuple(kept.shape)}; {wanted} is carried")
        target[:, 0] = kept
    made = state.carried.get(MADE)
    counts = SlotCounts.at(snapshot.position, config, None if made is None else int(made))
    layers, width, at = config.n_layers, config.d_model, config.past_len
    if config.head == "full":
        at = counts.memory
        state = replace(state, past=state.past.new_zeros(layers, 1, at, width))

    def put(name: str, n: int, target: torch.Tensor) -> None:
        array = arrays.get(name, np.zeros((layers, 0, width)))
        if array.shape != (layers, n, width):
            wanted = (layers, n, width)
            raise ValueError(f"{name} of shape {array.shape}; {wanted} belongs to this position")
        if n and array.dtype != (np.uint16 if dtype == torch.bfloat16 else np.dtype(stored)):
            raise ValueError(f"{name} of {array.dtype}; {stored} is what it is stored as")
        if n:
            target.copy_(from_numpy(array, dtype))

    newest = at - counts.memory
    oldest = newest - counts.compressed
    put("compressed", counts.compressed, state.past[:, 0, oldest:newest])
    put("memory", counts.memory, state.past[:, 0, newest:])
    put("segment", length, state.segment[:, 0, :length])
    if state.usage.numel():
        usage = torch.from_numpy(np.ascontiguousarray(arrays["usage"]))
        if usage.dtype != state.usage.dtype or usage.shape != state.usage[:, 0].shape:
            raise ValueError(
                f"usage of {usage.dtype} {tuple(usage.shape)} belongs to no such model"
            )
        state.usage[:, 0] = usage
    state.filled.fill_(counts.memory + counts.compressed)
    state.position.fill_(snapshot.position)
    known = None if state.filled_known is None else (counts.memory + counts.compressed,)
    return State(
        state.past,
        state.segment,
        state.usage,
        state.filled,
        state.position,
        length=(length,),
        carried=state.carried,
        filled_known=known,
    )


def stream_to_snapshot(
    stream: TextStream,
    config: ModelConfig,
    *,
    tokens: np.ndarray,
    attributes: Mapping[str, Any],
) -> Snapshot:
    """The snapshot of a stream of text; `tokens` are the ids read since the parent commit."""
    small = {
        "pending": stream.pending,
        "tail": dict(stream.tail),
        "cut": dict(stream.cut),
        "random": dict(stream.random),
    }
    return to_snapshot(
        stream.state,
        config,
        arrays={"ahead": stream.ahead},
        tokens=tokens,
        attributes={**small, **attributes},
    )


def stream_from_snapshot(snapshot: Snapshot, model: Model, *, recent: np.ndarray) -> TextStream:
    """The inverse of `stream_to_snapshot`; `recent` are the newest ids of the token log.

    Raises:
        ValueError: the arrays do not belong to this model.
    """
    attributes: Any = snapshot.attributes
    ahead = snapshot.arrays.get("ahead", np.zeros(0, np.int32))
    known = (ahead >= 0) & (ahead < model.config.vocab_size)
    if ahead.dtype != np.int32 or ahead.ndim != 1 or not known.all():
        raise ValueError(f"ahead of {ahead.dtype} {ahead.shape}: not ids of this vocabulary")
    return TextStream(
        state=to_state(snapshot, model),
        position=snapshot.position,
        pending=attributes["pending"],
        recent=recent,
        ahead=ahead,
        tail=attributes["tail"],
        cut=attributes["cut"],
        random=attributes["random"],
    )
