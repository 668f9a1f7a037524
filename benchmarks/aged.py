"""A stored session early and late in its life: likelihoods, speed, bytes, commits and resuming.

    python -m benchmarks.aged --session runs/planted.zarr --model smollm2

The session is opened read-only. Pieces of other books are scored from its state at `--young` tokens
and from its newest one; both then read and write the same in turns. Commits and resumes of the
newest state are measured beside the least that a disk can do.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import streamlm
from benchmarks.tools.costs import Place, stream_of, token_costs
from benchmarks.tools.positions import interval
from benchmarks.tools.saving import commit_costs, resume_costs
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.runtime.reports import ReadReport
from streamlm.training.documents import read_documents


def drift_of(
    checkpoint: Checkpoint, places: dict[str, Place], pieces: list[np.ndarray], advance: Any
) -> dict[str, Any]:
    """Bits per byte of pieces after `places`, each from the same state, and the difference."""
    lengths = checkpoint.tokenizer.token_lengths
    bits = np.zeros((len(places), len(pieces)))
    for row, (stream, cache) in enumerate(places.values()):
        for column, ids in enumerate(pieces):
            report = ReadReport()
            stream.read_ids(checkpoint, ids, cache=cache.copy(), report=report)
            bits[row, column] = report.nats / math.log(2)
            advance()
    n_bytes = np.array([lengths[ids].sum() for ids in pieces], dtype=float)
    late = (bits[1] - bits[0])[:, None]
    low, high = interval(late, n_bytes[:, None])[:, 0]
    return {
        "bits_per_byte": dict(zip(places, (bits.sum(1) / n_bytes.sum()).tolist(), strict=True)),
        "late_minus_early": {
            "difference": float(late.sum() / n_bytes.sum()),
            "low": float(low),
            "high": float(high),
        },
        "pieces": len(pieces),
        "tokens": int(sum(map(len, pieces))),
    }


def measure(options: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """All figures."""
    books = [checkpoint.tokenizer.encode(text[: 1 << 16]) for text in read_documents(options.data)]
    size = options.tokens
    pieces = [ids[len(ids) // 2 :][:size] for ids in books if len(ids) >= 2 * size]
    places: dict[str, Place] = {}
    states = {}
    with (
        streamlm.open(options.session, checkpoint, readonly=True) as session,
        session.fork(tokens=options.young) as young,
    ):
        for name, each in (("young", young), ("old", session)):
            places[name] = stream_of(each, books[0])
            states[name] = each.state.nbytes
    with bar("likelihoods", total=2 * len(pieces)) as (progress, task):
        drift = drift_of(checkpoint, places, pieces, lambda: progress.advance(task))
    with bar("young and old in turns", total=2 * options.repeats) as (progress, task):
        costs = token_costs(
            checkpoint,
            young=places["young"],
            old=places["old"],
            ids=np.concatenate(pieces),
            repeats=options.repeats,
            progress=lambda: progress.advance(task),
        )
    config = checkpoint.model.config
    with bar("commit and resume", total=3 * options.repeats) as (progress, task):
        commits = [
            commit_costs(
                checkpoint,
                places["old"][0],
                tokens=tokens,
                ids=np.concatenate(pieces),
                folder=folder / f"commits-{tokens}.zarr",
                repeats=options.repeats,
                progress=lambda: progress.advance(task),
            )
            for tokens in (config.segment_len, 4 * config.segment_len)
        ]
        resume = resume_costs(
            checkpoint,
            options.session,
            folder=folder,
            repeats=options.repeats,
            progress=lambda: progress.advance(task),
        )
    return {
        "positions": {name: stream.position for name, (stream, _) in places.items()},
        "drift": drift,
        "cost": {name: found.to_dict() for name, found in costs.items()},
        "state_bytes": states,
        "commits": commits,
        "resume": resume,
    }


def show(figures: dict[str, Any]) -> None:
    """The figures as lines."""
    young, old = figures["positions"].values()
    drift = figures["drift"]
    early, late = drift["bits_per_byte"].values()
    change = drift["late_minus_early"]
    output.print(
        f"bits per byte after {young:,} tokens {early:.4f}, after {old:,} {late:.4f}: "
        f"{change['difference']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
    )
    for name, cost in figures["cost"].items():
        found = cost["old_to_young"]
        output.print(
            f"{name}: {cost['old_tokens_per_second']:,.0f} tokens/s, time old ÷ young "
            f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        )
    for commit in figures["commits"]:
        output.print(
            f"commit {commit['tokens_between']:,} tokens later: {commit['added_bytes']:,} bytes in "
            f"{commit['ms']['median']:.1f} ms, {commit['to_floor']['median']:.1f} × np.save + fsync"
        )
    resume = figures["resume"]
    output.print(
        f"resume: {resume['state_bytes']:,} bytes in {resume['ms']['median']:.1f} ms, "
        f"{resume['to_floor']['median']:.1f} × np.load"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--session", type=Path, required=True, help="a store with all snapshots")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--young", type=int, default=16384, help="tokens of the early state")
    parser.add_argument("--tokens", type=int, default=1024, help="of each piece of a book")
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--repeats", type=int, default=10, help="pairs of each measurement")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="for sessions meanwhile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device="cpu")
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="aged-", dir=options.folder) as folder:
        figures = measure(options, checkpoint, Path(folder))
    settings = {
        "model": checkpoint.name,
        "precision": checkpoint.precision,
        "weights": checkpoint.fingerprints["weights"],
        "data": str(options.data),
        "tokens": options.tokens,
        "repeats": options.repeats,
    }
    write_results(
        options.out / "aged.json",
        settings=settings,
        figures=figures,
        device=checkpoint.model.device,
    )
    show(figures)


if __name__ == "__main__":
    main()
