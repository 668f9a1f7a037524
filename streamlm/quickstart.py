"""`make quickstart`: read the bundled book, save, resume in a new process, write on.

Each step is a command of its own, shown as one would type it.
"""

import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

SESSION = "quickstart"


def run(*arguments: str) -> None:
    """Run one command of streamlm in a process of its own; ends everything if it fails."""
    print(f"\n$ streamlm {shlex.join(arguments)}", flush=True)
    try:
        result = subprocess.run([sys.executable, "-m", "streamlm", *arguments], check=False)
    except KeyboardInterrupt:  # the command has said what it leaves behind
        sys.exit(130)
    if result.returncode:
        sys.exit(result.returncode)


def main() -> None:
    """The quick start of the README."""
    book = Path(str(resources.files("streamlm") / "assets" / "books" / "beyond-the-city.txt"))
    if (Path("sessions") / f"{SESSION}.zarr").exists():
        run("sessions", "delete", SESSION, "--yes")  # of an earlier quick start
    run("feed", str(book), "--session", SESSION, "--score")
    run("generate", "--session", SESSION, "--max-tokens", "120", "--seed", "7")
    run("sessions", "show", SESSION)
    print(f"\nThe session remembers. Go on: streamlm generate --session {SESSION}")


if __name__ == "__main__":
    main()
