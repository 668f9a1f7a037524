"""Crafted stores: one value of a document is forged, and every checksum and id is right."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory_store import DirectoryStore, Ref
from memory_store.format.json import canonical, sealed, sha256
from streamlm.checkpoints.checkpoint import Checkpoint
from tests.memory_store.hostile.lies import LIES, places, with_lie
from tests.soak.commands import Tally, command, fresh_copy, grown_session
from tests.support.stores import members, repacked

FORGERIES: list[Any] = [
    *LIES,
    *(9e15, 2**53, 2**52, 253402300800, 1e300, -1e300, 10**12, 2**40, "nan", "\ud800", "\x1b[31m"),
    *([[1] * 3] * 40, {"last": -1}, {"last": 10**30, "thin": True}, {"last": 2.5}, "main", "x"),
    json.loads("[" * 60 + "]" * 60),
]
COMMANDS: list[tuple[str, ...]] = [
    ("sessions", "list"),
    ("sessions", "show", "s", "--memory"),
    ("sessions", "search", "s", "whale"),
    ("sessions", "verify", "s"),
    ("generate", "--session", "s", "--max-tokens", "2"),
    ("feed", "-", "--session", "s"),
    ("sessions", "rewind", "s", "--to", "70"),
    ("sessions", "gc", "s", "--last", "2", "--grace", "0"),
    ("sessions", "recover", "s"),
]
MODEL_COMMANDS = {"generate", "feed", "rewind", "show", "search"}


def crafted(folder: Path, model: Checkpoint, model_folder: Path, count: int, seed: int) -> Tally:
    """Try every command on `count` forged sessions; an intact one beside it stays listed."""
    tally, chance = Tally(), random.Random(seed)
    honest, shelf = folder / "honest.zarr", folder / "sessions"
    grown_session(honest, model)
    fresh_copy(honest, shelf / "intact.zarr")
    for _ in range(count):
        path = fresh_copy(honest, shelf / "s.zarr")
        what = _forge(DirectoryStore.open(path), chance)
        refused = False
        for words in COMMANDS:
            given = [*words, "--store", shelf]
            if MODEL_COMMANDS & set(words):
                given += ["--model", model_folder]
            outcome = command(*given, stdin=b"All hands. " * 4)
            refused |= outcome.status != 0
            tally.check(outcome.fault is None, f"{what}: {' '.join(words)}: {outcome.fault}")
            one = outcome.err.count("\n") <= 3 or words[1] == "recover"
            tally.check(one, f"{what}: {' '.join(words)}: {outcome.err}")
            if words == ("sessions", "list"):
                tally.check("intact" in outcome.out, f"{what}: the others are not listed")
        tally.counts["refused" if refused else "accepted"] += 1
    return tally


def _forge(store: DirectoryStore, chance: random.Random) -> str:
    """Forge one value; returns where and what."""
    forgers: list[Callable[[DirectoryStore, random.Random], str]] = [
        *[_forge_sealed] * 2,
        *[_forge_commit] * 3,
    ]
    return chance.choice(forgers)(store, chance)


def _lied(document: Any, chance: random.Random) -> tuple[Any, str]:
    while True:
        place, lie = chance.choice([*places(document)]), chance.choice(FORGERIES)
        if chance.random() < 0.1:
            forged = json.loads(json.dumps(document))
            inside = forged
            for key in place[:-1]:
                inside = inside[key]
            del inside[place[-1]]
            return forged, f"without {place}"
        try:
            forged = with_lie(document, place, lie)
        except ValueError:
            continue
        if forged is not None:
            return forged, f"{place} = {str(lie)[:60]!r}"


def _forge_sealed(store: DirectoryStore, chance: random.Random) -> str:
    path = chance.choice(
        [
            store.path / "session.json",
            *sorted((store.path / "refs").glob("*/*.json"))[-6:],
            store.path / "pins" / "kept.json",
        ]
    )
    document = json.loads(path.read_text())
    del document["crc32c"]
    forged, what = _lied(document, chance)
    path.write_bytes(sealed(forged))
    return f"{path.name}: {what}"


def _forge_commit(store: DirectoryStore, chance: random.Random) -> str:
    """Forge the attributes of a head; its id and its ref follow."""
    branch = chance.choice(store.branches())
    head = store.head(branch)
    assert head is not None
    file = store.path / "commits" / head.commit.name
    contents = members(file.read_bytes())
    document = json.loads(contents["zarr.json"])
    document["attributes"], what = _lied(document["attributes"], chance)
    file.write_bytes(repacked({**contents, "zarr.json": canonical(document)}))
    _point(store, head, sha256(canonical(document["attributes"])))
    return f"{branch}'s head: {what}"


def _point(store: DirectoryStore, head: Ref, id: str) -> None:
    """Make all refs that name the commit name its new id."""
    for path in (store.path / "refs").glob("*/*.json"):
        entry = json.loads(path.read_text())
        if entry["commit"] == head.commit.name:
            del entry["crc32c"]
            path.write_bytes(sealed({**entry, "id": id}))
