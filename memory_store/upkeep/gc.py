"""Garbage collection: deletes old snapshots, and files of interrupted writes.

A deleted snapshot leaves its record, its token ids and its rows of logs in `log/`, or its record
alone in `past/`.
The chain of ids stays complete, and any position whose token ids are kept can be recomputed from
the nearest older snapshot. The record is written before the commit is removed, so an interrupted
collection loses nothing. Commits that lost refs may have led to are spared.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from memory_store.backend import AlreadyExists, Backend
from memory_store.format.chunks import chunks
from memory_store.format.manifest import Manifest, record
from memory_store.format.names import (
    COMMIT,
    COMMITS,
    TOKENS,
    commit_key,
    is_packed,
    log_key,
    past_key,
    record_key,
)
from memory_store.format.packing import packed_log
from memory_store.history.reading import Commits
from memory_store.history.unreferenced import unreferenced
from memory_store.types import Collected, Commit, Ref, Retention

GRACE = 3600.0  # seconds; longer than any write


def collect(
    commits: Commits,
    histories: Mapping[str, list[Ref]],
    pinned: Iterable[Commit],
    retention: Retention,
    *,
    listed: Iterable[str],
    grace: float,
    dry_run: bool,
) -> Collected:
    """Delete every snapshot that neither the retention, nor a pin, nor a kept snapshot needs.

    Args:
        commits: the stored commits.
        histories: branch → its refs, oldest first.
        pinned: commits to keep.
        retention: which other snapshots to keep.
        listed: names in the folder of commits, listed before `histories` was read, so that they do
            not include commits that are published later.
        grace: seconds; younger files are never taken for those of an interrupted write. A commit
            that is being written is spared in any case: by the lock on the set of commits, or
            because it continues a branch.
        dry_run: report only, and delete nothing.

    Raises:
        Corrupt: a commit's record is damaged.
    """
    backend = commits.backend
    published = {ref.commit.name: ref.commit for refs in histories.values() for ref in refs}
    kept = {ref.commit for refs in histories.values() for ref in retention.kept(refs)}
    kept |= {refs[-1].commit for refs in histories.values() if refs}
    kept |= set(pinned)
    if retention.log:  # the first snapshot stays, so that every position can be recomputed
        begins = {refs[0].commit for refs in histories.values() if refs}
        kept |= {commit for commit in begins if commits.manifest(commit).parent is None}
    needed = {commit.name for commit in kept}.union(*commits.sources_of(kept))
    listed = set(listed)
    spared = unreferenced(commits, histories, listed)
    needed |= spared.ancestors | {commit.name for commit in spared.evidence}
    horizon = None if retention.log else min((commit.position for commit in kept), default=0)
    deleted = tokens_deleted = leftovers = freed = 0
    for name in sorted(listed):
        if name in needed:
            continue
        if not COMMIT.fullmatch(name) or name not in published:
            if _leftover(backend, f"{COMMITS}/{name}", grace, dry_run=dry_run):
                leftovers += 1
            continue
        commit = published[name]
        manifest = commits.read(commit)
        drop_tokens = horizon is not None and commit.position <= horizon
        freed += sum(spec.nbytes for spec in manifest.arrays.values())
        freed -= 0 if drop_tokens else _logged_bytes(manifest)
        deleted, tokens_deleted = deleted + 1, tokens_deleted + drop_tokens
        if not dry_run:
            _delete_snapshot(commits, commit, manifest, drop_tokens=drop_tokens)
    if horizon is not None:
        for name in sorted(commits.logged()):
            known = published.get(name)
            if known is not None and known.position <= horizon and known.name not in needed:
                manifest = commits.read(known)
                tokens_deleted, freed = tokens_deleted + 1, freed + _logged_bytes(manifest)
                if not dry_run:
                    _delete_tokens(backend, known.name, manifest)
    for key in backend.unfinished():
        leftovers += _leftover(backend, key, grace, dry_run=dry_run)
    return Collected(len(kept), deleted, tokens_deleted, leftovers, freed)


def _logged_bytes(manifest: Manifest) -> int:
    return sum(spec.nbytes for spec in manifest.logged.values())


def _delete_snapshot(
    commits: Commits, commit: Commit, manifest: Manifest, *, drop_tokens: bool
) -> None:
    backend = commits.backend
    if drop_tokens:
        _record(backend, past_key(commit.name), manifest)
    else:
        logged = {name: commits.array(commit, spec, name) for name, spec in manifest.logged.items()}
        if is_packed(commit.name):
            _create(
                backend, log_key(commit.name), packed_log(record(manifest), manifest.logged, logged)
            )
        else:
            for chunk in chunks(logged[TOKENS]):
                _create(backend, f"{log_key(commit.name)}/{chunk.name}", b"".join(chunk.buffers))
            _record(backend, record_key(commit.name), manifest)
    backend.discard(commit_key(commit.name))


def _delete_tokens(backend: Backend, name: str, manifest: Manifest) -> None:
    _record(backend, past_key(name), manifest)
    backend.discard(log_key(name))


def _record(backend: Backend, key: str, manifest: Manifest) -> None:
    _create(backend, key, record(manifest))


def _create(backend: Backend, key: str, data: bytes) -> None:
    with suppress(AlreadyExists):  # an earlier collection was interrupted after this step
        backend.create(key, data)


def _leftover(backend: Backend, key: str, grace: float, *, dry_run: bool) -> bool:
    if backend.age(key) < grace:
        return False
    if not dry_run:
        backend.discard(key)
    return True
