"""streamlm: language models that read without end in bounded memory.

from pathlib import Path

import streamlm

model = streamlm.load()
with streamlm.open("sessions/moby.zarr", model) as session:
    session.feed(Path("moby.txt"))
    for piece in session.generate("And so", max_tokens=200):
        print(piece, end="")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.checkpoints.checkpoint import load_checkpoint as load
    from streamlm.engine.engine import Engine
    from streamlm.sessions.opening import open_session as open
    from streamlm.sessions.session import Session

__version__ = "0.1.0"
__all__ = ["Checkpoint", "Engine", "Session", "load", "open"]

# Not imported above: they need torch, which takes longer than many a command.
_LATER = {
    "Checkpoint": ("streamlm.checkpoints.checkpoint", "Checkpoint"),
    "Engine": ("streamlm.engine.engine", "Engine"),
    "Session": ("streamlm.sessions.session", "Session"),
    "load": ("streamlm.checkpoints.checkpoint", "load_checkpoint"),
    "open": ("streamlm.sessions.opening", "open_session"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATER[name]
    found = globals()[name] = getattr(import_module(module), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
