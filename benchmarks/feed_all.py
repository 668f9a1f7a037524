"""Throughput of `streamlm feed-all`: the same documents with one worker and with two.

    python -m benchmarks.feed_all [--documents 12] [--bytes 60000] [--workers 1 2]

Each worker has one thread and loads the model itself: part of the time, and reported apart.
Rounds alternate, so that a machine that becomes busy slows all of them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.turns import BOOK, text_of
from streamlm.jobs.job import Plan
from streamlm.jobs.listing import jobs_of
from streamlm.jobs.pool import local_rows
from streamlm.lab.results import write_results


def feed(folder: Path, store: Path, model: str, workers: int) -> dict[str, Any]:
    """Feed the documents of a folder into new sessions."""
    started, first, tokens = time.perf_counter(), 0.0, 0
    jobs, plan = jobs_of([str(folder)]), Plan("feed", str(store), model)
    for row in local_rows(jobs, plan, workers=workers, threads=1):
        if row["status"] != "done":
            raise RuntimeError(row["error"])
        now = time.perf_counter() - started
        first = first or now - row["seconds"]
        tokens += row["tokens"]
    seconds = time.perf_counter() - started
    return {"workers": workers, "seconds": seconds, "begun_after": first, "tokens": tokens}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feed_all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--bytes", type=int, default=60_000, help="of a document")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="books")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "documents")
        folder.mkdir()
        text = text_of(options.bytes, BOOK)
        for n in range(options.documents):
            (folder / f"{n:03d}.txt").write_text(f"Document {n}.\n{text}", encoding="utf-8")
        for n in range(options.rounds):
            for workers in options.workers:
                rows.append(feed(folder, Path(place, f"{n}-{workers}"), options.model, workers))
    settings = {"documents": options.documents, "bytes": options.bytes, "model": options.model}
    speeds = {
        workers: median(row["tokens"] / row["seconds"] for row in rows if row["workers"] == workers)
        for workers in options.workers
    }
    load = os.getloadavg()[0]
    figures = {"rounds": rows, "tokens_per_second": speeds, "load_average": load}
    write_results(options.out / "feed-all.json", settings=settings, figures=figures)
    for workers, speed in speeds.items():
        ratio = speed / speeds[options.workers[0]]
        print(f"{workers} worker{'s' * (workers > 1)}: {speed:,.0f} tokens/s ({ratio:.2f}x)")
    print(f"load average at the end: {load:.1f}")


if __name__ == "__main__":
    main()
