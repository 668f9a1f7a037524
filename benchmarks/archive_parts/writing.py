"""Recall while writing: does a model answer more if what it writes is asked for again?

Every `EVERY` tokens, the newest tokens that were written are taken for a question. A passage that
surely answers it, and that was not put back before, is read in the middle of the text, and behind
it the sentence that was interrupted. What was written stays; the passage is not shown.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.archive_parts.asking import plain_sight
from benchmarks.archive_parts.stream import Asked
from streamlm.cli.display import output
from streamlm.models.cache import Cache
from streamlm.runtime.conversation import next_turn
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.text_stream import TextStream
from streamlm.sessions.recall import Recalled, quoted
from streamlm.sessions.session import Session

EVERY, QUESTION = 4, 32  # tokens between two questions, and of each
LIMIT = 40  # tokens that are written
ONE, TWO, AGAIN, SIGHT = "one passage", "two passages", "one, and while writing", "in plain sight"
WAYS = {
    "two facts": (AGAIN, ONE, TWO, SIGHT),
    "variables": (AGAIN, ONE, TWO, SIGHT),
    "one fact": (AGAIN, ONE),
}


@dataclass(frozen=True)
class Wrote:
    """What a model wrote about one case, one way.

    Attributes:
        answers: that are wanted; answered: that the text has.
        put_back: passages that were read while writing; tokens: read for them; seconds: of all.
    """

    kind: str
    case: int
    way: str
    answers: int
    answered: int
    put_back: int
    tokens: int
    seconds: float
    text: str


@dataclass(frozen=True)
class Case:
    """What is asked about one thing or two, as the message of a chat or a text to go on with."""

    kind: str
    prompt: str
    asked: tuple[Asked, ...]
    chat: bool


def cases(asked: Sequence[Asked], n: int) -> list[Case]:
    """n cases of each kind, spread over the distances."""
    facts = [each for each in asked if each.thing.task in ("numbers", "names")]
    variables = [each for each in asked if each.thing.task == "tracking"]
    chosen = []
    for at in range(n):
        one = facts[at * (len(facts) // n)]
        same = [each for each in facts if each.band == one.band and each is not one]
        other = same[(7 * at) % len(same)]
        variable = variables[at * (len(variables) // n)]
        both = f"{one.thing.question} {other.thing.question}"
        begun = variable.thing.paragraphs[0].split(" = ")[0]
        chosen += [
            Case("two facts", both, (one, other), True),
            Case("variables", f"{begun} =", (variable,), False),
            Case("one fact", one.thing.question, (one,), True),
        ]
    return chosen


def write(session: Session, case: Case, way: str, number: int) -> Wrote:
    """Write about a case in a fork of a session."""
    began = time.process_time()
    if way == SIGHT:
        texts = [text for each in case.asked for text in plain_sight(session, each)]
        shown: list[Recalled] = []
    else:
        found = session.recall(case.prompt, k=2 if way == TWO else 1)
        shown = sorted((each for each in found if each.sure), key=lambda each: each.start)
        texts = [each.text for each in shown]
    writer = _Writer(session, quoted(list(dict.fromkeys(texts)), case.prompt), chat=case.chat)
    put_back = tokens = 0
    while writer.n < LIMIT and not writer.ended:
        writer.write()
        if way == AGAIN and writer.n % EVERY == 0 and not writer.ended:
            passage = _next(session, writer.newest(), shown)
            if passage is not None:
                shown.append(passage)
                put_back += 1
                tokens += writer.put_back(passage.text)
    text = writer.text
    wanted = [each.thing.answer for each in case.asked]
    answered = sum(answer.lower() in text.lower() for answer in wanted)
    seconds = time.process_time() - began
    return Wrote(case.kind, number, way, len(wanted), answered, put_back, tokens, seconds, text)


def _next(session: Session, text: str, shown: Sequence[Recalled]) -> Recalled | None:
    """A passage that surely answers a text and was not shown."""
    if not text.strip():
        return None
    for each in session.recall(text, k=1):
        apart = all(each.stop <= one.start or one.stop <= each.start for one in shown)
        if each.sure and apart:
            return each
    return None


class _Writer:
    """A fork that writes, token by token; nothing is drawn, the likeliest token is taken."""

    def __init__(self, session: Session, context: str, *, chat: bool) -> None:
        self._checkpoint = session.checkpoint
        self._tokenizer = session.checkpoint.tokenizer
        self._cache = Cache()
        stream: TextStream = session.fork()._live.stream
        stream = stream.without_held_text(self._checkpoint)
        known = self._tokenizer.chat
        chat = chat and known is not None and known.template is not None
        if chat:
            template = self._checkpoint.chat
            ids, conversation = next_turn(template, stream.conversation, context, system=None)
            stream = replace(self._read(stream, ids), conversation=conversation)
        else:
            stream = self._read(stream, self._tokenizer.encode(f"\n\n{context}"))
        self._stream, self._chat = stream, chat
        self._ids: list[int] = []
        self.text = ""
        self.ended = False

    @property
    def n(self) -> int:
        return len(self._ids)

    def _read(self, stream: TextStream, ids: np.ndarray) -> TextStream:
        return stream.read_ids(self._checkpoint, ids, cache=self._cache)

    def write(self) -> None:
        """Write one token."""
        greedy = Sampling(temperature=0)
        if self._chat:
            stream, id, piece = self._stream.reply_token(
                self._checkpoint, greedy, self._cache, n_said=self.n
            )
            self.ended = stream.conversation is None or not stream.conversation.open
        else:
            stream, id, piece = self._stream.generate_token(self._checkpoint, greedy, self._cache)
        self._stream = stream
        self._ids.append(id)
        self.text += piece

    def newest(self) -> str:
        """The newest words that were written."""
        return self._tokenizer.decode(self._ids[-QUESTION:])

    def put_back(self, passage: str) -> int:
        """Read a passage and the interrupted sentence again; returns how many tokens."""
        sentence = self.newest().rsplit(". ", 1)[-1].rsplit("\n", 1)[-1]
        ids = self._tokenizer.encode(f"\n\n{passage}\n\n{sentence}")
        conversation = self._stream.conversation
        self._stream = replace(self._read(self._stream, ids), conversation=conversation)
        return len(ids)


def measure_writing(
    session: Session,
    chosen: Sequence[Case],
    path: Path,
    *,
    advance: Callable[[int], object],
) -> None:
    """Write about all cases in all ways, and append each to a file; those in it are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows([path]) if path.exists() else []
    done = {(row["kind"], row["case"], row["way"]) for row in rows}
    with path.open("a", encoding="utf-8") as file:
        for number, case in enumerate(chosen):
            for way in WAYS[case.kind]:
                if (case.kind, number, way) not in done:
                    found = write(session, case, way, number)
                    file.write(json.dumps(asdict(found)) + "\n")
                    file.flush()
            advance(1)


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows that `measure_writing` wrote."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return [json.loads(line) for line in lines]


def figures_of_writing(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers, passages put back and time, by kind and way."""
    found = []
    for kind, ways in WAYS.items():
        for way in ways:
            some = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
            if some:
                sums: Counter[str] = Counter()
                for row in some:
                    for name in ("answers", "answered", "put_back", "tokens"):
                        sums[name] += row[name]
                seconds = float(np.median([row["seconds"] for row in some]))
                found.append({"kind": kind, "way": way, "cases": len(some), **sums})
                found[-1]["median_cpu_seconds"] = seconds
    return found


def show_writing(figures: Sequence[dict[str, Any]]) -> None:
    """The figures as a table."""
    table = Table(title="answers in what the model wrote")
    for column in ("asked for", "before the prompt", "answered", "put back", "tokens", "seconds"):
        table.add_column(column)
    for row in figures:
        answered = f"{row['answered']} of {row['answers']}"
        seconds = f"{row['median_cpu_seconds']:.2f}"
        counts = (str(row["put_back"]), str(row["tokens"]))
        table.add_row(row["kind"], row["way"], answered, *counts, seconds)
    output.print(table)
