"""Tasks: solvable questions with exact positions and distances."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamlm.lab.tasks import (
    Alphabet,
    Questions,
    copying,
    passkey,
    recall,
    tracking,
)
from tokenizer import Tokenizer

T = 32
PLAIN, FAMILIES = Alphabet.plain(256), Alphabet.plain(512, family=8)


@pytest.fixture(scope="module")
def text(books_tokenizer: Tokenizer, prose: Callable[..., str]) -> Alphabet:
    """An alphabet of prose; names and values are random ids, because the prose has few words."""
    ids = books_tokenizer.encode(prose(3000)).astype(np.uint16)
    random = np.random.default_rng(0)
    words = [i for i in range(300, 8000) if books_tokenizer.decode_bytes([i])[:1] == b" "]
    more = random.choice(words, 4000).astype(np.uint16)
    return Alphabet.of_text(books_tokenizer, np.concatenate([ids, more]))


# -- solvers: given the sequence before the answer and the format ---------------------------------


def solve_recall(alphabet: Alphabet, before: list[int]) -> int:
    """The value after the latest occurrence of the queried name."""
    places = [i for i, id in enumerate(before[:-1]) if id == before[-1]]
    return before[places[-1] + 1]


def find(sequence: list[int], phrase: list[int]) -> int:
    """The end of the first occurrence of a phrase."""
    for i in range(len(sequence)):
        if sequence[i : i + len(phrase)] == phrase:
            return i + len(phrase)
    raise AssertionError("no cue")


def solve_passkey(alphabet: Alphabet, before: list[int]) -> list[int]:
    start = find(before, alphabet.phrases["cue"].tolist())
    return before[start : start + 5]


def solve_copy(alphabet: Alphabet, before: list[int]) -> int:
    return solve_recall(alphabet, before)


def solve_tracking(alphabet: Alphabet, before: list[int]) -> int:
    link = alphabet.phrases["is"].tolist()
    name = before[-1 - len(link)]
    while True:
        start = find(before, [name, *link])
        name = before[start]
        if name not in alphabet.keys:
            return name


def before(questions: Questions, q: int, token: int = 0) -> list[int]:
    found: list[int] = questions.tokens[questions.row[q], : questions.query[q, token]].tolist()
    return found


MAKE: dict[str, Callable[..., Questions]] = {
    "passkey": passkey,
    "copy": copying,
    "tracking": tracking,
}
SOLVE: dict[str, Callable[..., Any]] = {
    "passkey": solve_passkey,
    "copy": solve_copy,
    "tracking": solve_tracking,
}


def check(questions: Questions, distance: int, segment_len: int) -> None:
    """Positions are exact: the cue gives the answer, `distance` segments before the query."""
    n, length = questions.tokens.shape
    assert (length + 1) % segment_len == 0  # whole segments with bos
    rows = questions.row[:, None]
    assert (questions.tokens[rows, questions.cue] == questions.answers).all()
    assert (questions.cue < questions.query).all() and questions.row.max() == n - 1
    apart = questions.query // segment_len - (questions.cue + 1) // segment_len
    assert (apart == distance).all()
    assert (questions.distance(segment_len) == distance).all()
    in_choices = questions.answers[:, :, None] == questions.choices[:, None, :]
    assert (in_choices.sum(axis=2) == 1).all()
    assert questions.chance == questions.choices.shape[1] ** -float(questions.query.shape[1])


@pytest.mark.parametrize("kind", ["plain", "families", "text"])
@pytest.mark.parametrize("distance", [0, 1, 4])
@pytest.mark.parametrize("name", MAKE)
def test_questions_are_solvable(name: str, distance: int, kind: str, text: Alphabet) -> None:
    alphabet = {"plain": PLAIN, "families": FAMILIES, "text": text}[kind]
    length = 64 if kind == "text" else T
    questions = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=3)
    check(questions, distance, length)
    for q in range(len(questions)):
        found = SOLVE[name](alphabet, before(questions, q))
        assert np.atleast_1d(found).tolist() == questions.answers[q].tolist()
    again = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=3)
    assert (again.tokens == questions.tokens).all() and (again.cue == questions.cue).all()
    other = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=4)
    assert (other.tokens != questions.tokens).any()


def test_passkeys_are_whole_and_in_order() -> None:
    questions = passkey(PLAIN, n=200, segment_len=T, distance=2, digits=3)
    assert (np.diff(questions.cue, axis=1) == 1).all()
    assert set(questions.answers.ravel().tolist()) == set(PLAIN.digits.tolist())
    assert questions.chance == pytest.approx(1e-3)
    # Anywhere in the segment, including its ends: from column 2, after the phrase.
    assert questions.cue.min() == 1 and questions.cue.max() == T - 2


def test_tracking_counts_its_hops() -> None:
    questions = tracking(PLAIN, n=30, segment_len=T, distance=1)
    assert np.bincount(questions.label).tolist() == [0, 30, 30, 30, 30]
    link = PLAIN.phrases["is"].item()
    for q in range(len(questions)):
        seen = before(questions, q)
        hops, name = 0, seen[-2]
        while name in PLAIN.keys:
            hops, name = hops + 1, seen[find(seen, [name, link])]
        assert hops == questions.label[q]
        assert len({id for id in seen if id in PLAIN.keys}) == 2 * hops  # the decoy's names too


@pytest.mark.parametrize("alphabet", [PLAIN, FAMILIES], ids=["plain", "families"])
def test_recall(alphabet: Alphabet) -> None:
    wanted = [0, 1, 3]
    questions = recall(alphabet, n=40, segment_len=T, distances=wanted, pairs=3, seed=1)
    assert questions.tokens.shape == (40, 5 * T - 1)
    rows = questions.row[:, None]
    assert (questions.tokens[rows, questions.cue] == questions.answers).all()
    found = questions.distance(T)
    assert sorted(set(found.tolist())) == wanted
    # Drawn uniformly, except for queries whose pair would lie before the sequence.
    expected = np.array([40 * 3 * (5 - d) / 3 for d in wanted])
    assert (abs(np.bincount(found)[wanted] - expected) < 4 * np.sqrt(expected) + 10).all()
    for q in range(len(questions)):
        assert solve_recall(alphabet, before(questions, q)) == questions.answers[q]
    names = questions.tokens[rows, questions.query - 1]
    for row in range(40):
        sequence = questions.tokens[row]
        keys, times = np.unique(sequence[np.isin(sequence, alphabet.keys)], return_counts=True)
        assert times.max() == 2 and (times == 2).sum() == (questions.row == row).sum()
        assert len(keys) == 3 * 5
    if alphabet.family:
        index = names - alphabet.keys[0]
        assert ((questions.answers - alphabet.values[0]) // 8 == index).all()
        assert questions.choices.shape == (len(questions), 8)


def test_choices_of_one_run_are_disjoint() -> None:
    questions = copying(PLAIN, n=50, segment_len=T, distance=1, length=6)
    assert questions.choices.shape == (250, len(PLAIN.values) // 6)
    for q in range(0, 250, 5):  # choices of one run have nothing in common
        ids = questions.choices[q : q + 5].ravel().tolist()
        assert len(set(ids)) == len(ids)


def test_training_documents_have_only_answers_as_targets() -> None:
    questions = recall(FAMILIES, n=5, segment_len=T, distances=[0, 2], pairs=2)
    corpus = questions.corpus()
    assert len(corpus) == 5 and corpus.scored is not None
    assert (corpus.document(3) == questions.tokens[3]).all()
    scored = corpus.scored.reshape(5, -1)
    for row in range(5):
        places = questions.query[questions.row == row]
        assert sorted(places.ravel().tolist()) == scored[row].nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: passkey(PLAIN, n=1, segment_len=6, distance=1), "a passkey takes 6 tokens; all"),
        (lambda: passkey(PLAIN, n=1, segment_len=9, distance=0), "its question takes 12 tokens"),
        (lambda: copying(PLAIN, n=1, segment_len=8, distance=1), "a run takes 8 tokens; allowed"),
        (lambda: copying(PLAIN, n=1, segment_len=8, distance=1, length=1), "length = 1; allowed"),
        (lambda: copying(PLAIN, n=1, segment_len=8, distance=1, length=31), "2 to 30, half of"),
        (lambda: tracking(PLAIN, n=1, segment_len=16, distance=1), "tracking of 3 hops takes 18"),
        (lambda: recall(PLAIN, n=1, segment_len=4, distances=[0]), "0 pairs a segment; allowed: 1"),
        (lambda: recall(PLAIN, n=1, segment_len=T, distances=[0], pairs=8), "allowed: 1 to 7"),
        (lambda: Alphabet.plain(31), "vocab_size = 31; allowed: at least 32"),
        (lambda: Alphabet.plain(40, family=8), "vocab_size = 40; allowed: at least 48"),
    ],
)
def test_questions_that_do_not_fit_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_alphabet_of_text(books_tokenizer: Tokenizer, text: Alphabet) -> None:
    assert not set(text.keys.tolist()) & set(text.values.tolist())
    assert b"".join(books_tokenizer.decode_bytes([int(i)]) for i in text.digits) == b"0123456789"
    for id in text.keys:
        assert books_tokenizer.decode_bytes([int(id)]).strip().isalpha()
    filler = text.fill(np.random.default_rng(0), 3, 50)
    whole = text.filler.tolist() * 2
    for row in filler.tolist():
        assert any(whole[i : i + 50] == row for i in range(len(text.filler)))
    with pytest.raises(ValueError, match="different words; allowed: at least 32"):
        Alphabet.of_text(books_tokenizer, books_tokenizer.encode("The whale and the sea."))


def test_a_plain_alphabet_uses_each_id_once() -> None:
    for alphabet in (PLAIN, FAMILIES, Alphabet.plain(32)):
        parts = [alphabet.digits, alphabet.keys, alphabet.values, alphabet.filler]
        ids = np.concatenate([[alphabet.bos], *parts, *alphabet.phrases.values()])
        assert sorted(ids.tolist()) == list(range(len(ids)))
        assert len(alphabet.digits) == 10 and min(map(len, parts)) >= 1
    assert len(FAMILIES.values) == 8 * len(FAMILIES.keys)
