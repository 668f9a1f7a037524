"""What the tests of sessions share."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from memory_store import Ref
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.runtime.stream import advance
from streamlm.sessions.session import Session
from streamlm.state import State
from tests.support import stores
from tests.support.invariants import assert_same_state

GOOD = "Call me Ishmael. Some years ago — never mind how long precisely. " * 6
TOLERANCE = 1e-4  # for slots near 1, computed in float32 in other chunks

TokenLog = Callable[..., list[int]]
Prose = Callable[..., str]
Open = Callable[..., Session]


@dataclass(frozen=True)
class End:
    """The end of a session, to be compared up to the last bits."""

    position: int
    tail: str
    log: list[int]
    state: State

    @classmethod
    def of(cls, session: Session, path: Path, token_log: TokenLog) -> "End":
        session.save()
        log = token_log(path, session.branch)
        return cls(session.position, session.tail, log, session.state)


def assert_same_end(found: End, wanted: End) -> None:
    assert (found.position, found.tail) == (wanted.position, wanted.tail)
    assert found.log == wanted.log
    assert_same_state(found.state, wanted.state, tolerance=TOLERANCE)


def facts(session: Session) -> tuple[object, ...]:
    """Everything that a call without effects must leave unchanged."""
    return (
        session.state.digest(),
        session.position,
        session.tail,
        session.saved,
        session._live.stream,
    )


def state_after(checkpoint: Checkpoint, ids: list[int]) -> State:
    """The state of a stream that has read these tokens."""
    model = checkpoint.model
    if not ids:
        return model.init_state(1)
    inputs = torch.tensor([[checkpoint.tokenizer.bos_id, *ids[:-1]]])
    return advance(model, inputs, model.init_state(1))[1]


def split(text: str, *at: int) -> list[str]:
    bounds = [0, *at, len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]


def damage(path: Path, ref: Ref | None, name: str) -> None:
    """Flip a bit in an array of a commit."""
    assert ref is not None
    file = path / "commits" / ref.commit.name
    data = bytearray(file.read_bytes())
    chunk = next(each for each in stores.members(bytes(data)) if each.startswith(f"{name}/c."))
    data[stores.where(bytes(data), chunk) + 40] ^= 1
    file.write_bytes(data)


@contextmanager
def ctrl_c_at(n: int, *modules: ModuleType) -> Iterator[None]:
    """Raises KeyboardInterrupt before the n-th line executed in some modules."""
    files = {module.__file__ for module in modules}
    left, before = n, sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if event == "line" and not left:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
