"""Opening a session: resume one from a store, or begin one there."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_store import Corrupt, Mismatch, NotFound, Retention, StoreError
from memory_store.types import WHOLE_EVERY
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.config import check_whole, is_whole
from streamlm.sessions.live import SAVE_SECONDS, LiveStream, check_save_seconds
from streamlm.sessions.session import Session
from streamlm.sessions.windows import (
    recorded_attributes,
    recorded_model,
    windows_for,
    with_windows_named,
)

RETENTION = Retention(last=32, thin=True, spacing=WHOLE_EVERY)


def open_session(
    path: str | Path,
    model: Checkpoint | str | Path | None = None,
    *,
    branch: str = "main",
    create: bool = True,
    readonly: bool = False,
    seed: int | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    save_every: int = 1 << 14,
    save_seconds: float | None = SAVE_SECONDS,
    retention: Retention | None = RETENTION,
    archive: bool = True,
) -> Session:
    """Resume the session at `path`, or begin one there.

    Args:
        path: a directory, named `<session>.zarr` by convention, or a prefix in object storage:
            `s3://bucket/<session>.zarr`, gs://…, az://… (needs the extra `objects`).
        model: a loaded checkpoint, or an argument of `streamlm.load`. None is the model that the
            session was begun with, if it was one with a name, or else "books".
        branch: the branch to resume; a new session begins on "main".
        create: whether to begin a session if there is none.
        readonly: refuse changes, and take no lock.
        seed: of a new session's random generator; None is a random one, which is recorded.
        device, settings: see `streamlm.load`; for a model that is to be loaded. Without settings, a
            session is resumed with the windows that it was begun with.
        save_every: tokens between automatic saves.
        save_seconds: seconds after which the session saves itself as well, at the end of a segment,
            and while `feed` waits for text; None for none.
        retention: of a new session, which snapshots stay loadable when old ones are deleted from
            time to time. The default keeps the newest 8 and one in 16,384 tokens, of these the
            newest 32 and as many for each doubling of the older ones' age. Token ids are kept, so
            every position can still be rewound to. None keeps all snapshots. In object storage
            nothing is deleted automatically.
        archive: keep the keys of the model's retrieval heads, so that `Session.recall` searches by
            meaning: about 200 bytes a token. A model without such heads has none.

    Raises:
        ValueError: the URL has another scheme.
        memory_store.NotFound: there is no such session or branch, and none may be begun.
        memory_store.Locked: another process writes to this branch.
        memory_store.Mismatch: other weights or another tokenizer wrote the session; names them.
        memory_store.Corrupt: the session is damaged; says where.
        memory_store.StoreError: the disk or the object storage failed.
    """
    from memory_store.places import create_store, occupied, open_store  # imported when used

    check_whole("save_every", save_every, least=1)
    check_save_seconds(save_seconds)
    if isinstance(model, Checkpoint) and settings:
        raise ValueError("settings for a model that is loaded; allowed: for one to be loaded")
    may_begin = create and not readonly and branch == "main"
    existing, nothing = None, None
    if not may_begin or occupied(path):
        try:
            existing = open_store(path)
        except NotFound as error:  # perhaps what a creation has left that was killed
            if not may_begin:
                raise
            nothing = error
    new = existing is None
    if isinstance(model, Checkpoint):
        checkpoint = model
    else:
        source = recorded_model(existing) if model is None else model
        windows = {} if existing is None else windows_for(source, existing)
        chosen = {**windows, **(settings or {})}
        checkpoint = load_checkpoint(source, device=device, settings=chosen)
    live = LiveStream(checkpoint, seed=seed)
    live.save_every, live.save_seconds = save_every, save_seconds
    if existing is None:
        attributes: dict[str, Any] = recorded_attributes(checkpoint)
        attributes["seed"] = live.seed
        attributes |= {"retention": asdict(retention)} if retention is not None else {}
        try:
            store = create_store(path, attributes=attributes, fingerprints=checkpoint.fingerprints)
        except StoreError as error:
            raise nothing or error from None
    else:
        store = existing
        begun: Any = store.attributes.get("seed")
        live.seed = begun if is_whole(begun) else 0  # as early versions, which recorded none
    ref = store.head(branch)
    if ref is None and (branch != "main" or readonly or not create):
        raise NotFound(
            f"{path}: has no branch {branch!r}; it has {', '.join(store.branches()) or 'none'}. "
            "Open one of these."
        )
    try:
        recorded: Any = store.attributes.get("retention")  # absent in early versions
        policy = Retention(**recorded) if recorded is not None else None
        live.bind(
            store,
            branch,
            ref,
            retention=policy,
            readonly=readonly,
            discard_empty=new,
            archive=archive,
        )
    except Mismatch as error:
        raise with_windows_named(error, store, checkpoint) from None
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"{path}: branch {branch!r} does not hold a state of this kind of session ({error!r}). "
            "Open it with the version that wrote it."
        ) from error
    return Session(checkpoint, live=live)
