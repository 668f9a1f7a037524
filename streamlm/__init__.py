"""streamlm: language models that read without end in bounded memory.

import streamlm

model = streamlm.load()
with streamlm.open("sessions/moby.zarr", model) as session:
    session.feed("moby.txt")
    for piece in session.generate("And so", max_tokens=200):
        print(piece, end="")
"""

from streamlm.checkpoint import Checkpoint
from streamlm.checkpoint import load_checkpoint as load
from streamlm.opening import open_session as open
from streamlm.session import Session

__version__ = "0.1.0"
__all__ = ["Checkpoint", "Session", "load", "open"]
