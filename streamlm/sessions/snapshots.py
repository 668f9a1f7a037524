"""Conversion between a stream and the snapshot of it that a store holds.

How many slots each window holds follows from the number of tokens read; see `Model.windows`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from memory_store import Snapshot, Window
from streamlm.config import is_whole
from streamlm.models.base import Model
from streamlm.runtime.conversation import Conversation
from streamlm.runtime.text_stream import RecalledSpan, TextStream
from streamlm.state import State

CHAT = "chat"  # attribute of snapshots with a conversation
RECALLED = "recalled"  # attribute of snapshots whose newest prompt had passages before it


def to_snapshot(
    state: State,
    model: Model,
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
    counts = model.windows(position, state.carried)
    filled, past_len = counts.memory + counts.compressed, state.past.shape[2]
    assert int(state.filled) == filled
    past, stored = model.pack_slots(state.past[:, 0, past_len - filled :])  # [L, filled, W]
    parts = state.small_parts()
    parts["segment"], _ = model.pack_slots(state.segment[:, 0, : state.phase])
    windows = {}
    n = counts.compressed
    for name, slots, end, capacity in (
        ("memory", past[:, n:], counts.memory_end, counts.memory_capacity),
        ("compressed", past[:, :n], counts.compressed_end, counts.compressed_capacity),
    ):
        if capacity:
            windows[name] = Window(slots, 1, end, capacity)
    return Snapshot(
        position=position,
        windows=windows,
        arrays={name: array for name, array in {**parts, **arrays}.items() if array.size},
        tokens=tokens.astype(np.int32),
        attributes={**attributes, "stored_dtype": stored},
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
    arrays = {name: window.data for name, window in snapshot.windows.items()}
    arrays.update(snapshot.arrays)
    for name, target in state.carried.items():
        array = arrays.get(name, np.zeros(0))
        wanted = tuple(target[:, 0].shape)
        kept = torch.from_numpy(np.ascontiguousarray(array))
        if kept.dtype != target.dtype or tuple(kept.shape) != wanted:
            raise ValueError(f"{name} of {kept.dtype} {tuple(kept.shape)}; {wanted} is carried")
        target[:, 0] = kept
    counts = model.windows(snapshot.position, state.carried)
    layers, width, at = config.n_layers, config.slot_width, config.past_len
    if counts.memory > at:  # a past that grows
        at = counts.memory
        state = replace(state, past=state.past.new_zeros(layers, 1, at, width))

    def put(name: str, n: int, target: torch.Tensor) -> None:
        array = arrays.get(name)
        slots = None if array is None else model.unpack_slots(array, stored)
        shape, wanted = (layers, 0, width) if slots is None else slots.shape, (layers, n, width)
        if tuple(shape) != wanted:
            raise ValueError(f"{name} of shape {tuple(shape)}; {wanted} belongs to this position")
        if slots is not None:
            target.copy_(slots)

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
    model: Model,
    *,
    tokens: np.ndarray,
    attributes: Mapping[str, Any],
) -> Snapshot:
    """The snapshot of a stream of text; `tokens` are the ids read since the parent commit."""
    small: dict[str, Any] = {
        "pending": stream.pending,
        "tail": dict(stream.tail),
        "cut": dict(stream.cut),
        "random": dict(stream.random),
    }
    if stream.conversation is not None:
        small[CHAT] = stream.conversation.to_json()
    if stream.recalled:
        small[RECALLED] = [list(span) for span in stream.recalled]
    return to_snapshot(
        stream.state,
        model,
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
    pending = attributes["pending"]
    if not is_whole(pending) or not 0 <= pending < model.config.vocab_size:
        raise ValueError(f"pending = {str(pending)[:80]}: not an id of this vocabulary")
    return TextStream(
        state=to_state(snapshot, model),
        position=snapshot.position,
        pending=pending,
        recent=recent,
        ahead=ahead,
        tail=attributes["tail"],
        cut=attributes["cut"],
        random=attributes["random"],
        conversation=Conversation.from_json(attributes.get(CHAT)),
        recalled=tuple(
            RecalledSpan(int(start), int(stop), float(score))
            for start, stop, score in attributes.get(RECALLED, ())
        ),
    )
