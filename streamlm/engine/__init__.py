"""Many sessions at once on one model: `Engine`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamlm.engine.handle import Busy, Cancelled, Handle

if TYPE_CHECKING:
    from streamlm.engine.engine import Engine
    from streamlm.engine.open_sessions import OpenSessions
    from streamlm.engine.written import Written

__all__ = ["Busy", "Cancelled", "Engine", "Handle", "OpenSessions", "Written"]

# Not imported above: they need torch, which takes longer than whoever catches an error should wait.
_LATER = {"Engine": "engine", "OpenSessions": "open_sessions", "Written": "written"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found
