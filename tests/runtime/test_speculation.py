"""Speculative decoding: the same greedy text, the same distribution, the same states."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import streamlm
import streamlm.runtime.speculation
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.runtime.drafter import (
    Drafter,
)
from streamlm.runtime.sampling import Sampling
from streamlm.runtime.speculation import Accepted, generate_pass
from streamlm.runtime.stream import advance
from streamlm.state import State
from tests.support.drafters import Oracle, config_for
from tests.support.invariants import assert_same_state, random_tokens, tiny_model

SHORT: dict[str, Any] = {"compressed_len": 0, "compression_loss": "none"}
HEADS: dict[str, dict[str, Any]] = {
    "relative": {},
    "plain": {**SHORT, "memory_len": 0},
    "adaptive": {"cutoffs": [5], "div_val": 2},
    "most-used": {"compression": "most-used", "memory_len": 8, "compressed_len": 4},
    "full": {**SHORT, "head": "full", "memory_len": 0},
    "recurrent": {**SHORT, "head": "recurrent", "memory_len": 0},
    "linformer": {**SHORT, "head": "linformer", "memory_len": 16, "projected_len": 3},
    "informer": {**SHORT, "head": "informer", "memory_len": 16, "factor": 1},
    "sketch": {**SHORT, "head": "sketch", "memory_len": 8, "compressed_len": 5, "coverage": 0.1},
    "sinks": {**SHORT, "head": "sinks", "pinned_len": 3},
}
GREEDY = Sampling(temperature=0)


def speak(
    model: Model,
    drafter: Drafter | None,
    n: int,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> tuple[list[int], State, list[list[Accepted]]]:
    """Generate n tokens after some that were read; the state has read all but the last."""
    tokens = random_tokens(model, 21)
    cache = Cache()
    hidden, state = advance(model, tokens[:, :-1], model.init_state(1), cache)
    known, random, passes = tokens[0].numpy(), np.random.PCG64(seed), []
    suppressed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    while (left := n - sum(map(len, passes))) > 0:
        found = generate_pass(
            model,
            drafter if drafter is not None else Drafter(config_for(model)),
            known=known,
            state=state,
            cache=cache,
            hidden=hidden if drafter is not None else None,
            sampling=sampling,
            recent=known,
            random=random,
            suppressed=suppressed,
            limit=left,
        )
        passes.append(found)
        known = np.append(known, [one.token for one in found])
        state, hidden = found[-1].state, found[-1].hidden
    return known[21:].tolist(), state, passes


def small(head: str) -> Model:
    options = {"segment_len": 8, "memory_len": 6, "compressed_len": 5, **HEADS[head]}
    model: Model = tiny_model(**options).requires_grad_(False)
    return model


# -- the same text --------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("head", HEADS)
def test_greedy_text_is_the_same_with_a_drafter(head: str, penalty: float) -> None:
    model = small(head)
    sampling = replace(GREEDY, repetition_penalty=penalty)
    wanted, plain, _ = speak(model, None, 18, sampling=sampling)
    for right in (0, 2):
        drafter = Oracle(model, config_for(model), right)
        found, state, passes = speak(model, drafter, 18, sampling=sampling)
        assert found == wanted
        assert_same_state(state, plain, tolerance=1e-10)
        accepted = sum(one.drafted for each in passes for one in each)
        if penalty == 1:  # the oracle ignores penalties
            assert len(passes) == 18 if right == 0 else accepted > 6


@pytest.mark.parametrize("head", HEADS)
def test_the_state_after_each_token_is_independent(head: str) -> None:
    """Each token of a pass comes with an independent state, although they share buffers."""
    model = small(head)
    _, _, passes = speak(model, Oracle(model, config_for(model), 2), 12)
    found = [one for each in passes for one in each]
    assert any(len(each) == 3 for each in passes)
    tokens = random_tokens(model, 21)
    ids = torch.cat([tokens, torch.tensor([[one.token for one in found]])], dim=1)
    again, from_start = advance(model, ids, model.init_state(1))
    for index, one in reversed(list(enumerate(found))):
        # Continuing from a later state must not change an earlier one.
        _, wanted = advance(model, ids[:, : 21 + index], model.init_state(1))
        assert_same_state(one.state, wanted, tolerance=1e-10)
        on, ahead = advance(model, ids[:, 21 + index :], one.state)
        assert torch.allclose(on, again, atol=1e-10)
        assert_same_state(ahead, from_start, tolerance=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_rejected_drafts_leave_no_trace(head: str) -> None:
    """Two drafts that differ only in rejected tokens lead to the same state, bit for bit."""
    model = small(head)
    # Both draft the first token of a pass right, and differ in the wrong ones.
    drafters = [Oracle(model, config_for(model), 1, wrong) for wrong in (0, 1)]
    (tokens, one, passes), (others, other, _) = (speak(model, each, 12) for each in drafters)
    assert tokens == others and drafters[0].guesses != drafters[1].guesses
    assert max(map(len, passes)) == 2
    assert_same_state(one, other, tolerance=1e-12)
    if head == "adaptive":  # tokens of a bin are embedded in one product, whose rounding depends
        return  # on its number of rows
    assert one.digest() == other.digest()
    read = torch.tensor([[tokens[-1]]])
    (ahead, state), (also, state_too) = (advance(model, read, each) for each in (one, other))
    assert torch.equal(ahead, also) and state.digest() == state_too.digest()


# -- the same distribution ------------------------------------------------------------------------

VOCABULARY, LENGTH = 4, 3


class Remembered(Sampling):
    """Caches its answers."""

    answers: ClassVar[dict[object, Tensor]] = {}

    def probabilities(self, logits: Tensor, recent: np.ndarray) -> Tensor:
        asked = (self, logits.numpy().tobytes(), recent.tobytes())
        if asked not in self.answers:
            self.answers[asked] = super().probabilities(logits, recent)
        return self.answers[asked]


SAMPLING = Remembered(temperature=1.5, top_p=0.97, repetition_penalty=1.4)


def remember(thing: Any, name: str, key: Callable[..., object]) -> None:
    """Cache a pure method; its arguments stay alive."""
    method, answers = getattr(thing, name), {}

    def answer(*arguments: Any) -> Any:
        asked = key(*arguments)
        if asked not in answers:
            answers[asked] = method(*arguments), arguments
        return answers[asked][0]

    object.__setattr__(thing, name, answer)


@pytest.fixture(scope="module")
def odds() -> Callable[[int, int], np.ndarray]:
    """Counts of each sequence of LENGTH tokens in a number of draws, and their expectation."""
    model = tiny_model(vocab_size=VOCABULARY, segment_len=8, n_layers=1).requires_grad_(False)
    torch.manual_seed(0)
    drafter = Drafter(config_for(model, n_tokens=2)).double().requires_grad_(False)
    drafter.output.weight *= 4  # confident, and often wrong
    begin = random_tokens(model, 5)
    hidden, state = advance(model, begin[:, :-1], model.init_state(1))
    known = begin[0].numpy()
    suppressed = torch.zeros(VOCABULARY, dtype=torch.bool)
    exact = np.ones((VOCABULARY,) * LENGTH)
    for sequence in product(range(VOCABULARY), repeat=LENGTH):
        for index, token in enumerate(sequence):
            ids = torch.cat([begin, torch.tensor([sequence[:index]], dtype=torch.int64)], dim=1)
            logits = model.logits(advance(model, ids, model.init_state(1))[0])[0]
            exact[sequence] *= float(
                Sampling.probabilities(SAMPLING, logits, ids[0].numpy())[token]
            )
    remember(model, "hidden", lambda tokens, state, cache: (tuple(tokens[0].tolist()), id(state)))
    remember(model, "logits", lambda hidden: (hidden.data_ptr(), hidden.shape))
    remember(model, "truncate", lambda before, tokens, after, n, cache: (id(before), id(after), n))
    remember(
        drafter, "context", lambda tokens, hidden, state: (tuple(tokens[0].tolist()), id(state))
    )
    remember(drafter, "forward", lambda model, context: id(context))

    def count(draws: int, seed: int) -> np.ndarray:
        counts, random = np.zeros((VOCABULARY,) * LENGTH), np.random.PCG64(seed)
        for _ in range(draws):
            written: list[int] = []
            last: Any = (state, hidden)
            while len(written) < LENGTH:
                so_far = np.append(known, np.array(written, known.dtype))
                found = generate_pass(
                    model, drafter, known=so_far, state=last[0], hidden=last[1], cache=Cache(),
                    sampling=SAMPLING, recent=so_far, random=random, suppressed=suppressed,
                    limit=LENGTH - len(written),
                )  # fmt: skip
                written += [one.token for one in found]
                last = found[-1].state, found[-1].hidden
            counts[tuple(written)] += 1
        return np.stack([counts, exact * draws])

    return count


def chi_square(counts: np.ndarray) -> float:
    """Chi-square in standard deviations above its mean; rare cells are merged."""
    found, expected = counts.reshape(2, -1)
    if found[expected == 0].any():  # an impossible sequence occurred
        return math.inf
    often = expected >= 5
    found, expected = (np.append(each[often], each[~often].sum()) for each in (found, expected))
    found, expected = found[expected > 0], expected[expected > 0]
    freedom = len(found) - 1
    assert freedom > 10
    square = float(((found - expected) ** 2 / expected).sum())
    return (square - freedom) / (2 * freedom) ** 0.5


def test_the_distribution_is_the_models(odds: Callable[[int, int], np.ndarray]) -> None:
    assert abs(chi_square(odds(3000, 1))) < 3.5


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("is_accepted", lambda token, wanted, drawn, chance: True),
        ("is_accepted", lambda token, wanted, drawn, chance: chance < float(wanted[token])),
        ("residual", lambda wanted, drawn: wanted),
    ],
    ids=["accepts all", "accepts by p alone", "draws anew from p"],
)
def test_wrong_acceptance_rules_are_noticed(
    odds: Callable[[int, int], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    wrong: Callable[..., Any],
) -> None:
    monkeypatch.setattr(streamlm.runtime.speculation, name, wrong)
    assert chi_square(odds(2000, 2)) > 5
