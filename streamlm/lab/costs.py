"""Costs of a trained model: speed, memory, time to save and resume; and its recall by distance.

Times depend on the machine and its load: compare them only within one run.
"""

import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.recall import recall
from streamlm.lab.tasks.scoring import answer, by_distance
from streamlm.models.cache import Cache
from streamlm.runtime.stream import advance, prefill, score
from streamlm.sessions.snapshots import to_snapshot, to_state
from streamlm.state import State
from streamlm.training.data import Corpus

DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12)  # segments from cue to query
LENGTHS = (4, 16, 64)  # segments of a stream after which costs are measured
REPEATS, DECODED, BATCH = 5, 32, 16


def measure(
    checkpoint: Checkpoint, corpus: Corpus, *, sequences: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Recall by distance ("recall") and costs along a stream ("stream"); JSON."""
    return {
        "recall": recall_by_distance(checkpoint, corpus, sequences=sequences, seed=seed),
        "stream": costs_along_stream(checkpoint, corpus),
    }


def recall_by_distance(
    checkpoint: Checkpoint, corpus: Corpus, *, sequences: int, seed: int
) -> list[dict[str, Any]]:
    """Associative recall: a row for each distance, with the counterfactual gain."""
    model = checkpoint.model
    alphabet = Alphabet.of_text(checkpoint.tokenizer, corpus.tokens)
    questions = recall(
        alphabet,
        n=sequences,
        segment_len=model.config.segment_len,
        distances=DISTANCES,
        seed=seed,
    )
    answers = answer(model, questions, bos=alphabet.bos, batch_size=BATCH, control=True)
    return by_distance(answers)


@torch.no_grad()
def costs_along_stream(checkpoint: Checkpoint, corpus: Corpus) -> list[dict[str, Any]]:
    """Costs at several lengths of one stream: a row for each of LENGTHS.

    A row has tokens/s for reading and writing; bytes of the state, of its cache, and of all tensors
    but the weights at their peak while a segment is read; and milliseconds to save the state in a
    folder and to load it.
    """
    model, segment_len = checkpoint.model, checkpoint.model.config.segment_len
    n = (max(LENGTHS) + 2) * segment_len
    ids = np.resize(corpus.tokens, n).astype(np.int64)
    tokens = torch.from_numpy(ids)[None].to(model.device)
    rows, state, cache, at = [], model.init_state(1), Cache(), 0
    for length in LENGTHS:
        state = prefill(model, tokens[:, at : length * segment_len], state, cache)
        at = length * segment_len
        ahead = tokens[:, at : at + segment_len + 1]
        # Every repetition starts here, with a copy of the cache.
        reading = partial(score, model, ahead[:, :-1], ahead[:, 1:], state)
        read = _seconds(reading, cache.copy)
        write = _seconds(partial(_decode, checkpoint, ahead, state), cache.copy)
        derived = cache.nbytes
        copied_reading = partial(reading, cache.copy())
        rows.append(
            {
                "tokens": at,
                "reading": segment_len / read,
                "writing": DECODED / write,
                "state_bytes": state.nbytes,
                "derived_bytes": derived,
                "peak_bytes": state.nbytes + derived + peak_tensor_bytes(copied_reading),
                **_stored(checkpoint, state),
            }
        )
    return rows


def _decode(checkpoint: Checkpoint, tokens: torch.Tensor, state: State, cache: Cache) -> None:
    model = checkpoint.model
    for column in range(DECODED):
        at = column % tokens.shape[1]
        hidden, state = advance(model, tokens[:, at : at + 1], state, cache)
        model.logits(hidden)


def _stored(checkpoint: Checkpoint, state: State) -> dict[str, float]:
    """Milliseconds to save a full state and to load it."""
    from memory_store import DirectoryStore

    log = np.zeros(int(state.position), np.int32)
    saved = to_snapshot(state, checkpoint.model, arrays={}, tokens=log, attributes={})
    saves, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(REPEATS + 1):
            store = DirectoryStore.create(Path(folder) / f"{index}.zarr")
            started = time.perf_counter()
            ref = store.commit(saved, parent=None)
            saves.append(time.perf_counter() - started)
            started = time.perf_counter()
            loaded = to_state(store.load(ref), checkpoint.model)
            loads.append(time.perf_counter() - started)
        assert loaded.digest() == state.digest()
    return {
        "save_ms": float(np.median(saves[1:])) * 1000,
        "resume_ms": float(np.median(loads[1:])) * 1000,
    }


def _seconds(work: Callable[[Cache], object], prepare: Callable[[], Cache]) -> float:
    """The median time of calls on prepared caches, after one warm-up call."""
    spent: list[float] = []
    for index in range(REPEATS + 1):
        prepared = prepare()
        started = time.perf_counter()
        work(prepared)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if index:
            spent.append(time.perf_counter() - started)
    return float(np.median(spent))


def mean_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of every number in the measures, row by row."""
    first = runs[0]
    return {
        name: [
            {
                key: float(np.mean([run[name][at][key] for run in runs]))
                if isinstance(value, (int, float)) and not isinstance(value, bool)
                else value
                for key, value in row.items()
            }
            for at, row in enumerate(first[name])
        ]
        for name in first
    }


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """The peak bytes of the tensors that `work` creates, on any device.

    The peak of the process measures the allocator, which hides the tensors of a small model. A
    kernel's own workspace and tensors that existed before are not counted.
    """
    with _Watch() as watch:
        work()
    return watch.peak


class _Watch(TorchDispatchMode):
    """Counts a result's memory from its operation until the last tensor that shares it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._shared: dict[int, int] = {}  # address of memory → tensors in it

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        given = {_address(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            address = _address(tensor)
            if address in self._shared:
                self._shared[address] += 1
            elif address in given:
                continue  # a view of an existing tensor
            else:
                self._shared[address] = 1
                self.held += tensor.untyped_storage().nbytes()
                self.peak = max(self.peak, self.held)
            weakref.finalize(tensor, self._gone, address, tensor.untyped_storage().nbytes())
        return result

    def _gone(self, address: int, nbytes: int) -> None:
        self._shared[address] -= 1
        if not self._shared[address]:
            del self._shared[address]
            self.held -= nbytes


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
