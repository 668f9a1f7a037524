"""Shelves: each owner of a key has a folder of sessions, which no other key opens.

All shelves share the memory for open sessions. Whatever waits for a disk runs in a thread.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio import to_thread

from apps.server.logs import log
from apps.server.metrics import Metrics
from memory_store import Conflict, StoreError, places
from memory_store.backends.object_client import is_url
from memory_store.store import Store
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.engine import OpenSessions
from streamlm.sessions.one_thread import InUse
from streamlm.sessions.session import Session
from streamlm.sessions.shelf import find, locate, missing_branch, open_named, place_of

T = TypeVar("T")


async def aside(function: Callable[..., T], *args: object) -> T:
    """Call a function in a thread, and wait for it even if the request is cancelled."""
    return await to_thread.run_sync(function, *args)


def folder_of(store: str, owner: str | None) -> str:
    """The folder or URL of an owner's sessions; without keys, that of all."""
    if owner is None:
        return store
    if is_url(store):
        return f"{store.rstrip('/')}/keys/{owner}"
    return os.path.join(store, "keys", owner)


def make_folder(folder: str) -> None:
    """Make the folder of a shelf; object storage needs none."""
    if not is_url(folder):
        os.makedirs(folder, exist_ok=True)


def open_sessions(
    store: str, checkpoint: Checkpoint, *, limit: int, save_every: int
) -> OpenSessions:
    """The sessions of all shelves, by `Shelf.key`."""

    def open(key: str) -> Session:
        owner, _, name = key.partition("/")
        folder = folder_of(store, owner or None)
        make_folder(folder)
        return open_named(folder, name, checkpoint, create=True, save_every=save_every)

    def on_unsaved(key: str, error: Exception) -> None:
        log("closed unsaved", level=logging.ERROR, exception=error, session=key)

    return OpenSessions(open, limit=limit, on_unsaved=on_unsaved)


@dataclass(frozen=True)
class Shelf:
    """The sessions of one owner.

    Attributes:
        store: of the server; owner: None without keys.
        sessions: those in memory, of all owners.
    """

    store: str
    owner: str | None
    sessions: OpenSessions
    metrics: Metrics

    @property
    def folder(self) -> str:
        return folder_of(self.store, self.owner)

    def key(self, name: str) -> str:
        """The name of a session in `sessions`.

        Raises:
            ValueError: not a name.
        """
        _, branch = locate(self.folder, name)
        base = name.partition("@")[0]
        return f"{self.owner or ''}/{base if branch == 'main' else f'{base}@{branch}'}"

    @asynccontextmanager
    async def use(self, name: str, *, create: bool = False) -> AsyncIterator[Session]:
        """The session of a name, which stays open within the block.

        After a conflict, because another process has gone on with it, it is opened again when it is
        asked for the next time.

        Args:
            create: begin it if there is none; branches are begun by forking.

        Raises:
            ValueError: not a name.
            memory_store.NotFound: there is no such session.
            memory_store.StoreError: as `open_session`.
        """
        key = self.key(name)
        if not create:
            await aside(self.check, name)
        manager = self.sessions.use(key)
        session = await aside(manager.__enter__)
        stale = False
        try:
            self._count(key, session)
            yield session
        except Conflict:
            stale = True
            raise
        finally:
            self._count(key, session)
            with anyio.CancelScope(shield=True):
                await aside(manager.__exit__, None, None, None)
                if stale:
                    await aside(self._drop, key)

    def _count(self, key: str, session: Session) -> None:
        saved = session.saved
        self.metrics.count_commits(key, saved.seq if saved is not None else -1)

    # -- the functions below wait for a disk: call them `aside` -----------------------------------

    def check(self, name: str) -> tuple[Store, str]:
        """The store and the branch of a session that was saved.

        Raises:
            ValueError, memory_store.NotFound: as `use`.
        """
        store, branch = find(self.folder, name)
        if store.head(branch) is None:
            raise missing_branch(store, name)
        return store, branch

    def _drop(self, key: str) -> None:
        """Close a session whose last commit was a conflict, as its closing commit will be."""
        with suppress(StoreError, ValueError):  # or someone uses it, and gets the conflict too
            self.sessions.close(key)

    def make(self) -> None:
        """Make the folder."""
        make_folder(self.folder)

    def close(self, name: str) -> None:
        """Close a session and its branches.

        Raises:
            InUse: one of them is in use.
        """
        main = self.key(name)
        for key in self.sessions.names():
            if key == main or key.startswith(f"{main}@"):
                try:
                    self.sessions.close(key)
                except ValueError:
                    raise InUse(
                        f"session {name!r} is in use; allowed: wait until it is not"
                    ) from None

    def delete(self, name: str) -> None:
        """Delete a session with all its branches.

        Raises:
            ValueError: the name is that of a branch.
            InUse, memory_store.NotFound, memory_store.Locked, memory_store.StoreError.
        """
        place = place_of(self.folder, name)
        self.close(name)
        if places.occupied(place):  # an empty one is gone when it is closed
            places.open_store(place).delete()
        self.metrics.forget(self.key(name))

    def shown(self, message: str) -> str:
        """A message without the server's folders."""
        if is_url(self.folder):
            return message.replace(f"{self.folder}/", "").replace(self.folder, "the store")
        for folder in (os.path.realpath(self.folder), os.path.abspath(self.folder), self.folder):
            message = message.replace(folder + os.sep, "").replace(folder, "the store")
        return message
