"""A visitor's sessions: a folder of them, as the command line uses with `--store`.

A session is opened for one job and closed after it, which takes milliseconds. Nothing is lost when
the server ends, and the command line can use a session between two clicks.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from apps.demo.room import TOTAL, make_room
from memory_store import Conflict, Locked, Mismatch, Ref, Retention, StoreError, places
from streamlm.sessions.shelf import Branch, branches, find, free_place, locate, open_named, place_of

if TYPE_CHECKING:
    from memory_store.store import Store
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.engine import Engine
    from streamlm.sessions.session import Session

# Tokens between automatic saves while reading. Viewing a memory reads the tokens since the last
# snapshot again, so they should be few.
SAVE_EVERY = 1024
KEPT_EXPORTS = 3  # newest exports of a shelf
# Snapshots of an exported session: the newest of each branch, and one for each doubling of age.
EXPORTED = Retention(last=1, thin=True)


class Refused(Exception):
    """A visitor's request cannot be fulfilled; the message is shown to the visitor."""


@dataclass(frozen=True)
class Shelf:
    """A folder of sessions.

    Attributes:
        folder: a folder, or a URL of object storage.
        max_sessions: the most sessions it may hold; None for no limit.
    """

    folder: str
    max_sessions: int | None = None

    @property
    def owner(self) -> str:
        """Whom its exports belong to, as part of a file's name."""
        return hashlib.sha256(self.folder.encode()).hexdigest()[:32]

    def rows(self) -> list[Branch]:
        """All sessions and branches, sorted by name; a corrupt session has position 0."""
        rows = []
        for name in places.session_names(self.folder):
            try:
                rows += branches(places.open_store(places.named(self.folder, name)), name)
            except StoreError:  # a corrupt session must not hide the others
                rows.append(Branch(name, 0, None))
        return sorted(rows, key=lambda row: row.name)

    def names(self) -> list[str]:
        """The names of all sessions and branches."""
        return [row.name for row in self.rows()]

    def has(self, name: str) -> bool:
        """Whether the session, or branch, exists and has been saved."""
        with self.refusing(name):
            path, branch = locate(self.folder, name)
            return places.occupied(path) and places.open_store(path).head(branch) is not None

    def store(self, name: str) -> Store | None:
        """The store of a session; None if there is no such session.

        Raises:
            Refused: not a valid name, or the session cannot be read.
        """
        with self.refusing(name):
            path, _ = locate(self.folder, name)
            return places.open_store(path) if places.occupied(path) else None

    def new_name(self) -> str:
        """A generated name that is not in use."""
        while True:
            name = f"session-{secrets.token_hex(3)}"
            if not places.occupied(locate(self.folder, name)[0]):
                return name

    @contextmanager
    def open(
        self,
        name: str,
        checkpoint: Checkpoint,
        *,
        create: bool = False,
        readonly: bool = False,
    ) -> Iterator[Session]:
        """Open a session for one job, and save it at the end.

        Raises:
            Refused: it does not exist, is in use, belongs to another model, or cannot be stored.
        """
        with self.refusing(name):
            path, branch = locate(self.folder, name)
            if create and branch == "main" and not places.occupied(path):
                self._check_limit()
            with open_named(
                self.folder,
                name,
                checkpoint,
                readonly=readonly,
                create=create,
                save_every=SAVE_EVERY,
            ) as session:
                yield session

    def history(self, name: str) -> list[Ref]:
        """The snapshots of a session, oldest first."""
        with self.refusing(name):
            store, branch = find(self.folder, name)
            return store.refs(branch)

    def free_branch(self, name: str) -> str:
        """The full name of a branch of a session that does not exist yet."""
        base, taken = name.partition("@")[0], set(self.names())
        return next(free for n in count(1) if (free := f"{base}@other-{n}") not in taken)

    def fork(self, name: str, branch: str, engine: Engine, *, tokens: int | None) -> str:
        """Create a branch at `tokens`, or at the current position; returns its full name."""
        with self.refusing(name):
            forked = f"{name.partition('@')[0]}@{branch}"
            locate(self.folder, forked)
            with self.open(name, engine.checkpoint) as session:
                engine.fork(session, branch, tokens=tokens).result().close()
            return forked

    def rewind(self, name: str, engine: Engine, *, tokens: int) -> None:
        """Rewind a session to an earlier position."""
        with self.open(name, engine.checkpoint) as session:
            engine.rewind(session, to=tokens).result()

    def rename(self, name: str, new: str) -> str:
        """Rename a session with all its branches; returns the full new name."""
        with self.refusing(name):
            base, at, branch = name.partition("@")
            places.rename(place_of(self.folder, base), free_place(self.folder, new))
            return f"{new}{at}{branch}"

    def delete(self, name: str) -> None:
        """Delete a session with all its branches."""
        with self.refusing(name):
            find(self.folder, name.partition("@")[0])[0].delete()

    def export(self, name: str, folder: Path) -> Path:
        """Export a session to a ZIP file, in a folder of this shelf's exports within `folder`.

        The file holds every token, so that every position can be restored, but few snapshots:
        fewer the older they are. Exports before the last `KEPT_EXPORTS` are removed.

        Raises:
            Refused: there is no such session, or no room for exports.
        """
        with self.refusing(name):
            if not make_room(folder, TOTAL):
                raise Refused("There is no room for exports now. Try again in some minutes.")
            base = name.partition("@")[0]
            place = place_of(self.folder, base)
            own = folder / "exports" / self.owner
            own.mkdir(parents=True, exist_ok=True)
            older = sorted(own.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in older[KEPT_EXPORTS - 1 :]:
                shutil.rmtree(path, ignore_errors=True)
            target = Path(tempfile.mkdtemp(prefix="export-", dir=own)) / f"{base}.zip"
            with tempfile.TemporaryDirectory(prefix="copy-", dir=target.parent) as beside:
                thinned = Path(beside) / f"{base}.zarr"
                places.copy(place, thinned)
                places.open_store(thinned).gc(retention=EXPORTED, grace=0)
                places.export(thinned, target)
            return target

    def import_(self, file: str | Path, name: str) -> str:
        """Import a file made by `export` as a new session; returns its name.

        Raises:
            Refused: it is another shelf's export, no export at all, or the name is taken.
        """
        with self.refusing(name):
            *_, exports, owner, _folder, _name = (*[""] * 4, *Path(os.path.realpath(file)).parts)
            if exports == "exports" and owner != self.owner:
                raise Refused("This file is another visitor's.")
            self._check_limit()
            places.import_(file, free_place(self.folder, name))
            return name

    def _check_limit(self) -> None:
        limit = self.max_sessions
        if limit is not None and len(places.session_names(self.folder)) >= limit:
            raise Refused(f"You have {limit} sessions; delete one before you start another.")
        if "://" not in self.folder:
            os.makedirs(self.folder, exist_ok=True)

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Convert errors into refusals that a visitor may see, without paths of the server.

        Raises:
            Refused: in place of errors of the store and the session.
        """
        if not name:
            raise Refused("Choose a session first, or type a name for a new one.")
        try:
            yield
        except (Locked, Conflict):
            raise Refused(
                f"{name} is in use: another page or the command line is reading or writing it. "
                "Wait until it has finished, or fork the session and continue there."
            ) from None
        except Mismatch:
            raise Refused(
                f"{name} was written with a different model from the one running here."
            ) from None
        except (StoreError, ValueError) as error:
            raise Refused(self.without_paths(str(error))) from None
        except OSError as error:
            raise Refused(f"The disk reports an error: {error.strerror or error}.") from None

    def without_paths(self, message: str) -> str:
        """Remove the server's folders from a message."""
        for folder in {os.path.realpath(self.folder), str(Path(self.folder).absolute())}:
            message = message.replace(folder + os.sep, "").replace(folder, "the sessions")
        return message.replace(tempfile.gettempdir() + os.sep, "")
