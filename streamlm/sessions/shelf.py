"""Sessions by name: NAME or NAME@BRANCH, in a folder or under a URL of object storage."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_store import Mismatch, NotFound
from memory_store.backends.object_client import is_url
from memory_store.places import named, occupied, open_store, session_names
from memory_store.store import Store

if TYPE_CHECKING:
    from streamlm.checkpoints.checkpoint import Checkpoint
    from streamlm.sessions.session import Session


@dataclass(frozen=True)
class Branch:
    """A branch of a session on a shelf.

    Attributes:
        name: NAME for the branch "main", NAME@BRANCH for others.
        position: tokens at its head.
        saved: when its head was saved, in seconds since 1970; None if nothing was saved.
    """

    name: str
    position: int
    saved: float | None


def locate(shelf: str, name: str) -> tuple[str, str]:
    """The place and the branch of NAME or NAME@BRANCH, whether or not there is such a session.

    Args:
        shelf: a folder or a URL, here and in the functions below.

    Raises:
        ValueError: not a name. A name never leads out of the shelf.
    """
    base, _, branch = name.partition("@")
    for part in (base, branch or "main"):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", part):
            raise ValueError(
                f"session {name!r}; allowed: NAME or NAME@BRANCH, each of at most 100 letters, "
                "digits, '.', '_', '-'; --store chooses the folder"
            )
    return named(shelf, base), branch or "main"


def full_path(place: str) -> str:
    """A place for display: an absolute path, or a URL."""
    return place if is_url(place) else str(Path(place).resolve())


def find(shelf: str, name: str) -> tuple[Store, str]:
    """The store of an existing session, and the branch that was named, which may not exist.

    Raises:
        NotFound: there is no such session; lists those that exist.
    """
    path, branch = locate(shelf, name)
    if not occupied(path):
        known = ", ".join(sorted(session_names(shelf))) or "none yet"
        raise NotFound(f"no session {name.partition('@')[0]!r} in {shelf}; there are: {known}")
    return open_store(path), branch


def missing_branch(store: Store, name: str) -> NotFound:
    """The error for a session without the branch named; lists the branches that exist."""
    base, _, branch = name.partition("@")
    branches = store.branches()
    if not branches:
        return NotFound(f"session {base!r} has nothing saved; feed it, or delete it")
    return NotFound(
        f"session {base!r} has no branch {branch or 'main'!r}; it has {', '.join(branches)}; "
        f"streamlm sessions fork {base} NEW begins one"
    )


def place_of(shelf: str, name: str) -> str:
    """The place of an existing session, all branches included.

    Raises:
        ValueError: the name is that of a branch.
        NotFound: there is no such session.
    """
    if "@" in name:
        raise ValueError(f"{name!r} is a branch; allowed: a session, with all its branches")
    find(shelf, name)
    return locate(shelf, name)[0]


def free_place(shelf: str, name: str) -> str:
    """The place of a session that does not exist yet.

    Raises:
        ValueError: the name is taken, or that of a branch.
    """
    if "@" in name:
        raise ValueError(f"{name!r} is a branch; allowed: the name of a new session")
    path, _ = locate(shelf, name)
    if occupied(path):
        raise ValueError(f"session {name!r} exists already; allowed: a new name")
    return path


def branches(store: Store, name: str) -> list[Branch]:
    """The branches of a session, main first. A session with no commit has an empty main."""
    found = []
    for branch in sorted(store.branches() or ["main"], key=lambda each: (each != "main", each)):
        head = store.head(branch)
        found.append(
            Branch(
                name if branch == "main" else f"{name}@{branch}",
                head.position if head else 0,
                head.created if head else None,
            )
        )
    return found


def open_named(
    shelf: str,
    name: str,
    model: "Checkpoint | str | Path | None",
    *,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    readonly: bool = False,
    create: bool = False,
    keep_all: bool = False,
    **saving: Any,
) -> "Session":
    """Open a session by name. A missing session is reported before the model is loaded.

    Args:
        model, device, settings, readonly, create: as in `streamlm.open`.
        keep_all: a new session never deletes old snapshots.
        saving: `save_every` and `save_seconds`, as in `streamlm.open`.

    Raises:
        NotFound: there is no such session or branch; lists those that exist.
        Mismatch: another model wrote the session.
    """
    path, branch = locate(shelf, name)
    if not create or branch != "main" or occupied(path):
        begins = create and branch == "main"
        try:
            store, _ = find(shelf, name)
            if store.head(branch) is None and not begins:
                raise missing_branch(store, name)
        except NotFound:  # perhaps what a creation has left that was killed
            if not begins:
                raise
    from streamlm.sessions.opening import RETENTION, open_session  # needs torch

    try:
        return open_session(
            path,
            model,
            branch=branch,
            device=device,
            settings=settings,
            readonly=readonly,
            create=create,
            **saving,
            retention=None if keep_all else RETENTION,
        )
    except Mismatch as error:
        differing = ", ".join(
            f"{what} {(recorded or 'none')[:12]} there and {(here or 'none')[:12]} here"
            for what, (recorded, here) in error.differing.items()
        )
        given: object = "the recorded one"
        if model is not None:
            given = model if isinstance(model, (str, Path)) else model.name
        raise Mismatch(
            f"session {name!r} was written with another model than {given} ({differing}); "
            "allowed: the model it was written with, or another session",
            error.differing,
        ) from None
