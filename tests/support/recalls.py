"""A session that read a fact long ago, for tests of recall in the demo."""

from pathlib import Path

import streamlm
from tests.support.chats import CHAT_WINDOWS

FACT = "Zebulon Quayle keeps his <b>ledger</b> at Xylophone Wharf 7391."
QUESTION = "Where does Zebulon Quayle keep his ledger?"
COMMON = "the captain and the whale"  # nothing in it is rare
FILLER = "It was the whale and the sea, and the old captain said it again. "


def session_with_fact(place: Path, model: Path) -> None:
    """Write a session of a chat model that has read FACT, and much since."""
    with streamlm.open(place, model, device="cpu", settings=CHAT_WINDOWS) as session:
        session.feed(f"{FILLER * 40}\n\n{FACT}\n\n{FILLER * 120}\n")
