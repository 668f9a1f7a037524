"""No drift: a million tokens of books in one stream, the loss at its end against its beginning.

    python -m benchmarks.drift                     # a million tokens of the test books
    python -m benchmarks.drift --tokens 100000     # a quick look

The memory is never emptied. Each tenth of the stream holds a piece of every book, so that tenths
can be compared book by book: what differs is how long the model has been reading.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamlm
from benchmarks.tools.positions import interval
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.models.cache import Cache
from streamlm.plots.style import BLUE, GREY, panels, save, tokens_text
from streamlm.runtime.stream import score
from streamlm.training.documents import read_documents

PARTS = 10


def pieces_of(checkpoint: Checkpoint, texts: list[str], *, tokens: int) -> list[list[np.ndarray]]:
    """[PARTS][books] ids: part k has the k-th piece of each book, all of one size for a book."""
    books = [checkpoint.tokenizer.encode(text) for text in texts]
    # Long books give more, but no book more than its length: the share that fills the tokens.
    share = min(1.0, tokens / sum(map(len, books)))
    pieces: list[list[np.ndarray]] = [[] for _ in range(PARTS)]
    for ids in books:
        size = int(len(ids) * share) // PARTS
        step = len(ids) // PARTS
        for part in range(PARTS):
            pieces[part].append(ids[part * step : part * step + size])
    return pieces


def read_through(
    checkpoint: Checkpoint, pieces: list[list[np.ndarray]], advance: Any
) -> dict[str, Any]:
    """Nats and bytes of every piece, read in one stream, and the size of the state after each."""
    model, lengths = checkpoint.model, checkpoint.tokenizer.token_lengths
    state, cache, pending = model.init_state(1), Cache(), checkpoint.tokenizer.bos_id
    nats = np.zeros((PARTS, len(pieces[0])))
    n_bytes, sizes, largest = np.zeros_like(nats), [], 0.0
    for part, of_part in enumerate(pieces):
        for book, ids in enumerate(of_part):
            inputs = np.concatenate([[pending], ids[:-1]]).astype(np.int64)
            found, state = score(
                model,
                torch.from_numpy(inputs)[None].to(model.device),
                torch.from_numpy(ids.astype(np.int64))[None].to(model.device),
                state,
                cache,
            )
            if not bool(found.isfinite().all()):
                raise FloatingPointError(f"a loss that is no number, in part {part}, book {book}")
            pending = int(ids[-1])
            nats[part, book] = -float(found.double().sum())
            n_bytes[part, book] = lengths[ids].sum()
            advance(len(ids))
        sizes.append(state.nbytes)
        largest = max(largest, float(state.past.abs().max()))
    return {
        "bits": nats / math.log(2),
        "bytes": n_bytes,
        "state_bytes": sizes,
        "largest_slot_value": largest,
        "position": int(state.position),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="books", help="a bundled checkpoint or a directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    texts = [text for text in read_documents(options.data) if text]
    pieces = pieces_of(checkpoint, texts, tokens=options.tokens)
    total = sum(len(ids) for part in pieces for ids in part)
    with bar("reading", total=total) as (progress, task):
        read = read_through(checkpoint, pieces, lambda n: progress.advance(task, n))
    bits, n_bytes = read["bits"], read["bytes"]
    per_part = bits.sum(axis=1) / n_bytes.sum(axis=1)
    # Pieces of a book differ a little in bytes, so books are compared by their own bits per byte.
    by_book = bits / n_bytes
    weights = n_bytes.mean(axis=0)
    late = ((by_book[-1] - by_book[1]) * weights)[:, None]
    low, high = interval(late, weights[:, None])[:, 0]
    figures = {
        "bits_per_byte_by_tenth": per_part.tolist(),
        "last_minus_second": {
            "difference": float(late.sum() / weights.sum()),
            "low": float(low),
            "high": float(high),
        },
        "state_bytes_by_tenth": read["state_bytes"],
        "largest_slot_value": read["largest_slot_value"],
        "tokens": read["position"],
    }
    settings = {
        "model": checkpoint.name,
        "weights": checkpoint.fingerprints["weights"],
        "data": str(options.data),
        "books": len(texts),
    }
    device = checkpoint.model.device
    write_results(options.out / "drift.json", settings=settings, figures=figures, device=device)
    draw(figures, options.out / "drift.png")
    change = figures["last_minus_second"]
    output.print(f"{total:,} tokens; bits per byte by tenth of the stream:")
    output.print("  ".join(f"{value:.3f}" for value in per_part))
    output.print(
        f"last tenth − second: {change['difference']:+.4f} ({change['low']:+.4f} to "
        f"{change['high']:+.4f}, 95 % over books); state {set(read['state_bytes'])} bytes"
    )


def draw(figures: dict[str, Any], path: Path) -> None:
    """Bits per byte along the stream."""
    figure, (axis,) = panels(1, size=(5.6, 3.0), widths=[1])
    values, n = figures["bits_per_byte_by_tenth"], figures["tokens"]
    ends = [n * (i + 0.5) / PARTS for i in range(PARTS)]
    axis.plot(ends, values, "o-", color=BLUE, markersize=4)
    axis.axhline(values[1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xticks([n * i / 4 for i in range(5)], [tokens_text(n * i / 4) for i in range(5)])
    axis.set_ylim(min(values) - 0.06, max(values) + 0.06)
    axis.set_xlabel("tokens read, memory never emptied")
    axis.set_ylabel("bits per byte")
    axis.set_title("The same books, a piece of each in every tenth")
    save(figure, path)


if __name__ == "__main__":
    main()
