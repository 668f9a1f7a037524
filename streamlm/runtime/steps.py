"""Steps: work that reads tokens, cut so that others may have their turns in between."""

from collections.abc import Generator
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
# Yields the number of tokens of each step, a segment at most, and returns the result.
Steps: TypeAlias = Generator[int, None, Result]


def finish(steps: Steps[Result]) -> Result:
    """Take all steps, and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            result: Result = ended.value
            return result
