"""llama.cpp's `llama-server` as a peer that writes in many slots at once. It is not needed here."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# As the sessions sample beside it.
SAMPLING = {
    **{"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
    "samplers": ["top_p", "temperature"],
}
PATIENCE = 600.0  # seconds to load a model, on a busy machine
TICKS = os.sysconf("SC_CLK_TCK")


class LlamaServer:
    """A server with a slot for each prompt. Use it as a context manager.

    Args:
        program: its path, or its name on PATH.
        model: a .gguf file.
        slots: sequences that it writes at once.
        context: tokens of each.
    """

    def __init__(
        self, program: str, model: Path, *, threads: int, slots: int, context: int
    ) -> None:
        found = shutil.which(program)
        if found is None:
            raise FileNotFoundError(f"no program {program!r}; allowed: one on PATH, or its path")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._url, self._slots = f"http://127.0.0.1:{port}", slots
        per_slot = -(-context // 256) * 256
        self._call = [
            *(found, "-m", str(model), "--host", "127.0.0.1", "--port", str(port)),
            *("-t", str(threads), "-tb", str(threads), "-np", str(slots)),
            *("-c", str(slots * per_slot), "--no-kv-unified", "-cram", "0"),
        ]

    def __enter__(self) -> Self:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._call, stdout=quiet, stderr=quiet)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"{self._url}/health"):
                    return self
            except urllib.error.URLError:  # it is loading
                if self._process.poll() is not None or time.monotonic() > until:
                    self._process.kill()
                    raise RuntimeError(f"{' '.join(self._call)} does not start") from None
                time.sleep(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def write(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Tokens a second of the server's processor time, writing after all prompts at once.

        A slot keeps its prompt, so a later call reads nothing of it again.
        """
        self._complete(prompts, 1)
        began = self._seconds()
        written = self._complete(prompts, tokens)
        assert written == len(prompts) * tokens, written
        return written / (self._seconds() - began)

    def _complete(self, prompts: Sequence[Sequence[int]], n: int) -> int:
        with ThreadPoolExecutor(self._slots) as pool:
            jobs = [pool.submit(self._post, slot, each, n) for slot, each in enumerate(prompts)]
            return sum(job.result()["tokens_predicted"] for job in jobs)

    def _post(self, slot: int, prompt: Sequence[int], n: int) -> Any:
        asked = {
            **{"prompt": list(prompt), "n_predict": n, "id_slot": slot, "cache_prompt": True},
            **{"ignore_eos": True, "seed": slot, **SAMPLING},
        }
        request = urllib.request.Request(
            f"{self._url}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def _seconds(self) -> float:
        """Processor time of the server and all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
