"""Inputs: command lines, files and standard input that nobody should send."""

import random
from collections.abc import Callable
from pathlib import Path

from tests.soak.commands import Tally, command
from tests.soak.documents import DOCUMENTS

NUMBERS = ("0", "-1", "1.5", "nan", "inf", "1e30", str(10**30), "", "x", "0x10", "١")
TEXTS: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes": lambda chance: chance.randbytes(2000),
    "NULs": lambda chance: bytes(2000),
    "text and a NUL": lambda chance: b"text \0 text",
    "half a character": lambda chance: "é".encode()[:1],
    "UTF-16": lambda chance: ("text " * 100).encode("utf-16"),
    "one long word": lambda chance: b"a" * 3000,
    "spaces": lambda chance: b" " * 3000,
    "line ends": lambda chance: b"\r\n" * 500,
    "combining marks": lambda chance: ("e" + "\u0301" * 500).encode(),
    "controls": lambda chance: bytes(range(1, 32)) * 20,
    "surrogates": lambda chance: b"\xed\xa0\x80" * 10,
    "nothing": lambda chance: b"",
    "emoji": lambda chance: "👩‍👩‍👧‍👦".encode() * 50,
    "brackets": lambda chance: b"[bold]" * 300 + b"[/]",
}
OPTIONS = ("--max-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--seed")
NAMES = ("../x", "a/b", "", "a@", "@b", "a@b@c", "x" * 300, "é", "-", "a\nb", ".hidden", "s")
DEVICES = ("mps", "meta", "xla", "cuda:99", "cpu:3", "hip", "", "CPU", "cuda:-1", "vulkan")


def inputs(folder: Path, model: Path, count: int, seed: int) -> Tally:
    """Run `count` commands; each ends, with a message of few lines if it fails."""
    tally, chance = Tally(), random.Random(seed)
    for number in range(count):
        file = folder / f"{number}.txt"
        kind = chance.choice([*TEXTS])
        data = TEXTS[kind](chance)
        file.write_bytes(data)
        what, packed = DOCUMENTS[chance.choice([*DOCUMENTS])](chance)
        document = folder / f"{number}-{what}"
        document.write_bytes(packed)
        store, given = ("--store", folder / "sessions"), ("--model", model)
        name = chance.choice(NAMES)
        commands: list[tuple[object, ...]] = [
            ("feed", "-", "--session", "s", *store, *given),
            ("feed", file, "--session", name, *store, *given),
            ("feed", file, "--session", "s", "--errors", "replace", *store, *given),
            ("score", file, "--json", *given),
            ("score", document, *given),
            ("feed", document, "--session", "s", *store, *given),
            ("score", "-", *given),
            ("generate", "--prompt", "a", chance.choice(OPTIONS), chance.choice(NUMBERS), *given),
            ("generate", "--prompt", "a", "--device", chance.choice(DEVICES), *given),
            ("sessions", "show", name, *store),
            ("sessions", "rewind", "s", "--to", chance.choice(NUMBERS), *store, *given),
            ("sessions", "rewind", "s", "--time", chance.choice(NUMBERS), *store, *given),
            ("sessions", "gc", "s", "--last", chance.choice(NUMBERS), *store),
            ("sessions", "import", chance.choice((file, "/dev/zero", folder)), "t", *store),
            ("sessions", "pin", "s", name, *store),
            ("sessions", "fork", "s", name, *store),
        ]
        words = chance.choice(commands)
        outcome = command(*words, stdin=data)
        what = f"input {number}: {kind}: {' '.join(map(str, words))[:200]!r}"
        tally.check(outcome.fault is None, f"{what}: {outcome.fault}")
        few = outcome.status == 0 or outcome.err.count("\n") <= 8
        tally.check(few, f"{what}: {outcome.err[:300]}")
        tally.check("nan" not in outcome.out.lower().split(), f"{what}: {outcome.out[:300]}")
        tally.counts["works" if outcome.status == 0 else "refused"] += 1
        file.unlink()
        document.unlink()
    return tally
