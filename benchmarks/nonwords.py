"""The share of non-words in generated text, with and without min-p.

    python -m benchmarks.nonwords --threads 1

The bundled model reads passages of test books and continues each. A word is a run of letters with
inner apostrophes; it is a non-word if neither the bundled book nor any book of the data has it, in
whatever case. Both ways of sampling continue the same passages with the same seeds.
"""

import argparse
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamlm
from apps.demo.example import book
from streamlm.cli.display import note
from streamlm.lab.results import write_results
from streamlm.sessions.session import Session

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
BEFORE = 3_000  # characters of a passage that is read
SAMPLING = {"temperature": 0.8, "top_p": 0.95}  # the demo's


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without those at its ends, which may be cut."""
    return [word.lower().replace("’", "'") for word in WORD.findall(text)][1:-1]


def known_words(data: Path) -> set[str]:
    """Every word of the bundled book and of the books in a folder."""
    known = set(words_of(book()))
    for file in sorted(data.glob("*.txt.xz")):
        known.update(words_of(lzma.decompress(file.read_bytes()).decode("utf-8", "replace")))
    return known


def wilson(n: int, of: int) -> list[float]:
    """The 95 % interval of a share."""
    z, share = 1.96, n / of
    middle, half = (
        share + z * z / (2 * of),
        z * np.sqrt(share * (1 - share) / of + (z / of) ** 2 / 4),
    )
    low, high = (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)
    return [round(float(max(low, 0.0)), 5), round(float(high), 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/books"))
    parser.add_argument("--passages", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=200, help="generated after each passage")
    parser.add_argument("--min-p", type=float, nargs="+", default=[0.0, 0.05, 0.1])
    parser.add_argument("--penalty", type=float, default=1.0, help="for repetitions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nonwords.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known = known_words(args.data)
    note(f"{len(known):,} words are known")
    model = streamlm.load("books", device="cpu")
    test = lzma.decompress((args.data / "test.txt.xz").read_bytes()).decode("utf-8")
    rows: list[dict[str, Any]] = []
    found: dict[float, list[str]] = {each: [] for each in args.min_p}
    totals = dict.fromkeys(args.min_p, 0)
    for n in range(args.passages):
        at = len(test) * (2 * n + 1) // (2 * args.passages)
        session = Session(model)
        session.feed(test[at : at + BEFORE])
        for min_p in args.min_p:
            pieces = session.fork().generate(
                max_tokens=args.tokens,
                min_p=min_p,
                repetition_penalty=args.penalty,
                seed=n,
                **SAMPLING,
            )
            words = words_of("".join(pieces))
            totals[min_p] += len(words)
            found[min_p] += [word for word in words if word not in known]
    for min_p in args.min_p:
        n, of = len(found[min_p]), totals[min_p]
        rows.append(
            {
                "min_p": min_p, "words": of, "non_words": n, "share": round(n / of, 5),
                "interval": wilson(n, of), "which": sorted(found[min_p]),
            }
        )  # fmt: skip
        print(f"min_p {min_p}: {n} non-words of {of} words ({n / of:.2%}): {found[min_p][:12]}")
    settings = {**vars(args), "data": str(args.data), "out": str(args.out), **SAMPLING}
    write_results(args.out, settings=settings, figures={"rows": rows})


if __name__ == "__main__":
    main()
