"""Asking a session about what was planted: is it found, and is it answered?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlm
from benchmarks.archive_parts.stream import Asked, Planted
from streamlm.sessions.recall import Question, Recalled, passage_around, quoted, recall
from streamlm.sessions.session import Session

FORMS = ("cue", "question", "told")
# What stands before the prompt: nothing, what was recalled, what BM25 found, or the answer itself.
WAYS = ("no recall", "recall", "BM25", "in plain sight")
CUE_TOKENS, REPLY_TOKENS = 8, 32


@dataclass(frozen=True)
class Outcome:
    """One question.

    Attributes:
        found: whether all that is needed stands in what came before the prompt.
        answered: whether the answer is in what the model wrote; None if it was not asked to.
        sure: whether the best passage was taken to answer; seconds: that the search took.
    """

    task: str
    band: str
    distance: int
    form: str
    way: str
    found: bool
    answered: bool | None
    sure: bool
    score: float
    seconds: float


def ask(session: Session, asked: Asked, form: str, way: str, *, k: int, answer: bool) -> Outcome:
    """Ask a fork of a session, so that the session is not changed.

    Args:
        k: passages to recall.
        answer: whether the model is to write.
    """
    thing = asked.thing
    prompt, began = getattr(thing, form), time.perf_counter()
    passages = _passages(session, prompt, way, k=k)
    seconds = time.perf_counter() - began
    passages.sort(key=lambda each: each.start)
    texts = [each.text for each in passages]
    if way == "in plain sight":
        texts = _in_plain_sight(session, asked)
    context, found = quoted(texts, prompt), holds(thing, texts)
    answered = None
    if answer:
        wanted = thing.answer.lower()
        fork = session.fork()
        if form == "question":
            text = "".join(fork.reply(context, max_tokens=REPLY_TOKENS, temperature=0))
            answered = wanted in text.lower()
        else:
            pieces = fork.generate(f"\n\n{context}", max_tokens=CUE_TOKENS, temperature=0)
            answered = "".join(pieces).strip().lower().startswith(wanted)
    return Outcome(
        thing.task,
        asked.band,
        asked.distances[-1],
        form,
        way,
        found,
        answered,
        any(each.sure for each in passages),
        max((each.score for each in passages), default=0.0),
        seconds,
    )


def _passages(session: Session, prompt: str, way: str, *, k: int) -> list[Recalled]:
    if way == "recall":
        return session.recall(prompt, k=k)
    if way == "BM25":
        live = session._live
        question = Question(prompt, session.checkpoint.tokenizer)
        bound = live.require_store("recall")
        return recall(question, bound.tokens, live.recall_stop, history=[], k=k)
    return []


def _in_plain_sight(session: Session, asked: Asked) -> list[str]:
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
    """Whether all paragraphs of a thing stand in passages."""
    joined = " ".join(" ".join(text.split()) for text in texts)
    return all(paragraph in joined for paragraph in thing.paragraphs)


def outcomes(
    session: Session,
    asked: Sequence[Asked],
    plan: Sequence[tuple[str, str, bool]],
    *,
    k: int,
    progress: Callable[[int], object],
) -> list[Outcome]:
    """All outcomes of a plan: (form, way, whether the model writes) of each."""
    found: list[Outcome] = []
    for each in asked:
        for form, way, answer in plan:
            if getattr(each.thing, form):
                found.append(ask(session, each, form, way, k=k, answer=answer))
        progress(1)
    return found


def open_planted(path: str, model: str) -> Session:
    """The session that has read the planted text, to be asked only."""
    return streamlm.open(path, model, readonly=True)


def summary(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Counts by task, form, way and band."""
    rows: dict[tuple[str, ...], list[Outcome]] = {}
    for each in found:
        rows.setdefault((each.task, each.form, each.way, each.band), []).append(each)
    return [
        {
            "task": task,
            "form": form,
            "way": way,
            "band": band,
            "cases": len(some),
            "found": sum(each.found for each in some),
            "answered": None
            if some[0].answered is None
            else sum(bool(each.answered) for each in some),
            "sure": sum(each.sure for each in some),
            "seconds": sorted(each.seconds for each in some)[len(some) // 2],
        }
        for (task, form, way, band), some in rows.items()
    ]
