"""Many sessions on one model: tokens a second together, latency beside a reader, memory.

    python -m benchmarks.serve                  # the bundled model, 1 to 64 sessions
    python -m benchmarks.serve --model smollm2 --read 128 --tokens 32 --parts throughput \
        --llama-server llama-server --out benchmarks/results/serve-smollm2.json

Sessions have each read another part of a book, and so stand in different phases. Each count writes
with the engine and, in turns with it, one session after the other without. Time is processor time.
llama.cpp's server, with the same file, threads, sampling and tokens, writes as many sequences in as
many slots in the same rounds; its time is that of its process, HTTP included.
"""

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import streamlm
from benchmarks.tools.llama_server import LlamaServer
from streamlm.checkpoints.checkpoint import Checkpoint
from streamlm.checkpoints.sources import find_model
from streamlm.cli.display import bar, output
from streamlm.engine import Engine
from streamlm.lab.results import write_results
from streamlm.sessions.session import Session

BOOK = Path(streamlm.__file__).parent / "assets" / "books" / "beyond-the-city.txt"
READ = 400  # tokens that session n has read, and n more
PARTS = ("memory", "throughput", "latency")
LATENCY_ROWS, LATENCY_TOKENS = 16, 16


def prompts(checkpoint: Checkpoint, n: int, text: str, *, read: int) -> list[list[int]]:
    """Token ids of different parts of a book, each of another length."""
    ids = checkpoint.tokenizer.encode(text).tolist()
    starts = [37 * index % (len(ids) - read - n) for index in range(n)]
    return [ids[start : start + read + index] for index, start in enumerate(starts)]


def prepared(checkpoint: Checkpoint, n: int, text: str, *, read: int = READ) -> list[Session]:
    """Sessions that have read different parts of a book."""
    sessions = []
    for ids in prompts(checkpoint, n, text, read=read):
        session = Session(checkpoint)
        session.feed(checkpoint.tokenizer.decode(ids))
        sessions.append(session)
    return sessions


def one_by_one(sessions: list[Session], tokens: int) -> float:
    """Tokens a second of processor time of sessions that write one after the other."""
    began = time.process_time()
    for seed, session in enumerate(sessions):
        for _ in session.fork().generate(max_tokens=tokens, seed=seed):
            pass
    return len(sessions) * tokens / (time.process_time() - began)


def together(engine: Engine, sessions: list[Session], tokens: int) -> float:
    """Tokens a second of processor time of sessions that an engine serves."""
    forks = [session.fork() for session in sessions]
    began = time.process_time()
    handles = [
        engine.generate(fork, max_tokens=tokens, seed=seed) for seed, fork in enumerate(forks)
    ]
    for handle in handles:
        handle.result()
    return len(sessions) * tokens / (time.process_time() - began)


def throughput(
    checkpoint: Checkpoint, counts: list[int], text: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All ways, in turns, for each count of sessions."""
    found, tokens, rounds, read = [], options.tokens, options.rounds, options.read
    with bar("writing", total=len(counts) * rounds) as (progress, task):
        for n in counts:
            sessions = prepared(checkpoint, n, text, read=read)
            asked = prompts(checkpoint, n, text, read=read)
            alone, served, peer = list[float](), list[float](), list[float]()
            with ExitStack() as stack:
                engine = stack.enter_context(Engine(checkpoint, rows=n))
                server = None
                if options.llama_server is not None:
                    server = stack.enter_context(
                        LlamaServer(
                            options.llama_server,
                            find_model(options.model).path,
                            threads=options.threads,
                            slots=n,
                            context=len(asked[-1]) + tokens + 8,
                        )
                    )
                    server.write(asked, 2)
                together(engine, sessions[:1], 2)
                for _ in range(rounds):
                    # A few of many are enough: each takes as long as the others.
                    alone.append(one_by_one(sessions[:8], tokens))
                    served.append(together(engine, sessions, tokens))
                    if server is not None:
                        peer.append(server.write(asked, tokens))
                    progress.advance(task)
            row: dict[str, Any] = {
                "sessions": n,
                "one_by_one": statistics.median(alone),
                "engine": statistics.median(served),
                "ratio": spread(served, alone),
            }
            if peer:
                row |= {"llama.cpp": statistics.median(peer), "to_peer": spread(served, peer)}
            found.append(row)
    return found


def spread(mine: list[float], theirs: list[float]) -> list[float]:
    """The least, the median and the greatest ratio of the same rounds."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return [min(ratios), statistics.median(ratios), max(ratios)]


def latency(checkpoint: Checkpoint, text: str, *, requests: int) -> dict[str, Any]:
    """Seconds to the first token for 15 sessions that ask again and again, a book being read."""
    writers = prepared(checkpoint, LATENCY_ROWS - 1, text)
    found: dict[str, Any] = {}
    with Engine(checkpoint, rows=LATENCY_ROWS) as engine:
        for what in ("alone", "beside a reader"):
            reader = None
            if what != "alone":
                reader = engine.feed(Session(checkpoint), *[text] * 50)
            waits: list[float] = []
            with bar(f"latency {what}", total=requests) as (progress, task):
                while len(waits) < requests:
                    began, handles = time.perf_counter(), []
                    for seed, writer in enumerate(writers):
                        handle = engine.generate(
                            writer.fork(), "And then", max_tokens=LATENCY_TOKENS, seed=seed
                        )
                        handles.append(handle)
                    for handle in handles:
                        next(iter(handle), None)
                        waits.append(time.perf_counter() - began)
                    for handle in handles:
                        handle.result()
                    progress.advance(task, len(handles))
            if reader is not None:
                assert not reader.done, "the book was too short"
                reader.cancel()
            waits.sort()
            found[what] = {
                "requests": len(waits),
                "p50": waits[len(waits) // 2],
                "p99": waits[int(0.99 * len(waits))],
            }
    return found


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory(checkpoint: Checkpoint, text: str, *, n: int) -> dict[str, Any]:
    """Bytes of a process for each session that it has open, idle."""
    prepared(checkpoint, 2, text)
    before = resident()
    sessions = prepared(checkpoint, n, text)
    for session in sessions:
        session.live.cache.release()
    grown = resident() - before
    return {"sessions": n, "state": sessions[0].state.nbytes, "process": grown / n}


def show_throughput(rows: list[dict[str, Any]]) -> None:
    table = Table("sessions", "one by one", "engine", "÷ one by one", "llama.cpp", "÷ llama.cpp")
    for row in rows:
        peer, ratio = row.get("llama.cpp"), row.get("to_peer")
        table.add_row(
            *(str(row["sessions"]), f"{row['one_by_one']:.1f}", f"{row['engine']:.1f}"),
            ", ".join(f"{each:.2f}" for each in row["ratio"]),
            "" if peer is None else f"{peer:.1f}",
            "" if ratio is None else ", ".join(f"{each:.2f}" for each in ratio),
        )
    output.print("tokens a second of processor time; ratios: least, median, most")
    output.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="books")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--read", type=int, default=READ, help="tokens read before, and more")
    parser.add_argument("--tokens", type=int, default=100, help="that each session writes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=600, help="whose latency is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--llama-server", metavar="PROGRAM", help="llama.cpp's, for a model in a .gguf file"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    text = BOOK.read_text(encoding="utf-8")
    figures: dict[str, Any] = {}
    if "memory" in options.parts:  # first: later, the process has memory to spare
        figures["memory"] = found = memory(checkpoint, text, n=200)
        output.print(
            f"an idle session: {found['state'] / 1e6:.2f} MB of state, "
            f"{found['process'] / 1e6:.2f} MB of the process"
        )
    if "throughput" in options.parts:
        figures["throughput"] = throughput(checkpoint, options.sessions, text, options)
        show_throughput(figures["throughput"])
    if "latency" in options.parts:
        figures["latency"] = latency(checkpoint, text, requests=options.requests)
        for what, found in figures["latency"].items():
            output.print(
                f"first token of {LATENCY_ROWS - 1} sessions that ask at once, {what}: median "
                f"{1e3 * found['p50']:.0f} ms, 99th percentile {1e3 * found['p99']:.0f} ms"
            )
    write_results(
        options.out,
        settings={name: value for name, value in vars(options).items() if name != "out"},
        figures=figures,
        device=checkpoint.model.device,
    )


if __name__ == "__main__":
    main()
