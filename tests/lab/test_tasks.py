"""Tasks: answers that a reader can find, at the places and distances that they say."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from streamlm.config import COMPRESSIONS, ModelConfig
from streamlm.lab.tasks import (
    REGIONS,
    Alphabet,
    Answers,
    Questions,
    answer,
    binomial_interval,
    by_compressions,
    by_distance,
    copying,
    joined,
    passkey,
    recall,
    tracking,
)
from streamlm.models.cache import Cache
from streamlm.models.transformer_xl import TransformerXL
from streamlm.state import State
from tests.support.invariants import tiny_model
from tokenizer import Tokenizer

T = 32
PLAIN, FAMILIES = Alphabet.plain(256), Alphabet.plain(512, family=8)


@pytest.fixture(scope="module")
def text(books_tokenizer: Tokenizer, prose: Callable[..., str]) -> Alphabet:
    """Names and values are random ids, for the prose has too few words; the rest is as it is."""
    ids = books_tokenizer.encode(prose(3000)).astype(np.uint16)
    random = np.random.default_rng(0)
    words = [i for i in range(300, 8000) if books_tokenizer.token_bytes(i)[:1] == b" "]
    more = random.choice(words, 4000).astype(np.uint16)
    return Alphabet.of_text(books_tokenizer, np.concatenate([ids, more]))


# -- solvers: they read a sequence up to the answer, and know the format alone --------------------


def solve_recall(alphabet: Alphabet, before: list[int]) -> int:
    """The value behind the latest place of the name that is asked for."""
    places = [i for i, id in enumerate(before[:-1]) if id == before[-1]]
    return before[places[-1] + 1]


def find(sequence: list[int], phrase: list[int]) -> int:
    """Where the phrase ends for the first time."""
    for i in range(len(sequence)):
        if sequence[i : i + len(phrase)] == phrase:
            return i + len(phrase)
    raise AssertionError("never told")


def solve_passkey(alphabet: Alphabet, before: list[int]) -> list[int]:
    start = find(before, alphabet.phrases["tell"].tolist())
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
    found: list[int] = questions.tokens[questions.row[q], : questions.asked[q, token]].tolist()
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
    """Places are exact: what was told is what is asked for, so many segments later."""
    n, length = questions.tokens.shape
    assert (length + 1) % segment_len == 0  # whole segments with bos
    rows = questions.row[:, None]
    assert (questions.tokens[rows, questions.told] == questions.answers).all()
    assert (questions.told < questions.asked).all() and questions.row.max() == n - 1
    apart = questions.asked // segment_len - (questions.told + 1) // segment_len
    assert (apart == distance).all()
    assert (questions.distance(segment_len) == distance).all()
    in_choices = questions.answers[:, :, None] == questions.choices[:, None, :]
    assert (in_choices.sum(axis=2) == 1).all()
    assert questions.chance == questions.choices.shape[1] ** -float(questions.asked.shape[1])


@pytest.mark.parametrize("kind", ["plain", "families", "text"])
@pytest.mark.parametrize("distance", [0, 1, 4])
@pytest.mark.parametrize("name", MAKE)
def test_answers_can_be_found(name: str, distance: int, kind: str, text: Alphabet) -> None:
    alphabet = {"plain": PLAIN, "families": FAMILIES, "text": text}[kind]
    length = 64 if kind == "text" else T
    questions = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=3)
    check(questions, distance, length)
    for q in range(len(questions)):
        found = SOLVE[name](alphabet, before(questions, q))
        assert np.atleast_1d(found).tolist() == questions.answers[q].tolist()
    again = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=3)
    assert (again.tokens == questions.tokens).all() and (again.told == questions.told).all()
    other = MAKE[name](alphabet, n=20, segment_len=length, distance=distance, seed=4)
    assert (other.tokens != questions.tokens).any()


def test_passkeys_are_whole_and_in_order() -> None:
    questions = passkey(PLAIN, n=200, segment_len=T, distance=2, digits=3)
    assert (np.diff(questions.told, axis=1) == 1).all()
    assert set(questions.answers.ravel().tolist()) == set(PLAIN.digits.tolist())
    assert questions.chance == pytest.approx(1e-3)
    # Everywhere in the segment, its ends included: told from column 2 (behind the phrase) on.
    assert questions.told.min() == 1 and questions.told.max() == T - 2


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
    assert (questions.tokens[rows, questions.told] == questions.answers).all()
    found = questions.distance(T)
    assert sorted(set(found.tolist())) == wanted
    # Drawn evenly, but for the questions that would ask for what was before the beginning.
    expected = np.array([40 * 3 * (5 - d) / 3 for d in wanted])
    assert (abs(np.bincount(found)[wanted] - expected) < 4 * np.sqrt(expected) + 10).all()
    for q in range(len(questions)):
        assert solve_recall(alphabet, before(questions, q)) == questions.answers[q]
    names = questions.tokens[rows, questions.asked - 1]
    for row in range(40):
        sequence = questions.tokens[row]
        keys, times = np.unique(sequence[np.isin(sequence, alphabet.keys)], return_counts=True)
        assert times.max() == 2 and (times == 2).sum() == (questions.row == row).sum()
        assert len(keys) == 3 * 5
    if alphabet.family:
        index = names - alphabet.keys[0]
        assert ((questions.answers - alphabet.values[0]) // 8 == index).all()
        assert questions.choices.shape == (len(questions), 8)


def test_copies_do_not_tell_on_themselves() -> None:
    questions = copying(PLAIN, n=50, segment_len=T, distance=1, length=6)
    assert questions.choices.shape == (250, len(PLAIN.values) // 6)
    for q in range(0, 250, 5):  # choices of one run have nothing in common
        ids = questions.choices[q : q + 5].ravel().tolist()
        assert len(set(ids)) == len(ids)


def test_documents_to_train_on_have_answers_as_their_targets() -> None:
    questions = recall(FAMILIES, n=5, segment_len=T, distances=[0, 2], pairs=2)
    corpus = questions.corpus()
    assert len(corpus) == 5 and corpus.scored is not None
    assert (corpus.document(3) == questions.tokens[3]).all()
    scored = corpus.scored.reshape(5, -1)
    for row in range(5):
        places = questions.asked[questions.row == row]
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
def test_what_does_not_fit_is_told(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_alphabet_of_text(books_tokenizer: Tokenizer, text: Alphabet) -> None:
    assert not set(text.keys.tolist()) & set(text.values.tolist())
    assert b"".join(books_tokenizer.token_bytes(int(i)) for i in text.digits) == b"0123456789"
    for id in text.keys:
        assert books_tokenizer.token_bytes(int(id)).strip().isalpha()
    filler = text.fill(np.random.default_rng(0), 3, 50)
    whole = text.filler.tolist() * 2
    for row in filler.tolist():
        assert any(whole[i : i + 50] == row for i in range(len(text.filler)))
    with pytest.raises(ValueError, match="different words; allowed: at least 32"):
        Alphabet.of_text(books_tokenizer, books_tokenizer.encode("The whale and the sea."))


def test_an_alphabet_without_meaning_has_one_use_for_each_id() -> None:
    for alphabet in (PLAIN, FAMILIES, Alphabet.plain(32)):
        parts = [alphabet.digits, alphabet.keys, alphabet.values, alphabet.filler]
        ids = np.concatenate([[alphabet.bos], *parts, *alphabet.phrases.values()])
        assert sorted(ids.tolist()) == list(range(len(ids)))
        assert len(alphabet.digits) == 10 and min(map(len, parts)) >= 1
    assert len(FAMILIES.values) == 8 * len(FAMILIES.keys)


# -- where the answer lies ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 8, 0), (4, 6, 2), (4, 2, 3), (3, 4, 0)])
def test_regions_are_where_the_answer_can_be_read(shape: tuple[int, int, int]) -> None:
    """What lies beyond reach never changes the logits; what lies nearer does."""
    length, memory, compressed = shape
    rate = 2 if compressed else 1
    model = tiny_model(
        segment_len=length,
        memory_len=memory,
        compressed_len=compressed,
        compression_rate=rate,
        compression="mean",
        compression_loss="none",
        n_layers=2,
    )
    n = 2 * (memory + rate * compressed) + 5 * length
    random = np.random.default_rng(0)
    tokens = random.integers(1, 11, (1, n))
    seen = set()
    for asked in (n - 1, n - length // 2 - 1):
        plain = logits_at(model, tokens, asked)
        for told in range(asked):
            changed = tokens.copy()
            changed[0, told] = 1 + tokens[0, told] % 10
            differs = not torch.equal(plain, logits_at(model, changed, asked))
            one = np.zeros(1, dtype=int)
            question = Questions(
                tokens, one, np.array([[asked]]), np.array([[told]]), one[None], one
            )
            region = REGIONS[int(question.regions(model.config)[0])]
            seen.add(region)
            assert differs == (region != "beyond reach"), (told, asked, region)
            times = {"open segment": 0, "memory": 0, "compressed memory": 1}.get(region, -1)
            assert question.compressions(model.config) == times
    assert "beyond reach" in seen and "open segment" in seen
    assert ("memory" in seen) == (memory > 0)
    assert ("compressed memory" in seen) == (compressed > 0)


def logits_at(model: TransformerXL, tokens: np.ndarray, place: int) -> torch.Tensor:
    inputs = torch.from_numpy(np.concatenate([[[0]], tokens], axis=1)[:, : place + 1])
    state = model.init_state(1)
    with torch.no_grad():
        for piece in inputs.split(model.config.segment_len, dim=1):
            logits, state = model(piece, state)
            if state.phase == model.config.segment_len:
                state = model.commit(state)[0]
    return logits[0, -1]


# -- scoring --------------------------------------------------------------------------------------


class Scripted(TransformerXL):
    """A model that answers as it was told to: [N, n, V] logits by row and place."""

    def __init__(self, script: np.ndarray, config: ModelConfig) -> None:
        super().__init__(config)
        self.script = torch.from_numpy(script).float()
        self.rows_read = 0

    def hidden(
        self, tokens: torch.Tensor, state: State, cache: Cache | None = None, **options: Any
    ) -> tuple[torch.Tensor, State]:
        start = int(state.position[0])
        if not start:
            self.first = self.rows_read
            self.rows_read += len(tokens)
        rows = self.script[self.first : self.first + len(tokens)]
        read = rows[:, start : start + tokens.shape[1]]
        _, state = super().hidden(tokens, state, cache, **options)
        return read, state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def config_for(alphabet_size: int, segment_len: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=alphabet_size,
        n_layers=1,
        d_model=4,
        n_heads=1,
        head_dim=4,
        d_ff=4,
        segment_len=segment_len,
        memory_len=segment_len,
        compressed_len=segment_len // 4,
        compression="mean",
        compression_loss="none",
    )


SETS: dict[str, Callable[[], Questions]] = {
    "passkey": lambda: passkey(PLAIN, n=7, segment_len=T, distance=3, digits=2),
    "recall": lambda: recall(PLAIN, n=7, segment_len=T, distances=range(5), pairs=2),
    "copy": lambda: copying(PLAIN, n=7, segment_len=T, distance=0),
    "tracking": lambda: tracking(PLAIN, n=3, segment_len=T, distance=1),
}


@pytest.mark.parametrize("name", SETS)
def test_who_knows_is_right_and_who_does_not_is_at_chance(name: str) -> None:
    questions = SETS[name]()
    n, length = questions.tokens.shape
    script = np.zeros((n, length, 256))
    config = config_for(256, T)
    rows = np.arange(n)[:, None], np.arange(length)[None]
    script[(*rows, questions.tokens)] = 9.0
    read: list[int] = []
    model = Scripted(script, config)
    found = answer(model, questions, bos=0, batch_size=3, progress=read.append)
    assert found.right.all() and sum(read) == n * length
    assert found.margin == pytest.approx(9.0)
    # Uniform over the choices: right for one of them, the first of the ids.
    uniform = Scripted(np.zeros((n, length, 256)), config)
    found = answer(uniform, questions, bos=0, batch_size=4)
    assert found.margin == pytest.approx(0.0)
    assert found.chance == pytest.approx(questions.chance)
    # Wrong in the last token of the answer only.
    last = questions.asked[:, -1]
    script[questions.row, last, questions.answers[:, -1]] = -9.0
    found = answer(Scripted(script, config), questions, bos=0, batch_size=3)
    assert not found.right.any() and (found.margin < 9).all()


def test_a_guesser_is_right_as_often_as_chance_says() -> None:
    questions = recall(FAMILIES, n=60, segment_len=T, distances=range(4), pairs=3)
    random = np.random.default_rng(0)
    script = np.zeros((*questions.tokens.shape, 512))
    guess = random.integers(0, 8, len(questions))
    chosen = questions.choices[np.arange(len(questions)), guess]
    script[questions.row, questions.asked[:, 0], chosen] = 5.0
    found = answer(Scripted(script, config_for(512, T)), questions, bos=0)
    low, high = binomial_interval(int(found.right.sum()), len(questions), z=4)
    assert low < questions.chance == 1 / 8 < high
    rows = by_distance(found)
    assert [row["distance"] for row in rows] == [0, 1, 2, 3]
    assert sum(row["questions"] for row in rows) == len(questions)
    assert sum(row["right"] for row in rows) == found.right.sum()
    # T = M = 32, c·C = 32: a segment each, then nothing, with one layer.
    expected = ["open segment", "memory", "compressed memory", "beyond reach"]
    assert [row["region"] for row in rows] == expected
    times = by_compressions(found)
    assert [row["compressions"] for row in times] == [0, 1, None]
    assert times[0]["questions"] == rows[0]["questions"] + rows[1]["questions"]
    for row in rows:
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["margin_low"] <= row["margin"] <= row["margin_high"]


def test_answers_agree_with_a_plain_reading() -> None:
    """Against one row at a time, every logit kept."""
    model = tiny_model(vocab_size=256, segment_len=16, memory_len=16, compressed_len=8)
    questions = recall(PLAIN, n=5, segment_len=16, distances=range(5), pairs=2)
    found = answer(model, questions, bos=0, batch_size=2)
    for q in range(len(questions)):
        row, place = questions.row[q], int(questions.asked[q, 0])
        logits = logits_at(model, questions.tokens[row : row + 1], place)
        log_probs, right = logits.log_softmax(0), int(questions.answers[q, 0])
        others = [id for id in questions.choices[q].tolist() if id != right]
        margin = float(log_probs[right] - log_probs[others].mean())
        assert found.margin[q] == pytest.approx(margin, abs=1e-4)
        assert bool(found.right[q]) == (int(logits.argmax()) == right)
    assert np.isfinite(found.margin).all()


def test_binomial_intervals() -> None:
    # Wilson's interval, to three places: 8 of 10, and the ends.
    low, high = binomial_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert binomial_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert binomial_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    # It holds the truth about 95 times of 100.
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        bounds = [binomial_interval(int(k), 50) for k in random.binomial(50, share, 2000)]
        held = np.mean([low <= share <= high for low, high in bounds])
        assert 0.92 < held < 0.98
    for right, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="allowed: 0 to n"):
            binomial_interval(right, n)


@pytest.mark.parametrize("name", SETS)
def test_the_control_differs_in_what_was_told_alone(name: str) -> None:
    questions = SETS[name]()
    control = questions.retold(seed=1)
    assert (control.answers == questions.answers).all()
    told = control.tokens[control.row[:, None], control.told]
    assert (told != questions.answers).all()
    assert ((told[:, :, None] == questions.choices[:, None, :]).sum(axis=2) == 1).all()
    same = np.ones(questions.tokens.shape, dtype=bool)
    same[questions.row[:, None], questions.told] = False
    assert (control.tokens[same] == questions.tokens[same]).all()


def test_gains_are_zero_beyond_reach_and_show_what_was_told() -> None:
    model = tiny_model(vocab_size=256, segment_len=16, memory_len=16, compressed_len=8)
    parts = [copying(PLAIN, n=4, segment_len=16, distance=d, length=4) for d in range(7)]
    found = Answers.joined([answer(model, part, bos=0, control=True) for part in parts])
    beyond = found.region == REGIONS.index("beyond reach")
    assert beyond.any() and (found.gain[beyond] == 0).all()
    assert (found.gain[~beyond] != 0).all()
    rows = by_distance(found)
    assert rows[-1]["gain"] == 0 and rows[0]["gain_low"] <= rows[0]["gain"] <= rows[0]["gain_high"]
    alone = answer(model, parts[0], bos=0)
    assert np.isnan(alone.gain).all() and (alone.margin == found.margin[: len(parts[0])]).all()
    assert "gain" not in by_distance(alone)[0]


def test_joined_questions_keep_their_rows() -> None:
    parts = [tracking(PLAIN, n=2, segment_len=T, distance=1, seed=s, hops=(1,)) for s in range(3)]
    whole = joined(parts)
    assert len(whole) == 6 and whole.row.tolist() == list(range(6))
    assert (whole.answers == np.concatenate([part.answers for part in parts])).all()
    single = Answers(*(np.zeros(2) for _ in range(8)))
    assert len(Answers.joined([single, single]).right) == 4
    assert math.isclose(replace(single, chance=np.ones(2)).chance.mean(), 1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_is_asked(compression: str) -> None:
    model = tiny_model(
        vocab_size=256,
        segment_len=16,
        memory_len=16,
        compressed_len=8,
        compression=compression,
        compression_loss="none",
    )
    found = answer(model, copying(PLAIN, n=2, segment_len=16, distance=2, length=4), bos=0)
    assert np.isfinite(found.margin).all()
