"""Invented facts in the text of books, and questions about them.

No model can know the answers: the people do not exist, and each fact is stated once. Calibration
and evaluation have different people and different kinds of facts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from tokenizer import Tokenizer

Use = Literal["calibration", "evaluation"]
NUMBER = "number"  # an answer of five digits


@dataclass(frozen=True)
class Kind:
    """Facts of one kind; {p} is the person.

    Attributes:
        cue: the statement up to its answer.
        question: in other words, for a chat.
        told: how the fact could be asked for without the words of the statement.
        answers: possible ones; empty for numbers.
    """

    name: str
    cue: str
    question: str
    told: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """A fact about a person.

    Attributes:
        statement: the sentence that states it, a paragraph of its own.
        cue: the statement up to the answer; question: that asks for it; told: in other words.
    """

    kind: str
    person: str
    statement: str
    cue: str
    question: str
    told: str
    answer: str


KINDS: dict[Use, tuple[Kind, ...]] = {
    "calibration": (
        Kind(
            NUMBER,
            "The number of {p}'s cabin is",
            "What is the number of {p}'s cabin?",
            "Those who look for {p} on board should knock at cabin",
        ),
        Kind(
            "horse",
            "The name of {p}'s horse is",
            "What is the name of {p}'s horse?",
            "{p} rides a horse which is called",
            ("Juniper", "Comet", "Thistle", "Major", "Sable", "Domino", "Bramble", "Nutmeg"),
        ),
        Kind(
            "island",
            "The island that {p} dreams of is",
            "Which island does {p} dream of?",
            "At night, {p} sails in dreams to",
            ("Madeira", "Corsica", "Jersey", "Ceylon", "Malta", "Tahiti", "Elba", "Cuba"),
        ),
        Kind(
            "instrument",
            "The instrument that {p} plays is the",
            "Which instrument does {p} play?",
            "When there is music, {p} sits down at the",
            ("harp", "flute", "violin", "trumpet", "organ", "cello", "drum", "piano"),
        ),
    ),
    "evaluation": (
        Kind(
            NUMBER,
            "The number of {p}'s locker is",
            "What is the number of {p}'s locker?",
            "To open what belongs to {p}, one must find locker",
        ),
        Kind(
            "dog",
            "The name of {p}'s dog is",
            "What is the name of {p}'s dog?",
            "{p} keeps a dog that answers to",
            ("Biscuit", "Captain", "Pepper", "Shadow", "Ginger", "Hunter", "Rusty", "Tiger"),
        ),
        Kind(
            "town",
            "The town where {p} was born is called",
            "In which town was {p} born?",
            "{p} came into the world in",
            ("Plymouth", "Lisbon", "Trieste", "Galway", "Bremen", "Verona", "Salem", "Toledo"),
        ),
        Kind(
            "fruit",
            "The fruit that {p} likes best is the",
            "Which fruit does {p} like best?",
            "Nothing tastes as good to {p} as a",
            ("pineapple", "apricot", "cherry", "banana", "lemon", "mango", "peach", "melon"),
        ),
        Kind(
            "trade",
            "By trade, {p} is a",
            "What is {p}'s trade?",
            "{p} earns a living as a",
            ("carpenter", "lawyer", "painter", "butcher", "printer", "dentist", "baker", "miner"),
        ),
    ),
}
FIRST: dict[Use, str] = {
    "calibration": "Agnes Basil Celia Dexter Edwina Fergus Gwendolen Hubert Imogen Jerome "
    "Keziah Leopold Minerva Neville Octavia Peregrine",
    "evaluation": "Margaret Jasper Eleanor Silas Ottilie Hector Rosalind Barnaby Cordelia Amos "
    "Philippa Rufus Beatrice Tobias Harriet Ezra Winifred Cyrus Adelaide Lucian Dorothea Gideon "
    "Isadora Percival",
}
LAST: dict[Use, str] = {
    "calibration": "Ashdown Birtwhistle Cavendish Dewhurst Elphick Fanshawe Garroway Hathersage "
    "Inglethorp Jessamy Kettering Lascelles",
    "evaluation": "Whitcombe Thorne Pym Grubb Brandt Vane Keats Stokes Finch Tredwell Dunmore "
    "Calloway Holloway Merrick Lovelace Pennington Sharpe Blackwood Frost Mayhew Plum Rook Lane "
    "Stout",
}


def facts(n: int, *, use: Use, seed: int = 0) -> Iterator[Fact]:
    """n facts, each about another person; every second answer is a number.

    Raises:
        ValueError: there are not so many people.
    """
    random = np.random.default_rng(seed)
    people = [f"{a} {b}" for a, b in product(FIRST[use].split(), LAST[use].split())]
    if n > len(people):
        raise ValueError(f"{n} facts for {use}; allowed: at most {len(people)}")
    number, *others = KINDS[use]
    for at, person in enumerate(random.permutation(people)[:n].tolist()):
        kind = others[at // 2 % len(others)] if at % 2 else number
        digits = "".join(map(str, random.integers(0, 10, 5)))
        answer = str(random.choice(kind.answers)) if kind.answers else digits
        cue, question, told = (
            text.replace("{p}", person) for text in (kind.cue, kind.question, kind.told)
        )
        yield Fact(kind.name, person, f"{cue} {answer}.", cue, question, told, answer)


def planted(
    text: np.ndarray, told: Sequence[Fact], at: Sequence[int], tokenizer: Tokenizer
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A text with facts in it, and the tokens start ≤ i < stop of each fact's statement.

    Args:
        text: ids.
        at: where in `text` the paragraphs are inserted, ascending.
    """
    parts, spans, done, length = [], [], 0, 0
    for fact, place in zip(told, at, strict=True):
        ids = tokenizer.encode(f"\n\n{fact.statement}\n\n")
        parts += [text[done:place], ids]
        length += place - done
        spans.append((length, length + len(ids)))
        length, done = length + len(ids), place
    return np.concatenate([*parts, text[done:]]), spans
