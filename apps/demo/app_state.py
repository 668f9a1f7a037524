"""What all parts of the demo share: the model, whose turn it is, and where sessions lie."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from apps.demo.expiry import BrowserShelves
from apps.demo.jobs import Job, Jobs
from apps.demo.render.memory_svg import Seen
from apps.demo.shelf import Shelf

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint

VISITOR = "streamlm-visitor"  # the cookie that tells browsers apart
PER_BROWSER = 20  # sessions that a browser without a name may keep
KEEP_DAYS = 30  # without use, for which a browser's shelf stays
LOOKS = 32  # newest looks at memories that are kept
# Who reads or writes for long does not keep others from looking. Each takes a thread while it
# lasts, of the 40 that the server has.
LONG: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 24}
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 8}
Whose = Literal["one", "user", "browser"]


class Desk:
    """One running demo.

    Args:
        store: the folder of sessions, or a URL of object storage.
        model: a checkpoint directory, or a bundled name; device: see `load_checkpoint`.
        whose: "one" shelf for everybody, one for each "user" who logged in, or one for each
            "browser".
        files: a folder for uploads and downloads, which the server clears now and then.
        keep_days: browsers' shelves that were not used for so long are removed; 0 keeps them.
        results: a folder with what `streamlm compare` has found; it need not exist.

    Attributes:
        jobs: the work that is under way; browsers: their shelves, where each has one in a folder.
    """

    def __init__(
        self,
        store: str,
        *,
        files: str,
        model: str = "books",
        device: str = "auto",
        whose: Whose = "one",
        keep_days: int = KEEP_DAYS,
        results: str = "benchmarks/results",
    ) -> None:
        self.store, self.model, self.device, self.whose = store, model, device, whose
        self.files, self.results = files, results
        self.jobs = Jobs()
        self.browsers: BrowserShelves | None = None
        if whose == "browser" and "://" not in store:  # object storage has rules of its own
            self.browsers = BrowserShelves(os.path.join(store, "browsers"), keep_days=keep_days)
        self._loading = threading.Lock()
        self._warm = threading.Event()
        self._checkpoint: Checkpoint | None = None
        self._looks: OrderedDict[str, Seen | None] = OrderedDict()

    @property
    def checkpoint(self) -> Checkpoint:
        """The model; loaded when it is first needed."""
        with self._loading:
            if self._checkpoint is None:
                from streamlm.checkpoints.checkpoint import (
                    load_checkpoint,  # torch, which takes seconds
                )

                self._checkpoint = load_checkpoint(self.model, device=self.device)
            return self._checkpoint

    def warm_up(self) -> None:
        """Begin to load the model, in a thread; nothing where that has begun.

        Importing torch takes the interpreter for two seconds, which the first page needs itself.
        """
        if not self._warm.is_set():
            self._warm.set()
            threading.Thread(
                target=lambda: self.checkpoint, name="streamlm model", daemon=True
            ).start()

    def look(self, shelf: Shelf, name: str, *, visitor: str) -> Seen | None:
        """What a session remembers as it is on disk; None where there is nothing to see.

        A look at a state is kept, for the newest tokens must be read again for it, up to 16,384 of
        them where the command line has read.

        Raises:
            Refused: the session cannot be read.
        """
        history = shelf.history(name) if shelf.has(name) else []
        if not history:
            return None
        commit = history[-1].commit.id  # a hash of all that led to it
        if commit not in self._looks:

            def work(job: Job) -> Seen | None:
                if commit in self._looks:  # somebody had their turn before
                    return self._looks[commit]
                with shelf.open(name, self.checkpoint, readonly=True) as session:
                    return Seen.of(session)

            self._looks[commit] = self.jobs.do(work, visitor=visitor)
            while len(self._looks) > LOOKS:
                self._looks.popitem(last=False)
        return self._looks[commit]

    def shelf(self, request: gr.Request | None) -> Shelf:
        """The sessions of who asks.

        Raises:
            gr.Error: nobody knows who it is.
        """
        if self.whose == "one":
            return Shelf(self.store)
        if self.whose == "user":
            user = getattr(request, "username", None)
            if not user:
                raise gr.Error("Log in first.")
            return Shelf(os.path.join(self.store, "users", _folder(user)))
        key = (getattr(request, "cookies", None) or {}).get(VISITOR, "")
        if not re.fullmatch(r"[0-9a-f]{32}", key):
            raise gr.Error("Each browser has sessions of its own here: allow cookies, and reload.")
        # The folder's name does not tell the key, which is all that a browser has to show.
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        if self.browsers is not None:
            self.browsers.used(name)
        return Shelf(os.path.join(self.store, "browsers", name), limit=PER_BROWSER)


def _folder(user: str) -> str:
    """A folder's name for a user's: the same where it is one."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", user):
        return user
    return "~" + hashlib.sha256(user.encode()).hexdigest()[:32]


def visitor(request: gr.Request | None) -> str:
    """The page that asks: each tab of a browser is one."""
    return str(getattr(request, "session_hash", None) or "nobody")
