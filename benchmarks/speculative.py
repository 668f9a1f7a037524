"""Writing with a drafter beside writing without: tokens per second, tokens per pass of the model.

    python -m benchmarks.speculative --draft DIR --threads 1

Both go on from the same places of held-out books, in turns. What the drafter
knows is told apart: a conditionally independent likelihood of each of its offsets.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import streamlm
from benchmarks.tools.drafting import Drafting, starts
from benchmarks.tools.speculative_plot import draw
from benchmarks.tools.timing import ratio, side_by_side
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.runtime.drafter import Drafter, load_drafter
from streamlm.runtime.sampling import Sampling
from streamlm.training.data import load_corpus
from streamlm.training.drafter import offset_nats

TARGET = 1.2  # faster by so much, it is worth shipping
TEMPERATURES = (0.0, 0.8, 1.0)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    options: argparse.Namespace, checkpoint: Checkpoint, drafter: Drafter
) -> dict[str, Any]:
    """All figures."""
    corpus = load_corpus([options.data], checkpoint.tokenizer)
    streams = starts(checkpoint, corpus, n=options.repeats, read=options.read)
    longest = drafter.config.n_tokens
    rows = []
    runs = [(temperature, longest) for temperature in TEMPERATURES]
    runs += [(options.temperature, n) for n in range(1, longest)]
    total = len(runs) * options.repeats
    with bar("with and without, in turns", total=total) as (progress, task):
        for temperature, n_tokens in runs:
            sampling = Sampling(temperature=temperature)
            plain, drafted = (
                Drafting(
                    checkpoint,
                    streams,
                    given,
                    sampling,
                    tokens=options.tokens,
                    clock=CLOCKS[options.clock],
                )
                for given in (None, drafter.shortened(n_tokens))
            )
            seconds = side_by_side(
                plain, drafted, repeats=options.repeats, progress=lambda: progress.advance(task)
            )
            faster = ratio(*seconds)
            per_pass = drafted.written / drafted.passes
            rows.append(
                {
                    "temperature": temperature,
                    "drafted": n_tokens,
                    "tokens_per_second_without": options.tokens / float(np.median(seconds[0])),
                    "tokens_per_second_with": options.tokens / float(np.median(seconds[1])),
                    "speedup": faster,
                    "tokens_per_pass": per_pass,
                    "cost_of_a_pass_in_plain_tokens": per_pass / faster["median"],
                    "accepted_by_offset": drafted.shares(),
                }
            )
    with bar("what the drafter knows", total=options.eval_tokens) as (progress, task):
        nats, places = offset_nats(
            drafter,
            checkpoint,
            corpus,
            max_tokens=options.eval_tokens,
            progress=lambda n: progress.advance(task, n),
        )
    return {
        "target": TARGET,
        "runs": rows,
        "conditionally_independent_nats_by_offset": nats,
        "places": places,
    }


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(title="writing with a drafter ÷ without")
    columns = ("temperature", "drafted", "without", "with", "ratio", "95 %", "per pass", "costs")
    for column in (*columns, "accepted"):
        table.add_column(column, justify="right")
    for row in figures["runs"]:
        found = row["speedup"]
        table.add_row(
            f"{row['temperature']}",
            f"{row['drafted']}",
            f"{row['tokens_per_second_without']:.0f}",
            f"{row['tokens_per_second_with']:.0f}",
            f"{found['median']:.3f}",
            f"{found['low']:.3f} – {found['high']:.3f}",
            f"{row['tokens_per_pass']:.2f}",
            f"{row['cost_of_a_pass_in_plain_tokens']:.2f}",
            " ".join(f"{share:.2f}" for share in row["accepted_by_offset"]),
        )
    output.print(table)
    nats = figures["conditionally_independent_nats_by_offset"]
    output.print(
        "conditionally independent nats a token by offset: "
        + " ".join(f"{value:.3f}" for value in nats)
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculative",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="books", help="a bundled checkpoint or a directory")
    parser.add_argument("--draft", type=Path, required=True, help="a drafter's folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--tokens", type=int, default=128, help="written by each measurement")
    parser.add_argument("--read", type=int, default=600, help="tokens of each book read before")
    parser.add_argument("--repeats", type=int, default=16, help="pairs of each measurement")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the shorter drafts")
    parser.add_argument("--eval-tokens", type=int, default=40_000)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, where others use the machine too"
    )
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    drafter = load_drafter(options.draft, checkpoint)
    figures = measure(options, checkpoint, drafter)
    settings = {
        "model": checkpoint.name,
        "weights": checkpoint.fingerprints["weights"],
        "drafter": drafter.config.__dict__,
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "data": options.data.name,
        "tokens": options.tokens,
        "read": options.read,
        "repeats": options.repeats,
        "clock": options.clock,
    }
    device = checkpoint.model.device
    path = options.out / "speculative.json"
    write_results(path, settings=settings, figures=figures, device=device)
    draw(figures, options.out / "speculative.png")
    show(figures)


if __name__ == "__main__":
    main()
