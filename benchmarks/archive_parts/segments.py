"""Recall at each segment: does what a stream asks for, read again, make what comes next likelier?

At places in a session's past, the last tokens are taken for a question. The next tokens, which the
session did read, are scored again from the state that it had there: with what is recalled read
first, and without.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memory_store import Ref
from streamlm.memory.recall import KeySearch, ReadKeys
from streamlm.models.cache import Cache
from streamlm.runtime.reports import ReadReport
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.archive import Archive
from streamlm.sessions.recall import ENDS, Recalled, passage_around, recall
from streamlm.sessions.session import Session
from streamlm.state import State
from tokenizer import Tokenizer

# What is read before the next tokens. All but the first and "passage alone" end with the question's
# tokens, read again: the text goes on where it was interrupted.
NOTHING = "nothing"
PASSAGE, ALONE = "passage", "passage alone"
BY_WORDS, RANDOM = "passage by rare words", "random passage"
WAYS = (PASSAGE, ALONE, BY_WORDS, RANDOM)


@dataclass(frozen=True)
class Scored:
    """The next tokens at a place, scored one way.

    Attributes:
        sure: whether the passage was taken to answer; `Session.generate` would put it back then.
        read: tokens that were read first; n_bytes: of the next tokens.
    """

    model: str
    place: int
    way: str
    passage: str
    sure: bool
    score: float
    read: int
    nats: float
    n_bytes: int


class Places:
    """Places in the past of a session with a store.

    Args:
        each: places behind each snapshot; stride: tokens between them.
        question: tokens that ask, at most; ahead: tokens that are scored.
    """

    def __init__(
        self, session: Session, *, each: int, stride: int, question: int, ahead: int
    ) -> None:
        self._checkpoint = session.checkpoint
        self._bound = session._live.require_store("recall")
        assert self._bound.saved is not None
        self._head: Ref = self._bound.saved
        self._archive = None
        if self._checkpoint.retrieval is not None:
            self._archive = Archive(self._checkpoint)
        self._each, self._stride = each, stride
        self._question, self._ahead = question, ahead

    def positions(self) -> list[int]:
        """All places: something has left memory there, and there is enough text ahead."""
        store, memory = self._bound.store, self._checkpoint.model.config.memory_len
        saved = {
            ref.position for ref in store.refs(self._bound.branch) if store.is_loadable(ref.commit)
        }
        starts = [at for at in sorted(saved) if at > memory + 4 * self._question]
        places = {at + n * self._stride for at in starts for n in range(self._each)}
        return sorted(at for at in places if at + self._ahead <= self._head.position)

    def score(self, place: int) -> Iterator[Scored]:
        """Score the next tokens in each way."""
        bound, tokenizer = self._bound, self._checkpoint.tokenizer
        stream, between = bound.replay(self._head, place, place)
        stream = stream.read_ids(self._checkpoint, between, cache=Cache())
        stream = stream.without_held_text(self._checkpoint)
        question = self._asking(place)
        stop = self._stop(place)
        text = tokenizer.decode(question)
        found: dict[str, Recalled | None] = {PASSAGE: self._recall(text, stream, stop)}
        found[ALONE] = found[BY_WORDS] = found[PASSAGE]
        if self._archive is not None:
            found[BY_WORDS] = self._recall(text, None, stop)
        found[RANDOM] = None if found[PASSAGE] is None else self._random(found[PASSAGE], stop)
        ahead = bound.tokens(place, place + self._ahead)
        plain = self._nats(stream, question[:0], ahead)
        yield self._scored(place, NOTHING, None, 0, plain)
        done: dict[tuple[str, bool], tuple[int, float]] = {}
        for way, passage in found.items():
            if passage is None:  # nothing in the past shares anything with the question
                yield self._scored(place, way, None, 0, plain)
                continue
            key = (passage.text, way == ALONE)
            if key not in done:
                first = tokenizer.encode(f"\n\n{passage.text}\n\n")
                first = first if way == ALONE else np.concatenate([first, question])
                done[key] = len(first), self._nats(stream, first, ahead)
            yield self._scored(place, way, passage, *done[key])

    def _asking(self, place: int) -> np.ndarray:
        """The last tokens before a place, from the beginning of a sentence if one is early."""
        ids = self._bound.tokens(max(0, place - self._question), place)
        decode = self._checkpoint.tokenizer.decode
        for at, token in enumerate(ids[: len(ids) // 2].tolist(), 1):
            if decode([token]).rstrip(" ")[-1:] in ENDS:
                return ids[at:]
        return ids

    def _stop(self, place: int) -> int:
        """Where memory begins at a place; see `LiveStream.recall_stop`."""
        config = self._checkpoint.model.config
        return max(0, place - place % config.segment_len - config.memory_len)

    def _recall(self, text: str, stream: TextStream | None, stop: int) -> Recalled | None:
        """The best passage: by heads and rare words, or without a stream by rare words alone."""
        bound, tokenizer, archive = self._bound, self._checkpoint.tokenizer, self._archive
        ask: Callable[[int], KeySearch] | None = None
        if archive is not None and stream is not None:
            state = stream.state
            read = partial(archive.read, bound.store, self._head, state)
            ask = partial(_ask, archive, text, tokenizer, read, state)
        return next(iter(recall(text, tokenizer, bound.tokens, stop, ask=ask)), None)

    def _random(self, like: Recalled, stop: int) -> Recalled:
        """Some passage, whose place depends on that of the other only."""
        middle = int(np.random.default_rng(like.start).integers(0, stop))
        tokenizer = self._checkpoint.tokenizer
        start, end, text = passage_around(self._bound.tokens, middle, stop, tokenizer)
        return Recalled(start, end, 0.0, like.sure, text, None)

    def _nats(self, stream: TextStream, first: np.ndarray, ahead: np.ndarray) -> float:
        """Nats of the tokens ahead after other ones."""
        cache, report = Cache(), ReadReport()
        stream = stream.read_ids(self._checkpoint, first, cache=cache)
        stream.read_ids(self._checkpoint, ahead, cache=cache, report=report)
        return report.nats

    def _scored(
        self, place: int, way: str, passage: Recalled | None, read: int, nats: float
    ) -> Scored:
        ahead = self._bound.tokens(place, place + self._ahead)
        n_bytes = int(self._checkpoint.tokenizer.token_lengths[ahead].sum())
        sure, score, text = False, 0.0, ""
        if passage is not None:
            sure, score, text = passage.sure, passage.score, passage.text
        return Scored(self._checkpoint.name, place, way, text, sure, score, read, nats, n_bytes)


def _ask(
    archive: Archive, text: str, tokenizer: Tokenizer, read: ReadKeys, state: State, stop: int
) -> KeySearch:
    return archive.ask(text, tokenizer, read, state, stop=stop)


def measure(places: Places, path: Path, *, n: int, advance: Callable[[int], object]) -> None:
    """Score n places, spread evenly, and append each to a file; those in the file are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {row["place"] for row in read_scored([path])} if path.exists() else set()
    every = places.positions()
    if not every:
        raise ValueError("no snapshot has so much text before and after it; allowed: longer ones")
    chosen = {every[int(at)] for at in np.linspace(0, len(every) - 1, min(n, len(every)))}
    with path.open("a", encoding="utf-8") as file:
        for place in sorted(chosen - done):
            rows = [json.dumps(asdict(each)) for each in places.score(place)]
            file.write("\n".join(rows) + "\n")
            file.flush()
            advance(1)


def read_scored(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows that `measure` wrote."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [json.loads(line) for line in lines]
