"""What was never told: things like those that were planted, and questions about nothing of it."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from benchmarks.archive_parts.stream import BANDS, WORDS, Asked, Planted, pair, pass_key, planted_of
from streamlm.lab.tasks.facts import facts

BAND, GENERAL = "never told", "general"
QUESTIONS = (
    "Tell me a joke about cats.",
    "What is the capital of Norway?",
    "How do I boil an egg?",
    "Write a short poem about the sea.",
    "What is 17 times 3?",
    "Who painted the Mona Lisa?",
    "Explain photosynthesis.",
    "What time is it?",
    "Who are you?",
    "Can you help me with my homework?",
    "What is the speed of light?",
    "Give me three tips for sleeping well.",
    "Translate good morning into French.",
    "How many legs does a spider have?",
    "Why is the sky blue?",
    "Write a haiku about winter.",
    "What is a good name for a kitten?",
    "Recommend a film for tonight.",
    "What causes earthquakes?",
    "How do airplanes fly?",
)


def untold(asked: Sequence[Asked], planted: int, n: int) -> list[Asked]:
    """n things of each task that were not planted, and the general questions.

    Args:
        asked: what was planted; planted: things of each task in each band, as `build` was given.
    """
    told = {each.thing.cue for each in asked}
    random = np.random.default_rng(1)
    before = 2 * planted * len(BANDS)  # people of whom something was told
    people = list(facts(before + 2 * n, use="evaluation"))[before:]
    keys = (pass_key(gate, "00000") for gate in random.permutation(np.arange(100, 1000)).tolist())
    pairs = (
        pair(WORDS[at // len(WORDS)], WORDS[at % len(WORDS)], "00000")
        for at in random.permutation(len(WORDS) ** 2).tolist()
    )
    things = [planted_of(fact) for fact in people]
    for some in (keys, pairs):
        things += islice((thing for thing in some if thing.cue not in told), n)
    things += [Planted(GENERAL, ("",), "", question, "", "") for question in QUESTIONS]
    return [Asked(BAND, (0,), thing) for thing in things]
