"""Training on several ranks: tokens a second of one, of two, and of two that do not communicate.

    python -m benchmarks.ranks                 # the bundled model's shape, 8 rows a rank
    python -m benchmarks.ranks --ranks 4 --rounds 8

Ranks have one thread each. The arrangements take turns within every round, so that whatever else
the machine does meets all alike. Two processes that do not communicate share the machine alone; two
ranks also add their gradients. The texts are random tokens, all scored.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import streamlm
from streamlm.cli.display import bar, output
from streamlm.config import ModelConfig
from streamlm.lab.results import write_results
from streamlm.training.config import TrainConfig
from streamlm.training.data import Corpus
from streamlm.training.ranks import joined
from streamlm.training.trainer import Trainer
from tokenizer import load_tokenizer

BOOKS = Path(streamlm.__file__).parent / "assets" / "books"
ARRANGEMENTS = ("one rank", "apart", "ranks")


def random_corpus(vocab_size: int) -> Corpus:
    """Documents of random tokens, long enough for a measurement."""
    ids = np.random.default_rng(1).integers(1, vocab_size, 400_000)
    offsets = np.arange(0, len(ids) + 1, 8_000)
    return Corpus(ids, offsets, 4 * len(ids), len(ids))


def worker(model: Path, *, rows: int, warmup: int, steps: int, seconds: Path) -> None:
    """Train on this rank, and write the seconds of the steps after the first few."""
    tokenizer = load_tokenizer(BOOKS / "tokenizer.model")
    config = ModelConfig.from_dict(json.loads(model.read_text(encoding="utf-8")))
    corpus = random_corpus(config.vocab_size)
    most = 1 << 30
    with tempfile.TemporaryDirectory() as folder, joined("cpu") as ranks:
        shared = Path(folder)
        if ranks.distributed:  # all ranks of the benchmark are on one machine
            shared = seconds.parent / "run"
        trainer = Trainer(
            config,
            TrainConfig(
                steps=most, batch_size=rows, checkpoint_steps=most, eval_steps=most, log_steps=most
            ),
            tokenizer=tokenizer,
            train=corpus,
            valid=corpus,
            folder=shared,
            ranks=ranks,
        )
        run = trainer.run()
        list(islice(run, warmup))
        began = time.perf_counter()
        tokens = trainer.tokens
        list(islice(run, steps))
        spent, tokens = time.perf_counter() - began, trainer.tokens - tokens
        if ranks.leads:
            seconds.write_text(json.dumps({"tokens": tokens, "seconds": spent}))


def rate(arrangement: str, n: int, options: argparse.Namespace) -> float:
    """Tokens a second of all processes together."""
    call = ["-m", "benchmarks.ranks", "--worker", "--model", str(options.model)]
    call += ["--rows", str(options.rows), "--steps", str(options.steps)]
    call += ["--warmup", str(options.warmup)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for index in range(n if arrangement == "apart" else 1):
            file = Path(folder) / f"{index}.json"
            launch = [sys.executable]
            if arrangement == "ranks":
                launch += [
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc-per-node",
                    str(n),
                ]
            commands.append([*launch, *call, "--seconds", str(file)])
        running = [subprocess.Popen(each, env=environment) for each in commands]
        if any([process.wait() for process in running]):
            raise RuntimeError(f"a process of {arrangement!r} failed")
        files = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return sum(each["tokens"] / each["seconds"] for each in files)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All rates, in rounds, and the efficiencies of each round."""
    rates: dict[str, list[float]] = {name: [] for name in ARRANGEMENTS}
    with bar("measuring", total=options.rounds * len(ARRANGEMENTS)) as (progress, task):
        for index in range(options.rounds):
            turn = ARRANGEMENTS[index % 3 :] + ARRANGEMENTS[: index % 3]
            for name in turn:
                rates[name].append(rate(name, options.ranks, options))
                progress.advance(task)
    one, apart, ranks = (rates[name] for name in ARRANGEMENTS)
    return {
        "tokens_per_second": rates,
        "efficiency": {
            "of one rank": [r / (options.ranks * o) for r, o in zip(ranks, one, strict=True)],
            "of two apart": [r / a for r, a in zip(ranks, apart, strict=True)],
        },
        "load_before": options.load,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=BOOKS / "config.json", help="its shape")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="of each rank")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ranks.json"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.worker:
        worker(
            options.model,
            rows=options.rows,
            warmup=options.warmup,
            steps=options.steps,
            seconds=options.seconds,
        )
        return
    options.load = os.getloadavg()[0]
    figures = measured(options)
    settings = {name: getattr(options, name) for name in ("ranks", "rows", "warmup", "steps")}
    settings["model"] = options.model.parent.name
    write_results(options.out, settings=settings, figures=figures)
    table = Table("", "tokens/s, median", "lowest", "highest")
    for name, values in figures["tokens_per_second"].items():
        cells = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{each:,.0f}" for each in cells))
    output.print(table)
    for name, values in figures["efficiency"].items():
        output.print(f"efficiency {name}: {statistics.median(values):.2f}")


if __name__ == "__main__":
    main()
