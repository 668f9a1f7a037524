"""Scores of answers: exact matches, margins, gains, and regions of memory."""

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

T = 32
PLAIN, FAMILIES = Alphabet.plain(256), Alphabet.plain(512, family=8)


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 6, 2), (4, 2, 3), (3, 4, 0)])
def test_regions_match_the_reach_of_the_logits(shape: tuple[int, int, int]) -> None:
    """A cue changes the logits unless it lies beyond reach."""
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
    for query in (n - 1, n - length // 2 - 1):
        states: list[State] = []
        plain = logits_at(model, tokens, query, states)
        for cue in range(query):
            changed = tokens.copy()
            changed[0, cue] = 1 + tokens[0, cue] % 10
            same = states[: (cue + 1) // length + 1]  # the first input is a zero
            differs = not torch.equal(plain, logits_at(model, changed, query, same))
            one = np.zeros(1, dtype=int)
            question = Questions(
                tokens, one, np.array([[query]]), np.array([[cue]]), one[None], one
            )
            region = REGIONS[int(question.regions(model.config)[0])]
            seen.add(region)
            assert differs == (region != "beyond reach"), (cue, query, region)
            times = {"open segment": 0, "memory": 0, "compressed memory": 1}.get(region, -1)
            assert question.compressions(model.config) == times
    assert "beyond reach" in seen and "open segment" in seen
    assert ("memory" in seen) == (memory > 0)
    assert ("compressed memory" in seen) == (compressed > 0)


def logits_at(
    model: TransformerXL, tokens: np.ndarray, place: int, states: list[State] | None = None
) -> torch.Tensor:
    """The logits at a place; reads on behind `states`, to which those of segments are added."""
    inputs = torch.from_numpy(np.concatenate([[[0]], tokens], axis=1)[:, : place + 1])
    states = [] if states is None else states
    if not states:
        states.append(model.init_state(1))
    with torch.no_grad():
        for piece in inputs.split(model.config.segment_len, dim=1)[len(states) - 1 :]:
            logits, state = model(piece, states[-1])
            if state.phase == model.config.segment_len:
                state = model.commit(state)[0]
            states.append(state)
    return logits[0, -1]


class Scripted(TransformerXL):
    """A model with prescribed logits [N, n, V] by row and position."""

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
def test_scores_of_perfect_uniform_and_wrong_models(name: str) -> None:
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
    # Uniform over the choices: right for the first id.
    uniform = Scripted(np.zeros((n, length, 256)), config)
    found = answer(uniform, questions, bos=0, batch_size=4)
    assert found.margin == pytest.approx(0.0)
    assert found.chance == pytest.approx(questions.chance)
    # Wrong only in the last token of the answer.
    last = questions.query[:, -1]
    script[questions.row, last, questions.answers[:, -1]] = -9.0
    found = answer(Scripted(script, config), questions, bos=0, batch_size=3)
    assert not found.right.any() and (found.margin < 9).all()


def test_a_guessing_model_is_at_chance() -> None:
    questions = recall(FAMILIES, n=60, segment_len=T, distances=range(4), pairs=3)
    random = np.random.default_rng(0)
    script = np.zeros((*questions.tokens.shape, 512))
    guess = random.integers(0, 8, len(questions))
    chosen = questions.choices[np.arange(len(questions)), guess]
    script[questions.row, questions.query[:, 0], chosen] = 5.0
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


def test_answers_agree_with_plain_reading() -> None:
    """Against reading row by row, with all logits."""
    model = tiny_model(vocab_size=256, segment_len=16, memory_len=16, compressed_len=8)
    questions = recall(PLAIN, n=5, segment_len=16, distances=range(5), pairs=2)
    found = answer(model, questions, bos=0, batch_size=2)
    for q in range(len(questions)):
        row, place = questions.row[q], int(questions.query[q, 0])
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
    # It contains the true share in about 95 of 100 cases.
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        bounds = [binomial_interval(int(k), 50) for k in random.binomial(50, share, 2000)]
        held = np.mean([low <= share <= high for low, high in bounds])
        assert 0.92 < held < 0.98
    for right, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="allowed: 0 to n"):
            binomial_interval(right, n)


@pytest.mark.parametrize("name", SETS)
def test_the_counterfactual_differs_only_in_cues(name: str) -> None:
    questions = SETS[name]()
    control = questions.counterfactual(seed=1)
    assert (control.answers == questions.answers).all()
    cue = control.tokens[control.row[:, None], control.cue]
    assert (cue != questions.answers).all()
    assert ((cue[:, :, None] == questions.choices[:, None, :]).sum(axis=2) == 1).all()
    same = np.ones(questions.tokens.shape, dtype=bool)
    same[questions.row[:, None], questions.cue] = False
    assert (control.tokens[same] == questions.tokens[same]).all()


def test_gains_are_zero_only_beyond_reach() -> None:
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
def test_every_compression_is_scored(compression: str) -> None:
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
