"""Bits per byte on books never seen, beside xz and PPMd, and what the memory does for it.

    python -m benchmarks.books                      # the bundled model, every byte of the test set
    python -m benchmarks.books --max-tokens 50000   # a quick look: the beginnings of the books

xz and PPMd are put beside it where `python -m benchmarks.compressors` was run on the same bytes.

Each book is read from its first byte to its last, beginning with an empty memory. The same weights
read three times: with all their memory, without the compressed part of it, and with none (every
segment begins anew).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamlm
from benchmarks.compressors import digest
from benchmarks.tools.books_report import draw, show
from benchmarks.tools.positions import Bins, compared, curve, interval, linear_edges, log_edges
from benchmarks.tools.reads import NONE, RECENT, WHOLE, Book, encode_books, read_books
from streamlm.cli.display import bar, note
from streamlm.lab.results import usable_cores, write_results
from streamlm.training.documents import read_documents
from streamlm.training.evaluate import EvalReport

LINEAR_BINS = 64  # of a segment each, for the finer view of a book's beginning
NOTES = [
    "All models and compressors code the same bytes.",
    "The size of the weights and of the tokenizer is not counted, nor is that of the training text "
    "that primes PPMd; xz and PPMd without priming know nothing beforehand.",
    "The ways of reading share their weights, which were trained with all the memory.",
    "Intervals: 95 %, books drawn with replacement; differences are over the same tokens.",
]


def compressors_of(path: Path, books: list[Book]) -> list[dict[str, Any]]:
    """What `benchmarks.compressors` found on the same bytes; nothing, if it was not run on them."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["settings"]["sha256"] != digest([book.data for book in books]):
        return []
    compressors: list[dict[str, Any]] = found["figures"]["compressors"]
    return compressors


def titles(data: Path, books: int) -> list[str]:
    """Titles from the manifest beside the data, or numbers."""
    manifest = data.parent / "manifest.jsonl"
    found: list[str] = []
    if manifest.exists():
        lines = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
        name = data.name.split(".")[0]
        found = [line["title"] for line in lines if str(line["shard"]).split(".")[0] == name]
    return found if len(found) == books else [f"book {i + 1}" for i in range(books)]


def position_figures(reports: dict[str, EvalReport], segment_len: int) -> dict[str, Any]:
    """Loss by position, finely and in powers of two, and the paired differences."""
    longest = max(len(book) for book in reports[WHOLE].losses or [])
    coarse = [0, *(e for n in range(8) if (e := segment_len * 4**n) < longest), longest]
    views = {
        "log": log_edges(longest),
        "linear": linear_edges(longest, segment_len, LINEAR_BINS),
        "coarse": coarse,
        "whole": [0, longest],
    }
    binned = {
        view: {name: Bins.of(report.losses or [], edges) for name, report in reports.items()}
        for view, edges in views.items()
    }
    pairs = [(a, b) for a, b in ((WHOLE, NONE), (WHOLE, RECENT), (RECENT, NONE)) if b in reports]
    return {
        "curves": {
            view: {name: curve(bins) for name, bins in binned[view].items()}
            for view in ("log", "linear")
        },
        "differences": [
            row
            for a, b in pairs
            if a in reports
            for view in ("whole", "coarse")
            for row in compared(f"{a} − {b}", binned[view][a], binned[view][b])
        ],
    }


def model_figures(reports: dict[str, EvalReport]) -> dict[str, Any]:
    """Sums of each way of reading, with an interval over books."""
    found = {}
    for name, report in reports.items():
        bits = np.array([[book.nats / np.log(2)] for book in report.documents])
        low, high = interval(bits, np.array([[book.n_bytes] for book in report.documents]))[:, 0]
        found[name] = {
            "bits_per_byte": report.bits_per_byte,
            "low": None if np.isnan(low) else float(low),
            "high": None if np.isnan(high) else float(high),
            "word_perplexity": report.word_perplexity,
            "nats": report.nats,
            "tokens": report.tokens,
            "bytes": report.n_bytes,
            "words": report.words,
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.books",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = Path("data/books")
    parser.add_argument("--model", default="books", help="a bundled checkpoint or a directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--data", type=Path, default=folder / "test.txt.xz")
    parser.add_argument("--batch-size", type=int, default=4, help="books side by side")
    parser.add_argument("--max-tokens", type=int, help="read the beginnings of the books only")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    texts = [text for text in read_documents(options.data) if text]
    with bar("encoding", total=len(texts)) as (progress, task):
        books = encode_books(
            texts,
            checkpoint,
            max_tokens=options.max_tokens,
            progress=lambda: progress.advance(task),
        )
    n_tokens = sum(len(book.ids) for book in books)
    compressors = compressors_of(options.out / "compressors.json", books)
    if not compressors:
        note(
            "no figures of xz and PPMd on these bytes: python -m benchmarks.compressors makes them"
        )
    with bar("reading", total=3 * n_tokens, fields="{task.fields[note]}") as (progress, task):
        reports = read_books(
            checkpoint,
            books,
            batch_size=options.batch_size,
            progress=lambda name, n: progress.update(task, advance=n, note=name),
        )
    figures = {
        "models": model_figures(reports),
        "compressors": compressors,
        **position_figures(reports, checkpoint.model.config.segment_len),
        "books": [
            {
                "title": title,
                "bytes": len(book.data),
                "tokens": len(book.ids),
                "bits_per_byte": {
                    name: report.documents[i].bits_per_byte for name, report in reports.items()
                },
            }
            for i, (title, book) in enumerate(
                zip(titles(options.data, len(books)), books, strict=True)
            )
        ],
    }
    settings = {
        "model": checkpoint.name,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
        "weights": checkpoint.fingerprints["weights"],
        "config": checkpoint.model.config.to_dict(),
        "reach": checkpoint.model.config.reach,
        "data": str(options.data),
        "max_tokens": options.max_tokens,
        "notes": NOTES,
    }
    device = checkpoint.model.device
    write_results(options.out / "books.json", settings=settings, figures=figures, device=device)
    draw(figures, settings, options.out / "books.png")
    show(figures)


if __name__ == "__main__":
    main()
