"""Asking a session about what was planted: is it found, and is it answered?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.archive_parts.stream import REMEMBER, Asked, Planted
from streamlm.sessions.recall import Recalled, passage_around, quoted, recall
from streamlm.sessions.session import Session

FORMS = ("cue", "question", "told")
# What comes before the prompt: nothing; what is recalled; what each half of recall finds by itself;
# what BM25 over tokens finds; the passage with the answer; or one with that to a like question.
WAYS = (
    *("no recall", "recall", "heads alone", "without heads", "BM25"),
    *("in plain sight", "another's passage"),
)
CUE_TOKENS, REPLY_TOKENS = 8, 32
# (form, way, whether the model writes)
PLANS = {
    "recall": (
        *(("cue", way, True) for way in ("recall", "in plain sight")),
        *(("question", way, True) for way in ("recall", "in plain sight")),
        ("told", "recall", False),
    ),
    "books": tuple(
        ("question", way, way in ("no recall", "recall", "in plain sight"))
        for way in ("no recall", "recall", "in plain sight", "heads alone", "without heads", "BM25")
    ),
    "cues": (("cue", "recall", True), ("cue", "in plain sight", True)),
    "prompts": tuple(
        ("cue", way, True) for way in ("no recall", "recall", "in plain sight", "another's passage")
    ),
    "others": (
        ("cue", "no recall", True),
        *((form, way, False) for way in ("heads alone", "without heads", "BM25") for form in FORMS),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """One question.

    Attributes:
        found: whether all that is needed stands in what came before the prompt.
        answered: whether the answer is in what the model wrote; None if it was not asked to.
        nats: of the answer behind the sentence's beginning; None where it was not scored.
        sure: whether the best passage was taken to answer; seconds: that the search took.
    """

    task: str
    band: str
    distance: int
    form: str
    way: str
    found: bool
    answered: bool | None
    nats: float | None
    sure: bool
    score: float
    seconds: float


def ask(
    session: Session,
    asked: Asked,
    form: str,
    way: str,
    *,
    k: int,
    answer: bool,
    other: Asked | None = None,
) -> Outcome:
    """Ask a fork of a session, so that the session is not changed.

    Args:
        k: passages to recall.
        answer: whether the model is to write.
        other: whose passage "another's passage" is.
    """
    thing = asked.thing
    prompt, began = getattr(thing, form), time.perf_counter()
    passages = _passages(session, prompt, way, k=k)
    seconds = time.perf_counter() - began
    passages.sort(key=lambda each: each.start)
    texts = [each.text for each in passages]
    if way == "in plain sight":
        texts = plain_sight(session, asked)
    elif way == "another's passage":
        if other is None:
            raise ValueError("one thing of a task in a band; allowed: two or more, --n 2")
        texts = plain_sight(session, other)
    context, found = quoted(texts, prompt), holds(thing, texts)
    answered = nats = None
    if answer:
        wanted = thing.answer.lower()
        fork = session.fork()
        chat = session.checkpoint.tokenizer.chat
        if form == "question" and chat is not None and chat.template is not None:
            text = "".join(fork.reply(context, max_tokens=REPLY_TOKENS, temperature=0))
            answered = wanted in text.lower()
        else:
            list(fork.generate(f"\n\n{context}", max_tokens=0))
            nats = fork.score(f" {thing.answer}").nats
            pieces = fork.generate(max_tokens=CUE_TOKENS, temperature=0)
            answered = "".join(pieces).strip().lower().startswith(wanted)
    return Outcome(
        thing.task,
        asked.band,
        asked.distances[-1],
        form,
        way,
        found,
        answered,
        nats,
        any(each.sure for each in passages),
        max((each.score for each in passages), default=0.0),
        seconds,
    )


def _passages(session: Session, prompt: str, way: str, *, k: int) -> list[Recalled]:
    live = session._live
    bound, stop = live.require_store("recall"), live.recall_stop
    if way == "recall":
        return session.recall(prompt, k=k)
    if way == "without heads":
        return recall(prompt, session.checkpoint.tokenizer, bound.tokens, stop, k=k)
    if way == "heads alone":
        places = live.ask(prompt, stop + 1).best(k)
        return [_at(session, place.position - 1, place.score) for place in places]
    if way == "BM25":
        found = session.search(prompt, k=k)
        return [_at(session, (each.start + each.stop) // 2 - 8, each.score) for each in found]
    return []


def _at(session: Session, middle: int, score: float) -> Recalled:
    """The passage around a token."""
    live = session._live
    read, tokenizer = live.require_store("recall").tokens, session.checkpoint.tokenizer
    start, stop, text = passage_around(read, middle, live.recall_stop, tokenizer)
    return Recalled(start, stop, score, False, text, None)


def plain_sight(session: Session, asked: Asked) -> list[str]:
    """The passages around the paragraphs of a thing, as if they had been found."""
    live, tokenizer = session._live, session.checkpoint.tokenizer
    read, texts = live.require_store("recall").tokens, []
    for distance, paragraph in zip(asked.distances, asked.thing.paragraphs, strict=True):
        n = len(tokenizer.encode(f"\n\n{paragraph}"))
        middle = session.position - distance + n // 2
        texts.append(passage_around(read, middle, live.recall_stop, tokenizer)[2])
    texts.reverse()
    return [text for at, text in enumerate(texts) if not holds(asked.thing, texts[:at])]


def holds(thing: Planted, texts: Sequence[str]) -> bool:
    """Whether all paragraphs of a thing stand in passages, as far as they are needed."""
    joined = " ".join(" ".join(text.split()) for text in texts)
    return all(paragraph.removesuffix(REMEMBER) in joined for paragraph in thing.paragraphs)
