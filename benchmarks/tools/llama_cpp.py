"""llama.cpp as a peer: its own `llama-bench`, or the wheel `xllamacpp`. Neither is needed here."""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Protocol

BATCH = 512  # tokens that both peers read at once, their default


class Peer(Protocol):
    """A program that reads and writes with a .gguf file."""

    def measure(self, *, depth: int, read: int, written: int) -> tuple[float, float]:
        """Tokens per second of reading `read` and of writing `written` tokens.

        Args:
            depth: tokens of context before them.
        """


class LlamaBench:
    """`llama-bench`, by its path or its name on PATH. Its tokens are random, and not sampled."""

    def __init__(self, program: str, model: Path, *, threads: int) -> None:
        found = shutil.which(program)
        if found is None:
            raise FileNotFoundError(f"no program {program!r}; allowed: one on PATH, or its path")
        self._call = [found, "-m", str(model), "-t", str(threads), "-o", "json", "-r", "1"]

    def measure(self, *, depth: int, read: int, written: int) -> tuple[float, float]:
        """See `Peer.measure`."""
        sizes = ["-p", str(read), "-n", str(written), "-d", str(depth)]
        done = subprocess.run([*self._call, *sizes], capture_output=True, text=True, check=True)
        rows = json.loads(done.stdout)
        speeds = {bool(row["n_gen"]): float(row["avg_ts"]) for row in rows}
        return speeds[False], speeds[True]


class Xllamacpp:
    """The wheel's server, in this process. It samples the likeliest token."""

    def __init__(self, model: Path, *, threads: int, context: int) -> None:
        import xllamacpp  # type: ignore[import-not-found]

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx, params.n_parallel = context, 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)

    def measure(self, *, depth: int, read: int, written: int) -> tuple[float, float]:
        """See `Peer.measure`; the prompt is another one each time, so nothing of it is cached."""
        ids = [random.randrange(1000, 40_000) for _ in range(depth + read)]
        self._complete(ids[:depth], 1)
        timings = self._complete(ids, written)
        return timings["prompt_per_second"], timings["predicted_per_second"]

    def _complete(self, ids: list[int], n: int) -> dict[str, Any]:
        request = {"prompt": ids, "n_predict": n, "ignore_eos": True, "cache_prompt": True}
        answer = self._server.handle_completions({**request, "temperature": 0})
        found = json.loads(answer) if isinstance(answer, str | bytes) else answer
        timings: dict[str, Any] = found["timings"]
        return timings
