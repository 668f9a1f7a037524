"""Damage: a file of a session is changed, cut off or lost, and nobody is told a wrong state."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import streamlm
from memory_store import DirectoryStore, StoreError, places
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.soak.commands import Tally, fresh_copy, grown_session, limited

KINDS = ("flip", "cut off", "zeros", "lost", "empty", "longer", "another file's")
IGNORED = (".lock", ".publish")


def damages(folder: Path, model: Checkpoint, count: int, seed: int) -> Tally:
    """Damage `count` copies of a session, each in one place or two."""
    tally, chance = Tally(), random.Random(seed)
    honest = folder / "honest.zarr"
    grown_session(honest, model)
    with streamlm.open(honest, model, readonly=True) as session:
        digest, position = session.state.digest(), session.position
    for number in range(count):
        path = fresh_copy(honest, folder / "s.zarr")
        what = f"damage {number}: " + ", ".join(
            _damaged(path, chance) for _ in range(chance.choice((1, 1, 2)))
        )
        noticed = _noticed(path)
        tally.counts["verify notices" if noticed else "verify is content"] += 1
        tally.check(noticed or _unnoticeable(what), f"{what}: verify is content")
        state = _opened(path, model)
        if state == (position, digest):
            tally.counts["opened, as it was"] += 1
        elif isinstance(state, tuple):
            # Only with a branch moved back by a ref that is gone: a rewind leaves no commit.
            tally.check("refs/main/" in what, f"{what}: opened at {state[0]}, another state")
            tally.counts["opened, elsewhere"] += 1
        else:
            tally.counts["refused"] += 1
        if noticed or not isinstance(state, tuple):
            _recovered(path, model, tally, what)
    return tally


def _damaged(path: Path, chance: random.Random) -> str:
    names = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name not in IGNORED]
    file, kind = chance.choice(names), chance.choice(KINDS)
    data = file.read_bytes()
    at = chance.randrange(len(data)) if data else 0
    changes: dict[str, Callable[[], bytes | None]] = {
        "flip": lambda: data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :],
        "cut off": lambda: data[:at],
        "zeros": lambda: data[:at] + bytes(len(data) - at),
        "lost": lambda: None,
        "empty": lambda: b"",
        "longer": lambda: data + b"\0",
        "another file's": lambda: chance.choice(names).read_bytes(),
    }
    changed = changes[kind]() if data else b"x"
    file.unlink()
    if changed is not None:
        file.write_bytes(changed)
    same = " (unchanged)" if changed == data else ""
    return f"{kind} {file.relative_to(path)}{same}"


def _noticed(path: Path) -> bool:
    try:
        return bool(DirectoryStore.open(path).verify().unreferenced)
    except StoreError:
        return True


def _unnoticeable(what: str) -> bool:
    """What no file tells: a newest ref to a commit that other refs name, a pin's copy, JSON."""
    hidden = ("lost refs/", "lost pinned/", "(unchanged)")
    return any(word in what for word in hidden)


def _opened(path: Path, model: Checkpoint) -> tuple[int, str] | str:
    try:
        with warnings.catch_warnings(), limited():
            warnings.simplefilter("ignore")  # read-only: nothing is restored by looking
            with streamlm.open(path, model, readonly=True) as session:
                return session.position, session.state.digest()
    except StoreError as error:
        return str(error)


def _recovered(path: Path, model: Checkpoint, tally: Tally, what: str) -> None:
    """After `recover`, a session can be fed, rewound and written on; or it said that it cannot."""
    try:
        places.repair_header(path)
        head = DirectoryStore.open(path).recover().head
    except StoreError:
        tally.counts["beyond recovery"] += 1
        return
    tally.counts["recovered"] += 1
    try:
        with limited(), streamlm.open(path, model) as session:
            tally.check(session.position == head.position, f"{what}: recovered elsewhere")
            session.feed("It goes on. " * 3)
            list(session.generate(max_tokens=2))
            session.rewind(to=head.position)
    except Exception as error:
        tally.faults.append(f"{what}: recovered, but {error!r}")
