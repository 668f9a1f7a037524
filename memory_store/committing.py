"""Committing a snapshot: what is new in it, and how the commit hangs on those before it."""

import sys
from collections.abc import Mapping

import numpy as np

from memory_store.commits import Commits
from memory_store.delta import along, plan, slot_count, slot_digests
from memory_store.fields import now
from memory_store.header import checked_fingerprints
from memory_store.history import jump_from
from memory_store.manifest import Manifest, Slots
from memory_store.names import TOKENS
from memory_store.protocol import Ref, Snapshot, Window
from memory_store.refs import Refs
from memory_store.snapshots import checked
from memory_store.writing import write_commit
from memory_store.zarrformat import ArraySpec

LIBRARIES = {"python": sys.version.split()[0], "numpy": np.__version__}


def commit_snapshot(
    snapshot: Snapshot,
    commits: Commits,
    refs: Refs,
    *,
    branch: str,
    parent: Ref | None,
    fingerprints: Mapping[str, str],
) -> Ref:
    """Write a snapshot and move the branch from `parent` to it; see `MemoryStore.commit`."""
    snapshot = checked(snapshot, parent.position if parent else None)
    recorded = checked_fingerprints(fingerprints)
    seq = refs.next_number(branch, parent)
    before = parent.commit if parent else None
    depth = commits.manifest(before).depth + 1 if before else 0
    jump = jump_from(before, commits) if before else None
    digests = (
        {name: slot_digests(window) for name, window in snapshot.windows.items()}
        if commits.backend.remote
        else {}
    )
    todo = plan(snapshot.windows, before, commits, digests)
    arrays = {
        name: _from_slot(window, todo.first[name]) for name, window in snapshot.windows.items()
    }

    def describe(specs: Mapping[str, ArraySpec]) -> Manifest:
        return Manifest(
            session=commits.session,
            created=now(),
            position=snapshot.position,
            depth=depth,
            parent=before,
            jump=jump,
            window=todo.window,
            slots={name: _slots(window) for name, window in snapshot.windows.items()},
            arrays=specs,
            state=snapshot.attributes,
            fingerprints=recorded,
            libraries=LIBRARIES,
        )

    ref, manifest = write_commit(
        commits.backend,
        {**arrays, **snapshot.arrays, TOKENS: snapshot.tokens},
        describe,
        refs,
        branch=branch,
        seq=seq,
        position=snapshot.position,
    )
    commits.remember(ref.commit, manifest, digests)
    return ref


def _slots(window: Window) -> Slots:
    data = window.data
    return Slots(data.shape, data.dtype.name, window.axis, window.end, window.capacity)


def _from_slot(window: Window, first: int) -> np.ndarray:
    """The slots of a window from number `first` on."""
    count = slot_count(window)
    return along(window.data, window.axis, count - (window.end - first), count)
