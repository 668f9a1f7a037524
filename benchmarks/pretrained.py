"""A pretrained model on a CPU: speed and bits per byte in each precision, beside llama.cpp.

    python -m benchmarks.pretrained                                       # precisions alone
    python -m benchmarks.pretrained --llama-bench native=llama-bench      # beside llama.cpp
    python -m benchmarks.pretrained --xllamacpp                           # and its prebuilt wheel

The precisions and the peers read and write in turns, round after round, with the same number of
threads, a model file of the same name, and about as many tokens in sight. llama.cpp keeps every
token in sight until its context is full; there, it stops, or drops half of the context and
continues. These models forget as they go, so reading is also measured far behind that point.

Reading is without log-probabilities, writing without sampling, as in `llama-bench`.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import streamlm
from benchmarks.tools.llama_cpp import LlamaBench, Peer, Xllamacpp
from benchmarks.tools.timing import median_interval, ratio, seconds
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.checkpoints.sources import find_model
from streamlm.cli.display import bar, output
from streamlm.lab.results import usable_cores, write_results
from streamlm.models.base import Model
from streamlm.models.cache import Cache
from streamlm.models.llama_config import LlamaConfig
from streamlm.runtime.stream import advance, prefill, score
from streamlm.state import State
from streamlm.training.documents import read_documents

READ, WRITTEN = 512, 64
Speeds = dict[str, dict[str, list[float]]]  # of each runner, tokens per second in every round


class Stream:
    """A stream of random tokens in one precision, at some position."""

    def __init__(self, model: Model, length: int) -> None:
        self._model, self._cache = model, Cache()
        random = torch.Generator().manual_seed(0)
        self._ids = torch.randint(model.config.vocab_size, (1, READ), generator=random)
        self._state = model.init_state(1)
        while int(self._state.position) < length:
            self._state = self._read(self._state, self._cache)

    def measure(self) -> tuple[float, float]:
        """Tokens per second of reading and of writing; the stream stays where it is."""
        reading = seconds(partial(self._read, self._state, self._cache.copy()))
        writing = seconds(partial(self._write, self._state, self._cache.copy()))
        return READ / reading, WRITTEN / writing

    def _read(self, state: State, cache: Cache) -> State:
        return prefill(self._model, self._ids, state, cache)

    def _write(self, state: State, cache: Cache) -> None:
        token = self._ids[:, :1]
        for _ in range(WRITTEN):
            hidden, state = advance(self._model, token, state, cache)
            with torch.no_grad():
                token = self._model.logits(hidden).argmax(dim=1, keepdim=True)


def log_probs(checkpoint: Checkpoint, ids: np.ndarray) -> torch.Tensor:
    """Log-probabilities in nats of all tokens but the first: [n - 1]."""
    model, tokens = checkpoint.model, torch.from_numpy(ids.astype(np.int64))[None]
    found, _ = score(model, tokens[:, :-1], tokens[:, 1:], model.init_state(1))
    return found[0]


def text_figures(
    checkpoints: dict[str, Checkpoint],
    data: Path,
    *,
    books: int,
    tokens: int,
    step: Callable[[], object],
) -> dict[str, Any]:
    """Bits per byte of the beginnings of books, and differences from the first precision."""
    tokenizer = next(iter(checkpoints.values())).tokenizer
    found: dict[str, list[torch.Tensor]] = {name: [] for name in checkpoints}
    n_bytes = []
    for text in list(read_documents(data))[:books]:
        begin = len(text) // 10  # behind title pages and tables of contents
        ids = tokenizer.encode(text[begin : begin + 8 * tokens])[: tokens + 1]
        n_bytes.append(int(tokenizer.token_lengths[ids[1:]].sum()))
        for name, checkpoint in checkpoints.items():
            found[name].append(log_probs(checkpoint, ids))
            step()
    first, figures = next(iter(found)), {}
    for name, rows in found.items():
        bits = [-float(row.sum()) / math.log(2) for row in rows]
        added = [
            (mine + float(theirs.sum()) / math.log(2)) / n
            for mine, theirs, n in zip(bits, found[first], n_bytes, strict=True)
        ]
        figures[name] = {
            "bits_per_byte": sum(bits) / sum(n_bytes),
            "added_bits_per_byte": median_interval(added),
            "books": len(bits),
        }
    return figures


def speed_figures(speeds: Speeds, peers: list[str]) -> dict[str, Any]:
    """Medians with intervals, and ratios to each peer of the same round."""
    return {
        name: {
            what: {
                **median_interval(rounds),
                **{f"to_{peer}": ratio(rounds, speeds[peer][what]) for peer in peers},
            }
            for what, rounds in found.items()
        }
        for name, found in speeds.items()
    }


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    stored = find_model(options.model)
    checkpoints = {
        name: streamlm.load(options.model, device="cpu", settings={"precision": name})
        for name in options.precisions
    }
    config = next(iter(checkpoints.values())).model.config
    assert isinstance(config, LlamaConfig), f"{options.model} is no model of the Llama family"
    depth = options.depth or config.columns - config.segment_len // 2
    peers: dict[str, Peer] = {}
    for each in options.llama_bench:
        name, _, program = each.rpartition("=")
        peers[name or "llama.cpp"] = LlamaBench(program, stored.path, threads=options.threads)
    if options.xllamacpp:
        context = depth + READ + WRITTEN + 64
        peers["xllamacpp"] = Xllamacpp(stored.path, threads=options.threads, context=context)
    near, speeds = 2 * config.columns, {}
    runners: dict[str, Callable[[], tuple[float, float]]] = {}
    total = len(checkpoints) + options.rounds * (2 * len(checkpoints) + len(peers))
    total += options.books * len(checkpoints)
    with bar("pretrained", total=total, fields="{task.fields[note]}") as (progress, task):
        for name, checkpoint in checkpoints.items():
            progress.update(task, note=f"reading {options.far:,} tokens in {name}", advance=1)
            runners[name] = Stream(checkpoint.model, near).measure
            runners[f"{name}, far"] = Stream(checkpoint.model, options.far).measure
        sizes = {"depth": depth, "read": READ, "written": WRITTEN}
        runners |= {name: partial(peer.measure, **sizes) for name, peer in peers.items()}
        speeds = {name: {"reading": [], "writing": []} for name in runners}
        for _ in range(options.rounds):
            for name, runner in runners.items():
                progress.update(task, note=name)
                for what, speed in zip(("reading", "writing"), runner(), strict=True):
                    speeds[name][what].append(speed)
                progress.update(task, advance=1)
        progress.update(task, note="bits per byte")
        step = partial(progress.update, task, advance=1)
        texts = text_figures(
            checkpoints, options.data, books=options.books, tokens=options.tokens, step=step
        )
    figures = {"speed": speed_figures(speeds, list(peers)), "text": texts}
    settings = {
        **{"model": options.model, "weights": stored.weights_digest, "threads": options.threads},
        **{"rounds": options.rounds, "peer_depth": depth, "near": near, "far": options.far},
        **{"peers": list(peers) or "not measured", "data": options.data.name},
        **{"tokens_of_each_book": options.tokens, "windows": config.to_dict()},
    }
    write_results(options.out / "pretrained.json", settings=settings, figures=figures)
    show(figures, list(peers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depth", type=int, help="context of the peers; default: of the windows")
    parser.add_argument("--far", type=int, default=20_000, help="tokens read before, far along")
    parser.add_argument("--llama-bench", nargs="*", default=[], metavar="[NAME=]PROGRAM")
    parser.add_argument("--xllamacpp", action="store_true", help="also the importable module")
    parser.add_argument("--data", type=Path, default=Path("data/books/test.txt.xz"))
    parser.add_argument("--books", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1536, help="of each book")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def show(figures: dict[str, Any], peers: list[str]) -> None:
    """The figures as a table."""
    table = Table(title="tokens per second, medians")
    for column in ("", "reading", "writing", *(f"to {peer}" for peer in peers), "bits/byte"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in figures["speed"].items():
        reading, writing = found["reading"], found["writing"]
        text = figures["text"].get(name)
        table.add_row(
            name,
            f"{reading['median']:,.0f}",
            f"{writing['median']:,.1f}",
            *(
                f"{reading[f'to_{peer}']['median']:.2f} / {writing[f'to_{peer}']['median']:.2f}"
                for peer in peers
            ),
            f"{text['bits_per_byte']:.4f}" if text else "",
        )
    output.print(table)
    if not peers:
        output.print("llama.cpp: not measured (--llama-bench, --xllamacpp)")


if __name__ == "__main__":
    main()
