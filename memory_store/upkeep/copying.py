"""Copying a session from one medium to another.

Refs are read first and written last, so that the copy of a session with an active writer is a
consistent snapshot. Everything is verified on the way: damage is not copied.
"""

from collections.abc import Sequence

from memory_store.backend import Backend, Buffer
from memory_store.format.chunks import check_sha256, chunks, read_array
from memory_store.format.header import read_header
from memory_store.format.manifest import Manifest, record
from memory_store.format.names import (
    SESSION_FILE,
    commit_key,
    is_packed,
    log_key,
    past_key,
    pin_key,
    pinned_key,
    record_key,
    ref_key,
)
from memory_store.format.packing import DOCUMENT, documents, packed, packed_log
from memory_store.history.pins import all_pins, read_pin
from memory_store.history.reading import Commits, array_folder
from memory_store.history.refs import Refs
from memory_store.types import Commit


def copy_session(source: Backend, target: Backend) -> None:
    """Copy a session with its history, its branches and its pins.

    Raises:
        StoreError: the target is not empty, or the medium refuses; the partial copy is removed.
        NotFound, Corrupt: the source is not a session, or it is damaged; likewise.
    """
    header = read_header(source)
    commits, refs = Commits(source, header.session), Refs(source)
    with source.commits_lock(exclusive=False):  # no collection during the copy
        histories = {branch: refs.all(branch) for branch in refs.branches()}
        pins = all_pins(source)
        target.begin(source.read(SESSION_FILE))
        try:
            published = {ref.commit for history in histories.values() for ref in history}
            for commit in sorted(published, key=lambda commit: commit.name):
                _copy_commit(commits, commit, target)
            for name in pins:
                for key in (pin_key(name), pinned_key(name)):
                    target.create(key, read_pin(source, name))
            for branch, history in histories.items():
                for ref in history:
                    target.publish(branch, ref.seq, source.read(ref_key(branch, ref.seq)))
        except BaseException:
            target.delete()
            raise


def _copy_commit(commits: Commits, commit: Commit, target: Backend) -> None:
    manifest = commits.read(commit)
    if manifest.retained == "all":
        _copy_whole(commits, commit, manifest, target)
        return
    if manifest.retained == "record":
        target.create(past_key(commit.name), record(manifest))
    elif is_packed(commit.name):
        logged = {
            name: read_array(commits.backend, *commits.in_log(commit, name))
            for name in manifest.logged
        }
        target.create(log_key(commit.name), packed_log(record(manifest), manifest.logged, logged))
    else:
        for chunk in chunks(commits.token_ids(commit)):
            target.create(f"{log_key(commit.name)}/{chunk.name}", b"".join(chunk.buffers))
        target.create(record_key(commit.name), record(manifest))


def _copy_whole(commits: Commits, commit: Commit, manifest: Manifest, target: Backend) -> None:
    contents: dict[str, Sequence[Buffer]] = {DOCUMENT: [manifest.data]}
    for name, spec in sorted(manifest.arrays.items()):
        array = commits.array(commit, spec, name)
        check_sha256(commits.backend, array_folder(commit, name), spec, array)
        contents |= {f"{name}/{chunk.name}": chunk.buffers for chunk in chunks(array, spec.limit)}
    contents |= documents(manifest.arrays)
    with target.draft(commit_key(commit.name)) as draft:
        if is_packed(commit.name):
            draft.write("", list(packed(contents, {})))
        else:
            for name, buffers in contents.items():
                draft.write(name, buffers)
        draft.persist()
