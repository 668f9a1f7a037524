"""A visitor's sessions: a folder of them, the one that the command line uses with `--store`.

Sessions are opened for one piece of work and closed after it, which takes some milliseconds. So
nothing is lost when the server ends, and the command line may use a session between two clicks.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memory_store import Conflict, Locked, Mismatch, Ref, StoreError, places
from streamlm.sessions.shelf import find, locate, missing_branch

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.sessions.session import Session

# Tokens after which reading saves by itself. To look at a memory, the tokens since the snapshot
# before it are read again: they should be few.
SAVE_EVERY = 1024


class Refused(Exception):
    """What a visitor asked for cannot be done; the message is for the visitor."""


@dataclass(frozen=True)
class Row:
    """A session, or a branch of one: NAME or NAME@BRANCH."""

    name: str
    position: int
    saved: float | None


@dataclass(frozen=True)
class Shelf:
    """A folder of sessions.

    Attributes:
        folder: a folder, or a URL of object storage.
        limit: of sessions in it; None is none.
    """

    folder: str
    limit: int | None = None

    def rows(self) -> list[Row]:
        """All sessions and branches that can be read, by name."""
        found = []
        for name in places.session_names(self.folder):
            try:
                store = places.open_store(places.named(self.folder, name))
                for branch in store.branches() or ["main"]:
                    head = store.head(branch)
                    found.append(
                        Row(
                            name if branch == "main" else f"{name}@{branch}",
                            head.position if head else 0,
                            head.created if head else None,
                        )
                    )
            except StoreError:  # a damaged session must not hide the others
                found.append(Row(name, 0, None))
        return sorted(found, key=lambda row: row.name)

    def names(self) -> list[str]:
        """The names of all sessions and branches."""
        return [row.name for row in self.rows()]

    def has(self, name: str) -> bool:
        """Is there such a session, or branch?"""
        with self.told(name):
            path, branch = locate(self.folder, name)
            return places.occupied(path) and places.open_store(path).head(branch) is not None

    def new_name(self) -> str:
        """A name that no session has yet."""
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
        """Open a session for one piece of work, and save it at the end.

        Raises:
            Refused: there is none, it is in use, or the disk refuses; says so to a visitor.
        """
        with self.told(name):
            path, branch = locate(self.folder, name)
            if create and branch == "main" and not places.occupied(path):
                self._check_room()
            elif not create or branch != "main":
                kept, _ = find(self.folder, name)
                if kept.head(branch) is None:
                    raise missing_branch(kept, name)
            from streamlm.sessions.opening import open_session  # needs torch

            with open_session(
                path,
                checkpoint,
                branch=branch,
                readonly=readonly,
                create=create,
                save_every=SAVE_EVERY,
            ) as session:
                yield session

    def history(self, name: str) -> list[Ref]:
        """The snapshots of a session, oldest first."""
        with self.told(name):
            kept, branch = find(self.folder, name)
            return kept.refs(branch)

    def fork(self, name: str, branch: str, checkpoint: Checkpoint, *, tokens: int | None) -> str:
        """Begin a branch where the session stands, or at an earlier position; gives its name."""
        with self.told(name):
            forked = f"{name.partition('@')[0]}@{branch}"
            locate(self.folder, forked)
            with (
                self.open(name, checkpoint) as session,
                session.fork(branch, tokens=tokens) as other,
            ):
                other.save()
            return forked

    def rename(self, name: str, new: str) -> str:
        """Give a session another name; its branches go with it. Gives the name."""
        with self.told(name):
            base, at, branch = name.partition("@")
            find(self.folder, base)
            places.rename(locate(self.folder, base)[0], self._free(new))
            return f"{new}{at}{branch}"

    def delete(self, name: str) -> None:
        """Remove a session with all its branches."""
        with self.told(name):
            find(self.folder, name.partition("@")[0])[0].delete()

    def export(self, name: str, folder: Path) -> Path:
        """Write a session to one file, in a new folder within `folder`."""
        with self.told(name):
            base = name.partition("@")[0]
            find(self.folder, base)
            target = Path(tempfile.mkdtemp(prefix="export-", dir=folder)) / f"{base}.zip"
            places.export(locate(self.folder, base)[0], target)
            return target

    def import_(self, file: str | Path, name: str) -> str:
        """Unpack a file of `export` as a new session; gives its name."""
        with self.told(name):
            self._check_room()
            places.import_(file, self._free(name))
            return name

    def _free(self, name: str) -> str:
        if "@" in name:
            raise ValueError(f"{name!r} is a branch; allowed: the name of a new session")
        path, _ = locate(self.folder, name)
        if places.occupied(path):
            raise ValueError(f"session {name!r} exists already; allowed: a new name")
        return path

    def _check_room(self) -> None:
        if self.limit is not None and len(places.session_names(self.folder)) >= self.limit:
            raise Refused(f"You have {self.limit} sessions; delete one before you begin another.")
        if "://" not in self.folder:
            os.makedirs(self.folder, exist_ok=True)

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """Turn what goes wrong into words for a visitor: no paths of the server.

        Raises:
            Refused: instead of what the store and the session raise.
        """
        if not name:
            raise Refused("Choose a session first, or type a name for one.")
        try:
            yield
        except (Locked, Conflict):
            raise Refused(
                f"{name} is in use: something else is reading or writing in it, here or on the "
                "command line. Wait or stop it, or fork the session and go on there."
            ) from None
        except Mismatch:
            raise Refused(
                f"{name} was written with another model than the one that runs here."
            ) from None
        except (StoreError, ValueError) as error:
            raise Refused(self.without_paths(str(error))) from None
        except OSError as error:
            raise Refused(f"The disk refuses: {error.strerror or error}.") from None

    def without_paths(self, message: str) -> str:
        """A message with the server's folders left out."""
        for folder in {os.path.realpath(self.folder), str(Path(self.folder).absolute())}:
            message = message.replace(folder + os.sep, "").replace(folder, "the sessions")
        return message.replace(tempfile.gettempdir() + os.sep, "")
