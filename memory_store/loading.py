"""Loading a snapshot: its own arrays, and its windows from the commits that hold their slots."""

from collections.abc import Mapping

from memory_store.commits import Commits, Scratch
from memory_store.delta import assemble
from memory_store.errors import Mismatch
from memory_store.header import checked_fingerprints
from memory_store.names import TOKENS
from memory_store.protocol import Commit, Snapshot, Window


def load_snapshot(
    commits: Commits, commit: Commit, *, fingerprints: Mapping[str, str] | None
) -> Snapshot:
    """The snapshot at `commit`, bit for bit as it was committed.

    Args:
        commits: reads it.
        commit: its address.
        fingerprints: must equal the recorded ones, name by name; None checks nothing.

    Raises:
        Mismatch: they differ.
        Corrupt: a file is damaged, missing or not the one that was committed.
    """
    manifest = commits.read(commit)
    if fingerprints is not None:
        given = checked_fingerprints(fingerprints)
        _check_fingerprints(manifest.fingerprints, given, path=commits.folder(commit))
    sources, scratch = manifest.sources(commit), Scratch()
    windows = {
        name: Window(
            assemble(name, slots, sources, commits, scratch=scratch),
            slots.axis,
            slots.end,
            slots.capacity,
        )
        for name, slots in manifest.slots.items()
    }
    arrays = {
        name: commits.array(commit, spec, name)
        for name, spec in manifest.arrays.items()
        if name not in windows
    }
    tokens = arrays.pop(TOKENS)
    return Snapshot(manifest.position, windows, arrays, tokens, manifest.state)


def _check_fingerprints(
    recorded: Mapping[str, str], given: Mapping[str, str], *, path: object
) -> None:
    differing: dict[str, tuple[str | None, str | None]] = {
        name: (recorded.get(name), value)
        for name, value in given.items()
        if recorded.get(name) != value
    }
    if not differing:
        return
    parts = [
        f"{name} is {given}, but {recorded or 'nothing'} is recorded"
        for name, (recorded, given) in differing.items()
    ]
    raise Mismatch(
        f"{path}: made with something else: {'; '.join(parts)}. Load it with what made it, "
        "or pass allow_mismatch=True.",
        differing,
    )
