"""Bits per byte of xz and PPMd on the test books: what `benchmarks.books` is measured against.

    python -m benchmarks.compressors                   # PPMd also after reading all training books
    python -m benchmarks.compressors --prime           # without that: minutes instead of an hour

They know nothing of any model, so they are measured once for a set of books.
"""

import argparse
import hashlib
from pathlib import Path

from benchmarks.tools import compressors
from streamlm.cli.display import bar, output
from streamlm.lab.results import write_results
from streamlm.training.documents import read_documents


def digest(books: list[bytes]) -> str:
    """sha256 by which `benchmarks.books` knows that it reads the same bytes."""
    return hashlib.sha256(b"\f\n".join(books)).hexdigest()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compressors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = Path("data/books")
    parser.add_argument("--data", type=Path, default=folder / "test.txt.xz")
    parser.add_argument("--tuning", type=Path, default=folder / "valid.txt.xz", help="for PPMd")
    parser.add_argument("--tuning-books", type=int, default=6)
    parser.add_argument("--orders", type=int, nargs="+", default=list(compressors.ORDERS))
    parser.add_argument(
        "--prime",
        type=Path,
        nargs="*",
        default=sorted(folder.glob("train-*.txt.xz")),
        help="training files that PPMd reads first; none leaves this out",
    )
    parser.add_argument(
        "--prime-orders", type=int, nargs="+", default=list(compressors.PRIMED_ORDERS)
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    books = [text.encode() for text in read_documents(options.data) if text]
    tuning = [text.encode() for text in read_documents(options.tuning)][: options.tuning_books]
    with bar("compressing", total=None, fields="{task.fields[note]}") as (progress, task):

        def note(message: str) -> None:
            progress.update(task, note=message)

        note("xz")
        found = compressors.xz(books)
        found += compressors.ppmd(books, tuning, orders=options.orders, note=note)
        if options.prime:
            found.append(
                compressors.primed_ppmd(
                    books, tuning, training=options.prime, orders=options.prime_orders, note=note
                )
            )
    settings = {"data": str(options.data), "sha256": digest(books), "tuning": str(options.tuning)}
    figures = {"compressors": [one.to_dict() for one in found]}
    write_results(options.out / "compressors.json", settings=settings, figures=figures)
    for one in found:
        output.print(f"{one.name}: {one.bits_per_byte:.4f} bits per byte")


if __name__ == "__main__":
    main()
