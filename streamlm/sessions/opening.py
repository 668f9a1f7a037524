"""Opening a session: resume the one that a store keeps, or begin one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_store import Corrupt, NotFound, Retention
from streamlm.checkpoints.checkpoint import Checkpoint, load_checkpoint
from streamlm.sessions.live import LiveStream
from streamlm.sessions.session import Session

RETENTION = Retention(last=32, thin=True)


def open_session(
    path: str | Path,
    model: Checkpoint | str | Path = "books",
    *,
    branch: str = "main",
    create: bool = True,
    readonly: bool = False,
    seed: int = 0,
    device: str = "auto",
    save_every: int = 1 << 14,
    retention: Retention | None = RETENTION,
) -> Session:
    """Resume the session kept at `path`, or begin one there.

    Args:
        path: a directory, by custom named `<session>.zarr`, or a prefix in object storage:
            `s3://bucket/<session>.zarr`, gs://…, az://… (needs the extra `objects`).
        model: what `streamlm.load` returned, or what it takes.
        branch: the branch to go on with; "main" is where a session begins.
        create: False refuses to begin a session where there is none.
        readonly: allow no change, and do not keep other writers out.
        seed: of a new session's random generator.
        save_every: tokens after which the session saves by itself.
        retention: of a new session, which old states stay when it lets go of some now and then. By
            default the newest 32, and as many for each doubling of the older ones' age. Token ids
            stay, so every position can still be rewound to. None keeps all. In object storage
            nothing is let go of unasked.

    Raises:
        ValueError: a URL that is none of these.
        memory_store.NotFound: no session (or no such branch) there, and none may be begun.
        memory_store.Locked: another process writes to this branch.
        memory_store.Mismatch: it was written by other weights or another tokenizer; says which.
        memory_store.Corrupt: it is damaged; says where.
        memory_store.StoreError: the disk or the storage refuses; says what.
    """
    from memory_store.places import create_store, occupied, open_store  # when used, not before

    if save_every < 1:
        raise ValueError(f"save_every = {save_every}; allowed: at least 1")
    checkpoint = model if isinstance(model, Checkpoint) else load_checkpoint(model, device=device)
    live = LiveStream(checkpoint, seed=seed)
    live.save_every = save_every
    new = create and not readonly and branch == "main" and not occupied(path)
    if new:
        attributes = {"retention": asdict(retention)} if retention is not None else {}
        store = create_store(path, attributes=attributes, fingerprints=checkpoint.fingerprints)
    else:
        store = open_store(path)
    ref = store.head(branch)
    if ref is None and (branch != "main" or readonly or not create):
        raise NotFound(
            f"{path}: has no branch {branch!r}; it has {', '.join(store.branches()) or 'none'}. "
            "Open one of these."
        )
    try:
        recorded: Any = store.attributes.get("retention")  # none in sessions of early versions
        policy = Retention(**recorded) if recorded is not None else None
        live.bind(store, branch, ref, retention=policy, readonly=readonly, discard_empty=new)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(
            f"{path}: branch {branch!r} holds no state of such a session ({error!r}). "
            "Open it with the version that wrote it."
        ) from error
    return Session(checkpoint, live=live)
