"""Short turns: what a session of many small feeds costs, beside one feed of the same text.

    python -m benchmarks.turns [--turns 2000] [--bytes 300]

Each turn is a `feed` of its own, which ends with a save. Sizes are the sums of the files' lengths,
and of the blocks that they take on this file system. Memory is the process's own.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import streamlm
from streamlm.cli.allocator import return_freed_memory
from streamlm.lab.results import write_results

BOOK = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"


def resident() -> int:
    """Bytes of memory that the process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def text_of(n_bytes: int, source: Path) -> str:
    """So much text of a book, from its beginning again where it ends; ASCII only."""
    text = source.read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    return (text * (n_bytes // len(text) + 1))[:n_bytes]


def sizes(folder: Path) -> dict[str, int]:
    """Files, their bytes, and the bytes of the blocks that they take."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return {
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "allocated": sum(stat.st_blocks * 512 for stat in stats),
    }


def measure(
    model: streamlm.Checkpoint, path: Path, pieces: list[str], *, marks: int = 4
) -> dict[str, Any]:
    """Feed the pieces one by one: sizes, seconds, and memory as the turns go on."""
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with streamlm.open(path, model) as session:
        for n, piece in enumerate(pieces, start=1):
            session.feed(piece)
            if n % max(1, len(pieces) // marks) == 0:
                row = {"turns": n, "tokens": session.position, "rss": resident()}
                rows.append(row | sizes(path))
        tokens = session.position
    seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds, "by_turns": rows} | sizes(path)


def collected(path: Path) -> dict[str, Any]:
    """What a garbage collection says that it frees, and what is gone."""
    from memory_store import Retention
    from memory_store.places import open_store

    store, before = open_store(path), sizes(path)
    done = store.gc(Retention(last=1), grace=0.0)
    after = sizes(path)
    return {"deleted": done.deleted, "said": done.bytes, "freed": before["bytes"] - after["bytes"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.turns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=300, help="of a turn")
    parser.add_argument("--model", default="books")
    parser.add_argument("--text", type=Path, default=BOOK)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    return_freed_memory()
    torch.set_num_threads(1)
    model = streamlm.load(options.model, device="cpu")
    text = text_of(options.turns * options.bytes, options.text)
    pieces = [text[at : at + options.bytes] for at in range(0, len(text), options.bytes)]
    with tempfile.TemporaryDirectory() as folder:
        turns = measure(model, Path(folder, "turns.zarr"), pieces)
        one = measure(model, Path(folder, "one.zarr"), ["".join(pieces)])
        gc = {name: collected(Path(folder, f"{name}.zarr")) for name in ("turns", "one")}
    figures = {"turns": turns, "one": one, "factor": turns["bytes"] / one["bytes"], "gc": gc}
    settings = {"turns": options.turns, "bytes": options.bytes, "model": options.model}
    write_results(options.out / "turns.json", settings=settings, figures=figures)
    for name, row in (("short turns", turns), ("one feed", one)):
        print(
            f"{name}: {row['tokens']:,} tokens, {row['bytes'] / 1e6:.1f} MB in {row['files']} "
            f"files ({row['allocated'] / 1e6:.1f} MB allocated), {row['seconds']:.0f} s"
        )
    for row in turns["by_turns"]:
        print(
            f"  after {row['turns']:,} turns: {row['bytes'] / 1e6:.1f} MB, "
            f"process {row['rss'] / 1e6:.0f} MB"
        )
    print(f"factor: {figures['factor']:.2f}")
    for name, row in gc.items():
        print(f"gc of {name}: {row}")


if __name__ == "__main__":
    main()
