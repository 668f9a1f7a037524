"""Garbage: letting go of the state of old snapshots, and sweeping what writers have left behind.

A commit that is let go leaves its record and its token ids in `log/`, or its record alone in
`past/`: the chain of ids stays whole, and every position whose ids are kept can be computed again
from the nearest snapshot before it. What is removed is never all that there is of something: first
the record is written, then the commit goes.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

from memory_store.backend import Backend, Taken
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
from memory_store.types import Collected, Commit, Ref, Retention

GRACE = 3600.0  # seconds; longer than any write


def collect(
    commits: Commits,
    histories: Mapping[str, list[Ref]],
    pinned: Iterable[Commit],
    retention: Retention,
    *,
    there: Iterable[str],
    grace: float,
    dry_run: bool,
) -> Collected:
    """Let go of all states that neither the retention, nor a pin, nor a kept snapshot needs.

    Args:
        commits: reads them.
        histories: branch → its refs, oldest first.
        pinned: commits to keep.
        retention: which others to keep.
        there: names in the folder of commits, listed before `histories` was read: a commit that a
            writer publishes meanwhile is not among them.
        grace: seconds; nothing younger is taken for a leftover.
        dry_run: change nothing.
    """
    backend = commits.backend
    published = {ref.commit.name: ref.commit for refs in histories.values() for ref in refs}
    kept = {ref.commit for refs in histories.values() for ref in retention.kept(refs)}
    kept |= {refs[-1].commit for refs in histories.values() if refs}
    kept |= set(pinned)
    if retention.log:  # all positions stay within reach: from the beginning, if from nowhere else
        begins = {refs[0].commit for refs in histories.values() if refs}
        kept |= {commit for commit in begins if commits.manifest(commit).parent is None}
    needed = {commit.name for commit in kept}.union(*commits.needs(kept))
    horizon = None if retention.log else min((commit.position for commit in kept), default=0)
    released = forgotten = leftovers = freed = 0
    for name in sorted(there):
        if name in needed:
            continue
        if not COMMIT.fullmatch(name) or name not in published:
            if _leftover(backend, f"{COMMITS}/{name}", grace, dry_run=dry_run):
                leftovers += 1
            continue
        commit = published[name]
        manifest = commits.read(commit)
        forget = horizon is not None and commit.position <= horizon
        freed += sum(spec.nbytes for spec in manifest.arrays.values())
        freed -= 0 if forget else manifest.arrays[TOKENS].nbytes
        released, forgotten = released + 1, forgotten + forget
        if not dry_run:
            _release(commits, commit, manifest, forget=forget)
    if horizon is not None:
        for name in sorted(commits.logged()):
            known = published.get(name)
            if known is not None and known.position <= horizon and known.name not in needed:
                manifest = commits.read(known)
                forgotten, freed = forgotten + 1, freed + manifest.arrays[TOKENS].nbytes
                if not dry_run:
                    _forget(backend, known.name, manifest)
    for key in backend.unfinished():
        leftovers += _leftover(backend, key, grace, dry_run=dry_run)
    return Collected(len(kept), released, forgotten, leftovers, freed)


def _release(commits: Commits, commit: Commit, manifest: Manifest, *, forget: bool) -> None:
    backend = commits.backend
    if forget:
        _record(backend, past_key(commit.name), manifest)
    else:
        ids = commits.array(commit, manifest.arrays[TOKENS], TOKENS)
        if is_packed(commit.name):
            _create(backend, log_key(commit.name), packed_log(record(manifest), ids))
        else:
            for chunk in chunks(ids):
                _create(backend, f"{log_key(commit.name)}/{chunk.name}", b"".join(chunk.buffers))
            _record(backend, record_key(commit.name), manifest)
    backend.discard(commit_key(commit.name))


def _forget(backend: Backend, name: str, manifest: Manifest) -> None:
    _record(backend, past_key(name), manifest)
    backend.discard(log_key(name))


def _record(backend: Backend, key: str, manifest: Manifest) -> None:
    _create(backend, key, record(manifest))


def _create(backend: Backend, key: str, data: bytes) -> None:
    with suppress(Taken):  # an earlier run was cut short after this
        backend.create(key, data)


def _leftover(backend: Backend, key: str, grace: float, *, dry_run: bool) -> bool:
    if backend.age(key) < grace:
        return False
    if not dry_run:
        backend.discard(key)
    return True
