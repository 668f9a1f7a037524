"""Loading a snapshot: its own arrays, and its windows from the commits that hold their slots."""

from collections.abc import Iterator, Mapping

from memory_store.commits import Commits, Scratch
from memory_store.delta import assemble, pieces
from memory_store.errors import Mismatch
from memory_store.header import checked_fingerprints
from memory_store.names import TOKENS
from memory_store.protocol import Commit, Snapshot, Window
from memory_store.zarrformat import Stored


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
        _check_fingerprints(manifest.fingerprints, checked_fingerprints(fingerprints))
    sources, scratch = manifest.sources(commit), Scratch()

    def wanted() -> Iterator[tuple[Commit, Stored, str]]:
        for name, slots in manifest.slots.items():
            for piece in pieces(name, slots.start, slots.end, sources):
                yield piece.commit, piece.held.stored(slots), name
        for name, spec in manifest.arrays.items():
            if name not in manifest.slots:
                yield commit, spec, name

    with commits.ahead(wanted) as reader:
        windows = {
            name: Window(
                assemble(name, slots, sources, reader, scratch=scratch),
                slots.axis,
                slots.end,
                slots.capacity,
            )
            for name, slots in manifest.slots.items()
        }
        arrays = {
            name: reader.array(commit, spec, name)
            for name, spec in manifest.arrays.items()
            if name not in windows
        }
    tokens = arrays.pop(TOKENS)
    return Snapshot(manifest.position, windows, arrays, tokens, manifest.state)


def _check_fingerprints(recorded: Mapping[str, str], given: Mapping[str, str]) -> None:
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
        f"made with something else: {'; '.join(parts)}. Load it with what made it, "
        "or pass allow_mismatch=True.",
        differing,
    )
