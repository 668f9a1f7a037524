"""The state of one running demo: the models, the jobs, the visitors' shelves, and memory views."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr

from apps.demo.expiry import BrowserShelves
from apps.demo.jobs import Jobs
from apps.demo.models import Models
from apps.demo.quotes import Quotes
from apps.demo.render.memory_svg import MemoryView
from apps.demo.shelf import Refused, Shelf
from apps.demo.unfinished import Unfinished
from streamlm.checkpoints.catalogue import present
from streamlm.engine import Handle

if TYPE_CHECKING:
    from streamlm.engine import Engine

COOKIE = "streamlm-visitor"  # identifies a browser
MAX_BROWSER_SESSIONS = 20  # sessions on the shelf of an anonymous browser
KEEP_DAYS = 30  # days after which an unused browser shelf expires
KEPT_CHOICES = 1024  # models chosen for sessions that do not exist yet
CACHED_VIEWS = 32  # memory views kept, the most recent ones
PATIENCE = 0.2  # seconds between two looks at whether a memory view should give way
# Long reads and writes must not block quick requests. Each job holds one of the server's 40
# threads while it runs.
LONG: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 24}
QUICK: dict[str, Any] = {"concurrency_id": "quick", "concurrency_limit": 8}
Sharing = Literal["shared", "user", "browser"]


@dataclass(eq=False)
class _CachedView:
    """A memory view once it is made."""

    making: threading.Lock = field(default_factory=threading.Lock)
    made: bool = False
    view: MemoryView | None = None


class AppState:
    """One running demo.

    Args:
        store: the folder of sessions, or a URL of object storage.
        model: of new sessions, what `load_checkpoint` takes; None for the best one that is here.
        device: see `load_checkpoint`.
        sharing: one "shared" shelf for all visitors, or one per logged-in "user", or one per
            "browser".
        files: a folder for uploads and downloads, which the server cleans up periodically.
        keep_days: days after which an unused browser shelf expires; 0 disables expiry.
        results: a folder with results of `streamlm compare`; it need not exist.

    Attributes:
        jobs: the running jobs.
        quotes: what recall has put before the messages of chats.
        unfinished: the texts whose reading was interrupted.
        browsers: the shelves of browsers; None unless each browser has one in a local folder.
    """

    def __init__(
        self,
        store: str,
        *,
        files: str,
        model: str | None = None,
        device: str = "auto",
        sharing: Sharing = "shared",
        keep_days: int = KEEP_DAYS,
        results: str = "benchmarks/results",
    ) -> None:
        self.store, self.sharing = store, sharing
        self.files, self.results = files, results
        self.jobs, self.quotes, self.unfinished = Jobs(), Quotes(), Unfinished()
        self.browsers: BrowserShelves | None = None
        if sharing == "browser" and "://" not in store:  # object storage has lifecycle rules
            self.browsers = BrowserShelves(os.path.join(store, "browsers"), keep_days=keep_days)
        self.models = Models(model or present()[0], device=device)
        self._chosen: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._warm = threading.Event()
        self._views: OrderedDict[str, _CachedView] = OrderedDict()

    def choose(self, shelf: Shelf, name: str, model: str) -> None:
        """Set the model of a session that does not exist yet.

        Raises:
            ValueError: there is no such model.
        """
        if model not in self.models.names:
            raise ValueError(f"model {model!r}; allowed: {', '.join(self.models.names)}")
        self._chosen[shelf.folder, name] = model
        while len(self._chosen) > KEPT_CHOICES:
            self._chosen.popitem(last=False)

    def model_of(self, shelf: Shelf, name: str) -> str:
        """The name of a session's model: the one that wrote it, or that was chosen for it.

        Raises:
            Refused: not a valid name, the session cannot be read, or its model is not here.
        """
        store = shelf.store(name)
        if store is None:
            return self._chosen.get((shelf.folder, name), self.models.default)
        found = self.models.of(store)
        if found is None:
            raise Refused(
                f"{name} was written with a different model from those here: "
                f"{', '.join(self.models.names)}."
            )
        return found

    def engine_of(self, shelf: Shelf, name: str) -> Engine:
        """The engine of a session's model, loaded on first use.

        Raises:
            Refused: as `model_of`.
        """
        model = self.model_of(shelf, name)
        return self.models.get(model, shelf.store(name))

    def warm_up(self) -> None:
        """Start loading the default model in a thread, unless that has already started.

        Importing torch blocks the interpreter for two seconds, so the first page goes first.
        """
        if not self._warm.is_set():
            self._warm.set()
            threading.Thread(
                target=lambda: self.models.get(self.models.default),
                name="streamlm model",
                daemon=True,
            ).start()

    def memory_view(
        self, shelf: Shelf, name: str, *, visitor: str, gives_way: bool = False
    ) -> MemoryView | None:
        """View the saved memory of a session; None if it has none.

        Views are cached: each one needs the tokens since the last full snapshot to be read again,
        up to 16,384 of them for a session that the command line has written. A large model takes
        seconds, in which others go on.

        Args:
            gives_way: give up as soon as a job of this visitor runs.

        Raises:
            Refused: the session cannot be read.
            Cancelled: it gave way.
        """
        history = shelf.history(name) if shelf.has(name) else []
        if not history:
            return None
        commit = history[-1].commit.id  # a hash of the whole history
        cached = self._views.setdefault(commit, _CachedView())
        while len(self._views) > CACHED_VIEWS:
            self._views.popitem(last=False)

        def result(report: Handle) -> Any:
            while gives_way and not report.done:
                if self.jobs.runs(visitor):
                    report.cancel()
                with suppress(TimeoutError):
                    report.result(PATIENCE)
            return report.result()

        with cached.making:  # several parts of a page ask for the same view at once
            if not cached.made:
                engine = self.engine_of(shelf, name)
                with shelf.open(name, engine.checkpoint, readonly=True) as session:
                    cached.view = MemoryView.of(engine, session, result=result)
                cached.made = True
        return cached.view

    def shelf(self, request: gr.Request | None) -> Shelf:
        """The shelf of the visitor who sent a request.

        Raises:
            gr.Error: the request identifies no user, or no browser, where that is required.
        """
        if self.sharing == "shared":
            return Shelf(self.store)
        if self.sharing == "user":
            user = getattr(request, "username", None)
            if not user:
                raise gr.Error("Log in first.")
            return Shelf(os.path.join(self.store, "users", _folder_name(user)))
        key = (getattr(request, "cookies", None) or {}).get(COOKIE, "")
        if not re.fullmatch(r"[0-9a-f]{32}", key):
            raise gr.Error("Each browser has its own sessions here: allow cookies and reload.")
        # The folder's name must not reveal the key, which is the browser's only credential.
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        if self.browsers is not None:
            self.browsers.touch(name)
        return Shelf(os.path.join(self.store, "browsers", name), max_sessions=MAX_BROWSER_SESSIONS)


def _folder_name(user: str) -> str:
    """The folder of a user: their name if it is safe as a path, a hash of it otherwise."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", user):
        return user
    return "~" + hashlib.sha256(user.encode()).hexdigest()[:32]


def visitor_id(request: gr.Request | None) -> str:
    """The page that sent a request; each tab of a browser has its own id."""
    return str(getattr(request, "session_hash", None) or "anonymous")
