"""The stream that is asked about: books, with things planted at known distances from its end."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamlm.lab.tasks.facts import NUMBER, facts
from streamlm.training.documents import read_documents
from tokenizer import Tokenizer

# Things of a band are spread over its tokens, counted from the end of the stream.
BANDS: dict[str, tuple[int, int]] = {
    "2k": (1_500, 6_000),
    "8k": (8_000, 14_000),
    "32k": (32_000, 40_000),
    "128k": (128_000, 140_000),
    "512k": (512_000, 530_000),
    "1M": (980_000, 1_000_000),
}
TASKS = ("numbers", "names", "pass keys", "pairs", "tracking")
REMEMBER = " Remember it."  # said behind a pass key, and no part of the answer
# fmt: off
WORDS = [
    "amber", "anchor", "basket", "beacon", "candle", "carpet", "cedar", "copper", "cradle",
    "curtain", "dagger", "fiddle", "furnace", "goblet", "hammer", "harbor", "helmet", "ivory",
    "jacket", "kettle", "ladder", "lantern", "marble", "mirror", "needle", "orchard", "parcel",
    "pebble", "pillow", "quarry", "ribbon", "saddle", "satchel", "shovel", "silver", "spindle",
    "sponge", "tavern", "thimble", "timber", "trumpet", "tunnel", "velvet", "violet", "wagon",
    "walnut", "whistle", "willow", "window", "zipper",
]
# fmt: on


@dataclass(frozen=True)
class Planted:
    """Something planted in the stream, and what is asked about it.

    Attributes:
        task: one of TASKS.
        paragraphs: what the stream says, from its end to its beginning; the last has the answer.
        cue: the beginning of a sentence whose end is the answer.
        question: the same for a chat; told: the cue in other words, "" if there is none.
        answer: as text.
    """

    task: str
    paragraphs: tuple[str, ...]
    cue: str
    question: str
    told: str
    answer: str


def things(n: int, *, seed: int = 0) -> Iterator[list[Planted]]:
    """For each band in order, n of each task."""
    random = np.random.default_rng(seed)
    by_task: dict[str, list[Planted]] = {"numbers": [], "names": []}
    for fact in facts(2 * n * len(BANDS), use="evaluation", seed=seed):
        task = "numbers" if fact.kind == NUMBER else "names"
        by_task[task].append(
            Planted(task, (fact.statement,), fact.cue, fact.question, fact.told, fact.answer)
        )
    gates = iter(random.permutation(np.arange(100, 1000)).tolist())
    pairs = iter(random.permutation(len(WORDS) ** 2).tolist())
    names = iter(random.permutation(len(WORDS) ** 2).tolist())
    for band in range(len(BANDS)):
        chosen = [thing for task in by_task for thing in by_task[task][band * n : (band + 1) * n]]
        for _ in range(n):
            chosen.append(_pass_key(next(gates), _number(random)))
            chosen.append(_pair(*_words(next(pairs)), _number(random)))
            chosen.append(_tracking(*_words(next(names)), _number(random)))
        yield [chosen[i] for i in random.permutation(len(chosen))]


def _number(random: np.random.Generator) -> str:
    return "".join(map(str, random.integers(0, 10, 5)))


def _words(at: int) -> tuple[str, str]:
    return WORDS[at // len(WORDS)], WORDS[at % len(WORDS)]


def _pass_key(gate: int, key: str) -> Planted:
    cue = f"The pass key for gate {gate} is"
    return Planted(
        "pass keys",
        (f"{cue} {key}.{REMEMBER}",),
        cue,
        f"What is the pass key for gate {gate}?",
        f"Whoever wants to go through gate {gate} has to enter",
        key,
    )


def _pair(one: str, other: str, value: str) -> Planted:
    """A key of two words and its value: associative recall (Arora et al. 2023), in books."""
    cue = f"{one} {other} ="
    return Planted(
        "pairs",
        (f"{cue} {value}",),
        cue,
        f"Which number belongs to {one} {other}?",
        "",
        value,
    )


def _tracking(one: str, other: str, value: str) -> Planted:
    """A variable and one that was set to it: two places have to be found."""
    first, second = f"VAR_{one.upper()}_{other.upper()}", f"VAR_{other.upper()}_{one.upper()}_2"
    return Planted(
        "tracking",
        (f"{second} = {first}.", f"{first} = {value}."),
        f"{second} = {first}. {first} =",
        f"{second} was set to {first}. Which number is {first}?",
        "",
        value,
    )


@dataclass(frozen=True)
class Asked:
    """A planted thing.

    Attributes:
        distances: tokens from the beginning of each of its paragraphs to the end of the stream.
    """

    band: str
    distances: tuple[int, ...]
    thing: Planted


def build(
    path: Path, tokenizer: Tokenizer, *, tokens: int, n: int, seed: int = 0
) -> tuple[str, list[Asked]]:
    """The text of the stream, about `tokens` long, and what can be asked about it.

    Args:
        path: of the books.
        n: things of each task in each band that fits.
    """
    paragraphs = _paragraphs(path, tokenizer, tokens)
    goals: list[tuple[int, str, Planted, str]] = []
    for (band, (near, far)), some in zip(BANDS.items(), things(n, seed=seed), strict=True):
        if far <= tokens:
            parts = [(thing, text) for thing in some for text in thing.paragraphs]
            places = np.linspace(near, far, len(parts)).astype(int).tolist()
            goals += [(at, band, *part) for at, part in zip(places, parts, strict=True)]
    goals.reverse()
    backwards: list[str] = []
    places: dict[Planted, list[int]] = {}
    bands: dict[Planted, str] = {}
    distance = 0
    for paragraph in reversed(paragraphs):
        while goals and distance >= goals[-1][0]:
            _, band, thing, text = goals.pop()
            backwards.append(text)
            distance += len(tokenizer.encode(f"\n\n{text}"))
            places.setdefault(thing, []).append(distance)
            bands[thing] = band
        backwards.append(paragraph)
        distance += len(tokenizer.encode(f"\n\n{paragraph}"))
    asked = [Asked(bands[thing], tuple(found), thing) for thing, found in places.items()]
    return "\n\n".join(reversed(backwards)), asked


def _paragraphs(path: Path, tokenizer: Tokenizer, tokens: int) -> list[str]:
    """The first paragraphs of the books, until they have so many tokens."""
    paragraphs: list[str] = []
    total = 0
    for document in read_documents(path):
        for text in document.split("\n\n"):
            if text.strip():
                paragraphs.append(text.strip("\n"))
                total += len(tokenizer.encode(f"\n\n{paragraphs[-1]}"))
                if total >= tokens:
                    return paragraphs
    raise ValueError(f"{path} has {total:,} tokens; {tokens:,} are wanted")
