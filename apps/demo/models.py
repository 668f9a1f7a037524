"""The models of a demo, each with its engine: loaded when used, and few of them kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamlm.checkpoints.catalogue import BUNDLED, DOWNLOADABLE, present

if TYPE_CHECKING:
    from memory_store.store import Store
    from streamlm.engine import Engine

MOST_LOADED = 2  # models in memory, the ones used last
ROWS = 4  # sessions of a model that write at once
MOST_REQUESTS = 64  # that an engine serves at once, so that nobody waits for a book to be read


class Models:
    """Models by name, and the model of a session.

    Args:
        default: of new sessions, what `streamlm.load` takes.
        device: see `load_checkpoint`.

    Attributes:
        names: the default, and the models that are bundled or downloaded.
    """

    def __init__(self, default: str, *, device: str = "auto") -> None:
        self.default, self.device = default, device
        self.names = list(dict.fromkeys([default, *present()]))
        self._loading = threading.Lock()
        self._loaded: OrderedDict[str, Engine] = OrderedDict()
        self._digests: dict[str, str] = {}
        self._chats: dict[str, bool] = {}

    def get(self, name: str, store: Store | None = None) -> Engine:
        """The engine of a model, with the windows that a session was begun with.

        One that is no longer kept serves those who hold it.

        Args:
            store: the session's; None for one that does not exist yet.
        """
        from streamlm.checkpoints.checkpoint import load_checkpoint  # torch takes seconds
        from streamlm.engine import Engine
        from streamlm.sessions.windows import own_windows, recorded_attributes, windows_for

        windows = {} if store is None else windows_for(name, store)
        windows = windows or own_windows(name)
        with self._loading:
            for key, found in self._loaded.items():
                recorded = recorded_attributes(found.checkpoint)
                known: Mapping[str, Any] = recorded.get("windows", {})
                if key.partition("\n")[0] == name and windows.items() <= known.items():
                    self._loaded.move_to_end(key)
                    return found
            checkpoint = load_checkpoint(name, device=self.device, settings=windows)
            found = Engine(checkpoint, rows=ROWS, max_running=MOST_REQUESTS, narrow=True)
            self._loaded[f"{name}\n{sorted(windows.items())}"] = found
            while len(self._loaded) > MOST_LOADED:
                self._loaded.popitem(last=False)
            return found

    def of(self, store: Store) -> str | None:
        """The name of the model that wrote a session; None if it is not among `names`."""
        wanted = store.fingerprints.get("weights")
        return next((name for name in self.names if self._digest(name) == wanted), None)

    def chats(self, name: str) -> bool:
        """Whether a model has a chat template."""
        entry = BUNDLED.get(name) or DOWNLOADABLE.get(name)
        if entry is not None:
            return entry.chat
        if name not in self._chats:
            from streamlm.checkpoints.sources import find_model

            chat = find_model(name).read_tokenizer().chat
            self._chats[name] = chat is not None and chat.template is not None
        return self._chats[name]

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            from streamlm.checkpoints.sources import find_model

            self._digests[name] = find_model(name).weights_digest
        return self._digests[name]
