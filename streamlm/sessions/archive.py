"""Archive: the keys of retrieval heads for everything that a session reads.

Keys are taken from segments when they are closed. They are saved with the token log, a few hundred
bytes a token, and only read to be searched. A session without an archive still has its token log.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor

from memory_store import LogRows, MemoryStore, Ref
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.memory.recall import KeySearch, ReadKeys
from streamlm.models.llama import LlamaModel
from streamlm.models.retrieval import pack_keys, question_queries, segment_keys, unpack_keys
from streamlm.state import State
from streamlm.transfer import send
from tokenizer import Tokenizer

Piece = tuple[int, Tensor]  # position of the first key, and [n, K, E]


class Archive:
    """The keys of one stream.

    Key i is that of the model's i-th input. The first input is bos, so key i is that of token
    i - 1.

    Args:
        checkpoint: a model with retrieval heads.

    Attributes:
        name: of the log in the store; keys of other heads have another name.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.retrieval is not None
        self.heads = checkpoint.retrieval
        self.name = f"keys-{self.heads.digest}"
        self._model = cast(LlamaModel, checkpoint.model)
        # Positions stay on the device until a save: reading them would wait for it.
        self._closed: list[tuple[Tensor, Tensor]] = []

    def close_segment(self, state: State) -> None:
        """Keep the keys of a segment that is about to be closed."""
        self._closed.append(self._of(state))

    def _of(self, state: State) -> tuple[Tensor, Tensor]:
        """The position and the keys of an open segment."""
        keys = segment_keys(self._model, state, self.heads)
        return state.position - len(keys), keys

    def unsaved(self, state: State, start: int) -> list[Piece]:
        """Keys from `start` to the position of `state`, as far as they are known, ascending."""
        pieces: list[Piece] = []
        known = list(self._closed)
        if state.phase:
            known.append(self._of(state))
        for place, keys in known:
            first = int(place)
            while pieces and pieces[-1][0] >= first:  # of a future that was rewound
                pieces.pop()
            pieces.append((first, keys))
        stop = int(state.position)
        cut = ((first, keys[: stop - first]) for first, keys in pieces if first < stop)
        return [
            (max(first, start), keys[max(0, start - first) :])
            for first, keys in cut
            if first + len(keys) > start
        ]

    def rows(self, state: State, start: int) -> dict[str, LogRows]:
        """What is to be saved with the tokens from `start` to the position of `state`."""
        pieces = self.unsaved(state, start)
        gaps = [at for at, (a, b) in enumerate(pairwise(pieces), 1) if a[0] + len(a[1]) != b[0]]
        pieces = pieces[gaps[-1] if gaps else 0 :]
        if not pieces:
            return {}
        packed = pack_keys(torch.cat([keys for _, keys in pieces]))
        return {self.name: LogRows(pieces[0][0], packed)}

    def drop(self, before: int) -> None:
        """Drop the keys before a position, which are saved."""
        self._closed = [
            (place, keys) for place, keys in self._closed if int(place) + len(keys) > before
        ]

    def read(
        self, store: MemoryStore, saved: Ref | None, state: State, start: int, stop: int
    ) -> Iterator[Piece]:
        """Keys of positions start ≤ i < stop, saved or not, ascending; see `recall.ReadKeys`.

        Args:
            saved: the newest snapshot; None if there is none.
            state: of the stream now.
        """
        end = saved.position if saved is not None else 0
        if saved is not None and start < end:
            for first, rows in store.log(saved, self.name, start, min(stop, end)):
                yield first, unpack_keys(rows, self._model)
        for first, keys in self.unsaved(state, max(start, end)) if stop > end else ():
            if first < stop:
                packed = pack_keys(keys[: stop - first])  # as they will be read when saved
                yield first, unpack_keys(packed, self._model)

    def ask(
        self, text: str, tokenizer: Tokenizer, read: ReadKeys, state: State, *, stop: int
    ) -> KeySearch:
        """The attention of a text over all keys before a position.

        Args:
            text: that the stream would read next.
            read: see `read`.
            state: of the stream; it is not changed.
        """
        before = len(tokenizer.encode("\n\n"))
        ids = tokenizer.encode(f"\n\n{text}").astype(np.int64)
        tokens = send(torch.from_numpy(ids)[None], self._model.device)
        queries = question_queries(self._model, tokens, state, self.heads.heads)[:, before:]
        config = self._model.config
        # The first inputs of a stream receive the attention that goes nowhere.
        start = min(stop, max(1, config.pinned_len))
        return KeySearch(queries, self.heads.which_keys(config), read, start=start, stop=stop)
