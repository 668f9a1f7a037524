"""Many sessions at once on one model: `Engine`."""

from streamlm.engine.engine import Engine
from streamlm.engine.handle import Cancelled, Handle
from streamlm.engine.open_sessions import OpenSessions
from streamlm.engine.scheduler import Busy
from streamlm.engine.written import Written

__all__ = ["Busy", "Cancelled", "Engine", "Handle", "OpenSessions", "Written"]
