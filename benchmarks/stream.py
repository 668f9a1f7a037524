"""A token costs the same after 1,000 and after 1,000,000: time, memory, bytes of state.

    python -m benchmarks.stream                     # the bundled model, a million tokens
    python -m benchmarks.stream --tokens 50000      # a quick look
    python -m benchmarks.stream --model smollm2 --name stream-smollm2     # a pretrained model

Two fresh processes read 1,000 and a million tokens into a session each, and say what memory they
took. Both sessions are then resumed here and measured in turns. Then commits and resumes are
measured beside the least that a disk can do.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from rich.table import Table

import streamlm
from benchmarks.tools.costs import stream_of, token_costs
from benchmarks.tools.reading import run_reader
from benchmarks.tools.saving import commit_costs, resume_costs
from benchmarks.tools.stream_plot import draw
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.training.documents import read_documents

YOUNG = 1000
TARGET = 1.1  # a token may cost so much more in an old session
IDS_TEXT = 1 << 18  # characters of the file that both sessions are fed in turns


def read_both(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """One process reads `YOUNG` tokens, another all of them."""
    found = {}
    for name, tokens in (("young", YOUNG), ("old", options.tokens)):
        with bar(f"reading {tokens:,} tokens", total=tokens) as (progress, task):
            found[name] = run_reader(
                model=options.model,
                device=options.device,
                threads=options.threads,
                data=options.data,
                store=folder / f"{name}.zarr",
                tokens=tokens,
                progress=partial(_completed, progress, task),
            )
    return found


def _completed(progress: Progress, task: TaskID, position: int) -> None:
    progress.update(task, completed=position)


def memory_figures(young: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of both processes, and what of it came after the model was loaded."""
    return {
        name: {
            "position": reader["position"],
            "peak_bytes": reader["peak_bytes"],
            "growth_bytes": reader["peak_bytes"] - reader["before_bytes"],
            "peak_cuda_bytes": reader["peak_cuda_bytes"],
            "peak_of_reading_alone": reader["peak_of_reading_alone"],
        }
        for name, reader in (("young", young), ("old", old))
    } | {
        "old_to_young": old["peak_bytes"] / young["peak_bytes"],
        "growth_old_to_young": (old["peak_bytes"] - old["before_bytes"])
        / max(1, young["peak_bytes"] - young["before_bytes"]),
    }


def measure(options: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """All figures."""
    readers = read_both(options, folder)
    old = readers["old"]
    text = next(read_documents(options.data))[:IDS_TEXT]
    ids = checkpoint.tokenizer.encode(text)
    streams = {}
    for name in readers:
        with streamlm.open(folder / f"{name}.zarr", checkpoint, readonly=True) as session:
            streams[name] = stream_of(session, ids)
    with bar("young and old in turns", total=2 * options.repeats) as (progress, task):
        costs = token_costs(
            checkpoint,
            young=streams["young"],
            old=streams["old"],
            ids=ids,
            repeats=options.repeats,
            progress=lambda: progress.advance(task),
        )
    config = checkpoint.model.config
    # So many that every slot of both windows is a new one, as with the usual `save_every`.
    renewed = config.memory_len + config.compression_rate * config.compressed_len
    renewed = -(-renewed // config.segment_len) * config.segment_len + config.segment_len
    with bar("commit and resume", total=3 * options.repeats) as (progress, task):
        commits = [
            commit_costs(
                checkpoint,
                streams["old"][0],
                tokens=tokens,
                ids=ids,
                folder=folder / f"commits-{tokens}.zarr",
                repeats=options.repeats,
                progress=lambda: progress.advance(task),
            )
            for tokens in (config.segment_len, renewed)
        ]
        resume = resume_costs(
            checkpoint,
            folder / "old.zarr",
            folder=folder,
            repeats=options.repeats,
            progress=lambda: progress.advance(task),
        )
    return {
        "tokens": old["tokens"],
        "positions": {name: stream.position for name, (stream, _) in streams.items()},
        "target": TARGET,
        "reading_tokens_per_second": old["tokens"] / old["seconds"],
        "reading_bits_per_byte": old["bits_per_byte"],
        "cost": {name: found.to_dict() for name, found in costs.items()},
        "memory": memory_figures(readers["young"], old),
        "state": old["marks"],
        "disk_bytes": old["disk_bytes"],
        "commits": commits,
        "resume": resume,
        "curve": old["curve"],
    }


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    young, old = figures["positions"]["young"], figures["positions"]["old"]
    table = Table(title=f"what a token costs after {young:,} and after {old:,} tokens")
    for column in ("", "young", "old", "old ÷ young", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("feed", "decode"):
        cost = figures["cost"][name]
        found = cost["old_to_young"]
        table.add_row(
            f"{name}, ms a token",
            f"{cost['young_ms_per_token']['median']:.3f}",
            f"{cost['old_ms_per_token']['median']:.3f}",
            f"{found['median']:.3f}",
            f"{found['low']:.3f} – {found['high']:.3f}",
        )
    memory, marks = figures["memory"], figures["state"]
    peaks = [memory[name]["peak_bytes"] / 1e6 for name in ("young", "old")]
    table.add_row(
        "peak memory, MB", *(f"{n:.1f}" for n in peaks), f"{memory['old_to_young']:.3f}", ""
    )
    sizes = [marks[0]["state_bytes"], marks[-1]["state_bytes"]]
    table.add_row("state, bytes", *(f"{n:,}" for n in sizes), f"{sizes[1] / sizes[0]:.3f}", "")
    output.print(table)
    feeding, writing = (figures["cost"][name]["old_tokens_per_second"] for name in figures["cost"])
    output.print(
        f"feeding {feeding:,.0f}, writing {writing:,.0f} tokens/s; "
        f"the whole reading {figures['reading_tokens_per_second']:,.0f} tokens/s, saves included"
    )
    for commit in figures["commits"]:
        output.print(
            f"commit {commit['tokens_between']:,} tokens later ({commit['added_bytes']:,} bytes): "
            f"{commit['ms']['median']:.1f} ms, {commit['to_floor']['median']:.1f} × the floor"
        )
    resume = figures["resume"]
    output.print(
        f"resume ({resume['state_bytes']:,} bytes): {resume['ms']['median']:.1f} ms, "
        f"{resume['to_floor']['median']:.1f} × the floor of {resume['floor_ms']['median']:.2f} ms"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="books", help="a bundled checkpoint or a directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--repeats", type=int, default=40, help="pairs of each measurement")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs"),
        help="where sessions are kept meanwhile; on a disk, not a RAM disk",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="stream", help="of the files in --out")
    options = parser.parse_args(arguments)
    if options.tokens <= YOUNG:
        parser.error(f"--tokens {options.tokens}; allowed: more than {YOUNG}")
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stream-", dir=options.folder) as folder:
        figures = measure(options, checkpoint, Path(folder))
    settings = {
        "model": checkpoint.name,
        "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
        "precision": checkpoint.precision,
        "weights": checkpoint.fingerprints["weights"],
        "config": checkpoint.model.config.to_dict(),
        "data": str(options.data),
        "repeats": options.repeats,
        "feeding": "text to tokens to log-probabilities, into a session with a store",
    }
    device = checkpoint.model.device
    results = options.out / f"{options.name}.json"
    write_results(results, settings=settings, figures=figures, device=device)
    draw(figures, results.with_suffix(".png"))
    show(figures)


if __name__ == "__main__":
    main()
