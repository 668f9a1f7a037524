"""Memory tasks with known answers, and measures of memory on a text.

Generators are pure functions of an alphabet and a seed; `answer` evaluates a model on their
questions.
"""

from streamlm.lab.tasks.alphabet import Alphabet
from streamlm.lab.tasks.copying import copying
from streamlm.lab.tasks.passkey import passkey
from streamlm.lab.tasks.questions import REGIONS, Questions, joined
from streamlm.lab.tasks.recall import recall
from streamlm.lab.tasks.scoring import (
    Answers,
    answer,
    binomial_interval,
    by_compressions,
    by_distance,
)
from streamlm.lab.tasks.tracking import tracking

__all__ = [
    "REGIONS",
    "Alphabet",
    "Answers",
    "Questions",
    "answer",
    "binomial_interval",
    "by_compressions",
    "by_distance",
    "copying",
    "joined",
    "passkey",
    "recall",
    "tracking",
]
