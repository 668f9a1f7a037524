"""`make quickstart`: read the bundled book, save, resume in a new process, and generate.

Each step is one command, shown as typed.
"""

import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

SESSION = "quickstart"


def run(*arguments: str) -> None:
    """Run one streamlm command in a new process; exit if it fails."""
    print(f"\n$ streamlm {shlex.join(arguments)}", flush=True)
    try:
        result = subprocess.run([sys.executable, "-m", "streamlm", *arguments], check=False)
    except KeyboardInterrupt:  # the command has printed its message
        sys.exit(130)
    if result.returncode:
        sys.exit(result.returncode)


def main() -> None:
    """Run the quick start of the README."""
    book = Path(str(resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"))
    if (Path("sessions") / f"{SESSION}.zarr").exists():
        run("sessions", "delete", SESSION, "--yes")  # from an earlier run
    run("feed", str(book), "--session", SESSION, "--score")
    run("generate", "--session", SESSION, "--max-tokens", "120", "--seed", "7")
    run("sessions", "show", SESSION)
    print(f"\nThe session is saved. Continue it: streamlm generate --session {SESSION}")


if __name__ == "__main__":
    main()
