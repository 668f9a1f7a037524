"""Committing a snapshot: what is new in it, and how the commit hangs on those before it."""

import sys
from collections.abc import Mapping
from functools import partial

import numpy as np

from memory_store.commits import Commits
from memory_store.delta import Differs, Plan, confirm, from_slot, plan
from memory_store.format.header import checked_fingerprints
from memory_store.format.json import now
from memory_store.format.manifest import Manifest, Slots
from memory_store.format.names import TOKENS
from memory_store.format.zarr import ArraySpec, dtype_name
from memory_store.history import jump_from
from memory_store.refs import Refs
from memory_store.snapshots import checked
from memory_store.types import Ref, Snapshot, Window
from memory_store.writing import write_commit

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
    anew: frozenset[str] = frozenset()
    while True:
        todo = plan(snapshot.windows, before, commits, anew)

        def describe(specs: Mapping[str, ArraySpec], todo: Plan = todo) -> Manifest:
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

        new = {name: from_slot(each, todo.first[name]) for name, each in snapshot.windows.items()}
        try:
            with commits.scratch() as scratch:
                ref, manifest, kept = write_commit(
                    commits.backend,
                    {**scratch.gathered(new), **snapshot.arrays, TOKENS: snapshot.tokens},
                    describe,
                    refs,
                    confirm=partial(confirm, todo, snapshot.windows, commits),
                    branch=branch,
                    seq=seq,
                    position=snapshot.position,
                )
        except Differs as found:
            anew |= found.windows
            continue
        commits.remember(ref.commit, manifest, kept)
        return ref


def _slots(window: Window) -> Slots:
    data = window.data
    return Slots(data.shape, dtype_name(data.dtype), window.axis, window.end, window.capacity)
