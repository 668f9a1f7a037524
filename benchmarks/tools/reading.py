"""Reads a number of tokens into a new session, in a process of its own, and says what it took.

`benchmarks.stream` runs `python -m benchmarks.tools.reading …` and reads one JSON object per line.
"""

import argparse
import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

# Characters handed to the session at a time. About as many as 1,000 tokens, so that a short reading
# and a long one are fed in pieces of the same size.
BLOCK = 1 << 12


def endless_text(path: Path, position: Callable[[], int], stops: list[int]) -> Iterator[str]:
    """The file's text, again from its beginning when it ends, until the last stop was reached.

    Args:
        position: tells how many tokens were read; stops: positions to hit closely, rising.
    """
    opener: Any = lzma.open if path.suffix == ".xz" else open
    stops = list(stops)
    while True:
        file: IO[str]
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            while stops:
                # Towards a stop in small pieces, so that not many too many are read.
                block = file.read(min(BLOCK, max(128, 3 * (stops[0] - position()))))
                if not block:
                    break
                yield block
                while stops and position() >= stops[0]:
                    stops.pop(0)
            if not stops:
                return
            if not file.tell():
                raise ValueError(f"{path} is empty")


def run_reader(
    *,
    model: str,
    device: str,
    threads: int,
    data: Path,
    store: Path,
    tokens: int,
    progress: Callable[[int], object] = lambda position: None,
) -> dict[str, Any]:
    """Read `tokens` tokens into a new session at `store` in a fresh process.

    Returns:
        peak_bytes: largest resident memory while reading; before_bytes: what it was when the model
        was loaded; curve: [position, seconds] after each block; marks: what the state took at
        powers of ten; position, saves.
    """
    command = [sys.executable, "-m", "benchmarks.tools.reading"]
    for name, value in (
        ("--model", model),
        ("--device", device),
        ("--threads", threads),
        ("--data", data),
        ("--store", store),
        ("--tokens", tokens),
    ):
        command += [name, str(value)]
    found: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = json.loads(line)
            progress(found["position"])
    if process.returncode:
        raise RuntimeError(f"reading {tokens} tokens failed with exit code {process.returncode}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--whole", action="store_true", help="read the file once, to its end")
    parser.add_argument("--unscored", action="store_true", help="without log-probabilities")
    options = parser.parse_args()

    import torch

    import streamlm
    from streamlm.cli.allocator import return_freed_memory
    from streamlm.lab.results import peak_memory, reset_peak_memory
    from streamlm.runtime.reports import Progress

    return_freed_memory()  # as `streamlm feed` does
    torch.set_num_threads(options.threads)
    checkpoint = streamlm.load(options.model, device=options.device)
    cuda = checkpoint.model.device.type == "cuda"
    session = streamlm.open(options.store, checkpoint)
    was_reset = reset_peak_memory()
    before = peak_memory()
    curve: list[tuple[int, float]] = []
    marks: list[dict[str, int]] = []
    powers = (10**n for n in range(3, 12))
    stops = [*(n for n in powers if n < options.tokens), options.tokens]

    def note(position: int) -> None:
        state = session.state
        real = sum(array.nbytes for array in state.to_numpy().values())
        marks.append(
            {
                "position": position,
                "state_bytes": state.nbytes,
                "real_bytes": real,
                "derived_bytes": session._live.cache.nbytes,
                "peak_bytes": peak_memory(),
            }
        )

    def progress(done: Progress) -> None:
        curve.append((done.report.position, round(done.report.seconds, 4)))
        while stops and done.report.position >= stops[0]:
            stops.pop(0)
            note(done.report.position)
        print(json.dumps({"position": done.report.position}), flush=True)

    with session:
        text = endless_text(options.data, lambda: session.position, stops)
        source = options.data if options.whole else text
        report = session.feed(source, score=not options.unscored, progress=progress)
        saved = session.saved
    found = {
        "position": report.position,
        "tokens": report.tokens,
        "bytes": report.n_bytes,
        "seconds": report.seconds,
        "bits_per_byte": None if options.unscored else report.bits_per_byte,
        "before_bytes": before,
        "peak_bytes": peak_memory(),
        "peak_of_reading_alone": was_reset,
        "peak_cuda_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "disk_bytes": sum(file.stat().st_size for file in options.store.rglob("*")),
        "saves": saved.seq if saved else 0,
        "curve": curve,
        "marks": marks,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
