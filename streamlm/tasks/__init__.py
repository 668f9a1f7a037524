"""Measured remembering: tasks with known answers, and what a model remembers of a text.

Generators are pure functions of an alphabet and a seed; `answer` reads what they made.
"""

from streamlm.tasks.alphabet import Alphabet
from streamlm.tasks.copying import copying
from streamlm.tasks.passkey import passkey
from streamlm.tasks.questions import REGIONS, Questions, joined
from streamlm.tasks.recall import recall
from streamlm.tasks.scoring import Answers, answer, binomial_interval, by_compressions, by_distance
from streamlm.tasks.tracking import tracking

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
