"""Wants: what a task says at each `yield` that it needs to go on."""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from streamlm.engine.row import Drawn, Row
from streamlm.runtime.row_sampling import Draw


@dataclass(frozen=True)
class Turn:
    """Another turn.

    Attributes:
        tokens: read in the last one.
    """

    tokens: int = 0


class Want(Enum):
    """TOKEN: a step of its own, in which a token is generated. WAIT: others have to go on first."""

    TOKEN = auto()
    WAIT = auto()


@dataclass(frozen=True, eq=False)
class Decode:
    """The newest token of the row to be read, and a token to be drawn."""

    row: Row
    draw: Draw


Task = Generator["Turn | Want | Decode", "Drawn | None", Any]
